"""Export of a rating study: answers, a sound data set of the rated images, preference pairs."""

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rating_answers import answer, says

from utils import rating_export
from utils.cli import UserError
from utils.dataset import load_dataset
from utils.judged_pairs import preference_pairs, rating_pairs
from utils.provenance import DIGITAL_SOURCE_TYPE
from utils.rating_flags import (
    add_analyze_flags,
    add_export_flags,
    analyze_problem,
    export_problem,
)
from utils.rating_shown import StudyImage
from utils.rating_store import Store
from utils.rating_table import read_answers

QUESTIONS = ("turing", "quality", "agreement")
ARMS = ("real", "gan", "gan", "gan")


@pytest.fixture
def study_dir(tmp_path):
    """Four images of two texts, a pair of each text, two raters; Bob answers half of them."""
    folder = tmp_path / "study"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = []
    for n, arm in enumerate(ARMS):
        note = PngInfo()
        note.add_text("comment", "a secret")
        pixels = Image.fromarray(rng.integers(0, 255, (16, 16)).astype(np.uint8))
        path = folder / "images" / f"{n:x}f.png"
        pixels.save(path, pnginfo=note, icc_profile=b"of a device")
        text = f"text {n // 2}"
        images.append(StudyImage(n, f"{n:x}f.png", arm, "DME", text, f"set/{n}.png"))
    items = [(n, None, f"text {n // 2}", QUESTIONS) for n in range(4)]
    items += [(n, n + 1, f"text {n // 2}", ("preference",)) for n in (0, 2)]
    facts = {"title": "t", "diagnoses": ["DME"], "repeat_share": 0.5, "seed": 3}
    with Store.create(folder, facts=facts, images=images, items=items) as store:
        for name in ("Ann", "Bob"):
            store.add_rater(name)
            (rater,) = [one for one in store.raters() if one.name == name]
            shown = store.presentations(rater)
            for one in shown if name == "Ann" else shown[:4]:
                store.record(rater, one.position, reply(one), comment='ä, "b"\nc', seconds=2.0)
    return folder


def reply(shown):
    """The points of an image rise with its number; of a pair the second one is better."""
    if shown.is_pair:
        return {"preference": "left" if shown.swapped else "right"}
    number = shown.images[0].id
    return {"turing": "real", "quality": 1 + number, "agreement": 5 if number else 4}


def export(study_dir, output_dir, *flags):
    parser = argparse.ArgumentParser()
    add_export_flags(parser)
    arguments = ["--study_dir", str(study_dir), "--output_dir", str(output_dir), *flags]
    args = parser.parse_args(arguments)
    assert export_problem(args) is None
    return rating_export.run(args)


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_answers_are_those_of_the_store_in_both_forms(study_dir, tmp_path):
    result = export(study_dir, tmp_path / "out")
    with Store.open(study_dir) as store:
        stored = store.answers()
    assert read_answers(tmp_path / "out" / "answers.csv") == stored
    lines = (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["value"] for line in lines] == [one.value for one in stored]
    assert json.loads(lines[0])["is_repeat"] in (True, False)
    assert result["answers"] == len(stored) and result["raters"] == 2


def test_the_folder_is_a_sound_data_set_of_the_same_pixels(study_dir, tmp_path):
    export(study_dir, tmp_path / "out")
    dataset = load_dataset(tmp_path / "out", require_text=True, require_label=True)
    assert [record.file_name for record in dataset] == [f"images/{n:06d}.png" for n in range(4)]
    assert [record.row["source"] for record in dataset] == list(ARMS)
    for n, record in enumerate(dataset):
        with Image.open(study_dir / "images" / f"{n:x}f.png") as original:
            assert np.array_equal(np.asarray(record.image()), np.asarray(original))


