"""Tables of a sweep: what is written for each run, cell, comparison, source and error."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from utils import run_folder
from utils.arm_statistics import Difference, Estimate
from utils.classification_metrics import auroc
from utils.classification_scores import MACRO, score_classification
from utils.dataset import Record
from utils.diagnosis_report import COMPARISON_COLUMNS, RESULT_COLUMNS
from utils.error_sheet import MAX_ERRORS, confident_errors, write_error_sheet
from utils.reliability import reliability_rows
from utils.source_scores import shortcut_warnings, source_rows
from utils.sweep_cells import (
    Comparison,
    SweepScores,
    arms_of,
    cell_of,
    cells_at,
    main_cells,
    main_ratio,
    mean_probs,
)
from utils.sweep_plan import RunKey
from utils.sweep_results import RunResult, SweepResults
from utils.sweep_tables import (
    diagnosis_rows,
    metric_rows,
    share_rows,
    sweep_entries,
    write_tables,
)

LABELS = ("drusen", "fluid", "normal")
NAN = float("nan")
HISTORY = [{"epoch": n, "train_loss": 1 / n, "val_loss": 2 / n} for n in (1, 2, 3)]


def make_records(folder, count, *, source_of=lambda n: ""):
    """Records of small pictures, two of each patient, diagnoses in turn."""
    rng = np.random.default_rng(0)
    records = []
    for n in range(count):
        path = folder / f"{n}.png"
        Image.fromarray(rng.integers(0, 255, (24, 60), np.uint8)).save(path)
        row, label = {"source": source_of(n)}, LABELS[n % 3]
        records.append(Record(path.name, "", (label,), f"p{n // 2}", "test", row, "", str(path)))
    return records


def make_results(folder, keys, *, count=24, source_of=lambda n: "", skill=1.0, multi_label=False):
    """A sweep whose probabilities are drawn by the run's number, better with more ``skill``."""
    records = make_records(folder, count, source_of=source_of)
    targets = np.array([[name in r.labels for name in LABELS] for r in records])
    runs = []
    for number, key in enumerate(keys):
        rng = np.random.default_rng(number)
        logits = rng.normal(size=targets.shape) + skill * targets
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        facts = {"num_real": 10, "num_patients": int(key.label_share) + 1, "temperature": 1.5}
        runs.append(RunResult(key, probs.astype(np.float32), facts, HISTORY))
    patients = [record.patient_id for record in records]
    return SweepResults(runs, targets, LABELS, multi_label, patients, records)


def make_estimates(value, *, reason=""):
    """AUROC of every label and macro; label k has ``value + k / 100``."""
    return [
        Estimate(target, "auroc", value + k / 100, value - 0.1, value + 0.05, 2, reason)
        for k, target in enumerate([*LABELS, MACRO])
    ]


def make_difference(target=MACRO, difference=0.25, p=0.0123456, **changes):
    values = {"low": difference - 0.1, "high": difference + 0.1, "reason": ""} | changes
    return Difference(
        target,
        "auroc",
        reference_value=0.5,
        value=0.5 + difference,
        difference=difference,
        p=p,
        p_holm=min(1.0, 3 * p),
        num_seeds=2,
        **values,
    )


REAL, MIXED, DRAWN = ("real", 10.0, 0.0), ("real+synthetic", 10.0, 100.0), ("synthetic", 0.0, 100.0)


@pytest.fixture
def scores():
    estimates = {REAL: make_estimates(0.6), MIXED: make_estimates(0.8), DRAWN: make_estimates(0.7)}
    return SweepScores(estimates, [Comparison(MIXED, REAL, [make_difference()])])


