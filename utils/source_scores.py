"""Whether a classifier knows diagnoses or devices: AUROC within each source of images alone.

Where a diagnosis occurs in the images of one source only (device, clinic, data set), the look of
the source gives it away, and the AUROC over all sources is flattered. Within one source that help
is gone (Zech et al. 2018, https://doi.org/10.1371/journal.pmed.1002683).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.classification_metrics import auroc, nan_mean
from utils.classification_scores import MACRO
from utils.dataset import Record
from utils.diagnosis_report import six_digits
from utils.sweep_cells import cell_of, runs_of
from utils.sweep_results import SweepResults

SOURCE_COLUMNS = (
    "arm",
    "label_share",
    "synthetic_ratio",
    "num_seeds",
    "source",
    "target",
    "metric",
    "value",
    "value_all_sources",
    "n",
    "n_positive",
)


def members_of_sources(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Source -> which records come from it, (N,) bool; empty with fewer than two sources."""
    names = np.array([(record.row.get("source") or "").strip() for record in records])
    found = {str(name): names == name for name in np.unique(names) if name}
    return found if len(found) > 1 else {}


def source_rows(results: SweepResults) -> list[dict[str, object]]:
    """Rows of sources.csv, the mean over seeds; none with fewer than two sources.

    ``value`` is the AUROC within a source, ``value_all_sources`` the one over all test images. A
    diagnosis is left out where a source has no image with it or none without; ``macro`` is the mean
    over what is left, the same diagnoses in both columns.
    """
    members = members_of_sources(results.records)
    rows = []
    for cell in dict.fromkeys(cell_of(run.key) for run in results.runs) if members else ():
        probs = [run.probs for run in runs_of(results, cell)]
        head = dict(zip(SOURCE_COLUMNS, (*cell, len(probs))))
        whole = _areas(probs, results.targets, np.ones(len(results.targets), bool))
        for source, chosen in members.items():
            within = _areas(probs, results.targets, chosen)
            same = np.where(np.isnan(within), np.nan, whole)
            positives = results.targets[chosen].sum(axis=0)
            figures = list(zip(results.labels, within, same, positives.tolist()))
            figures = [row for row in figures if not np.isnan(row[1])]
            figures.append((MACRO, nan_mean(within), nan_mean(same), ""))
            for target, value, over_all, count in figures:
                rows.append(
                    head
                    | {
                        "source": source,
                        "target": target,
                        "metric": "auroc",
                        "value": six_digits(value),
                        "value_all_sources": six_digits(over_all),
                        "n": int(chosen.sum()),
                        "n_positive": count,
                    }
                )
    return rows


def _areas(probs: Sequence[np.ndarray], targets: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """AUROC (L,) of the chosen images, the mean over seeds; NaN where undefined."""
    num_labels = targets.shape[1]
    return np.mean(
        [[auroc(p[chosen, k], targets[chosen, k]) for k in range(num_labels)] for p in probs],
        axis=0,
    )


def shortcut_warnings(results: SweepResults) -> list[str]:
    """A sentence for each source that alone has certain diagnoses; none if no source does."""
    members = members_of_sources(results.records)
    alone: dict[str, list[str]] = {}
    for k, label in enumerate(results.labels):
        having = [s for s, chosen in members.items() if results.targets[chosen, k].any()]
        if len(having) == 1:
            alone.setdefault(having[0], []).append(label)
    return [
        f"Only {source} has test images with {' and '.join(labels)}: the look of its images gives "
        f"{'these diagnoses' if len(labels) > 1 else 'this diagnosis'} away, so trust the AUROC "
        "within a source, not the one over all sources."
        for source, labels in alone.items()
    ]
