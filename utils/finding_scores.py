"""Which findings written reports name rightly, miss or invent, and with which side, size, number.

A finding counts as named if a report calls it present or uncertain, as the CheXbert score does
(Smit et al. 2020, https://arxiv.org/abs/2004.09167); absent is not named. Shapes: N reports,
F findings, A attribute metrics, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.classification_metrics import nan_mean
from utils.ranked_outcomes import ratio

if TYPE_CHECKING:
    from utils.finding_labeler import FindingLabeler

NAMED = ("present", "uncertain")
FINDING_METRICS = ("finding_precision", "finding_recall", "finding_f1")
ATTRIBUTE_METRICS = (
    "attribute_side",
    "attribute_size_um",
    "attribute_size_um_near",
    "attribute_count",
)
NEAR = 0.2  # of the reference's size
NOT_WRITTEN = "no written report names it"
NOT_IN_REFERENCE = "no reference names it"
NOT_NAMED = "no reference and no written report names it"
NOT_TOLD = "no finding named in both has it in its reference"
LEFT_OUT = "where undefined, left out of the mean: "

Attributes = Mapping[str, frozenset[str]]  # attribute -> what a report says of one finding


@dataclass(frozen=True)
class FindingCounts:
    """What the scores are made of, of each report.

    Attributes:
        outcomes: (N, 3, F) float64: named rightly, invented, missed.
        attributes: (N, 2, A) float64: findings whose attribute is right; findings named in both
            whose reference has the attribute.
    """

    outcomes: np.ndarray
    attributes: np.ndarray


def names_in(labeler: FindingLabeler, text: str) -> list[str]:
    """The findings that a report names: present or uncertain, as f1chexbert counts."""
    return [name for name, status in labeler.findings(text).items() if status in NAMED]


def named_findings(labeler: FindingLabeler, text: str) -> dict[str, Attributes]:
    """The findings that a report names, each with its attributes, of all places together.

    Both sides are the left and the right, whether a report says so in one place or in two.
    """
    named = names_in(labeler, text)
    found: dict[str, dict[str, set[str]]] = {name: {} for name in named}
    for mention in labeler.mentions(text):
        if mention.finding in named and mention.status in NAMED:
            for attribute, value in mention.attributes.items():
                values = ("left", "right") if value == "both" else (value,)
                found[mention.finding].setdefault(attribute, set()).update(values)
    return {
        name: {attribute: frozenset(values) for attribute, values in attributes.items()}
        for name, attributes in found.items()
    }


def count_findings(
    names: Sequence[str],
    *,
    references: Sequence[Mapping[str, Attributes]],
    written: Sequence[Mapping[str, Attributes]],
) -> FindingCounts:
    """Compare what ``named_findings`` found in N references and N written reports.

    An attribute is right if the report says of the finding just what the reference says (both
    sides, say, where there are lesions on both); not to mention it is wrong. Sizes are near if the
    largest are within 20 %.
    """
    size = len(references), len(names)
    real, new = (
        np.array([[name in found for name in names] for found in side], bool).reshape(size)
        for side in (references, written)
    )
    outcomes = np.stack([real & new, new & ~real, real & ~new], axis=1)
    attributes = np.zeros((len(references), 2, len(ATTRIBUTE_METRICS)))
    for row, (truth, claim) in enumerate(zip(references, written, strict=True)):
        for name in truth.keys() & claim.keys():
            attributes[row] += _compare_attributes(truth[name], claim[name])
    return FindingCounts(outcomes.astype(np.float64), attributes)


def _compare_attributes(truth: Attributes, claim: Attributes) -> np.ndarray:
    """(2, A): which attributes of a finding are right, and which its reference has."""
    found = np.zeros((2, len(ATTRIBUTE_METRICS)))
    for column, metric in enumerate(ATTRIBUTE_METRICS):
        near = metric.endswith("_near")
        attribute = metric.removeprefix("attribute_").removesuffix("_near")
        if attribute in truth:
            values = truth[attribute], claim.get(attribute, frozenset())
            found[:, column] = (_is_near(*values) if near else values[0] == values[1]), 1
    return found


def _is_near(truth: frozenset[str], claim: frozenset[str]) -> bool:
    """Whether the largest sizes are within 20 % of the reference's."""
    size = max(map(float, truth))
    return bool(claim) and abs(max(map(float, claim)) - size) <= NEAR * size + 1e-9


def finding_scores(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of each finding, of all together, and their means.

    ``all`` (micro) adds the outcomes of all findings up; ``macro`` is the mean over findings, each
    counting the same: of recall over those that a reference has, of precision over those that are
    written, of F1 over both. A finding that is only invented has the F1 0 and lowers the mean, as
    one that is never found does; one that nobody names says nothing and does not count.

    Args:
        sums: (B, 3, F), outcomes added up.

    Returns:
        ``all`` (B, 3), ``macro`` (B, 3), ``each`` (B, F, 3), in the order of ``FINDING_METRICS``;
        NaN where undefined.
    """
    each = _from_outcomes(sums)
    return {
        "all": _from_outcomes(sums.sum(axis=2, keepdims=True))[:, 0],
        "macro": nan_mean(each.swapaxes(1, 2)),
        "each": each,
    }


def _from_outcomes(sums: np.ndarray) -> np.ndarray:
    """(B, F, 3) of outcomes (B, 3, F)."""
    right, invented, missed = sums.swapaxes(0, 1)
    scores = (
        ratio(right, right + invented),
        ratio(right, right + missed),
        ratio(2 * right, 2 * right + invented + missed),
    )
    return np.stack(scores, axis=2)


def why_undefined(counts: FindingCounts, names: Sequence[str]) -> dict[tuple[str, str], str]:
    """(target, metric) -> why it is undefined, or which findings a macro mean leaves out."""
    scores = finding_scores(counts.outcomes.sum(axis=0)[None])
    reasons = {}
    for column, (metric, why) in enumerate(
        zip(FINDING_METRICS, (NOT_WRITTEN, NOT_IN_REFERENCE, NOT_NAMED))
    ):
        without = [name for name, row in zip(names, scores["each"][0]) if np.isnan(row[column])]
        reasons |= {(name, metric): why for name in without}
        if without:
            reasons["macro", metric] = LEFT_OUT + ", ".join(without)
        if np.isnan(scores["all"][0, column]):
            reasons["all", metric] = why
    told = counts.attributes[:, 1].sum(axis=0)
    return reasons | {("all", m): NOT_TOLD for m, n in zip(ATTRIBUTE_METRICS, told) if not n}