def test_synthetic_images_are_marked_again_and_nothing_else_comes_along(study_dir, tmp_path):
    export(study_dir, tmp_path / "out")
    for n, arm in enumerate(ARMS):
        with Image.open(tmp_path / "out" / "images" / f"{n:06d}.png") as image:
            image.load()
            assert not {"comment", "icc_profile"} & image.info.keys()
            assert (image.info.get("digital_source_type") == DIGITAL_SOURCE_TYPE) == (arm != "real")


def test_pairs_name_files_of_the_folder(study_dir, tmp_path):
    out = tmp_path / "out"
    result = export(study_dir, out, "--pairs_from", "preference", "ratings")
    rows = rows_of(out / "pairs.csv")
    assert list(rows[0]) == ["text", "preferred", "rejected", "weight", "rater", "origin"]
    assert all((out / row[side]).is_file() for row in rows for side in ("preferred", "rejected"))
    assert all(row["preferred"] > row["rejected"] for row in rows)  # as `reply` answers
    of_ann = [row for row in rows if row["rater"] == "Ann"]
    assert [row["origin"] for row in of_ann] == ["preference"] * 2 + ["ratings"] * 2
    assert result["pairs"]["ratings"] == len([row for row in rows if row["origin"] == "ratings"])


def test_names_are_left_out_when_asked(study_dir, tmp_path):
    export(study_dir, tmp_path / "out", "--anonymous")
    raters = {one.rater for one in read_answers(tmp_path / "out" / "answers.csv")}
    assert raters == {"rater 1", "rater 2"}
    assert all(row["rater"].startswith("rater") for row in rows_of(tmp_path / "out" / "pairs.csv"))


def test_an_export_replaces_its_own_earlier_one(study_dir, tmp_path):
    export(study_dir, tmp_path / "out", "--pairs_from", "ratings")
    export(study_dir, tmp_path / "out")
    origins = {row["origin"] for row in rows_of(tmp_path / "out" / "pairs.csv")}
    assert origins == {"preference"}


@pytest.mark.parametrize("name", ["notes.txt", "images/mine.jpg"])
@pytest.mark.parametrize("exported", [False, True])
def test_a_folder_with_foreign_files_is_left_alone(exported, name, study_dir, tmp_path):
    if exported:
        export(study_dir, tmp_path / "out")
    foreign = tmp_path / "out" / name
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_text("mine")
    before = sorted((tmp_path / "out").rglob("*"))
    with pytest.raises(UserError, match="--output_dir"):
        export(study_dir, tmp_path / "out")
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_the_study_itself_is_no_place_for_its_export(study_dir):
    with pytest.raises(AssertionError):
        export(study_dir, study_dir)