@pytest.fixture
def results(tmp_path):
    keys = [RunKey(*cell, seed) for cell in (REAL, MIXED, DRAWN) for seed in (0, 1)]
    return make_results(tmp_path, keys)


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_results_csv_scores_every_run_with_its_own_interval(tmp_path, results, scores):
    write_tables(tmp_path, results, scores, num_resamples=30, seed=4)
    rows = read_csv(tmp_path / "results.csv")
    assert tuple(rows[0]) == RESULT_COLUMNS
    for run in results.runs:
        own = [
            row
            for row in rows
            if (row["arm"], row["seed"]) == (run.key.arm, str(run.key.seed))
            and float(row["label_share"]) == run.key.label_share
        ]
        expected = score_classification(
            run.probs,
            results.targets,
            LABELS,
            multi_label=False,
            patients=results.patients,
            num_resamples=30,
            seed=4,
        )
        assert [(r["target"], r["metric"]) for r in own] == [(s.target, s.metric) for s in expected]
        found = {(r["target"], r["metric"]): r for r in own}
        for score in expected:
            row = found[score.target, score.metric]
            assert float(row["value"]) == pytest.approx(score.value, abs=1e-6)
            if not np.isnan(score.low):
                assert float(row["ci95_low"]) == pytest.approx(score.low, abs=1e-6)


def test_comparisons_csv_names_both_cells_and_rounds_p(tmp_path, results, scores):
    write_tables(tmp_path, results, scores, num_resamples=0, seed=0)
    (row,) = read_csv(tmp_path / "comparisons.csv")
    assert tuple(row) == COMPARISON_COLUMNS
    assert (row["arm"], row["reference_arm"]) == ("real+synthetic", "real")
    assert [float(row[k]) for k in ("label_share", "synthetic_ratio")] == [10, 100]
    ratio = float(row["reference_synthetic_ratio"])
    assert (float(row["reference_label_share"]), ratio) == (10, 0)
    assert (row["reference_value"], row["value"]) == ("0.500000", "0.750000")
    assert (row["difference"], row["ci95_low"], row["ci95_high"]) == (
        "0.250000",
        "0.150000",
        "0.350000",
    )
    assert (row["p"], row["p_holm"], row["num_seeds"]) == ("0.0123", "0.037", "2")


def test_an_undefined_difference_has_empty_fields_and_a_reason(tmp_path, results, scores):
    undefined = make_difference(difference=NAN, p=NAN, reason="one patient only")
    scores = SweepScores(scores.estimates, [Comparison(MIXED, REAL, [undefined])])
    write_tables(tmp_path, results, scores, num_resamples=0, seed=0)
    (row,) = read_csv(tmp_path / "comparisons.csv")
    assert [row[k] for k in ("difference", "ci95_low", "p", "reason")] == [
        *("", "", ""),
        "one patient only",
    ]


def test_runs_csv_has_a_row_a_run_and_leaves_out_what_is_not_known(tmp_path, results, scores):
    write_tables(tmp_path, results, scores, num_resamples=0, seed=0)
    rows = read_csv(tmp_path / "runs.csv")
    assert [(r["arm"], r["seed"]) for r in rows] == [
        (run.key.arm, str(run.key.seed)) for run in results.runs
    ]
    assert (rows[0]["num_patients"], rows[0]["temperature"], rows[0]["val_loss"]) == (
        "11",
        "1.5",
        "",
    )
    assert not (tmp_path / "sources.csv").exists()


def test_the_table_of_diagnoses_has_a_column_per_arm(results, scores):
    cells = cells_at(scores.estimates, 10.0, 100.0)
    rows = diagnosis_rows(scores, cells, results)
    assert [row["diagnosis"] for row in rows] == [*LABELS, "all diagnoses"]
    assert [row["images"] for row in rows] == [8, 8, 8, 24]
    assert list(rows[0])[2:] == ["real", "real + synthetic", "synthetic"]
    assert rows[1]["real + synthetic"] == "0.810 [0.70,\N{NO-BREAK SPACE}0.85]"
    assert rows[3]["synthetic"] == "0.730 [0.60,\N{NO-BREAK SPACE}0.75]"
    assert diagnosis_rows(scores, cells, results, metric="f1")[0]["real"] is None


def test_the_table_of_shares_counts_patients_and_repeats_an_arm_without_labels(tmp_path, scores):
    full = ("real", 100.0, 0.0)
    estimates = {**scores.estimates, full: make_estimates(0.9)}
    keys = [RunKey(*cell, 0) for cell in estimates]
    rows = share_rows(
        SweepScores(estimates, []),
        make_results(tmp_path, keys),
        arms=arms_of(estimates),
        ratio=100.0,
    )
    assert [(row["labels"], row["patients"]) for row in rows] == [
        ("10\N{NO-BREAK SPACE}%", 11),
        ("100\N{NO-BREAK SPACE}%", 101),
    ]
    assert rows[0]["synthetic"] == rows[1]["synthetic"] != rows[0]["real"]
    assert rows[1]["real"].startswith("0.930") and rows[1]["real + synthetic"] is None


