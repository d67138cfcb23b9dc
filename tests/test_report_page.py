"""The page of report models: figures for all, patients' texts only where asked for, marks right."""

import re

import numpy as np
import pytest
from PIL import Image
from test_html_report import NASTY, Reader
from test_sweep_page import headings

from utils.arm_statistics import Difference, Estimate
from utils.attention_examples import ReadScan, words_to_show
from utils.dataset import Record
from utils.finding_labeler import load_labeler
from utils.html_cards import Mark, marked_text
from utils.report_examples import (
    choose_examples,
    count_named,
    make_examples,
    mark_true,
    mark_written,
    runs_to_show,
)
from utils.report_page import ReportStory, ShownReports, write_page
from utils.sweep_cells import Comparison, SweepScores
from utils.sweep_plan import RunKey

RULES = """
findings:
  drusen: {words: [drusen]}
  fluid: {words: [fluid, cysts]}
  cysts: {words: [cysts], implies: [fluid]}
cues:
  absent: {before: ["no"]}
  uncertain: {before: [possible]}
sides: {left: [left], right: [right]}
"""
REAL, MIXED = ("real", 5.0, 0.0), ("real+synthetic", 5.0, 100.0)
FULL = ("real", 100.0, 0.0)
FREQUENT, NEAREST = ("most frequent report", 0.0, 0.0), ("nearest training image", 5.0, 0.0)
NAN = float("nan")


@pytest.fixture(scope="module")
def labeler(tmp_path_factory):
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(RULES, encoding="utf-8")
    return load_labeler(str(path))


def estimate(target, metric, value, low=None):
    low = value - 0.1 if low is None else low
    return Estimate(target, metric, value, low, value + 0.05, 3, "")


def estimates(value):
    found = [estimate("all", "finding_f1", value), estimate("macro", "finding_f1", value - 0.3)]
    found += [estimate("all", "bleu_4", value - 0.2), estimate("all", "attribute_count", NAN, NAN)]
    for target in ("drusen", "fluid", "cysts"):
        found += [estimate(target, f"finding_{m}", value) for m in ("f1", "precision", "recall")]
    return found


def difference(target, value):
    return Difference(
        target, "finding_f1", 0.5, 0.5 + value, value, value - 0.1, value + 0.1, 0.0002, 0.01, 3, ""
    )


SCORES = SweepScores(
    {
        cell: estimates(value)
        for cell, value in zip((REAL, MIXED, FULL, FREQUENT, NEAREST), (0.5, 0.7, 0.9, 0.45, 0.6))
    },
    [Comparison(MIXED, REAL, [difference(t, 0.2) for t in ("all", "macro", "drusen")])],
)


def make_records(folder, texts):
    records = []
    for n, text in enumerate(texts):
        path = folder / f"scan{n}.png"
        Image.fromarray(np.full((30, 80), 10 + n, np.uint8)).save(path)
        row = (path.name, text, (), f"p{n}", "test", {}, "", str(path))
        records.append(Record(*row))
    return records


def make_page(folder, shown=None, **changes):
    folder.mkdir(exist_ok=True)
    story = {"title": "Reports", "verdict": ["It helps."], "facts": {"network": "small"}}
    story |= {"notes": ["Mind."], "metric": "finding_f1", "kept": FULL, "num_reports": 1234}
    story |= {"named": {"drusen": 7, "fluid": 0, "cysts": 2}, "num_patients": 600}
    story |= {"runs": [{"arm": "real", "seed": 0}]}
    scores = changes.pop("scores", SCORES)
    write_page(folder / "report.html", ReportStory(**(story | changes)), scores, shown)
    return (folder / "report.html").read_text(encoding="utf-8")


def judged(report):
    return [(report.text[m.start : m.end], m.kind, m.tag, m.note) for m in report.marks]


def test_a_written_finding_is_right_or_invented_and_what_is_denied_is_neither(labeler):
    report = mark_written("Drusen. No fluid. Possible cysts.", ["drusen"], labeler)
    assert judged(report) == [
        ("Drusen", "right", "", "drusen: right"),
        ("fluid", "denied", "", "fluid: denied"),
        ("cysts", "invented", "", "fluid: invented, uncertain; cysts: invented, uncertain"),
    ]
    assert report.counts == {"right": 1, "missed": 0, "invented": 2}