def test_a_study_without_answers_is_refused(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    facts = {"title": "t", "diagnoses": [], "repeat_share": 0, "seed": 0}
    Store.create(folder, facts=facts, images=[], items=[]).close()
    with pytest.raises(UserError, match="no answer yet"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_that_answers_name_and_the_study_lacks_is_told(tmp_path):
    with pytest.raises(UserError, match="lacks 1 images that answers name: images/000003"):
        rating_export.write_export(tmp_path, [answer("Ann", 3, "quality", "4")], [])


def pair(rater, item, value, **others):
    images = {"image": "images/a.png", "other_image": "images/b.png", "other_arm": "gan"}
    return answer(rater, item, "preference", value, **images | others)


def test_ties_are_no_rows_but_make_a_pair_count_less():
    rows = preference_pairs(
        [pair("Ann", 0, "image"), pair("Bob", 0, "tie"), pair("Cy", 0, "other")]
    )
    assert [(row.rater, row.preferred, row.rejected) for row in rows] == [
        ("Ann", "images/a.png", "images/b.png"),
        ("Cy", "images/b.png", "images/a.png"),
    ]
    assert [row.weight for row in rows] == pytest.approx([1 / 3, 1 / 3])


def test_a_pair_adds_one_at_most_however_many_raters_judge_it():
    rows = preference_pairs([pair(name, 0, "image") for name in "ABCDE"])
    assert sum(row.weight for row in rows) == pytest.approx(1)


def test_repeats_make_no_pairs():
    first = pair("Ann", 0, "image")
    again = replace(first, value="other", is_repeat=True)
    assert preference_pairs([first, again]) == preference_pairs([first])
    points = says("Ann", "gan", [2, 4], question="quality")
    again = says("Ann", "gan", [5, 1], question="quality", is_repeat=True)
    assert rating_pairs(points + again) == rating_pairs(points)
    assert [(row.preferred, row.rejected) for row in rating_pairs(points)] == [
        ("images/000001.png", "images/000000.png")
    ]


def rated(rater, points, *, start=0, **others):
    """(quality, agreement) of consecutive images."""
    both = zip(("quality", "agreement"), zip(*points))
    return [
        row
        for question, values in both
        for row in says(rater, "gan", values, question=question, start=start, **others)
    ]


def test_points_of_two_questions_are_added():
    rows = rating_pairs(rated("Ann", [(5, 1), (3, 4)]))
    assert [(row.preferred, row.rejected) for row in rows] == [
        ("images/000001.png", "images/000000.png")
    ]
    assert not rating_pairs(rated("Ann", [(5, 1), (2, 4)]))


def test_a_small_difference_makes_no_pair_where_a_larger_one_is_asked():
    rows = rated("Ann", [(5, 5), (5, 4), (2, 2)])
    assert len(rating_pairs(rows)) == 3
    assert len(rating_pairs(rows, min_gap=2)) == 2


def test_images_of_other_texts_or_without_text_or_of_other_raters_make_no_pair():
    one, other = rated("Ann", [(5, 5)], text="a"), rated("Ann", [(1, 1)], start=1, text="b")
    assert not rating_pairs(one + other)
    assert not rating_pairs(rated("Ann", [(5, 5), (1, 1)], text=" "))
    assert not rating_pairs(rated("Ann", [(5, 5)]) + rated("Bob", [(1, 1)], start=1))


def test_half_rated_images_make_no_pair():
    rows = rated("Ann", [(5, 5), (1, 1)])
    assert not [row for row in rating_pairs(rows[:-1]) if "images/000001.png" in row.rejected]


def test_raters_of_one_mind_share_the_weight_of_a_rated_pair():
    rows = rating_pairs(rated("Ann", [(5, 5), (1, 1)]) + rated("Bob", [(3, 3), (3, 3)]))
    assert [(row.rater, row.weight) for row in rows] == [("Ann", 0.5)]


def flags(add, *arguments):
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args([str(one) for one in arguments])


def test_contradicting_flags_are_named(tmp_path):
    base = ["--study_dir", tmp_path, "--output_dir", tmp_path / "out"]
    wrong = {
        "--pairs_from names": ["--pairs_from", "ratings", "ratings"],
        "--min_point_gap goes": ["--min_point_gap", "2"],
        "--output_dir is the study": ["--output_dir", tmp_path],
    }
    for message, more in wrong.items():
        assert export_problem(flags(add_export_flags, *base, *more)).startswith(message)
    assert export_problem(flags(add_export_flags, *base)) is None
    assert "--num_resamples" in analyze_problem(
        flags(add_analyze_flags, *base, "--num_resamples", "1")
    )
    assert "--output_dir" in analyze_problem(
        flags(add_analyze_flags, *base, "--output_dir", tmp_path)
    )
    ratings = ["--ratings", tmp_path, "--output_dir", tmp_path / "out"]
    assert "answers.csv" in analyze_problem(flags(add_analyze_flags, *ratings))


def test_study_or_ratings_and_not_both_are_analysed(tmp_path, capsys):
    for given in ([], ["--study_dir", tmp_path, "--ratings", tmp_path]):
        with pytest.raises(SystemExit):
            flags(add_analyze_flags, *given, "--output_dir", tmp_path / "out")
        assert "--ratings" in capsys.readouterr().err


def test_flags_need_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys, utils.rating_flags; "
        "print([name for name in ('numpy', 'torch', 'PIL') if name in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
