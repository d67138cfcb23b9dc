"""What a reward looks at: an image by networks, its text by rules, and whether they fit.

Shapes: N images, D image features of all networks together, F findings of the rules, C classifiers,
A = 4 C figures on what the text asks for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from utils.classifier import Classifier, probabilities
from utils.dataset import Dataset
from utils.feature_cache import cached_features, digests_of
from utils.features import ClassifierFeatures, FeatureExtractor, load_extractor
from utils.finding_labeler import FindingLabeler, load_labeler
from utils.finding_scores import names_in
from utils.image_sets import ImageSet

MAX_LOGIT = 6.0  # beyond, a classifier's certainty says nothing
ASKED_FIGURES = 4


@dataclass(frozen=True)
class Inputs:
    """What is known about N images with their texts.

    Attributes:
        image: (N, D) float64, penultimate layers.
        findings: (N, F) float64, 1 where the text names the finding.
        asked: (N, A) float64: of each classifier the mean probability and the lowest log-odds of
            the asked diagnoses, the highest probability and log-odds of those not asked; NaN
            where the text and the label ask for none that it knows.
    """

    image: np.ndarray
    findings: np.ndarray
    asked: np.ndarray

    def __len__(self) -> int:
        """N."""
        return len(self.image)


@dataclass(frozen=True)
class RewardNetworks:
    """Feature networks and the rules by which texts are read.

    Attributes:
        extractors: In order; a classifier among them also tells whether the text is right.
        labeler: Finds findings in texts.
        rules: Name or path of its rules.
        resize_mode: How images become squares.
    """

    extractors: tuple[FeatureExtractor, ...]
    labeler: FindingLabeler
    rules: str
    resize_mode: str

    @property
    def facts(self) -> dict[str, object]:
        """All that the inputs depend on besides the images, in JSON's types."""
        return {
            "extractors": [
                {"name": each.name, "weights": str(each.weights), "sha256": each.sha256}
                for each in self.extractors
            ],
            "rules": self.rules,
            "findings": list(self.labeler.names),
            "resize_mode": self.resize_mode,
        }


def load_networks(
    names: Sequence[str],
    *,
    weights: Mapping[str, str] | None = None,
    rules: str = "oct",
    resize_mode: str = "center_crop",
    device: str = "cpu",
    offline: bool = True,
) -> RewardNetworks:
    """Load what a reward looks with.

    Args:
        names: Feature networks as ``evaluate.py --feature_extractor`` calls them. With
            ``classifier:DIR`` a hundred ratings are enough for agreement; without one it must be
            learnt what each finding looks like.
        weights: Name to weight file, folder or hub name, of those that need one.
        rules: ``oct``, ``cxr`` or a YAML file of findings.
        resize_mode: ``center_crop``, ``pad`` or ``stretch``.
        device: Where they run.
        offline: Whether downloads are forbidden.

    Raises:
        UserError: If a network or the rules cannot be loaded.
    """
    found = {} if weights is None else weights
    extractors = tuple(
        load_extractor(name, weights=found.get(name), device=device, offline=offline)
        for name in names
    )
    return RewardNetworks(extractors, load_labeler(rules), rules, resize_mode)


def reward_inputs(
    dataset: Dataset, networks: RewardNetworks, *, cache_dir: Path, state, batch_size: int = 64
) -> Inputs:
    """Look at images and their texts; image features are kept on disk by content.

    Args:
        dataset: N images.
        networks: With which.
        cache_dir: Of `utils.feature_cache`.
        state: ``PartialState``; all processes call this and share the work.
        batch_size: Images at once on a GPU.
    """
    pools, asked = [], []
    for extractor in networks.extractors:
        view = ImageSet("rated", dataset, extractor.input_px, networks.resize_mode)
        digests = digests_of(view, state=state, folder=cache_dir)
        options = {"digests": digests, "state": state, "folder": cache_dir}
        pool = cached_features(view, extractor, batch_size=batch_size, **options).pool
        pools.append(pool.astype(np.float64))
        if isinstance(extractor, ClassifierFeatures):
            asked.append(_asked(extractor.classifier, pool, dataset, networks.labeler))
    labeler = networks.labeler
    findings = [named(labeler, each.text, each.labels, labeler.names) for each in dataset]
    empty = np.empty((len(dataset), 0))
    return Inputs(
        np.concatenate([empty, *pools], axis=1),
        np.array([[name in found for name in labeler.names] for found in findings], float),
        np.concatenate([empty, *asked], axis=1),
    )


def named(
    labeler: FindingLabeler, text: str, labels: Sequence[str], known: Collection[str]
) -> list[str]:
    """The findings that a text names, of those known; if none, the image's labels of those."""
    found = [name for name in names_in(labeler, text) if name in known]
    return found or [label for label in labels if label in known]


def _asked(
    classifier: Classifier, pool: np.ndarray, dataset: Dataset, labeler: FindingLabeler
) -> np.ndarray:
    """The four figures of each image, (N, 4), from the classifier's features (N, D)."""
    with torch.inference_mode():
        logits = classifier.network.head(torch.from_numpy(pool).to(classifier.device))
        chances = probabilities(logits, multi_label=classifier.multi_label).cpu().numpy()
    known = classifier.labels
    found = (named(labeler, record.text, record.labels, known) for record in dataset)
    rows = [
        asked_figures(chance, [label in asked for label in known])
        for chance, asked in zip(chances, found)
    ]
    return np.array(rows).reshape(-1, ASKED_FIGURES)


def asked_figures(chances: np.ndarray, asked: Sequence[bool]) -> list[float]:
    """What a classifier's probabilities (L,) say of the asked diagnoses (L,), see `Inputs`."""
    asked = np.array(asked)
    if not asked.any():
        return [np.nan] * ASKED_FIGURES
    chances = np.asarray(chances, np.float64)
    odds = log_odds(chances)
    others = (chances[~asked].max(), odds[~asked].max()) if not asked.all() else (0.0, -MAX_LOGIT)
    return [float(chances[asked].mean()), float(odds[asked].min()), *map(float, others)]


def log_odds(chances: np.ndarray) -> np.ndarray:
    """``log(p / (1 - p))``, within ``MAX_LOGIT``."""
    with np.errstate(divide="ignore"):
        odds = np.log(chances) - np.log1p(-chances)
    return np.clip(odds, -MAX_LOGIT, MAX_LOGIT)
