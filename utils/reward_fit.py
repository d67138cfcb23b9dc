"""Fits a reward: the strength of its penalty by cross-validation over groups of images.

Shapes: N images, E columns of the design, G groups of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from utils.ordinal_model import Latent, comparison_losses, fit_path, rating_losses
from utils.reward_design import Design, make_design
from utils.reward_features import Inputs
from utils.reward_ratings import Ratings

STRENGTHS = tuple(10 ** (step / 2) for step in range(6, -1, -1))  # from strong to weak
NUM_FOLDS = 5
INNER_FOLDS = 4
MIN_TEXT_GROUPS = 20  # fewer distinct texts are captions of classes, no reports
_POWER_TOLERANCE = 1e-10  # of the largest; below it is rounding


@dataclass(frozen=True)
class Fit:
    """A fitted reward.

    Attributes:
        design: Inputs to columns.
        latent: Columns to scores.
        l2: The chosen strength.
    """

    design: Design
    latent: Latent
    l2: float


def image_groups(ratings: Ratings, texts: Sequence[str]) -> tuple[np.ndarray, bool]:
    """Group of each image (N,) int64: what must be held out together.

    Images that were compared belong together, and those of one text where texts are reports;
    captions that repeat for each class would leave as many groups as classes.

    Returns:
        The groups, and whether texts were counted in.
    """
    links = [ratings.pair]
    counts = Counter(texts)
    by_text = len(counts) >= MIN_TEXT_GROUPS
    if by_text:
        first = {text: number for number, text in reversed(list(enumerate(texts)))}
        links.append(np.array([(number, first[text]) for number, text in enumerate(texts)]))
    rows, columns = np.concatenate(links).T
    size = ratings.num_images
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(size, size))
    return connected_components(graph, directed=False)[1].astype(np.int64), by_text


def folds_of(groups: np.ndarray, num_folds: int, *, seed: int) -> np.ndarray:
    """Fold of each image (N,), whole groups (N,) dealt out at random, the largest first."""
    names, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled, fold = np.zeros(num_folds), np.zeros(len(names), np.int64)
    for number in order:
        fold[number] = filled.argmin()
        filled[fold[number]] += sizes[number]
    return fold[np.searchsorted(names, groups)]


def fit_reward(inputs: Inputs, ratings: Ratings, groups: np.ndarray, *, seed: int) -> Fit:
    """Choose the strength by held-out likelihood, then fit on all judged images.

    Strengths are tried from strong to weak until the held-out loss rises.

    Args:
        inputs: Of N images.
        ratings: About some of them; nothing else of the others is used.
        groups: (N,), see `image_groups`.
        seed: Of the folds.
    """
    rows = ratings.judged()
    folds = np.full(len(rows), -1)
    folds[rows] = folds_of(groups[rows], INNER_FOLDS, seed=seed)
    lowest, best = np.inf, STRENGTHS[0]
    for l2, loss in zip(STRENGTHS, _held_out_losses(inputs, ratings, folds)):
        if loss >= lowest:
            break
        lowest, best = loss, l2
    axes = _principal_axes(inputs, rows)
    found = next(fit_path(axes.coordinates, ratings, strengths=(best,)))
    weight, deviations = found.weight @ axes.directions, found.deviations @ axes.directions
    return Fit(axes.design, replace(found, weight=weight, deviations=deviations), best)


def _held_out_losses(inputs: Inputs, ratings: Ratings, folds: np.ndarray) -> Iterator[float]:
    """``-log p`` of all ratings and comparisons, each held out once, at each strength in turn."""
    paths = []
    for fold in range(INNER_FOLDS):
        rows, held_out = (folds >= 0) & (folds != fold), folds == fold
        columns = _principal_axes(inputs, rows).coordinates
        fits = fit_path(columns, ratings.keep(rows), strengths=STRENGTHS)
        paths.append((columns, ratings.keep(held_out), fits))
    for _ in STRENGTHS:
        yield sum(_loss(next(fits), columns, test) for columns, test, fits in paths)


def _loss(latent: Latent, columns: np.ndarray, ratings: Ratings) -> float:
    """``-log p`` of all ratings and comparisons, in nats."""
    rated = rating_losses(latent, columns, ratings).sum()
    return float(rated + comparison_losses(latent, columns, ratings).sum())


@dataclass(frozen=True)
class _Axes:
    """The principal axes of training images, of which there are r, no more than images.

    A ridge solution lies in the span of the images' columns, so that it can be sought there.

    Attributes:
        design: Inputs to columns.
        directions: (r, E), orthonormal.
        coordinates: (N, r) of all images.
    """

    design: Design
    directions: np.ndarray
    coordinates: np.ndarray


def _principal_axes(inputs: Inputs, rows: np.ndarray) -> _Axes:
    """Axes of these of the images (N,) bool; by the Gram matrix, for columns are many."""
    design = make_design(inputs, rows)
    columns = design(inputs)
    power, left = np.linalg.eigh(columns[rows] @ columns[rows].T)
    kept = power > _POWER_TOLERANCE * power.max(initial=1.0)
    directions = (left[:, kept] / np.sqrt(power[kept])).T @ columns[rows]
    return _Axes(design, directions, columns @ directions.T)