def test_a_missed_finding_is_marked_in_the_true_report_once_with_how_many_missed_it(labeler):
    written = {"real": "No fluid.", "real+synthetic": "Possible drusen.", "synthetic": "Drusen."}
    report = mark_true("No fluid. Drusen left; more drusen.", written, labeler)
    assert judged(report) == [
        ("fluid", "denied", "", "fluid: denied"),
        ("Drusen", "missed", "missed by 1 of 3", "drusen: missed by real"),
        ("drusen", "missed", "", "drusen: missed by real"),
    ]
    (mark,) = mark_true("Fluid.", written, labeler).marks
    assert (mark.tag, mark.note) == (
        "missed by all",
        "fluid: missed by real, real + synthetic, synthetic",
    )
    marks = mark_true("No drusen left. Drusen right.", {"real": "Fluid."}, labeler).marks
    assert [mark.tag for mark in marks] == ["", "missed by all"]
    assert mark_true("Drusen.", {"real": "Drusen."}, labeler).marks[0].kind == "right"


def test_two_findings_at_one_place_are_one_mark_of_the_worse_kind(labeler):
    (mark,) = mark_written("Cysts.", ["fluid"], labeler).marks
    assert (mark.start, mark.end, mark.kind) == (0, 5, "invented")
    assert mark.note == "fluid: right; cysts: invented"


def test_a_missed_finding_counts_for_the_arm(labeler):
    report = mark_written("Normal.", ["drusen", "fluid"], labeler)
    assert report.counts == {"right": 0, "missed": 2, "invented": 0}


def test_every_finding_is_among_the_examples_and_a_patient_once():
    named = [["drusen"]] * 50 + [["fluid", "drusen"]] + [[]] * 9
    patients = [f"p{n // 2}" for n in range(60)]
    chosen = choose_examples(named, patients, count=12, seed=3)
    assert len(chosen) == len({patients[n] for n in chosen}) == 12
    assert 50 in chosen and any(not named[n] for n in chosen)
    assert chosen == choose_examples(named, patients, count=12, seed=3)
    assert chosen != choose_examples(named, patients, count=12, seed=4)


def test_the_rarest_finding_comes_first():
    assert choose_examples([["a"], ["a"], ["b"]], ["p", "q", "r"], count=1) == [2]


def test_of_few_patients_each_is_an_example():
    assert sorted(choose_examples([["a"], [], ["a"]], ["p", "q", "p"])) in ([0, 1], [1, 2])


def test_shown_are_the_runs_with_fewest_pairs_and_the_first_seed():
    keys = [RunKey(*cell, seed) for cell in (FULL, REAL, MIXED) for seed in (4, 3, 5)]
    keys.append(RunKey("synthetic", 0.0, 100.0, 3))
    shown = runs_to_show(keys)
    assert shown == {
        "real": RunKey(*REAL, 3),
        "real+synthetic": RunKey(*MIXED, 3),
        "synthetic": keys[-1],
    }


def test_named_findings_are_counted_in_the_order_of_the_rules(labeler):
    counts = count_named(labeler, ["Cysts.", "No drusen.", "Possible fluid."])
    assert list(counts.items()) == [("drusen", 0), ("fluid", 2), ("cysts", 1)]


def test_the_words_of_a_finding_and_of_the_side_next_to_it_are_shown(labeler):
    text = "Drusen (cleft) left of it, more drusen on the left. No fluid right."
    assert words_to_show(text, labeler) == [(0, 6), (15, 19)]
    assert text[15:19] == "left"


def test_a_page_without_reports_has_no_picture_and_tells_how_to_get_them(tmp_path):
    html = make_page(tmp_path / "out")
    assert headings(html) == [
        "Verdict",
        "Scores by arm",
        "Findings by arm",
        "Shares of the pairs",
        "Arm against arm",
        "Reports",
        "Runs",
        "Data and network",
    ]
    assert (
        "<img" not in html
        and "data:image" not in html
        and "card" not in re.sub("<style>.*?</style>", "", html, flags=re.DOTALL)
    )
    assert "--show_reports" in html and "holds texts and scans of patients" not in html
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    Reader(html)


def test_figures_are_by_arm_and_baseline_at_the_smallest_and_the_largest_share(tmp_path):
    html, space = make_page(tmp_path), "\N{NO-BREAK SPACE}"
    assert re.findall(r"<h3[^>]*>(.*?)</h3>", html) == 2 * [
        "5 % of the pairs, synthetic ratio 100 %",
        "100 % of the pairs, synthetic ratio 100 %",
    ]
    tables = re.findall(r"<table.*?</table>", html)
    heads = [re.findall(r'<th scope="col"[^>]*>(.*?)</th>', table) for table in tables]
    arms = ["real", "real + synthetic", FREQUENT[0], NEAREST[0]]
    assert heads[0] == ["score", *arms] and heads[1] == ["score", "real", FREQUENT[0]]
    assert heads[2] == ["finding", "reports", *arms]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in tables[0].split("<tr>")[2:]]
    assert [row[0] for row in rows] == ["finding F1", "finding F1, mean over findings", "BLEU-4"]
    assert rows[0][1:3] == [f"0.500 [0.40,{space}0.55]", f"0.700 [0.60,{space}0.75]"]
    assert ">7</td>" in tables[2] and f"0.70{space}/{space}0.70" in tables[3]
    assert "finding F1 0.900 [0.80,\N{NO-BREAK SPACE}0.95], BLEU-4 0.700" in html
    assert "1,234 real test scans of 600 patients, the mean over 3 seeds" in html


