"""Retrieval between synthetic images, real images and texts, from image sets to scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from utils.contrastive_training import MIN_PAIRS, train_encoder
from utils.features import run_network
from utils.image_sets import ImageSet
from utils.image_text import Embedded, embed
from utils.retrieval_pairs import pairs_to_train_on
from utils.retrieval_scores import absent_scores, choose_relevance, score_retrieval
from utils.scores import Entry


class Searcher:
    """An image-text model with the real set embedded by it; without one, a small one is trained.

    Attributes:
        model: What embeds images and texts; None where there are too few pairs to train it on.
        notes: What it was trained on, in sentences; empty for a ready model.
    """

    def __init__(
        self,
        real: ImageSet,
        train: ImageSet | None,
        *,
        model=None,
        vectors: np.ndarray | None = None,
        device: str = "cpu",
        seed: int = 0,
    ):
        """Train the small encoder if there is no model, and embed the real set.

        Args:
            real: The real images.
            train: Real pairs to train on, of other patients; None trains on one half of the real
                set, by patient, and searches in the other.
            model: A ready ``ImageTextModel``, or None.
            vectors: The real images' embeddings by it, (N, D); None computes them.
            device: Where to train.
            seed: Of training and of the halves.
        """
        self.notes: list[str] = []
        self.model, self._why_not, self._num_real = None, "", len(real)
        if model is None:
            others = None if train is None else train.dataset
            pairs, judged, self.notes = pairs_to_train_on(real.dataset, others, seed=seed)
            if len(pairs) < MIN_PAIRS:
                self._why_not = f"{len(pairs)} real images with a text to train the encoder on: "
                self._why_not += f"{MIN_PAIRS} are needed"
                return
            real = real.take(judged)
            model = train_encoder(
                pairs,
                relevance=choose_relevance(pairs, pairs),
                resolution=real.resolution,
                resize_mode=real.resize_mode,
                num_workers=real.num_workers,
                device=device,
                seed=seed,
            )
        self.model = model
        self._real = self._embed(real, vectors)

    def score(
        self,
        synthetic: ImageSet,
        *,
        vectors: np.ndarray | None = None,
        labels: Sequence[str] = (),
        seed: int = 0,
    ) -> dict[str, tuple[Entry, dict[str, Entry]]]:
        """Entries of retrieval, over all queries and per label; see ``score_retrieval``.

        Args:
            synthetic: The synthetic images.
            vectors: Their embeddings by the model, (N, D); None computes them.
            labels: Labels to give entries each.
            seed: Of halves and intervals.
        """
        if self.model is None:
            counts = {"n_real": self._num_real, "n_synthetic": len(synthetic)}
            found = absent_scores(self._why_not, **counts)
            return {name: (entry, {}) for name, entry in found.items()}
        drawn = self._embed(synthetic, vectors)
        overall, per_label = score_retrieval(self._real, drawn, labels, seed=seed)
        first = next(iter(overall.values()))
        first["notes"] = [*self.notes, *first.get("notes", [])]
        return {
            name: (found, {label: entries[name] for label, entries in per_label.items()})
            for name, found in overall.items()
        }

    def _embed(self, images: ImageSet, vectors: np.ndarray | None) -> Embedded:
        if vectors is None:
            pixels = images.read(
                self.model.prepare, range(len(images)), largest_px=self.model.input_px
            )
            with tqdm(total=len(images), desc=f"embed {images.name} images", unit="image") as bar:
                vectors = run_network(self.model, pixels, progress=bar.update).pool
        return embed(self.model, images.dataset, vectors)
