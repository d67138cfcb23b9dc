"""All scores of written reports against their references, ready to be resampled.

What a corpus score is made of is kept for each report and added up with weights, so that a table
of weights gives a whole bootstrap. Shapes: N reports, B resamples, M figures, K columns of sums,
F findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.bert_score import BertScore
from utils.cider import LARGEST, cider
from utils.classification_scores import MACRO
from utils.finding_scores import (
    ATTRIBUTE_METRICS,
    FINDING_METRICS,
    count_findings,
    finding_scores,
    named_findings,
    why_undefined,
)
from utils.ranked_outcomes import ratio
from utils.report_words import words_of
from utils.text_metrics import bleu, bleu_counts, distinct, load_wordnet, meteor, rouge
from utils.verdicts import ALL

if TYPE_CHECKING:
    from utils.finding_labeler import FindingLabeler

BLEU_METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
DISTINCT_METRICS = ("distinct_1", "distinct_2")
METRIC_NAMES = {
    "finding_f1": "finding F1",
    "finding_precision": "finding precision",
    "finding_recall": "finding recall",
    "attribute_side": "right side",
    "attribute_size_um": "exact size",
    "attribute_size_um_near": "size within 20 %",
    "attribute_count": "right number",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "meteor_no_synonyms": "METEOR without synonyms",
    "cider": "CIDEr",
    "cider_d": "CIDEr-D",
    "bert_score": "BERTScore F1",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
}
RANGES = {
    "cider": (0.0, LARGEST),
    "cider_d": (0.0, LARGEST),
    "bert_score": (-1.0, 1.0),
}  # else 0, 1
NO_DISTINCT_INTERVAL = "no interval: a report drawn twice adds no new words"
NO_WORDS = "no written report is long enough"
_NUM_BLEU = 10


@dataclass(frozen=True)
class ReportStatistics:
    """One model's reports, scored.

    Attributes:
        keys: M pairs (target, metric): the whole test set, macro, then each finding.
        means: Metrics that are means over reports.
        table: (N, K) float64: ``means``, the counts of BLEU, outcomes (3, F), attributes (2, A).
        varied: Distinct-1 and distinct-2 of all reports.
        reasons: (target, metric) -> why it is undefined, or what it leaves out.
    """

    keys: tuple[tuple[str, str], ...]
    means: tuple[str, ...]
    table: np.ndarray
    varied: tuple[float, float]
    reasons: Mapping[tuple[str, str], str]

    def figures(self, weights: np.ndarray) -> np.ndarray:
        """Every figure for each row of weights.

        Args:
            weights: (B, N), how often each report counts, >= 0.

        Returns:
            (B, M) float64, NaN where undefined. Distinct-n is defined for all reports counted once
            only: a report drawn twice adds words and no new ones, so that resamples of a test set
            are not what other test sets would be.
        """
        sums = weights @ self.table
        found = self._whole(sums, weights)
        if self._has_findings:
            outcomes, attributes = self._split_findings(sums)
            scores = finding_scores(outcomes)
            shares = ratio(attributes[:, 0], attributes[:, 1])
            each = scores["each"].reshape(len(sums), -1)
            found += [scores["all"], shares, scores["macro"], each]
        return np.concatenate(found, axis=1)

    def counting(self) -> dict[tuple[str, str], np.ndarray]:
        """(target, metric) -> (N,) bool, which reports it is about.

        Of a finding those whose reference names it, of an attribute those where it is compared,
        else all.
        """
        found = {key: np.ones(len(self.table), bool) for key in self.keys}
        if self._has_findings:
            outcomes, attributes = self._split_findings(self.table)
            names = list(dict.fromkeys(t for t, _ in self.keys if t not in (ALL, MACRO)))
            asked = {(ALL, m): attributes[:, 1, k] for k, m in enumerate(ATTRIBUTE_METRICS)}
            named = {
                (name, metric): outcomes[:, 0, k] + outcomes[:, 2, k]
                for k, name in enumerate(names)
                for metric in FINDING_METRICS
            }
            found |= {key: column > 0 for key, column in (asked | named).items()}
        return found

    def _whole(self, sums: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
        """Text metrics of the whole test set, each (B, some)."""
        num_means = len(self.means)
        once = (weights == 1).all(axis=1, keepdims=True)
        return [
            bleu(sums[:, num_means : num_means + _NUM_BLEU]),
            ratio(sums[:, :num_means], weights.sum(axis=1, keepdims=True)),
            np.where(once, np.array([self.varied]), np.nan),
        ]

    @property
    def _has_findings(self) -> bool:
        return self.table.shape[1] > len(self.means) + _NUM_BLEU

    def _split_findings(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Outcomes (B, 3, F) and attributes (B, 2, A) of rows (B, K)."""
        start, width = len(self.means) + _NUM_BLEU, 2 * len(ATTRIBUTE_METRICS)
        outcomes = rows[:, start:-width].reshape(len(rows), 3, -1)
        return outcomes, rows[:, -width:].reshape(len(rows), 2, -1)


