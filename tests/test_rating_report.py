"""The analysis on disk: results, tables and page, blinded names, and what is refused."""

import csv
import json
import re
from argparse import ArgumentParser

import numpy as np
import pytest
from PIL import Image
from rating_answers import answer, says, study

import rate_images
from utils.cli import UserError
from utils.rated_images import remarkable, summarize_images
from utils.rating_analysis import analyze
from utils.rating_flags import add_analyze_flags
from utils.rating_matrix import collect
from utils.rating_report import TABLES, run
from utils.rating_sentences import cautions, findings
from utils.rating_table import write_answers


def write_ratings(folder, answers):
    """An export folder of these answers, with images of noise."""
    write_answers(folder / "answers.csv", answers)
    rng = np.random.default_rng(0)
    for name in {one.image for one in answers} | {one.other_image for one in answers} - {""}:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (12, 12)).astype(np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def ratings_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ratings")
    return write_ratings(folder, study())


def analysed(ratings_dir, output_dir, *flags):
    parser = ArgumentParser()
    add_analyze_flags(parser)
    given = ["--ratings", str(ratings_dir), "--output_dir", str(output_dir)]
    return run(parser.parse_args([*given, "--num_resamples", "50", *flags]))


@pytest.fixture(scope="module")
def written(ratings_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysis") / "out"
    return analysed(ratings_dir, folder), folder


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_results_and_tables_hold_the_same_figures(written):
    printed, folder = written
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["findings"] == printed["findings"]
    assert results["images"] == {"real": 24, "new": 24, "old": 24}
    (in_json,) = [
        one
        for one in results["figures"]
        if (one["question"], one["metric"], one["scope"]) == ("turing", "accuracy", "overall")
    ]
    (in_table,) = [
        row
        for row in rows_of(folder / "figures.csv")
        if (row["question"], row["metric"], row["scope"]) == ("turing", "accuracy", "overall")
    ]
    assert float(in_table["value"]) == pytest.approx(in_json["value"], rel=1e-5)
    assert in_table["p"] == "" and in_json["p"] is None
    assert all((folder / name).is_file() for name in TABLES)


def test_nobody_is_named_unless_asked(ratings_dir, written, tmp_path):
    _, folder = written
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    comments = rows_of(folder / "comments.csv")
    assert comments and {row["rater"] for row in comments} <= {"rater 1", "rater 2", "rater 3"}
    for name in ("figures.csv", "agreement.csv", "times.csv", "results.json"):
        assert "Dr " not in texts[name], name
        assert "rater 1" in texts[name], name
    analysed(ratings_dir, tmp_path / "named", "--show_raters")
    assert "Dr Alba" in (tmp_path / "named" / "report.html").read_text(encoding="utf-8")


def test_the_page_says_on_top_that_it_is_unblinded_and_loads_nothing(written):
    _, folder = written
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 0 < page.index("Unblinded") < page.index("Findings</h2>")
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count("data:image/png;base64") == 5 * 6  # five galleries of six
    assert "layers cross &lt;here&gt;" in page and "<here>" not in page


def test_pictures_can_be_left_out(ratings_dir, tmp_path):
    analysed(ratings_dir, tmp_path / "out", "--num_pictures", "0")
    assert "data:image/png" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_an_analysis_replaces_its_own_and_leaves_others_alone(ratings_dir, tmp_path):
    analysed(ratings_dir, tmp_path / "out")
    analysed(ratings_dir, tmp_path / "out", "--seed", "1")
    options = json.loads((tmp_path / "out" / "options.json").read_text(encoding="utf-8"))
    assert options["flags"]["seed"] == 1
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine\.txt"):
        analysed(ratings_dir, tmp_path / "out")


def test_the_same_answers_give_the_same_bytes(ratings_dir, tmp_path):
    for name in ("one", "two"):
        analysed(ratings_dir, tmp_path / name)
    for name in (*TABLES, "report.html", "results.json"):
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two, name


def test_a_table_that_names_files_elsewhere_is_refused(tmp_path):
    write_answers(tmp_path / "answers.csv", [answer("Ann", 1, "quality", "4", image="../x.png")])
    with pytest.raises(UserError, match="no file of the folder"):
        analysed(tmp_path, tmp_path / "out")


def test_the_command_prints_findings_and_ends_well(ratings_dir, tmp_path, capsys):
    arguments = ["--ratings", str(ratings_dir), "--output_dir", str(tmp_path / "out")]
    assert rate_images.main(["analyze", *arguments, "--num_resamples", "20"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"][0].startswith("Raters can tell")


@pytest.mark.parametrize("question", ["turing", "quality", "diagnosis", "errors", "preference"])
def test_a_study_of_one_question_has_a_page(question, tmp_path):
    some = [one for one in study(raters=("Ann",)) if one.question == question]
    write_ratings(tmp_path, some)
    result = analysed(tmp_path, tmp_path / "out")
    assert result["cautions"][0].startswith("One rater")
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_single_answer_has_a_page(tmp_path):
    write_ratings(tmp_path, [answer("Ann", 0, "turing", "real")])
    analysed(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()


def test_guessing_is_not_called_seeing():
    said = ["synthetic", "real"] * 20
    rows = [
        row
        for rater in ("Ann", "Bob", "Cy")
        for arm, start in (("real", 0), ("gan", 40))
        for row in says(rater, arm, said, start=start)
    ]
    first = findings(analyze(rows, num_resamples=10))[0]
    assert first.startswith("It is not shown that raters can tell")
    assert "balanced accuracy 50" in first


def test_two_raters_who_see_are_believed_themselves_but_not_for_others():
    sure, guess = ["synthetic"] * 9 + ["real"], ["synthetic", "real"] * 5
    rows = [
        *says("Ann", "real", ["real"] * 30),
        *says("Ann", "gan", sure * 3, start=30),
        *says("Bob", "real", guess * 3),
        *says("Bob", "gan", guess * 3, start=30),
    ]
    first = findings(analyze(rows, num_resamples=10))[0]
    assert first.startswith("It is not shown that raters can tell")
    assert "These raters themselves can (p <" in first


def test_what_is_asked_about_these_raters_is_told_as_such(ratings_dir, tmp_path):
    anybody = analysed(ratings_dir, tmp_path / "any")
    these = analysed(ratings_dir, tmp_path / "these", "--about", "these_raters")
    assert (anybody["about"], these["about"]) == ("any_raters", "these_raters")
    assert "about these raters alone" in these["cautions"][0]
    widths = [
        [
            float(row["high"]) - float(row["low"])
            for row in rows_of(tmp_path / folder / "figures.csv")
            if row["scope"] in ("arm", "arms") and row["low"]
        ]
        for folder in ("any", "these")
    ]
    assert len(widths[0]) == len(widths[1])
    assert np.mean(widths[1]) < 0.7 * np.mean(widths[0])
    ends = [
        [row["low"] for row in rows_of(tmp_path / folder / "figures.csv") if row["metric"] == name]
        for folder, name in (
            ("any", "balanced_accuracy_of_these_raters"),
            ("these", "balanced_accuracy"),
        )
    ]
    assert ends[0][0] == ends[1][0]


def test_taking_synthetic_for_real_more_often_than_real_is_not_called_seeing():
    rows = [
        row
        for rater in ("Ann", "Bob", "Cy")
        for row in (
            *says(rater, "real", (["synthetic"] * 4 + ["real"]) * 6),
            *says(rater, "gan", (["real"] * 4 + ["synthetic"]) * 6, start=30),
        )
    ]
    first = findings(analyze(rows, num_resamples=10))[0]
    assert first.startswith("The raters took synthetic images for real more often than real ones")


def test_the_winner_is_named_first_whichever_arm_it_is():
    def sentence(value):
        pair = {"arm": "a", "other_arm": "b", "other_image": "images/x.png"}
        rows = [
            answer(rater, n, "preference", value if n % 12 else "tie", **pair)
            for rater in ("Ann", "Bob", "Cy")
            for n in range(30)
        ]
        (found,) = [one for one in findings(analyze(rows, num_resamples=10)) if "wins" in one]
        return found

    assert sentence("image").startswith("a is preferred to b: a wins 95")
    assert sentence("other").startswith("b is preferred to a: b wins 95")
    swapped = sentence("other").translate(str.maketrans("ab", "ba"))
    assert re.findall(r"\d+", swapped) == re.findall(r"\d+", sentence("image"))


def test_what_is_weak_is_told():
    rows = says("Ann", "gan", [4] * 30, question="quality") + says(
        "Bob", "gan", [3], question="quality"
    )
    told = " ".join(cautions(analyze(rows, num_resamples=10)))
    assert "Two raters" in told
    assert "between 1 and 30 items" in told
    assert "Few repeats" in told


def test_images_are_summed_up_over_first_answers():
    rows = says("Ann", "gan", ["real", "synthetic"]) + says("Bob", "gan", ["real", "real"])
    rows += says("Ann", "gan", [5, 1], question="quality")
    rows += says("Ann", "gan", ["synthetic"], is_repeat=True)
    first, second = summarize_images(collect(rows))
    assert (first.taken_for_real, first.quality, first.num_raters) == (1, 5, 2)
    assert (second.taken_for_real, second.quality) == (0.5, 1)
    shown = remarkable([first, second], 1)
    assert shown["Synthetic, most often taken for real"] == [first]
    assert shown["Synthetic, most often recognised"] == [second]
    assert shown["Worst quality"] == [second]
    assert "Real, most often taken for synthetic" not in shown
