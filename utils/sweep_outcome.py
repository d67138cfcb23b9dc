"""The end of a sweep: statistics, tables, the page, and the classifier that is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import run_folder
from utils.classification_scores import MACRO
from utils.classifier import Classifier
from utils.classifier_training import Examples
from utils.diagnosis_data import DiagnosisData
from utils.diagnosis_evaluation import robustness_to_blur
from utils.diagnosis_report import prediction_rows, result_entries, score_table
from utils.html_report import Page
from utils.patient_division import patients_of
from utils.source_scores import shortcut_warnings
from utils.sweep_cells import SweepScores, cell_of, main_cells
from utils.sweep_page import SweepStory, write_page
from utils.sweep_plan import RunKey
from utils.sweep_results import RunResult, SweepResults
from utils.sweep_runner import NETWORK_FOLDER, candidates, folder_of, read_sweep, winner
from utils.sweep_scores import score_sweep, verdict
from utils.sweep_tables import sweep_entries, write_tables

MAX_SENTENCES = 24  # on a page
CLASSIFIER_FOLDER = "classifier"


@dataclass(frozen=True)
class Outcome:
    """What a sweep was about.

    Attributes:
        title: Of the page.
        reference_arm: What the other arms are compared with.
        facts: Of the page: name -> value.
        notes: Sentences that must not be overlooked.
        num_resamples: Bootstrap draws of patients.
        seed: Of the draws.
        device: Where the kept classifier is tested on smoothed images.
        add_more: Adds to the page what else belongs there.
    """

    title: str
    reference_arm: str
    facts: Mapping[str, object]
    notes: Sequence[str]
    num_resamples: int
    seed: int
    device: str = "cpu"
    add_more: Callable[[Page], None] | None = None


def finish(
    output_dir: Path,
    keys: Sequence[RunKey],
    data: DiagnosisData,
    test: Examples,
    *,
    outcome: Outcome,
) -> dict[str, object]:
    """Write all results, results.json last; returns what is printed."""
    results = SweepResults(
        read_sweep(keys, output_dir),
        test.targets,
        data.labels,
        data.multi_label,
        patients_of(data.test),
        data.test,
    )
    scores = score_sweep(
        results,
        reference_arm=outcome.reference_arm,
        num_resamples=outcome.num_resamples,
        seed=outcome.seed,
    )
    write_tables(
        output_dir, results, scores, num_resamples=outcome.num_resamples, seed=outcome.seed
    )
    notes = [*outcome.notes, *equal_subsets(results.runs)]
    allowed = set(candidates(keys))
    best = winner([run for run in results.runs if run.key in allowed], _validation_auroc)
    classifier = _keep(best, output_dir, outcome.device)
    _write_run_tables(best, output_dir, data)
    robustness = robustness_to_blur(classifier, test)
    sentences = verdict(scores)
    write_page(
        output_dir / "report.html",
        SweepStory(
            outcome.title,
            _shown(sentences, scores),
            {**outcome.facts, "classifier kept": f"{best.key.name}, sha256 {classifier.sha256}"},
            notes,
            robustness=robustness,
            add_more=outcome.add_more,
        ),
        results,
        scores,
        best=cell_of(best.key),
    )
    estimates = scores.estimates[cell_of(best.key)]
    printed = {
        "output_dir": output_dir,
        "report": output_dir / "report.html",
        "classifier": {
            "path": output_dir / CLASSIFIER_FOLDER,
            "sha256": classifier.sha256,
            "run": best.key.name,
        },
        "task": "multilabel" if data.multi_label else "multiclass",
        "data": data.counts(),
        "num_runs": len(keys),
        "verdict": sentences,
        "macro": result_entries(estimates)[MACRO],
        "training": best.facts,
        "robustness": robustness,
    }
    notes = [*notes, *shortcut_warnings(results)]
    details = {"notes": notes, "table": score_table(estimates, test.targets, data.labels)}
    run_folder.write_json(output_dir / "results.json", printed | details | sweep_entries(scores))
    return printed


def _shown(sentences: Sequence[str], scores: SweepScores) -> Sequence[str]:
    """The sentences of a page: of a large sweep those of the smallest and the largest share."""
    if len(sentences) <= MAX_SENTENCES:
        return sentences
    return [
        *verdict(scores, only=main_cells(scores.estimates)),
        f"All {len(sentences)} comparisons are in comparisons.csv.",
    ]


def equal_subsets(runs: Sequence[RunResult]) -> list[str]:
    """A sentence where label shares are the same patients: every diagnosis needs one at least."""
    patients = {run.key.label_share: run.facts["num_patients"] for run in runs}
    alike: dict[int, list[float]] = {}
    for share in sorted(share for share in patients if share):
        alike.setdefault(patients[share], []).append(share)
    return [
        f"{' % and '.join(f'{share:g}' for share in shares)} % of the labels are the same {count} "
        "patients here: every diagnosis keeps one at least."
        for count, shares in alike.items()
        if len(shares) > 1
    ]


def _validation_auroc(run: RunResult) -> float:
    value = run.facts["val_auroc"]
    return -1.0 if value is None else value


def _keep(best: RunResult, output_dir: Path, device: str) -> Classifier:
    """Save the winning run's classifier at the top."""
    classifier = Classifier.load(folder_of(best.key, output_dir) / NETWORK_FOLDER, device=device)
    classifier.save(output_dir / CLASSIFIER_FOLDER)
    return classifier


def _write_run_tables(best: RunResult, output_dir: Path, data: DiagnosisData) -> None:
    """Predictions and training of the winning run."""
    rows = prediction_rows(data.test, best.probs, data.labels, multi_label=data.multi_label)
    run_folder.write_csv(output_dir / "predictions.csv", rows, list(rows[0]))
    run_folder.write_csv(output_dir / "training.csv", best.history, list(best.history[0]))
