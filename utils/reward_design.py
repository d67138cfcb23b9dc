"""Inputs of a reward as one matrix: four blocks that count the same, each made of many columns.

Image features; findings that the text names; what classifiers say of the asked diagnoses; and image
features times findings, by which the same picture is worth more beside one text than beside
another. A block is centred and divided by the root of its total variance: a ridge penalty then
treats a figure that stands alone and a thousand features alike.
Shapes: N images, D image features, F findings, A figures, E = D + F + A + D F columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.reward_features import Inputs

_ROUNDING = 1e-6  # a column that varies by less, relative to its mean, is constant


@dataclass(frozen=True)
class Design:
    """Means and scales of the training images, and how they make columns of inputs.

    Attributes:
        image_mean: (D,).
        image_scale: (D,), 1 for a constant feature.
        asked_mean: (A,), which also stands in for what is not known.
        asked_scale: (A,).
        centre: (E,), of the columns.
        scale: (E,), of the columns, the same within a block.
    """

    image_mean: np.ndarray
    image_scale: np.ndarray
    asked_mean: np.ndarray
    asked_scale: np.ndarray
    centre: np.ndarray
    scale: np.ndarray

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """The columns of images, (N, E) float64."""
        return (np.concatenate(self._blocks(inputs), axis=1) - self.centre) / self.scale

    def _blocks(self, inputs: Inputs) -> list[np.ndarray]:
        image = (inputs.image - self.image_mean) / self.image_scale
        asked = (inputs.asked - self.asked_mean) / self.asked_scale
        asked = np.where(np.isnan(asked), 0, asked)
        products = (image[:, :, None] * inputs.findings[:, None, :]).reshape(len(image), -1)
        return [image, inputs.findings, asked, products]


def make_design(inputs: Inputs, rows: np.ndarray) -> Design:
    """The design that these of the images (N,) bool set, of N inputs; the others are not seen."""
    seen = Inputs(inputs.image[rows], inputs.findings[rows], inputs.asked[rows])
    image, asked = _moments(seen.image), _moments(seen.asked)
    num_columns = seen.image.shape[1] * (1 + seen.findings.shape[1])
    num_columns += seen.findings.shape[1] + seen.asked.shape[1]
    plain = Design(*image, *asked, np.zeros(num_columns), np.ones(num_columns))
    centres, scales = [], []
    for block in plain._blocks(seen):
        total = float(np.sqrt(block.var(axis=0).sum()))
        centres.append(block.mean(axis=0))
        scales.append(np.full(block.shape[1], total or 1.0))
    return Design(*image, *asked, np.concatenate(centres), np.concatenate(scales))


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the columns, NaN left out; 0 and 1 where there is none."""
    known = ~np.isnan(values)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0).sum(axis=0) / count
    std = np.sqrt((np.where(known, values - mean, 0) ** 2).sum(axis=0) / count)
    return mean, np.where(std > _ROUNDING * np.maximum(np.abs(mean), _ROUNDING), std, 1.0)
