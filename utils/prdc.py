"""Precision, recall, density and coverage of a synthetic feature set against a real one.

Shapes: N images (N_r real, N_s synthetic), D features, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from utils.feature_sets import check_features

_BLOCK_ROWS = 4096  # a block of distances is this number squared


class Prdc(NamedTuple):
    """Values per image; their means are the scores, all best when high."""

    precision: np.ndarray  # (N_s,) bool: the synthetic image lies within a real neighbourhood
    recall: np.ndarray  # (N_r,) bool: the real image lies within a synthetic neighbourhood
    density: np.ndarray  # (N_s,) float: real neighbourhoods the synthetic image lies in, over k
    coverage: np.ndarray  # (N_r,) bool: a synthetic image lies in the real image's neighbourhood


def prdc(
    *,
    real: np.ndarray,
    synthetic: np.ndarray,
    k: int = 5,
    device: torch.device | str = "cpu",
) -> Prdc:
    """Precision, recall, density and coverage, image by image.

    Precision and recall: Kynkäänniemi et al. 2019 (https://arxiv.org/abs/1904.06991); density and
    coverage: Naeem et al. 2020 (https://arxiv.org/abs/2002.09797). An image's neighbourhood is the
    open ball up to the k-th nearest other image of its set. Density may exceed 1; recall, and in
    part precision, is fooled by outliers, which have large balls. All depend on N.

    Distances come from float64 products and are rounded to the type of the features, as in the
    ``prdc`` package. Memory beside the features does not grow with N.

    Args:
        real: (N_r, D), float32 or float64, N_r > k.
        synthetic: (N_s, D), N_s > k.
        k: Neighbours, >= 1.
        device: Where the products are taken.

    Raises:
        ValueError: If the sets differ in D, one has fewer than k + 1 images, a feature is NaN or
            infinite, or k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    purpose = f"the distance to the {k}th of an image's neighbours"
    check_features(real, synthetic, min_images=k + 1, purpose=purpose)
    dtype = np.result_type(real, synthetic, np.float32)
    real, synthetic = (torch.from_numpy(x.astype(dtype, copy=False)) for x in (real, synthetic))
    radii_r, radii_s = _radii(real, k, device), _radii(synthetic, k, device)
    nearest = torch.full_like(radii_r, torch.inf)
    recalled = torch.zeros_like(radii_r, dtype=torch.bool)
    counts = torch.zeros(len(synthetic), dtype=torch.int64, device=device)
    for rows, x in _blocks(real, device):
        for columns, y in _blocks(synthetic, device):
            distances = _distances(x, y, nearest.dtype)
            nearest[rows] = torch.minimum(nearest[rows], distances.amin(dim=1))
            recalled[rows] |= (distances < radii_s[columns]).any(dim=1)
            counts[columns] += (distances < radii_r[rows, None]).sum(dim=0)
    covered, counts = (nearest < radii_r).cpu().numpy(), counts.cpu().numpy()
    return Prdc(counts > 0, recalled.cpu().numpy(), counts / k, covered)


def _radii(features: torch.Tensor, k: int, device: torch.device | str) -> torch.Tensor:
    """(N,) distance of each image to the k-th nearest other one."""
    nearest = features.new_full((len(features), k), torch.inf, device=device)

    def take(places: slice, distances: torch.Tensor) -> None:
        found = distances.topk(min(k, distances.shape[1]), largest=False).values
        nearest[places] = torch.cat([nearest[places], found], 1).topk(k, largest=False).values

    for rows, x in _blocks(features, device):
        for columns, y in _blocks(features, device, start=rows.start):
            distances = _distances(x, y, nearest.dtype)
            if rows == columns:
                distances.fill_diagonal_(torch.inf)
            else:  # the block on the other side of the diagonal
                take(columns, distances.T.contiguous())
            take(rows, distances)
    return nearest.amax(dim=1)


def _blocks(
    features: torch.Tensor, device: torch.device | str, *, start: int = 0
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows in blocks, as float64 on the device."""
    for first in range(start, len(features), _BLOCK_ROWS):
        places = slice(first, min(first + _BLOCK_ROWS, len(features)))
        yield places, features[places].to(device, torch.float64)


def _distances(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B_x, B_y) Euclidean distances of rows, rounded before the root, as in scikit-learn."""
    squares = x @ y.T
    squares.mul_(-2).add_(x.square().sum(1)[:, None]).add_(y.square().sum(1))
    return squares.to(dtype).clamp_(min=0).sqrt_()
