"""The bilinear resize of TensorFlow 1, which every published FID has."""

from __future__ import annotations

import torch


def resize_like_tensorflow1(images: torch.Tensor, side: int) -> torch.Tensor:
    """Bilinear resize of TensorFlow 1: sample k sits at k * old / new, and nothing is averaged.

    It shifts the image by part of a pixel and aliases when it shrinks, but every published FID
    has it.

    Args:
        images: (N, C, H, W) float.
        side: New height and width.

    Returns:
        (N, C, side, side).
    """
    height, width = images.shape[-2:]
    rows, columns = (_resize_matrix(length, side).to(images) for length in (height, width))
    return rows @ images @ columns.T


def _resize_matrix(old: int, new: int) -> torch.Tensor:
    """(new, old): two weights in each row."""
    places = torch.arange(new) * (old / new)
    low = places.long()
    share = places - low
    matrix = torch.zeros(new, old)
    index = torch.arange(new)
    matrix[index, low] += 1 - share
    matrix[index, (low + 1).clamp_max(old - 1)] += share
    return matrix
