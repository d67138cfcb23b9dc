"""How good the images of one round are, and by how much better than the first model's.

Every round draws the same prompts with the same seeds, so that image i of two rounds differs by
the model alone: differences are taken image by image. Shapes: N images drawn, N_r real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState

from utils import diversity, metrics
from utils.classification_metrics import predicted_labels
from utils.classification_scores import bootstrap_weights
from utils.cli import UserError
from utils.dataset import Dataset
from utils.diagnosis_network import DiagnosisNetwork
from utils.distance_scores import NEIGHBOURS
from utils.feature_cache import cached_features, digests_of
from utils.features import FeatureExtractor
from utils.frechet import frechet_of_weights
from utils.image_sets import ImageSet
from utils.intervals import NORMAL_QUANTILE
from utils.scores import Side, score_agreement

# Name of a score -> whether higher is better; None: best near the real set's own value.
DIRECTIONS = {
    "agreement": True,
    "fid": False,
    "precision": True,
    "recall": True,
    "coverage": True,
    "ms_ssim": None,
    "held_out_reward": True,
    "reward": True,
}
MAX_PAIRS = 200  # of MS-SSIM
_FID_RESAMPLES = 200

Rewards = Mapping[str, Callable[[Dataset], np.ndarray]]


@dataclass(frozen=True)
class Judge:
    """What judges every round in the same way.

    Attributes:
        extractor: Features of Fréchet distance, precision, recall and coverage.
        diagnoses: The independent classifier; None without one.
        rewards: ``held_out_reward`` and ``reward`` -> a reward for each image; empty without
            ratings.
        resolution: Side in pixels that all images are brought to.
        resize_mode: How.
        cache_dir: Where features are kept.
        batch_size: Images at once on a GPU.
        seed: Of resamples and pairs.
    """

    extractor: FeatureExtractor
    diagnoses: DiagnosisNetwork | None
    rewards: Rewards
    resolution: int
    resize_mode: str
    cache_dir: Path
    batch_size: int
    seed: int

    def look_at(self, name: str, dataset: Dataset) -> Side:
        """A set with what the networks say of it.

        Args:
            name: ``real`` or ``synthetic``.
            dataset: The images.
        """
        images = ImageSet(name, dataset, self.resolution, self.resize_mode)
        state = PartialState()
        digests = digests_of(images, state=state, folder=self.cache_dir)
        options = {"digests": digests, "state": state, "folder": self.cache_dir}
        options["batch_size"] = self.batch_size
        features = cached_features(images, self.extractor, **options)
        probabilities = None
        if self.diagnoses is not None:
            probabilities = cached_features(images, self.diagnoses, **options).pool
        return Side(images, digests, features, probabilities)


@dataclass(frozen=True)
class Outcome:
    """One round's images judged.

    Attributes:
        names: (N,) which image of the plan each is.
        prompts: (N,) what each was drawn from.
        scores: Name -> value, in the order of `DIRECTIONS`.
        yardsticks: Name -> the real set's own value, where it has one.
        per_image: Name -> (N,) what the score is the mean of; of agreement weighed so that every
            label counts alike.
        per_real: ``recall`` and ``coverage`` -> (N_r,) bool.
        features: (N, D).
    """

    names: Sequence[str]
    prompts: Sequence[str]
    scores: dict[str, float]
    yardsticks: dict[str, float]
    per_image: dict[str, np.ndarray]
    per_real: dict[str, np.ndarray]
    features: np.ndarray


def judge_round(judge: Judge, real: Side, dataset: Dataset) -> Outcome:
    """Score the images of one round against real held-out ones.

    Args:
        judge: What judges.
        real: Held-out real images.
        dataset: The images drawn.

    Raises:
        UserError: If there are too few of either for neighbours.
    """
    drawn = judge.look_at("synthetic", dataset)
    pools = {"real": real.features.pool, "synthetic": drawn.features.pool}
    if min(map(len, pools.values())) <= NEIGHBOURS:
        raise UserError(
            f"{len(pools['real'])} held-out real and {len(pools['synthetic'])} drawn images: more "
            f"than {NEIGHBOURS} of each are needed (--num_eval_images, splits of --real_dir)"
        )
    near = metrics.prdc(**pools, k=NEIGHBOURS, device=judge.extractor.device)
    scores, yardsticks, per_image = {}, {}, {}
    if judge.diagnoses is not None:
        options = {"labels": drawn.images.dataset.labels}
        entry, _ = score_agreement(real, drawn, judge.diagnoses.classifier, **options)
        scores["agreement"], yardsticks["agreement"] = entry["value"], entry.get("real")
        per_image["agreement"] = _weighed_hits(drawn, judge.diagnoses)
    scores["fid"] = metrics.frechet_distance(**pools)
    for name in ("precision", "recall", "coverage"):
        scores[name] = float(getattr(near, name).mean())
    per_image["precision"] = near.precision.astype(np.float64)
    similarity, _ = diversity.score_ms_ssim(
        real.images, drawn.images, labels=[], max_pairs=MAX_PAIRS, seed=judge.seed
    )
    scores["ms_ssim"], yardsticks["ms_ssim"] = similarity["value"], similarity.get("real")
    for name, reward in judge.rewards.items():
        per_image[name] = reward(dataset)
        scores[name] = float(per_image[name].mean())
        yardsticks[name] = float(reward(real.images.dataset).mean())
    return Outcome(
        names=[record.file_name for record in dataset],
        prompts=[record.text for record in dataset],
        scores={name: scores[name] for name in DIRECTIONS if scores.get(name) is not None},
        yardsticks={name: value for name, value in yardsticks.items() if value is not None},
        per_image=per_image,
        per_real={"recall": near.recall, "coverage": near.coverage},
        features=drawn.features.pool,
    )


def _weighed_hits(drawn: Side, diagnoses: DiagnosisNetwork) -> np.ndarray:
    """(N,) whose mean is the agreement: is the asked label recognised, every label of one weight.

    0 for images whose labels the classifier does not know.
    """
    classifier = diagnoses.classifier
    said = predicted_labels(drawn.probabilities, multi_label=classifier.multi_label)
    values = np.zeros(len(drawn.images))
    members = {
        column: index
        for column, label in enumerate(classifier.labels)
        if len(index := drawn.images.having(label))
    }
    for column, index in members.items():
        values[index] += said[index, column] * len(values) / (len(members) * len(index))
    return values


def compare(first: Outcome, other: Outcome, real: Side, *, seed: int) -> dict[str, dict]:
    """Differences ``other - first`` with 95 % intervals over prompts and patients.

    Of scores that are means over images: a bootstrap of the differences image by image, whole
    prompts drawn. Of recall and coverage, means over real images: whole patients drawn; the luck
    of the drawn images is not in it. Of the Fréchet distance: both distances on the same resamples
    of patients and images, plus and minus 1.96 standard deviations of their difference.

    Args:
        first: Of the model that all is compared with.
        other: Of another, drawn from the same plan.
        real: The held-out images of both.
        seed: Of the resampling.

    Returns:
        Name -> ``difference``, ``ci95`` and ``better``: True or False where the interval lies on
        the better or the worse side of 0, else None.
    """
    mine, theirs = _common_places(first, other)
    prompts = [first.prompts[place] for place in mine]
    found = {}
    for name in first.scores.keys() & other.scores.keys():
        difference = other.scores[name] - first.scores[name]
        if name == "fid":
            pools = first.features[mine], other.features[theirs]
            interval = _frechet_difference(real, *pools, seed=seed, difference=difference)
        elif name in first.per_real:
            change = other.per_real[name].astype(float) - first.per_real[name]
            options = {"groups": real.images.patients().tolist(), "seed": seed}
            interval = metrics.bootstrap_interval(change, **options)
        elif name in first.per_image:
            change = other.per_image[name][theirs] - first.per_image[name][mine]
            interval = metrics.bootstrap_interval(change, groups=prompts, seed=seed)
        else:
            interval = None  # MS-SSIM is one of pairs
        better = _is_better(name, interval)
        found[name] = {"difference": difference, "ci95": interval, "better": better}
    return {name: found[name] for name in DIRECTIONS if name in found}


def _common_places(first: Outcome, other: Outcome) -> tuple[list[int], list[int]]:
    """Where the images lie in each that both have."""
    places = {name: place for place, name in enumerate(other.names)}
    pairs = [(i, places[name]) for i, name in enumerate(first.names) if name in places]
    return [i for i, _ in pairs], [j for _, j in pairs]


def _frechet_difference(
    real: Side, first: np.ndarray, other: np.ndarray, *, seed: int, difference: float
) -> tuple[float, float]:
    patients = [str(patient) for patient in real.images.patients()]
    distances = [frechet_of_weights(real.features.pool, pool) for pool in (first, other)]
    of_real = bootstrap_weights(patients, len(patients), num_resamples=_FID_RESAMPLES, seed=seed)
    drawn = bootstrap_weights(None, len(first), num_resamples=_FID_RESAMPLES, seed=seed + 1)
    weights = zip(
        (row for chunk in of_real for row in chunk), (row for chunk in drawn for row in chunk)
    )
    values = [distances[1](*pair) - distances[0](*pair) for pair in weights]
    half = NORMAL_QUANTILE * float(np.std(values, ddof=1))
    return difference - half, difference + half


def _is_better(name: str, interval: tuple[float, float] | None) -> bool | None:
    if interval is None or DIRECTIONS[name] is None or interval[0] <= 0 <= interval[1]:
        return None
    return (interval[0] > 0) == DIRECTIONS[name]
