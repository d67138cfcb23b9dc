"""Training on unlabeled images: FixMatch, and pseudo-labels as its simple form.

Shapes: B unlabeled images of a step, L labels, H = W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from utils.augmentation import augment, strong_view, weak_view
from utils.classifier import probabilities, to_unit
from utils.gray_images import GrayImages
from utils.shuffled_batches import endless_batches

if TYPE_CHECKING:
    from utils.classifier_training import TrainingOptions

RAMP_START, RAMP_END = 0.1, 0.6  # shares of the training between which Lee's weight rises
_SEEN_DECAY = 0.99  # a step, of the running mean of predictions: about the paper's 128 batches
_SEED_BRANCH = 1  # of the unlabeled stream's randomness, which must not touch the labelled one's


@dataclass(frozen=True)
class Unlabeled:
    """Images without labels, and how to learn from them.

    Attributes:
        images: Of patients outside the test set; the labelled images may be among them.
        method: ``fixmatch`` trains strong views on the labels that weak views
            of the same images are given (Sohn et al. 2020, https://arxiv.org/abs/2001.07685);
            ``pseudo_label`` trains standard views, with a weight that rises (Lee 2013,
            "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method").
        threshold: Least probability of a pseudo-label.
        ratio: Unlabeled images per labelled image of a full batch (the paper's mu).
        weight: Of the unlabeled loss (the paper's lambda_u, Lee's alpha_f).
        mix: Shares (L,) of exclusive labels that the images are expected to have; predictions are
            drawn towards it (see ``aligned``). None, or several labels an image: they are not.
    """

    images: GrayImages
    method: str = "fixmatch"
    threshold: float = 0.95
    ratio: int = 3
    weight: float = 1.0
    mix: np.ndarray | None = None


def aligned(probs: torch.Tensor, *, mix: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Distribution alignment: Berthelot et al. 2020 (https://arxiv.org/abs/1911.09785), 3.1.

    ``normalise(p mix / seen)``: with very few labels a network prefers some of them and confirms
    itself in it; a label that is predicted more often than expected needs more evidence.

    Args:
        probs: (B, L).
        mix: Expected shares of the labels, (L,).
        seen: Running mean of the predictions, (L,).
    """
    drawn = probs * (mix / seen.clamp_min(1e-6))
    return drawn / drawn.sum(dim=1, keepdim=True)


def pseudo_labels(
    probs: torch.Tensor, *, threshold: float, multi_label: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hard targets from a network's opinion on weak views, and which of them count.

    Multi-class: the likeliest label, where its probability reaches the threshold (FixMatch,
    equation 4). Multi-label: each label is a question of its own, yes where p >= threshold, no
    where p <= 1 - threshold, else left out.

    Args:
        probs: (B, L) of the weak views; no gradient goes through them.
        threshold: In [0.5, 1].
        multi_label: Whether labels may occur together.

    Returns:
        Targets (B, L) float32 of 0 and 1, and a mask (B, L) bool; of a multi-class image all of a
        row or none.
    """
    if multi_label:
        targets = (probs >= 0.5).float()
        return targets, torch.maximum(probs, 1 - probs) >= threshold
    highest, label = probs.max(dim=1, keepdim=True)
    targets = torch.zeros_like(probs).scatter_(1, label, 1.0)
    return targets, (highest >= threshold).expand_as(probs)


def masked_loss(
    logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor, *, multi_label: bool
) -> torch.Tensor:
    """Cross-entropy, or binary per label, where the mask is true; a mean over everything.

    FixMatch, equation 4: ``1 / B sum_b 1(max q_b >= threshold) H(q^_b, p(y | strong view))``. What
    is masked counts as zero, so the loss grows with the share of confident images.

    Args:
        logits: (B, L) of the strong views.
        targets: (B, L) as of ``pseudo_labels``.
        mask: (B, L) likewise.
        multi_label: Whether labels may occur together.
    """
    if multi_label:
        losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    else:
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        mask = mask.any(dim=1)
    return (losses * mask).mean()


def ramped_weight(done: float) -> float:
    """Lee's alpha(t) as a share of its final value: 0, then a straight rise, then 1.

    Args:
        done: Share of the training behind, in [0, 1].
    """
    return min(1.0, max(0.0, (done - RAMP_START) / (RAMP_END - RAMP_START)))


class UnlabeledStream:
    """Views of the unlabeled images, step after step, and the loss on them."""

    def __init__(
        self,
        unlabeled: Unlabeled,
        *,
        multi_label: bool,
        options: TrainingOptions,
        device: str,
    ):
        """Seed the stream's own randomness.

        Args:
            unlabeled: The images and how to learn from them.
            multi_label: Whether labels may occur together.
            options: Of the training; the number of images a step is that of a full batch times
                the ratio, however few the labelled images are.
            device: Where to train.
        """
        self.unlabeled, self.multi_label = unlabeled, multi_label
        self.flip, self.device = options.flip, device
        seeds = np.random.SeedSequence((options.seed, _SEED_BRANCH)).generate_state(3).tolist()
        self.noise = torch.Generator(device).manual_seed(seeds[0])
        order = torch.Generator().manual_seed(seeds[1])
        size = unlabeled.ratio * options.batch_size
        plan = endless_batches(len(unlabeled.images), size, order)
        crops = np.random.default_rng(seeds[2])
        self.batches = unlabeled.images.batches(plan, rng=crops)
        self.mix = self.seen = None
        if unlabeled.mix is not None and not multi_label:
            self.mix = torch.tensor(unlabeled.mix, dtype=torch.float32, device=device)
            self.seen = self.mix.clone()
        self.rows: list[tuple[torch.Tensor, torch.Tensor]] = []

    def views(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weak and the strong views of the next images, each (B, 1, H, W)."""
        _, gray = next(self.batches)
        images = to_unit(gray.to(self.device))
        strong_of = strong_view if self.unlabeled.method == "fixmatch" else augment
        weak = weak_view(images, self.noise, flip=self.flip)
        return weak, strong_of(images, self.noise, flip=self.flip)

    def loss(self, *, weak: torch.Tensor, strong: torch.Tensor, done: float) -> torch.Tensor:
        """The weighted loss.

        Args:
            weak: Logits (B, L) of the weak views.
            strong: Logits (B, L) of the others.
            done: Share of the training behind, in [0, 1].
        """
        probs = probabilities(weak, multi_label=self.multi_label)
        if self.mix is not None:
            self.seen = self.seen.lerp(probs.mean(dim=0), 1 - _SEEN_DECAY)
            probs = aligned(probs, mix=self.mix, seen=self.seen)
        targets, mask = pseudo_labels(
            probs, threshold=self.unlabeled.threshold, multi_label=self.multi_label
        )
        loss = masked_loss(strong, targets, mask, multi_label=self.multi_label)
        self.rows.append((mask.float().mean(), loss.detach()))
        ramp = ramped_weight(done) if self.unlabeled.method == "pseudo_label" else 1.0
        return self.unlabeled.weight * ramp * loss

    def epoch_facts(self) -> dict[str, float]:
        """Means since the last call: share of pseudo-labels that counted, and the loss."""
        shares, losses = (torch.stack(column) for column in zip(*self.rows))
        self.rows = []
        return {"pseudo_share": float(shares.mean()), "unlabeled_loss": float(losses.mean())}
