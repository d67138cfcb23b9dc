"""One side of a comparison: images brought to one size, and one pass of them through networks."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils import images as pictures
from utils.classifier import Classifier, batched
from utils.dataset import Dataset
from utils.features import FeatureExtractor, Features, concatenate

READ_AHEAD = 64


@dataclass(frozen=True)
class ImageSet:
    """Records, and how their images are brought to size: real and synthetic in the same way.

    Attributes:
        name: ``real`` or ``synthetic``.
        dataset: N records, already checked.
        resolution: Side of every image in pixels.
        resize_mode: See ``utils.images.resize``; one that draws nothing.
        num_workers: Threads that read; 0 reads in the main thread.
    """

    name: str
    dataset: Dataset
    resolution: int
    resize_mode: str
    num_workers: int = 0

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def image(self, index: int) -> Image.Image:
        """An image at the common size, mode ``L`` or ``RGB``."""
        return pictures.resize(self.dataset[index].image(), self.resolution, self.resize_mode)

    def images(self) -> Iterator[Image.Image]:
        """Every image in order, read ahead by threads (Pillow works without Python's lock)."""
        if not self.num_workers:
            yield from map(self.image, range(len(self)))
            return
        with ThreadPoolExecutor(self.num_workers) as pool:
            waiting: deque = deque()
            for index in range(len(self)):
                waiting.append(pool.submit(self.image, index))
                if len(waiting) > READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def having(self, label: str) -> np.ndarray:
        """Indices of the images with this label."""
        found = [i for i, record in enumerate(self.dataset) if label in record.labels]
        return np.array(found, np.int64)

    def patients(self) -> np.ndarray:
        """(N,) text: the patient of each image, or where there is none a name of its own."""
        names = [record.patient_id or f"\0image {i}" for i, record in enumerate(self.dataset)]
        return np.array(names)


@dataclass(frozen=True)
class Measured:
    """What one pass over a set gave.

    Attributes:
        features: Of the feature network; None without one.
        probabilities: (N, L) of the diagnosis classifier; None without one.
        hashes: One per image, of its pixels at the common size.
    """

    features: Features | None
    probabilities: np.ndarray | None
    hashes: list[str]


def common_side(dataset: Dataset) -> int:
    """The most frequent shorter side of the images, in pixels."""
    headers = (pictures.inspect_image(record.image_source) for record in dataset)
    return Counter(min(h.width, h.height) for h in headers).most_common(1)[0][0]


def measure(
    images: ImageSet,
    extractor: FeatureExtractor | None,
    classifier: Classifier | None,
    *,
    batch_size: int,
) -> Measured:
    """Pass a set through the networks, decoding each image once.

    Args:
        images: N images.
        extractor: Feature network, or None.
        classifier: Diagnosis classifier, or None.
        batch_size: Images at once; changes speed and memory, not the result.
    """
    features, probabilities, hashes = [], [], []
    with tqdm(total=len(images), desc=f"{images.name} images", unit="image") as bar:
        for batch in batched(images.images(), batch_size):
            if extractor is not None:
                features.append(extractor.extract(batch, batch_size=batch_size))
            if classifier is not None:
                probabilities.append(classifier.predict(batch, batch_size=batch_size))
            hashes.extend(pictures.pixel_hash(image.convert("RGB")) for image in batch)
            bar.update(len(batch))
    return Measured(
        concatenate(features) if features else None,
        np.concatenate(probabilities) if probabilities else None,
        hashes,
    )
