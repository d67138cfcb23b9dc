"""The end of a report sweep: statistics, tables, the page, and the captioner that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from utils import report_baselines, run_folder
from utils.attention_examples import read_scans
from utils.bert_score import BertScore
from utils.captioner import Captioner
from utils.finding_labeler import FindingLabeler, load_labeler
from utils.hub_models import local_folder
from utils.patient_division import patients_of
from utils.report_data import Pairs, ReportPools, select
from utils.report_examples import (
    count_named,
    make_examples,
    runs_to_show,
)
from utils.report_page import ReportStory, ShownReports, write_page
from utils.report_scores import METRIC_NAMES, ReportScorer
from utils.report_sections import main_figure
from utils.report_statistics import ArmFigures, compare, estimate, score_arm
from utils.report_tables import RUN_COLUMNS, write_predictions, write_tables
from utils.report_training import ReportResult
from utils.sweep_cells import (
    Cell,
    MainFigure,
    SweepScores,
    cell_name,
    cell_of,
    place_name,
    shown_shares,
)
from utils.sweep_plan import RunKey
from utils.sweep_runner import NETWORK_FOLDER, candidates, folder_of, read_sweep, winner
from utils.sweep_scores import compare_cells, verdict
from utils.sweep_tables import run_rows, sweep_entries

MOST_FREQUENT, NEAREST = "most frequent report", "nearest training scan"
CAPTIONER_FOLDER = "captioner"


@dataclass(frozen=True)
class ReportOutcome:
    """What a sweep was about.

    Attributes:
        reference_arm: What the other arms are compared with.
        facts: Of the page: name -> value.
        notes: Sentences that must not be overlooked.
        num_resamples: Bootstrap draws of patients.
        seed: Of the draws.
        device: Where BERTScore runs, and the kept captioner for its pictures.
        finding_rules: Name or file of the labeler's rules.
        wordnet_dir: Synonyms for METEOR, or None.
        bert_score_model: Folder or hub name of BERTScore's language model; empty: no BERTScore.
        bert_score_layer: Its layer; None: the last.
        show_reports: Whether the page has scans and reports.
        offline: Whether downloads are forbidden.
    """

    reference_arm: str
    facts: Mapping[str, object]
    notes: Sequence[str]
    num_resamples: int
    seed: int
    device: str
    finding_rules: str
    wordnet_dir: Path | None
    bert_score_model: str
    bert_score_layer: int | None
    show_reports: bool
    offline: bool

    @cached_property
    def labeler(self) -> FindingLabeler:
        """Of the findings.

        Raises:
            UserError: If the rules are broken.
        """
        return load_labeler(self.finding_rules)

    @cached_property
    def bert(self) -> BertScore | None:
        """BERTScore's language model, if it is asked for.

        Raises:
            UserError: If it cannot be loaded.
        """
        if not self.bert_score_model:
            return None
        flag = "--bert_score_model"
        folder = local_folder(self.bert_score_model, flag=flag, offline=self.offline)
        return BertScore(folder, layer=self.bert_score_layer, device=self.device)

    def scorer(self, references: Sequence[str]) -> ReportScorer:
        """Scores reports; before a training it tells what is wrong with the files it needs."""
        return ReportScorer(
            references, labeler=self.labeler, wordnet_dir=self.wordnet_dir, bert=self.bert
        )


def finish(
    output_dir: Path,
    keys: Sequence[RunKey],
    pools: ReportPools,
    *,
    scorer: ReportScorer,
    outcome: ReportOutcome,
) -> dict[str, object]:
    """Write all results, results.json last; returns what is printed."""
    runs = read_sweep(keys, output_dir, ReportResult)
    patients = patients_of(pools.test.images.records)
    written = {run.key: [report.text for report in run.reports] for run in runs}
    written |= baselines(keys, pools)
    statistics = {key: scorer.statistics(texts) for key, texts in written.items()}
    scores = _score(statistics, patients, outcome)
    figure = main_figure(scorer.main[1])
    allowed = set(candidates(keys))
    best = winner([run for run in runs if run.key in allowed], _validation_quality)
    kept_in = folder_of(best.key, output_dir) / NETWORK_FOLDER
    captioner = Captioner.load(kept_in, device=outcome.device)
    captioner.save(output_dir / CAPTIONER_FOLDER)
    kept = f"{best.key.name}, sha256 {captioner.sha256}"
    write_tables(output_dir, runs, statistics, scores)
    write_predictions(output_dir, best, pools.test, with_references=outcome.show_reports)
    story = _story(runs, best, pools.test, scores, outcome=outcome, metric=scorer.main[1])
    story = replace(story, facts={**story.facts, "captioner kept": kept})
    shown = None
    if outcome.show_reports:
        shown = _shown(runs, best, captioner, pools=pools, labeler=outcome.labeler, figure=figure)
    write_page(output_dir / "report.html", story, scores, shown)
    printed = {
        "output_dir": output_dir,
        "report": output_dir / "report.html",
        "captioner": {
            "path": output_dir / CAPTIONER_FOLDER,
            "sha256": captioner.sha256,
            "run": best.key.name,
        },
        "num_runs": len(keys),
        "num_test_reports": story.num_reports,
        "num_test_patients": story.num_patients,
        "verdict": story.verdict,
        "main": {
            cell_name(cell, figure): found
            for cell in scores.estimates
            if (found := scores.find(cell, figure.target, figure.metric)) is not None
        },
    }
    run_folder.write_json(
        output_dir / "results.json", printed | {"notes": story.notes} | sweep_entries(scores)
    )
    return printed


def _validation_quality(run: ReportResult) -> float:
    """More is better; comparable between runs with tokenizers of their own."""
    return -run.facts["val_loss_per_character"]


def baselines(keys: Sequence[RunKey], pools: ReportPools) -> dict[RunKey, list[str]]:
    """What the reports are without a model, from the same real pairs as the runs: key -> reports.

    The most frequent report of the training pairs, and that of the most similar training scan.
    """
    found: dict[RunKey, list[str]] = {}
    places = {(key.label_share or 100.0, key.seed) for key in keys}
    for share, seed in sorted(places):
        key = RunKey(MOST_FREQUENT, share, 0.0, seed)
        train = select(key, pools).train
        found[key] = report_baselines.most_frequent(train.texts, len(pools.test))
        key = RunKey(NEAREST, share, 0.0, seed)
        found[key] = report_baselines.nearest(train.images, train.texts, pools.test.images)
    return found


def _score(
    statistics: Mapping[RunKey, object], patients: Sequence[str], outcome: ReportOutcome
) -> SweepScores:
    """Estimates of all cells, and every arm and baseline against the reference arm."""
    cells: dict[Cell, list[RunKey]] = {}
    for key in statistics:
        cells.setdefault(cell_of(key), []).append(key)
    draws = {"num_resamples": outcome.num_resamples, "seed": outcome.seed}
    found: dict[Cell, ArmFigures] = {
        cell: score_arm([statistics[key] for key in own], patients, **draws)
        for cell, own in cells.items()
    }
    estimates = {cell: estimate(figures) for cell, figures in found.items()}
    apart = (MOST_FREQUENT, NEAREST)
    compared = compare_cells(found, outcome.reference_arm, compare, apart=apart)
    return SweepScores(estimates, compared)


def _story(
    runs: Sequence[ReportResult],
    best: ReportResult,
    test: Pairs,
    scores: SweepScores,
    *,
    outcome: ReportOutcome,
    metric: str,
) -> ReportStory:
    """What the page tells in words."""
    named = count_named(outcome.labeler, test.texts)
    return ReportStory(
        title="Reports from scans",
        verdict=verdict(scores, figure=main_figure(metric), names=METRIC_NAMES),
        facts=outcome.facts,
        notes=[*outcome.notes, *_few_named(named)],
        metric=metric,
        kept=cell_of(best.key),
        named=named,
        num_reports=len(test),
        num_patients=len(set(patients_of(test.images.records))),
        runs=run_rows(runs, RUN_COLUMNS),
    )


def _few_named(named: Mapping[str, int]) -> list[str]:
    """A sentence where the labeler finds nothing: the rules may be those of another modality."""
    if any(named.values()):
        return []
    return ["The rules find no finding in any test report: are they those of this modality?"]


def _shown(
    runs: Sequence[ReportResult],
    best: ReportResult,
    captioner: Captioner,
    *,
    pools: ReportPools,
    labeler: FindingLabeler,
    figure: MainFigure,
) -> ShownReports:
    """Reports and pictures of the test scans, for a page that is to have them."""
    records = pools.test.images.records
    patients = patients_of(records)
    chosen = runs_to_show([run.key for run in runs])
    texts = {
        arm: [report.text for report in run.reports]
        for arm, key in chosen.items()
        for run in runs
        if run.key == key
    }
    cells = [cell_of(run.key) for run in runs]
    place = place_name(cells, shown_shares(cells)[0], figure)
    source = f"{place}, seed {next(iter(chosen.values())).seed}"
    examples = make_examples(records, texts, labeler, patients)
    places = [example.place for example in examples]
    reports = [report.text for report in best.reports]
    return ShownReports(
        examples,
        source,
        read_scans(captioner, pools.test.images, reports, labeler, places=places),
    )