class ReportScorer:
    """Scores any number of models that write reports for the same scans.

    Attributes:
        keys: Pairs (target, metric), the columns of the figures.
        main: The figure that the verdict is about.
    """

    def __init__(
        self,
        references: Sequence[str],
        *,
        labeler: FindingLabeler | None = None,
        wordnet_dir: Path | None = None,
        bert: BertScore | None = None,
    ):
        """Read the references once.

        Args:
            references: N true reports, N >= 1.
            labeler: Finds what a report names; None: no finding scores.
            wordnet_dir: Folder or zip of nltk's WordNet; None: METEOR without synonyms.
            bert: The model of BERTScore; None: no BERTScore.

        Raises:
            ValueError: If there is no reference, or a finding is called "all" or "macro".
            UserError: If the WordNet is not one.
        """
        names = tuple(labeler.names) if labeler else ()
        if not references or {ALL, MACRO} & set(names):
            raise ValueError(f"no reference, or a finding is called {ALL!r} or {MACRO!r}")
        self._references, self._labeler, self._bert = list(references), labeler, bert
        self._words = [words_of(text) for text in references]
        self._wordnet = load_wordnet(wordnet_dir) if wordnet_dir else None
        self._findings = self._read(references)
        synonyms = "meteor" if wordnet_dir else "meteor_no_synonyms"
        self._means = ("rouge_1", "rouge_2", "rouge_l", synonyms, "cider", "cider_d")
        self._means += ("bert_score",) if bert else ()
        keys = [(ALL, metric) for metric in BLEU_METRICS + self._means + DISTINCT_METRICS]
        if labeler:
            keys += [(ALL, metric) for metric in FINDING_METRICS + ATTRIBUTE_METRICS]
            keys += [(target, metric) for target in (MACRO, *names) for metric in FINDING_METRICS]
        self.keys = tuple(keys)
        self.main = (ALL, "finding_f1" if labeler else "cider")

    def statistics(self, written: Sequence[str]) -> ReportStatistics:
        """Score one model's reports.

        Args:
            written: N reports, in the order of the references; an empty one scores 0.

        Raises:
            ValueError: If there are not as many as references.
        """
        if len(written) != len(self._references):
            raise ValueError(f"{len(written)} reports for {len(self._references)} references")
        words = [words_of(text) for text in written]
        pair = {"references": self._words, "written": words}
        columns = [rouge(**pair), meteor(**pair, wordnet=self._wordnet)[:, None]]
        columns.append(np.stack(cider(**pair), axis=1))
        if self._bert:
            columns.append(self._bert.f1(references=self._references, written=written)[:, None])
        columns.append(bleu_counts(**pair))
        varied = tuple(distinct(words, order) for order in (1, 2))
        reasons = {
            (ALL, metric): NO_WORDS if np.isnan(value) else NO_DISTINCT_INTERVAL
            for metric, value in zip(DISTINCT_METRICS, varied)
        }
        if self._labeler:
            names = self._labeler.names
            counts = count_findings(names, references=self._findings, written=self._read(written))
            columns += [
                part.reshape(len(words), -1) for part in (counts.outcomes, counts.attributes)
            ]
            reasons |= why_undefined(counts, names)
        table = np.concatenate(columns, axis=1)
        return ReportStatistics(self.keys, self._means, table, varied, reasons)

    def _read(self, texts: Sequence[str]) -> list[dict]:
        """What each text names; a text that occurs often is read once."""
        if not self._labeler:
            return []
        known = {text: named_findings(self._labeler, text) for text in dict.fromkeys(texts)}
        return [known[text] for text in texts]
