"""Which drawn images show what they were asked to show, as classifier and report model see it.

A pair of image and text is kept if text, label and image agree: the classifier recognises the
label in the image, and the report that a model writes of the image names the findings of the text
and no others. N images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.captioner import Captioner, Decoding, Written
from utils.classification_metrics import predicted_labels
from utils.classifier import Classifier
from utils.dataset import Dataset, Record
from utils.finding_labeler import FindingLabeler
from utils.finding_scores import names_in
from utils.gray_images import GrayImages

MIN_SURE = 10  # reports that a threshold rests on, at least


@dataclass(frozen=True)
class Agreement:
    """Of each image what agrees.

    Attributes:
        label: (N,) bool, the classifier recognises the asked label.
        text: (N,) bool, the written report names the findings of the text, no more and no fewer.
        reports: (N,) what was written.
    """

    label: np.ndarray
    text: np.ndarray
    reports: Sequence[str]

    @property
    def kept(self) -> np.ndarray:
        """(N,) bool, all agree."""
        return self.label & self.text

    def summary(self) -> dict[str, int]:
        """How many images were drawn, agree in each, and are kept."""
        return {
            "drawn": len(self.label),
            "label_agrees": int(self.label.sum()),
            "text_agrees": int(self.text.sum()),
            "kept": int(self.kept.sum()),
        }


def examine_pairs(
    dataset: Dataset,
    *,
    classifier: Classifier,
    captioner: Captioner,
    labeler: FindingLabeler,
) -> Agreement:
    """Look at every image of a drawn set.

    Args:
        dataset: N images with their prompt as text, and their label.
        classifier: Knows the labels.
        captioner: Writes a report of each image.
        labeler: Finds the findings of both texts.
    """
    reports = write_reports(dataset.records, captioner)
    return Agreement(
        label=has_own_label(dataset, classifier),
        text=has_same_findings([record.text for record in dataset], reports, labeler),
        reports=[report.text for report in reports],
    )


def write_reports(records: Sequence[Record], captioner: Captioner) -> list[Written]:
    """The report that a model writes of each image, as long as it was trained for."""
    images = GrayImages(records, resolution=captioner.resolution, resize_mode=captioner.resize_mode)
    return captioner.write(images, Decoding(max_new_tokens=captioner.max_new_tokens))


def has_same_findings(
    texts: Sequence[str], reports: Sequence[Written], labeler: FindingLabeler
) -> np.ndarray:
    """(N,) bool: the report names the findings of the text, no more and no fewer."""
    return np.array(
        [
            set(names_in(labeler, text)) == set(names_in(labeler, report.text))
            for text, report in zip(texts, reports, strict=True)
        ],
        bool,
    )


def recognised_labels(records: Sequence[Record], classifier: Classifier) -> np.ndarray:
    """(N, L) bool: the labels that the classifier sees in each image."""
    probabilities = classifier.predict(record.image() for record in records)
    return predicted_labels(probabilities, multi_label=classifier.multi_label)


def has_own_label(dataset: Dataset, classifier: Classifier) -> np.ndarray:
    """(N,) bool: the classifier recognises all labels of the image, and there is one."""
    said = recognised_labels(dataset.records, classifier)
    column = {label: place for place, label in enumerate(classifier.labels)}
    return np.array(
        [
            bool(record.labels)
            and all(name in column and said[row, column[name]] for name in record.labels)
            for row, record in enumerate(dataset)
        ],
        bool,
    )


def findings_by_label(
    records: Sequence[Record], labeler: FindingLabeler
) -> dict[tuple[str, ...], set[frozenset[str]]]:
    """Labels of an image -> the sets of findings that true reports of such images name."""
    found: dict[tuple[str, ...], set[frozenset[str]]] = {}
    for record in records:
        found.setdefault(record.labels, set()).add(frozenset(names_in(labeler, record.text)))
    return found


def agrees_with_label(
    records: Sequence[Record],
    reports: Sequence[Written],
    *,
    classifier: Classifier,
    known: Mapping[tuple[str, ...], set[frozenset[str]]],
    labeler: FindingLabeler,
) -> np.ndarray:
    """(N,) bool: the report names findings that go with what a classifier sees in the image.

    Two models that err independently are both right more often than either is sure with reason.

    Args:
        records: N images.
        reports: What a model wrote of each.
        classifier: Looks at the images.
        known: Of `findings_by_label`, from true reports.
        labeler: Finds the findings of the reports.
    """
    said = recognised_labels(records, classifier)
    labels = [tuple(name for name, seen in zip(classifier.labels, row) if seen) for row in said]
    return np.array(
        [
            frozenset(names_in(labeler, report.text)) in known.get(seen, set())
            for seen, report in zip(labels, reports, strict=True)
        ],
        bool,
    )


def confidence_threshold(
    reports: Sequence[Written], truths: Sequence[str], labeler: FindingLabeler, *, precision: float
) -> float | None:
    """The confidence from which on written reports are right often enough.

    A report is right if it names the findings of the true one, no more and no fewer. The threshold
    holds for scans like these, and is a little flattered by having been chosen on them.

    Args:
        reports: Written of scans with a true report.
        truths: The true reports.
        labeler: Finds the findings of both.
        precision: Share of right ones wanted, in (0, 1].

    Returns:
        The least confidence (a mean log-probability, <= 0) of which those at or above it are right
        in that share, `MIN_SURE` reports at least; None if there is none.
    """
    right = has_same_findings(truths, reports, labeler)
    confidences = np.array([report.confidence for report in reports])
    order = np.argsort(-confidences, kind="stable")
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # Of equal confidences all are at or above it.
    is_last = np.append(np.diff(confidences[order]) != 0, True)
    is_last[: MIN_SURE - 1] = False
    enough = np.flatnonzero((shares >= precision) & is_last)
    return float(confidences[order[enough[-1]]]) if len(enough) else None
