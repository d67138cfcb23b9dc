"""Which images make the batches of a training: all of them, in random order, pass after pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch


def epoch_batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    """Indices of one pass in random order; a remainder waits for the next pass's order."""
    order = torch.randperm(count, generator=generator).numpy()
    size = min(batch_size, count)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]


def endless_batches(
    count: int, batch_size: int, generator: torch.Generator
) -> Iterator[np.ndarray]:
    """Indices of pass after pass."""
    while True:
        yield from epoch_batches(count, batch_size, generator)
