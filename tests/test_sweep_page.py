"""The page of a sweep: its sections in order, and no monster tables."""

import re

import pytest
from test_html_report import Reader
from test_sweep_tables import (
    DRAWN,
    MIXED,
    REAL,
    make_difference,
    make_estimates,
    make_results,
)

from utils.html_charts import line_chart
from utils.sweep_cells import Comparison, SweepScores
from utils.sweep_page import SweepStory, write_page
from utils.sweep_plan import RunKey

ROBUSTNESS = {"as they are": {"accuracy": 0.9, "auroc": 0.95}}


def make_page(folder, estimates, *, comparisons=(), best=REAL, seeds=(0, 1), **changes):
    """The page's text, with its results drawn by chance."""
    keys = [RunKey(*cell, seed) for cell in estimates for seed in seeds]
    options = changes.pop("options", {})
    story = {"title": "Few labels", "verdict": ["It helps."], "facts": {"network": "small"}}
    write_page(
        folder / "report.html",
        SweepStory(**(story | changes)),
        make_results(folder, keys, **options),
        SweepScores(estimates, list(comparisons)),
        best=best,
    )
    return (folder / "report.html").read_text(encoding="utf-8")


def headings(html):
    return re.findall(r"<h2[^>]*>(.*?)</h2>", html)


def table_rows(html):
    """Number of body rows of every table."""
    return [table.count("<tr>") for table in re.findall(r"<tbody>(.*?)</tbody>", html)]


SWEEP = {
    (arm, share if arm != "synthetic" else 0.0, ratio): make_estimates(0.5 + share / 500)
    for share in (1.0, 5.0, 10.0, 20.0, 50.0, 100.0)
    for arm in ("real", "synthetic", "real+synthetic", "synthetic->real")
    for ratio in ([0.0] if arm == "real" else [100.0, 200.0, 500.0, 1000.0, 2000.0])
}


def all_pairs(estimates):
    """Every arm against real at its share."""
    return [
        Comparison(cell, ("real", cell[1], 0.0), [make_difference(), make_difference("fluid")])
        for cell in estimates
        if cell[0] != "real" and cell[1]
    ]


def test_a_single_run_has_scores_decisions_training_and_no_comparison(tmp_path):
    html = make_page(
        tmp_path,
        {REAL: make_estimates(0.6)},
        seeds=(0,),
        verdict=(),
        notes=["Mind."],
        options={"skill": 50.0},
    )
    assert headings(html) == [
        "Scores by diagnosis",
        "Confusion matrix",
        "ROC curves",
        "Most confident errors",
        "Calibration",
        "Training",
        "Runs",
        "Data and network",
    ]
    assert "No test image is called wrong." in html
    assert "over 1 seeds" not in html and "Mind." in html
    Reader(html)


