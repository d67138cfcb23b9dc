"""How a generated set's images passed the gates, counted from the manifest, over all and per label.

One row of the manifest is one attempt: ``accepted``, ``rejected``, or ``failed`` where it was the
last attempt allowed and was refused too. Refused below means rejected or failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from utils.manifest import ACCEPTED, FAILED, REJECTED
from utils.metrics import wilson_interval

REASONS = {
    "blank": "blank, or of one flat colour",
    "contrast": "too little contrast",
    "class": "the asked label was not recognised",
    "copy": "too like a training image",
    "duplicate": "too like another image of this set",
}
NO_LABEL = "(none)"

LOW_RATE = 0.05
# Of fewer attempts one acceptance is 5 % already, so that only none at all could fall below. None
# of 20 is seen once in 26 times at a rate of 15 %, but once in 5,500 times at 35 %.
MIN_ATTEMPTS = round(1 / LOW_RATE)
NUM_SCORE_BINS = 20  # over [0, 1]


@dataclass
class Tally:
    """Attempts at the images of one label, or of all.

    Attributes:
        asked: Images, each of which has one first attempt (number 0).
        accepted: Images that passed; an image passes once.
        failed: Images given up.
        attempts: Images drawn.
        reasons: Refused attempts by reason; one refused for two reasons counts in both.
        score_sum: Sum of the accepted images' scores.
        num_scored: Accepted images that have a score.
    """

    asked: int = 0
    accepted: int = 0
    failed: int = 0
    attempts: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    score_sum: float = 0.0
    num_scored: int = 0

    def add(self, row: Mapping[str, str]) -> None:
        """Count one row of a manifest."""
        status = row["status"]
        self.attempts += 1
        self.asked += int(row["attempt"]) == 0
        self.accepted += status == ACCEPTED
        self.failed += status == FAILED
        if status != ACCEPTED:
            self.reasons.update(reasons_of(row))
        elif row["score"]:
            self.score_sum += float(row["score"])
            self.num_scored += 1

    @property
    def rate(self) -> float | None:
        """Accepted per attempt; None without attempts."""
        return self.accepted / self.attempts if self.attempts else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of `rate` (Wilson)."""
        return wilson_interval(self.accepted, self.attempts)

    @property
    def mean_score(self) -> float | None:
        """Mean score of the accepted images that have one; None if none has."""
        return self.score_sum / self.num_scored if self.num_scored else None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "asked": self.asked,
            "accepted": self.accepted,
            "failed": self.failed,
            "attempts": self.attempts,
            "rate": self.rate,
            "ci95": self.interval,
            "reasons": {name: self.reasons[name] for name in sorted(self.reasons)},
            "mean_score": self.mean_score,
        }


def reasons_of(row: Mapping[str, str]) -> list[str]:
    """Why an attempt was refused; empty if it was accepted."""
    return [reason for reason in row["reason"].split(";") if reason]


@dataclass
class Acceptance:
    """Over all labels and per label; several labels of one image count as their combination.

    Attributes:
        overall: All attempts.
        per_label: Label as the manifest has it -> its attempts, in the order of the names.
        scores: ``accepted`` and ``refused`` -> attempts by score, in `NUM_SCORE_BINS` bins.
    """

    overall: Tally
    per_label: dict[str, Tally]
    scores: dict[str, list[int]]

    @classmethod
    def count(cls, rows: Iterable[Mapping[str, str]]) -> Acceptance:
        """Count a manifest; it is read once, row by row, and no row is kept.

        Args:
            rows: One per attempt, with ``label, status, reason, score, attempt``.
        """
        overall, per_label = Tally(), {}
        scores = {name: [0] * NUM_SCORE_BINS for name in (ACCEPTED, "refused")}
        for row in rows:
            status = row["status"]
            assert status in (ACCEPTED, REJECTED, FAILED), f"status of a manifest: {status!r}"
            for tally in (overall, per_label.setdefault(row["label"] or NO_LABEL, Tally())):
                tally.add(row)
            if row["score"]:
                place = min(int(float(row["score"]) * NUM_SCORE_BINS), NUM_SCORE_BINS - 1)
                scores[ACCEPTED if status == ACCEPTED else "refused"][place] += 1
        return cls(overall, {name: per_label[name] for name in sorted(per_label)}, scores)

    def low(self) -> list[str]:
        """Labels of which under 5 % of at least `MIN_ATTEMPTS` attempts were accepted."""
        return [
            label
            for label, tally in self.per_label.items()
            if tally.attempts >= MIN_ATTEMPTS and tally.rate < LOW_RATE
        ]

    def missing(self) -> list[str]:
        """Labels all of whose images failed: the set has none of them."""
        return [label for label, tally in self.per_label.items() if tally.failed == tally.asked]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "overall": self.overall.as_dict(),
            "per_label": {label: tally.as_dict() for label, tally in self.per_label.items()},
            "low": self.low(),
            "missing": self.missing(),
        }


def describe_reasons(counts: Mapping[str, int]) -> str:
    """How many attempts were refused for which of `REASONS`, as one line."""
    return "; ".join(
        f"{text}: {counts[name]:,}" for name, text in REASONS.items() if name in counts
    )


def describe_low(acceptance: Acceptance) -> list[str]:
    """A sentence for each label of low acceptance, then for each without any image."""
    sentences = []
    for label in acceptance.low():
        tally = acceptance.per_label[label]
        low, high = (100 * bound for bound in tally.interval)
        sentences.append(
            f"{label}: only {tally.accepted:,} of {tally.attempts:,} attempts were accepted, "
            f"{100 * tally.rate:.1f} % (95 % interval {low:.1f} to {high:.1f} %); "
            f"{tally.failed:,} of {tally.asked:,} images were given up"
        )
    for label in acceptance.missing():
        if label not in acceptance.low():
            tally = acceptance.per_label[label]
            sentences.append(
                f"{label}: no image was accepted in {tally.attempts:,} attempts; the set has none"
            )
    return sentences
