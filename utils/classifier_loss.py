"""A diagnosis classifier's loss, classes balanced. Shapes: N images, B of a batch, L labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

MAX_CLASS_WEIGHT = 10.0  # a class of three images must not rule the loss


def class_weights(targets: np.ndarray, *, multi_label: bool) -> torch.Tensor:
    """Weights (L,) that give every class the same say, at most ``MAX_CLASS_WEIGHT``.

    Multi-class: ``N / (L n_k)`` for cross-entropy. Multi-label: negatives per positive, for the
    positive term of the binary cross-entropy. King and Zeng 2001 (the prior correction by weights).

    Args:
        targets: (N, L) bool, every column with at least one True.
        multi_label: Whether labels may occur together.
    """
    positives = np.asarray(targets).sum(axis=0).astype(np.float64)
    count, num_labels = targets.shape
    ratio = (count - positives) / positives if multi_label else count / (num_labels * positives)
    return torch.tensor(np.clip(ratio, 1 / MAX_CLASS_WEIGHT, MAX_CLASS_WEIGHT), dtype=torch.float32)


def make_loss(
    targets: np.ndarray,
    *,
    multi_label: bool,
    class_balance: str,
    label_smoothing: float,
    device: str,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Cross-entropy, or binary per label, of logits (B, L) against targets (B, L) float."""
    weights = None
    if class_balance == "loss":
        weights = class_weights(targets, multi_label=multi_label).to(device)

    def loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if multi_label:
            return F.binary_cross_entropy_with_logits(logits.float(), wanted, pos_weight=weights)
        return F.cross_entropy(
            logits.float(),
            wanted.argmax(dim=1),
            weight=weights,
            label_smoothing=label_smoothing,
        )

    return loss
