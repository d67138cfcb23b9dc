"""Retrieval between images and texts as entries of metrics.json.

A synthetic image should find real images of its diagnosis, and the text that asked for it; a text
should find the images drawn from it. Entries as in ``utils.scores``. Shapes: N queries, M items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils import metrics
from utils.image_text import Embedded
from utils.retrieval import (
    RELEVANCES,
    Ranking,
    chance_median_rank,
    chance_recall,
    first_relevant_ranks,
    median_rank,
    median_rank_interval,
    relevance_groups,
)
from utils.scores import Entry, absent, entry

RECALL_AT = (1, 5, 10)
DIRECTIONS = ("image_to_image", "image_to_text", "text_to_image")
MEASURES = (*(f"recall_at_{k}" for k in RECALL_AT), "median_rank")

Entries = dict[str, Entry]


@dataclass(frozen=True)
class Items:
    """Queries or a gallery.

    Attributes:
        vectors: (N, D) of unit length.
        groups: (N,) two items that share one are relevant to each other.
        labels: (N,) labels, for the entries per label.
        units: (N,) what is drawn as a whole to get an interval.
    """

    vectors: np.ndarray
    groups: list[tuple[str, ...]]
    labels: list[tuple[str, ...]]
    units: list[str]

    def __len__(self) -> int:
        """Number of items."""
        return len(self.groups)

    def take(self, indices: np.ndarray) -> Items:
        """The items at these indices."""
        columns = (self.groups, self.labels, self.units)
        return Items(self.vectors[indices], *([column[i] for i in indices] for column in columns))


@dataclass(frozen=True)
class Search:
    """Queries, and how they fared.

    Attributes:
        queries: N of them.
        ranking: Of each.
        gallery_size: M.
    """

    queries: Items
    ranking: Ranking
    gallery_size: int

    def having(self, label: str) -> Search:
        """The queries with this label."""
        return self._take([i for i, own in enumerate(self.queries.labels) if label in own])

    def answerable(self) -> Search:
        """The queries that have a relevant item in the gallery."""
        return self._take(np.flatnonzero(self.ranking.num_relevant))

    def _take(self, kept: Sequence[int]) -> Search:
        kept = np.array(kept, np.int64)
        ranking = Ranking(self.ranking.ranks[kept], self.ranking.num_relevant[kept])
        return Search(self.queries.take(kept), ranking, self.gallery_size)


def choose_relevance(real: Sequence[object], synthetic: Sequence[object]) -> str:
    """``label`` if an image of each set has one, else ``text``; of records or embedded sets."""
    sides = [
        side.labels if isinstance(side, Embedded) else [record.labels for record in side]
        for side in (real, synthetic)
    ]
    return "label" if all(any(labels) for labels in sides) else "text"


def score_retrieval(
    real: Embedded,
    synthetic: Embedded,
    labels: Sequence[str],
    *,
    relevance: str | None = None,
    seed: int = 0,
) -> tuple[Entries, dict[str, Entries]]:
    """Recall at 1, 5 and 10 and median rank in three directions, of all queries and per label.

    The real set's own values come from the same gallery where there is one: image to image, a half
    of the real images that shares no patient with the half that asks; image to text, the distinct
    texts of both sets. Text to image, the two galleries are brought to equal size.

    Args:
        real: Real images, embedded; the model must not have been trained on them.
        synthetic: Synthetic images, embedded by the same model.
        labels: Labels to give entries each.
        relevance: What makes an item relevant: a common ``label`` or the same ``text``; None:
            the label if both sets have labels.
        seed: Of the halves, the equal sizes and the intervals.

    Returns:
        Name -> entry, and label -> name -> entry; names are ``retrieval_DIRECTION_MEASURE``.
    """
    relevance = relevance or choose_relevance(real, synthetic)
    if relevance not in RELEVANCES:
        raise ValueError(f"relevance {relevance!r} is none of {', '.join(RELEVANCES)}")
    overall: Entries = {}
    per_label: dict[str, Entries] = {label: {} for label in labels}
    for direction in DIRECTIONS:
        own, drawn = _SEARCHES[direction](real, synthetic, relevance=relevance, seed=seed)
        counts = {"n_real": len(real), "n_synthetic": len(synthetic)}
        more = {"relevance": relevance, "seed": seed}
        overall |= _entries(direction, own, drawn, counts, **more)
        for label in labels:
            counts = {
                f"n_{name}": sum(label in labels_of for labels_of in side.labels)
                for name, side in (("real", real), ("synthetic", synthetic))
            }
            sides = [search.having(label) for search in (own, drawn)]
            per_label[label] |= _entries(direction, *sides, counts, **more)
    return overall, per_label


def absent_scores(why: str, *, n_real: int, n_synthetic: int) -> Entries:
    """Every entry, without a value, where retrieval cannot be computed at all."""
    return {
        f"retrieval_{direction}_{measure}": absent(_better(measure), n_real, n_synthetic, why)
        for direction in DIRECTIONS
        for measure in MEASURES
    }


def _better(measure: str) -> str:
    return "lower" if measure == "median_rank" else "higher"


def _images(side: Embedded, relevance: str) -> Items:
    groups = relevance_groups(side.texts, side.labels, relevance)
    return Items(side.images, groups, list(side.labels), list(side.units))


def _texts(sides: Sequence[Embedded], relevance: str) -> Items:
    """The distinct texts of one or more sets, with the labels of all images that have them."""
    labels: dict[str, set[str]] = {}
    vectors: dict[str, np.ndarray] = {}
    for side in sides:
        vectors |= side.text_vectors
        for text, own in zip(side.texts, side.labels):
            if text:
                labels.setdefault(text, set()).update(own)
    names = sorted(labels)
    tuples = [tuple(sorted(labels[name])) for name in names]
    matrix = np.stack([vectors[name] for name in names]) if names else _no_vectors(sides)
    return Items(matrix, relevance_groups(names, tuples, relevance), tuples, names)


def _no_vectors(sides: Sequence[Embedded]) -> np.ndarray:
    return np.empty((0, sides[0].images.shape[1]), np.float32)


def _search(queries: Items, gallery: Items) -> Search:
    groups = {"query_groups": queries.groups, "gallery_groups": gallery.groups}
    ranking = first_relevant_ranks(queries.vectors, gallery.vectors, **groups)
    return Search(queries, ranking, len(gallery))


def _image_to_image(
    real: Embedded, synthetic: Embedded, *, relevance: str, seed: int
) -> tuple[Search, Search]:
    """One half of the real images searched by the other half, and by the synthetic images."""
    asking, asked = metrics.split_halves(real.units, seed=seed)
    images = _images(real, relevance)
    gallery = images.take(asked)
    queries = images.take(asking), _images(synthetic, relevance)
    return tuple(_search(side, gallery) for side in queries)


def _image_to_text(
    real: Embedded, synthetic: Embedded, *, relevance: str, seed: int
) -> tuple[Search, Search]:
    """The texts of both sets searched by the real images, and by the synthetic images."""
    gallery = _texts((real, synthetic), relevance)
    return tuple(_search(_images(side, relevance), gallery) for side in (real, synthetic))


def _text_to_image(
    real: Embedded, synthetic: Embedded, *, relevance: str, seed: int
) -> tuple[Search, Search]:
    """As many real as synthetic images, searched by the texts of both sets."""
    size = min(len(real), len(synthetic))
    found = []
    for side in (real, synthetic):
        drawn = np.sort(np.random.default_rng(seed).permutation(len(side))[:size])
        # By text, only the own texts are queries; the other set's have no image here.
        asking = (real, synthetic) if relevance == "label" else (side,)
        gallery = _images(side, relevance).take(drawn)
        found.append(_search(_texts(asking, relevance), gallery))
    return tuple(found)


_SEARCHES = dict(zip(DIRECTIONS, (_image_to_image, _image_to_text, _text_to_image)))


def _entries(
    direction: str,
    own: Search,
    drawn: Search,
    counts: dict[str, int],
    *,
    relevance: str,
    seed: int,
) -> Entries:
    """The four measures of one direction."""
    notes = []
    for name, search in (("real", own), ("synthetic", drawn)):
        if dropped := int((search.ranking.num_relevant == 0).sum()):
            notes.append(
                f"{dropped} of {len(search.queries)} {name} queries left out: nothing in the "
                f"gallery has their {relevance}"
            )
    own, drawn = own.answerable(), drawn.answerable()
    more = {
        "num_queries": len(drawn.queries),
        "gallery_size": drawn.gallery_size,
        "relevance": relevance,
    }
    entries = {}
    for measure in MEASURES:
        value, interval, chance = _measured(drawn, measure, seed)
        real, real_interval, real_chance = _measured(own, measure, seed)
        found = {"ci95": interval, "real": real, "real_ci95": real_interval, "chance": chance}
        why = [] if value is not None else [f"no query with a relevant item by {relevance}"]
        entries[f"retrieval_{direction}_{measure}"] = entry(
            value,
            direction=_better(measure),
            **counts,
            **found,
            real_chance=real_chance,
            **more,
            notes=notes + why,
        )
    return entries


def _measured(
    search: Search, measure: str, seed: int
) -> tuple[float | None, tuple[float, float] | None, float | None]:
    """Value, interval and the value of random ranking; None without queries."""
    ranks, relevant = search.ranking
    if not len(ranks):
        return None, None, None
    units = search.queries.units
    about = {"gallery_size": search.gallery_size, "num_relevant": relevant}
    if measure == "median_rank":
        interval = median_rank_interval(ranks, groups=units, seed=seed)
        return median_rank(ranks), interval, chance_median_rank(**about)
    k = int(measure.removeprefix("recall_at_"))
    hits = ranks <= k
    interval = metrics.bootstrap_interval(hits, groups=units, seed=seed)
    return float(hits.mean()), interval, float(chance_recall(k, **about).mean())