def test_the_table_of_metrics_shows_those_that_were_computed(scores):
    rows = metric_rows(scores, {"real": REAL})
    assert [row["score"] for row in rows] == ["AUROC"]


def test_a_cell_is_found_for_arms_without_labels_or_synthetic_images():
    cells = [DRAWN, REAL, MIXED, ("real+synthetic", 10.0, 200.0), ("real", 50.0, 0.0)]
    assert cells_at(cells, 10.0, 200.0) == {"real": REAL, "real+synthetic": cells[3]}
    assert cells_at(cells, 10.0, 100.0) == {"synthetic": DRAWN, "real": REAL, MIXED[0]: MIXED}
    assert list(cells_at(cells, 10.0, 100.0)) == ["synthetic", "real", "real+synthetic"]


def test_the_main_ratio_is_the_commonest_then_the_smallest():
    assert main_ratio([REAL, MIXED, ("synthetic", 0.0, 500.0)]) == 100
    assert main_ratio([MIXED, ("synthetic", 0.0, 500.0), ("real+synthetic", 20.0, 500.0)]) == 500
    assert main_ratio([REAL]) == 0


def test_main_cells_are_those_of_the_smallest_and_the_largest_share():
    cells = [("real", share, 0.0) for share in (1.0, 10.0, 100.0)]
    assert main_cells(cells) == {cells[0], cells[2]}


def test_entries_for_json_hold_every_cell(scores):
    entries = json.loads(json.dumps(run_folder.to_plain(sweep_entries(scores))))
    (mixed,) = entries["arms"]["real+synthetic"]
    assert (mixed["label_share"], mixed["synthetic_ratio"], mixed["num_seeds"]) == (10, 100, 2)
    assert mixed["scores"]["fluid"]["auroc"]["value"] == pytest.approx(0.81)
    (pair,) = entries["comparisons"]
    assert pair["reference"] == {"arm": "real", "label_share": 10, "synthetic_ratio": 0}
    assert pair["differences"][0]["difference"] == 0.25


def test_mean_probabilities_are_those_of_the_cell_alone(results):
    own = [run.probs for run in results.runs if cell_of(run.key) == MIXED]
    np.testing.assert_allclose(mean_probs(results, MIXED), (own[0] + own[1]) / 2)