def test_findings_that_no_report_names_are_in_no_table(tmp_path):
    named = {"drusen": 7, "fluid": 0, "membrane": 0}
    undefined = [estimate("membrane", f"finding_{m}", NAN, NAN) for m in ("f1", "recall")]
    compared = [("all", 0.2), ("drusen", 0.2), ("membrane", NAN)]
    pair = Comparison(MIXED, REAL, [difference(*one) for one in compared])
    scores = SweepScores({cell: [*e, *undefined] for cell, e in SCORES.estimates.items()}, [pair])
    html = make_page(tmp_path, named=named, scores=scores)
    assert html.count(">fluid</th>") == 4 and html.count(">drusen</th>") == 5
    assert "membrane" not in html


def test_arms_are_compared_by_finding_f1_of_pairs(tmp_path):
    html = make_page(tmp_path)
    assert "Share of the pairs and finding F1" in html
    start = html.index("Arm against arm</h2>")
    assert "<td" in html[start:] and "Finding F1, paired by seed and by test patient" in html
    assert "reference finding F1" in html and html.count(">macro<") == 0
    assert "Difference in finding F1 by finding, 5 % of the pairs" in html
    assert "label" not in re.sub("<style>.*?</style>|aria-label[a-z]*=", "", html)


def test_a_single_run_without_a_labeler_has_scores_alone(tmp_path):
    scores = SweepScores({FULL: [estimate("all", "cider", 1.5)]}, [])
    html = make_page(
        tmp_path, scores=scores, metric="cider", named={}, verdict=(), notes=(), runs=()
    )
    assert headings(html) == ["Scores by arm", "Reports", "Data and network"]
    assert "CIDEr 1.500 [1.40," in html


def shown_reports(folder, labeler, count=12):
    texts = [f"Drusen {NASTY} {n}" for n in range(count)]
    written = {"real": ["Fluid & drusen."] * count, "real+synthetic": ["No drusen."] * count}
    patients = [f"p{n}" for n in range(count)]
    examples = make_examples(make_records(folder, texts), written, labeler, patients)
    pixels, heat = np.full((16, 16), 99, np.uint8), np.eye(4, dtype=np.float32)
    read = ReadScan("scan0.png", "Fluid & drusen.", pixels, [("Fluid", heat), ("drusen", heat)])
    return ShownReports(examples, "5 % of the pairs, seed 0", [read])


def test_a_page_with_reports_warns_marks_and_stays_safe(tmp_path, labeler):
    html = make_page(tmp_path / "out", shown_reports(tmp_path, labeler))
    assert "This page holds texts and scans of patients." in html
    assert html.index("Patients&#x27; data") < html.index("Verdict</h2>")
    assert "Reports of 12 test scans" in headings(html)
    assert html.count('<article class="card">') == 12 and "<summary>4 more</summary>" in html
    assert html.count('<span class="mark missed" title="drusen: missed by real + synthetic">') == 12
    assert 'title="fluid: invented">Fluid<b>✗</b></span> &amp; <span class="mark right"' in html
    assert "<small>1 right, 1 invented</small>" in html and "<small>1 missed</small>" in html
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "--show_reports" not in html
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    Reader(html)


def test_the_page_tells_that_attention_is_no_explanation(tmp_path, labeler):
    html = make_page(tmp_path / "out", shown_reports(tmp_path, labeler))
    section = html[html.index("What the model reads while it writes</h2>") :]
    assert re.findall(r"<span>(.*?)</span>", section) == [
        "scan",
        "Fluid, 4.0\N{NO-BREAK SPACE}×",
        "drusen, 4.0\N{NO-BREAK SPACE}×",
    ]
    assert section.count("data:image/png") == 3
    assert "Attention is no explanation" in section and "Jain and Wallace 2019" in section
    assert "100 % of the pairs" in section


def test_marked_text_is_escaped_inside_and_outside_of_marks():
    mark = Mark(4, 7, "invented", "<t>", 'a "note"')
    assert marked_text("<a> <b> c&", [mark]) == (
        '&lt;a&gt; <span class="mark invented" title="a &quot;note&quot;">&lt;b&gt;<b>✗</b>'
        "<i>&lt;t&gt;</i></span> c&amp;"
    )
