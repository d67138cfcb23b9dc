"""Validation of a diagnosis classifier between the epochs of its training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from utils.backbones import Network
from utils.calibration import fit_temperature, image_losses
from utils.classification_metrics import auroc, nan_mean, predicted_labels
from utils.classifier import batched, probabilities, to_unit
from utils.classifier_optim import Precision

if TYPE_CHECKING:
    from utils.classifier_training import Examples


@torch.inference_mode()
def validate(
    network: Network,
    examples: Examples,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    multi_label: bool,
    precision: Precision,
    batch_size: int = 64,
) -> dict[str, float]:
    """Loss, macro AUROC and share of right images of the un-augmented validation images.

    ``val_calibrated_loss`` is the mean loss of an image at the temperature that suits them best
    (unweighted, as the temperature is fitted), and ``val_loss_error`` its standard error. By these
    two epochs are compared: the classifier is calibrated in the end, and of a few images the loss
    itself says how sure a network is rather than how often it is right.
    """
    network.eval()
    device = network.mean.device
    logits = []
    for batch in batched(examples.images, batch_size):
        gray = torch.from_numpy(np.stack(batch)).to(device)
        with precision.autocast():
            logits.append(network(to_unit(gray)).float())
    logits = torch.cat(logits)
    wanted = torch.from_numpy(examples.targets).float().to(device)
    probs = probabilities(logits, multi_label=multi_label).cpu().numpy()
    right = (predicted_labels(probs, multi_label=multi_label) == examples.targets).all(axis=1)
    areas = [auroc(probs[:, k], examples.targets[:, k]) for k in range(probs.shape[1])]
    scores = logits.double().cpu().numpy()
    temperature = fit_temperature(scores, examples.targets, multi_label=multi_label)
    losses = image_losses(scores / temperature, examples.targets, multi_label=multi_label)
    losses /= examples.targets.shape[1] if multi_label else 1
    return {
        "val_loss": float(loss_of(logits, wanted)),
        "val_calibrated_loss": float(losses.mean()),
        "val_loss_error": float(losses.std() / max(1, len(losses) - 1) ** 0.5),
        "val_accuracy": float(right.mean()),
        "val_auroc": float(nan_mean(np.array(areas))),
    }
