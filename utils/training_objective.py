"""What a training step minimises: the denoising loss of images, Diffusion-DPO of pairs, or both.

Shapes: a batch of B positions has the errors of B images, or of B preferred and B rejected images
(`utils.preference_samples.PairSet`), or of B images and these (`MixedSet`): in this order.
"""

from dataclasses import dataclass

import torch

from utils.diffusion import diffusion_loss
from utils.preference_loss import dpo_loss, implicit_accuracy, preference_margin

DENOISING_LOSS, DPO_LOSS, ACCURACY = "denoising_loss", "dpo_loss", "implicit_accuracy"


@dataclass(frozen=True)
class Objective:
    """``denoising_weight * mean(w_i s(t_i) e_i) + mean(w_p dpo_p)``.

    Attributes:
        num_images: Images of a batch in the denoising loss.
        num_pairs: Pairs of a batch; 0 without preferences.
        snr_weights: s, by timestep, (T,) on the device; None weighs all alike.
        beta: Of `utils.preference_loss.dpo_loss`.
        denoising_weight: Factor of the denoising loss beside that of the pairs.
    """

    num_images: int
    num_pairs: int = 0
    snr_weights: torch.Tensor | None = None
    beta: float = 0.0
    denoising_weight: float = 1.0

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what is told beside the loss."""
        if not self.num_pairs:
            return ()
        return (*([DENOISING_LOSS] if self.num_images else []), DPO_LOSS, ACCURACY)

    @property
    def pairs(self) -> slice:
        """Where the pairs' images stand in a batch."""
        return slice(self.num_images, None)

    def __call__(
        self,
        errors: torch.Tensor,
        *,
        weights: torch.Tensor,
        timesteps: torch.Tensor,
        reference: torch.Tensor | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, a float32 scalar, and what is told beside it, by the name of its column.

        Args:
            errors: Mean squared error of each image, (N,) float32.
            weights: Factor of each image or pair, (N,).
            timesteps: (N,) int64.
            reference: Errors of the frozen reference on the pairs' images, (2 P,).
        """
        images = slice(None, self.num_images)
        factors = weights[images]
        if self.snr_weights is not None:
            factors = factors * self.snr_weights[timesteps[images]]
        if not self.num_pairs:
            return diffusion_loss(errors, factors), {}
        loss, told = self._preferences(errors[self.pairs], weights[self.pairs], reference)
        if self.num_images:
            denoising = diffusion_loss(errors[images], factors)
            loss = loss + self.denoising_weight * denoising
            told[DENOISING_LOSS] = denoising
        return loss, {name: told[name].detach() for name in self.columns}

    def _preferences(self, errors, weights, reference):
        preferred, rejected = errors.chunk(2)
        reference_preferred, reference_rejected = reference.chunk(2)
        four = {
            "preferred": preferred,
            "rejected": rejected,
            "reference_preferred": reference_preferred,
            "reference_rejected": reference_rejected,
        }
        loss = dpo_loss(**four, beta=self.beta, weights=weights.chunk(2)[0])
        return loss, {DPO_LOSS: loss, ACCURACY: implicit_accuracy(preference_margin(**four))}
