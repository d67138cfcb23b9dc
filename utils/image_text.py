"""Images and texts in one space: what such a model is, and a set of records embedded by it.

Shapes: N images, T texts, D dimensions of the common space, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from utils.dataset import Record
from utils.features import FeatureExtractor
from utils.image_sets import units_of


class ImageTextModel(FeatureExtractor, Protocol):
    """A feature network whose image embeddings, of unit length, compare with those of texts."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to (T, D) float32 of unit length."""
        ...


@dataclass(frozen=True)
class Embedded:
    """N images with their texts, embedded by one model.

    Attributes:
        images: (N, D) float32 of unit length.
        texts: (N,) the prompt of each image, or where there is none its text; may be empty.
        labels: (N,) labels of each image; may be none.
        units: (N,) what is drawn as a whole to get an interval: the patient, or the image itself.
        text_vectors: Each distinct text but the empty one -> (D,) float32 of unit length.
    """

    images: np.ndarray
    texts: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    units: tuple[str, ...]
    text_vectors: dict[str, np.ndarray]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)


def text_of(record: Record) -> str:
    """What an image was asked to show, or what is written about it."""
    return (record.row.get("prompt") or record.text).strip()


def embed(model: ImageTextModel, records: Sequence[Record], vectors: np.ndarray) -> Embedded:
    """A set with its texts embedded.

    Args:
        model: The image-text model.
        records: N of them.
        vectors: (N, D) the images' embeddings by it.
    """
    texts = tuple(map(text_of, records))
    distinct = sorted(set(texts) - {""})
    return Embedded(
        images=vectors,
        texts=texts,
        labels=tuple(record.labels for record in records),
        units=tuple(units_of(records)),
        text_vectors=dict(zip(distinct, model.embed_texts(distinct))) if distinct else {},
    )