def test_a_sweep_answers_first_and_looks_closely_later(tmp_path):
    html = make_page(
        tmp_path,
        SWEEP,
        comparisons=all_pairs(SWEEP),
        best=("real+synthetic", 100.0, 100.0),
        robustness=ROBUSTNESS,
        options={"source_of": lambda n: "ab"[n // 3 % 2]},
    )
    assert headings(html) == [
        "Verdict",
        "Diagnoses by arm",
        "Label shares",
        "Synthetic ratios",
        "Arm against arm",
        "The winning arm in detail",
        "Confusion matrices and ROC curves",
        "Most confident errors",
        "Calibration",
        "Sources",
        "Smoothed images",
        "Training",
        "Runs",
        "Data and network",
    ]
    assert html.count("ROC curve of each diagnosis against the rest</p>") == 4
    assert html.count("data:image/png") == 1 and (tmp_path / "errors.png").is_file()
    Reader(html)


def test_tables_of_a_large_sweep_stay_short_and_say_where_the_rest_is(tmp_path):
    html = make_page(tmp_path, SWEEP, comparisons=all_pairs(SWEEP), seeds=range(10))
    assert max(table_rows(html)) == 40
    assert "56 more comparisons are in comparisons.csv." in html
    assert f"{10 * len(SWEEP) - 40} more runs are in runs.csv." in html


def test_small_sweeps_show_every_comparison(tmp_path):
    estimates = {REAL: make_estimates(0.6), MIXED: make_estimates(0.8)}
    pair = Comparison(MIXED, REAL, [make_difference(p=0.0002), make_difference("fluid", -0.05)])
    html = make_page(tmp_path, estimates, comparisons=[pair])
    cells = Reader(html).texts
    space, minus = "\N{NO-BREAK SPACE}", "\N{MINUS SIGN}"
    assert f"+0.250 [+0.150,{space}+0.350]" in cells
    assert f"<{space}0.001" in cells
    assert f"{minus}0.050 [{minus}0.150,{space}+0.050]" in cells
    assert "more comparisons" not in html and "more runs" not in html


def test_one_share_and_ratio_have_no_curve_of_them(tmp_path):
    estimates = {REAL: make_estimates(0.6), MIXED: make_estimates(0.8), DRAWN: make_estimates(0.7)}
    html = make_page(tmp_path, estimates)
    assert "Label shares" not in headings(html) and "Synthetic ratios" not in headings(html)
    assert "Label share and AUROC" not in html
    assert "Diagnoses by arm" in headings(html)


def test_the_curve_of_shares_has_all_shares_and_a_level_line_without_labels(tmp_path):
    html = make_page(tmp_path, SWEEP)
    (chart,) = re.findall(r"<svg[^>]*><title[^>]*>Label share and AUROC.*?</svg>", html)
    lines = re.findall(r'class="line c(\d)" points="([^"]*)"', chart)
    assert [len(points.split()) for _, points in lines] == [6, 6, 6, 6]
    level = {point.split(",")[1] for point in lines[1][1].split()}
    assert len(level) == 1
    # Six intervals of each arm that learns from labels, one of the arm that does not.
    assert chart.count('class="bound c0"') == 6 and chart.count('class="bound c1"') == 1
    assert "An arm that uses no real label is a level line." in html
    ticks = re.findall(r">([\d,]+)</text>", chart)
    assert ticks[-6:] == ["1", "5", "10", "20", "50", "100"]


def test_the_notice_names_the_source_that_gives_a_diagnosis_away(tmp_path):
    html = make_page(
        tmp_path,
        {REAL: make_estimates(0.6)},
        options={"source_of": lambda n: "b" if n % 3 == 1 else "a"},
    )
    assert "Only b has test images with fluid: the look of its images" in html
    assert "AUROC within the source" in html


def test_the_table_of_runs_leaves_out_columns_without_a_figure(tmp_path):
    html = make_page(tmp_path, {REAL: make_estimates(0.6)}, seeds=(0,))
    runs = html[html.index(">Runs</h2>") :]
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', runs)
    assert heads == ["arm", "labels, %", "ratio, %", "seed", "real", "patients", "T"]


def test_several_labels_have_counts_instead_of_a_matrix(tmp_path):
    html = make_page(tmp_path, {REAL: make_estimates(0.6)}, options={"multi_label": True})
    assert "false alarm" in html


def interval_chart(**changes):
    options = {"title": "t", "x_label": "x", "y_label": "y", "log_x": True}
    return line_chart(
        {"a": [(1, 0.5), (100, 0.7)], "b": [(1, 0.6), (100, 0.8)]}, **(options | changes)
    )


def test_an_error_bar_spans_its_interval():
    svg = interval_chart(intervals={"a": {1: (0.4, 0.6), 100: (0.5, 0.9)}})
    bars = re.findall(r'bound c0" d="M([\d.]+) ([\d.]+)V([\d.]+)', svg)
    ticks = dict(zip(("0.4", "0.9"), (0.4, 0.9)))
    heights = {
        text: float(y)
        for y, text in re.findall(r'end mid" x="\d+" y="([\d.]+)">([\d.]+)</text>', svg)
        if text in ticks
    }
    assert float(bars[0][1]) == heights["0.4"] and float(bars[1][2]) == heights["0.9"]
    assert "bound c1" not in svg


def test_error_bars_of_two_curves_stand_side_by_side():
    bounds = {1: (0.4, 0.7), 100: (0.5, 0.9)}
    svg = interval_chart(intervals={"a": bounds, "b": bounds})
    first, second = (float(re.search(rf'bound c{k}" d="M([\d.]+)', svg).group(1)) for k in (0, 1))
    assert 3 < second - first < 10


def test_curves_with_intervals_differ_in_marks_and_dashes_and_the_legend_shows_both():
    svg = interval_chart(intervals={})
    shapes = {
        index: set(re.findall(rf'class="dot c{index}" d="M[\d.]+ [\d.]+([^"]*)"', svg))
        for index in (0, 1)
    }
    assert all(len(found) == 1 for found in shapes.values()) and shapes[0] != shapes[1]
    assert svg.count('class="line-key"') == 2


@pytest.mark.parametrize("bound", [None, (float("nan"), float("nan"))])
def test_a_point_without_interval_has_a_mark_and_no_bar(bound):
    svg = interval_chart(intervals={"a": {1: bound, 100: (0.5, 0.9)}})
    assert svg.count("bound c0") == 1
    assert svg.count('class="dot c0"') == 3  # two points and the legend


def test_one_point_alone_can_be_drawn():
    svg = line_chart(
        {"a": [(10, 0.5)]},
        title="t",
        x_label="x",
        y_label="y",
        log_x=True,
        intervals={"a": {10: (0.4, 0.6)}},
    )
    assert svg.count("bound c0") == 1