def test_the_auroc_within_a_source_leaves_out_what_another_source_gives_away(tmp_path):
    """Fluid is in source b only, which the classifier recognises: perfect over both sources."""
    names = {"drusen": "a", "fluid": "b"}

    def source_of(n):
        return names.get(LABELS[n % 3], "ab"[n // 3 % 2])

    results = make_results(tmp_path, [RunKey("real", 100.0, 0.0, 0)], source_of=source_of)
    is_b = np.array([record.row["source"] == "b" for record in results.records])
    probs = results.runs[0].probs
    probs[:, 1] = is_b  # says fluid to every image of b, so nothing within b
    rows = {(row["source"], row["target"]): row for row in source_rows(results)}
    assert ("a", "fluid") not in rows and ("b", "drusen") not in rows
    assert float(rows["b", "fluid"]["value"]) == 0.5
    assert float(rows["b", "fluid"]["value_all_sources"]) == pytest.approx(0.875)
    normal = auroc(probs[is_b, 2], results.targets[is_b, 2])
    assert float(rows["b", MACRO]["value"]) == pytest.approx((0.5 + normal) / 2, abs=1e-6)
    whole = auroc(probs[:, 2], results.targets[:, 2])
    assert float(rows["b", MACRO]["value_all_sources"]) == pytest.approx(
        (0.875 + whole) / 2, abs=1e-6
    )
    assert (rows["b", "fluid"]["n"], rows["b", "fluid"]["n_positive"]) == (12, 8)
    warnings = shortcut_warnings(results)
    assert len(warnings) == 2
    assert "Only a has test images with drusen:" in warnings[0]
    assert "Only b has test images with fluid:" in warnings[1]


def test_source_rows_are_the_mean_over_seeds(tmp_path):
    keys = [RunKey("real", 100.0, 0.0, seed) for seed in (0, 1)]
    results = make_results(tmp_path, keys, source_of=lambda n: "ab"[n // 3 % 2])
    chosen = np.array([record.row["source"] == "a" for record in results.records])
    each = [auroc(run.probs[chosen, 0], results.targets[chosen, 0]) for run in results.runs]
    (row,) = [r for r in source_rows(results) if (r["source"], r["target"]) == ("a", "drusen")]
    assert each[0] != each[1]
    assert float(row["value"]) == pytest.approx(np.mean(each), abs=1e-6)
    assert row["num_seeds"] == 2


def test_one_source_has_no_table_and_no_warning(tmp_path):
    results = make_results(tmp_path, [RunKey("real", 1.0, 0.0, 0)], source_of=lambda n: "only")
    assert source_rows(results) == shortcut_warnings(results) == []


def test_errors_are_the_surest_first_and_one_of_each_patient():
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6], [0.95, 0.05]])
    targets = np.array([[True, False], [True, False], [True, False], [False, True], [False, True]])
    found = confident_errors(
        probs, targets, ("a", "b"), multi_label=False, patients=["1", "2", "2", "3", "4"]
    )
    assert [(e.index, e.true, e.predicted) for e in found] == [(4, "b", "a"), (1, "a", "b")]
    assert [e.prob for e in found] == [0.95, 0.8]


def test_a_missed_label_is_an_error_too_where_labels_occur_together():
    probs = np.array([[0.9, 0.02], [0.6, 0.3], [0.9, 0.9]])
    targets = np.array([[True, True], [False, False], [True, True]])
    found = confident_errors(probs, targets, ("a", "b"), multi_label=True, patients=list("123"))
    assert [(e.index, e.true, e.predicted) for e in found] == [
        (0, "a + b", "not b"),
        (1, "none", "a"),
    ]
    assert [e.prob for e in found] == pytest.approx([0.98, 0.6])


def test_the_sheet_holds_at_most_24_errors():
    count = 3 * MAX_ERRORS
    probs = np.tile([0.9, 0.1], (count, 1))
    targets = np.tile([False, True], (count, 1))
    patients = [str(n) for n in range(count)]
    found = confident_errors(probs, targets, ("a", "b"), multi_label=False, patients=patients)
    assert len(found) == 24


def test_the_sheet_shows_the_pictures_above_their_captions(tmp_path):
    results = make_results(tmp_path, [RunKey(*REAL, 0)], skill=0.0)
    sheet = write_error_sheet(tmp_path / "errors.png", results, REAL)
    with Image.open(tmp_path / "errors.png") as written:
        assert written.size == sheet.size
    tile = np.asarray(sheet)[:224, :224]
    assert tile[:60].std() > 20  # the noise of the picture
    assert tile[190:222].max() > 200 and tile[100:180].max() == 0  # the caption, a gap above it


def test_no_error_no_sheet(tmp_path):
    results = make_results(tmp_path, [RunKey(*REAL, 0)], skill=50.0)
    assert write_error_sheet(tmp_path / "errors.png", results, REAL) is None
    assert not (tmp_path / "errors.png").exists()


def test_reliability_counts_who_is_right_where():
    probs = np.array([[0.95, 0.05], [0.91, 0.09], [0.45, 0.55], [0.9, 0.1]])
    targets = np.array([[True, False], [False, True], [False, True], [True, False]])
    rows = reliability_rows([probs, probs], targets, multi_label=False)
    assert [row["probability"] for row in rows] == ["0.5–0.6", "0.8–0.9", "0.9–1.0"]
    assert [row["decisions"] for row in rows] == [2, 2, 4]
    assert [row["share_right"] for row in rows] == ["1.000", "1.000", "0.500"]
    assert rows[2]["mean_probability"] == "0.930"


def test_reliability_of_several_labels_compares_probability_with_frequency():
    probs = np.array([[0.05, 0.95], [0.05, 0.95]])
    targets = np.array([[False, True], [True, True]])
    rows = reliability_rows([probs], targets, multi_label=True)
    assert [(row["decisions"], row["share_right"]) for row in rows] == [(2, "0.500"), (2, "1.000")]
