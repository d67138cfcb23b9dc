"""Reports without a model: what a trained one has to beat.

Shapes: N training images, M test images, P pixels of a thumbnail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from utils.gray_images import GrayImages

_SIDE = 32  # of a thumbnail, in pixels: large lesions and the shape of the layers, no speckle
_BATCH = 256


def most_frequent(train_texts: Sequence[str], num: int) -> list[str]:
    """The report that most training scans have, ``num`` times; of equals the first by alphabet.

    Raises:
        ValueError: If there is no training report.
    """
    counts = Counter(train_texts)
    return [min(counts, key=lambda text: (-counts[text], text))] * num


def nearest(train: GrayImages, train_texts: Sequence[str], test: GrayImages) -> list[str]:
    """For each test image the report of the most similar training image, the first of equals.

    Similar is what correlates: of 32 x 32 means of the pixels, so that brightness and contrast do
    not count. A flat image correlates with none.

    Args:
        train: N training images, N >= 1.
        train_texts: Their N reports.
        test: M images of the same size.
    """
    known = _thumbnails(train)
    # An image that occurs twice stands once: its products could differ in their last bits.
    first = {row.tobytes(): place for place, row in reversed(list(enumerate(known.numpy())))}
    places = sorted(first.values())
    known = known[places]
    chosen = [
        int(place)
        for part in _thumbnails(test).split(_BATCH)
        for place in (part @ known.T).numpy().argmax(axis=1)
    ]
    return [train_texts[places[place]] for place in chosen]


def _thumbnails(images: GrayImages) -> torch.Tensor:
    """(N, P) float32 with mean 0 and length 1."""
    plan = np.array_split(np.arange(len(images)), range(_BATCH, len(images), _BATCH))
    rows = []
    for _, pixels in images.batches(plan, rng=None):
        small = F.adaptive_avg_pool2d(pixels[:, None].float(), _SIDE).flatten(1)
        rows.append(F.normalize(small - small.mean(dim=1, keepdim=True)))
    return torch.cat(rows)
