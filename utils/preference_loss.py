"""Diffusion-DPO: what a model learns from pairs of images of which one is preferred.

Shapes: P pairs; every error is the mean squared error of an image's prediction over channels and
latent pixels, with the same noise and timestep for both images of a pair.
"""

import torch
import torch.nn.functional as F


def preference_margin(
    *,
    preferred: torch.Tensor,
    rejected: torch.Tensor,
    reference_preferred: torch.Tensor,
    reference_rejected: torch.Tensor,
) -> torch.Tensor:
    """By how much more than the reference a model prefers the preferred image, (P,).

    ``(e_l - e_l_ref) - (e_w - e_w_ref)``: above 0 the model gained more on the preferred image
    than on the rejected one. ``beta / 2`` times it is the difference of the implicit rewards.

    Args:
        preferred: Errors e_w of the model on the preferred images, (P,) float32.
        rejected: Errors e_l on the rejected ones.
        reference_preferred: Errors e_w_ref of the frozen reference on the preferred images.
        reference_rejected: Errors e_l_ref on the rejected ones.
    """
    return (rejected - reference_rejected) - (preferred - reference_preferred)


def dpo_loss(
    *,
    preferred: torch.Tensor,
    rejected: torch.Tensor,
    reference_preferred: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Diffusion-DPO loss, the mean over the pairs; float32 scalar, log 2 at the reference.

    ``-log sigmoid(-beta / 2 ((e_w - e_w_ref) - (e_l - e_l_ref)))``, Wallace et al. 2023
    (https://arxiv.org/abs/2311.12908), equation 14, with a constant weight over timesteps, errors
    that are means, not sums, and the factor 1/2 as in the code the authors released: beta means
    what it means there (2000 to 5000). The gradient at the reference is ``beta / 4`` for e_w and
    ``-beta / 4`` for e_l.

    Args:
        preferred: Errors e_w of the model on the preferred images, (P,) float32.
        rejected: Errors e_l on the rejected ones.
        reference_preferred: Errors e_w_ref of the frozen reference on the preferred images.
        reference_rejected: Errors e_l_ref on the rejected ones.
        beta: How dear it is to leave the reference, >= 0; at 0 nothing is learned.
        weights: One factor a pair, (P,); None weighs all alike.
    """
    margin = preference_margin(
        preferred=preferred,
        rejected=rejected,
        reference_preferred=reference_preferred,
        reference_rejected=reference_rejected,
    )
    losses = -F.logsigmoid(beta / 2 * margin)
    return losses.mean() if weights is None else (losses * weights).mean()


def implicit_accuracy(margin: torch.Tensor) -> torch.Tensor:
    """Share of pairs whose `preference_margin` is above 0; 0 counts half, as at the reference."""
    return (margin > 0).float().mean() + 0.5 * (margin == 0).float().mean()
