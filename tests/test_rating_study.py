"""Making a study: what is drawn, how it is blinded, and what is refused."""

import json
import struct
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import rating_clinic as clinic
from PIL import Image

import rate_images
from utils.blind_images import stored_png
from utils.cli import UserError
from utils.rating_draw import draw_balanced
from utils.rating_pairs import draw_pairs
from utils.rating_store import Store


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return clinic.write_real_set(folder / "real", 24), clinic.write_synthetic_set(
        folder / "gan", 24
    )


class Scan:
    """What the draw looks at of a record."""

    def __init__(self, name: str, label: str, text: str) -> None:
        self.file_name, self.text = name, text
        self.labels = (label,) if label else ()


def scans(arm: str, **counts: int) -> list[Scan]:
    return [
        Scan(f"{arm} {label} {n}", label, f"{label}, kind {n // 2}")
        for label, count in counts.items()
        for n in range(count)
    ]


def labels_of(records) -> Counter:
    return Counter(label for record in records for label in record.labels)


def test_all_arms_show_the_same_number_of_each_diagnosis():
    arms = {
        "real": scans("real", normal=50, edema=3, drusen=20, rare=4),
        "gan": scans("gan", normal=9, edema=30, drusen=20),
    }
    drawn = draw_balanced(arms, 21, seed=0)
    assert labels_of(drawn["real"]) == labels_of(drawn["gan"])
    assert labels_of(drawn["real"]) == {"edema": 3, "drusen": 9, "normal": 9}
    assert drawn["real"] == draw_balanced(arms, 21, seed=0)["real"]
    assert drawn["real"] != draw_balanced(arms, 21, seed=1)["real"]
    with pytest.raises(UserError, match="only 32 images of each arm"):
        draw_balanced(arms, 33, seed=0)


def test_without_labels_the_draw_is_by_chance_alone():
    arms = {"real": scans("real", **{"": 8}), "gan": scans("gan", normal=5, drusen=5)}
    assert [len(own) for own in draw_balanced(arms, 8, seed=0).values()] == [8, 8]


def test_pairs_have_one_text_and_every_image_at_most_once():
    arms = {
        "real": scans("real", normal=10, edema=10),
        "one": scans("one", normal=10, edema=10),
        "two": scans("two", normal=10, edema=10),
    }
    pairs = draw_pairs(arms, 15, seed=0)
    sides = [side for pair in pairs for side in (pair.first, pair.second)]
    assert len({(arm, record.file_name) for arm, record in sides}) == 30
    assert all(pair.text == pair.first[1].text == pair.second[1].text for pair in pairs)
    kinds = Counter(frozenset((pair.first[0], pair.second[0])) for pair in pairs)
    assert kinds == {
        frozenset(kind): 3
        for kind in (("real", "one"), ("real", "two"), ("one", "two"), ("one",), ("two",))
    }
    assert {pair.first[0] == "real" for pair in pairs if "real" in (pair.first[0], pair.second[0])}
    assert {pair.text.split(",")[0] for pair in pairs} == {"normal", "edema"}
    assert pairs == draw_pairs(arms, 15, seed=0) != draw_pairs(arms, 15, seed=1)


def test_arms_without_a_common_text_are_compared_by_diagnosis():
    real = [Scan(f"r{n}", "edema", f"report {n}") for n in range(3)]
    gan = [Scan(f"s{n}", "edema", f"prompt {n}") for n in range(3)]
    pairs = draw_pairs({"real": real, "gan": gan}, 3, seed=0)
    assert {pair.text for pair in pairs} == {"edema"}
    with pytest.raises(UserError, match="only 3 pairs"):
        draw_pairs({"real": real, "gan": gan}, 4, seed=0)


def chunks(data: bytes) -> list[tuple[bytes, int]]:
    found, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        found.append((data[place + 4 : place + 8], length))
        place += 12 + length
    return found


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_stored_png_has_the_pixels_and_the_length_of_every_other(tmp_path, mode):
    shape = (64, 48) if mode == "L" else (64, 48, 3)
    flat = Image.fromarray(np.full(shape, 7, np.uint8))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    files = [stored_png(image) for image in (flat, noise)]
    for image, data in zip((flat, noise), files, strict=True):
        (tmp_path / "x.png").write_bytes(data)
        with Image.open(tmp_path / "x.png") as read:
            read.load()
            assert (read.mode, read.info) == (mode, {})
            assert np.array_equal(read, image)
    assert chunks(files[0]) == chunks(files[1])
    assert [name for name, _ in chunks(files[0])] == [b"IHDR", b"IDAT", b"IEND"]


def test_files_of_a_study_differ_in_nothing_but_their_pixels(tmp_path, sets):
    study = clinic.create_study(tmp_path / "study", *sets)
    files = list((study / "images").iterdir())
    assert len({file.stat().st_size for file in files}) == 1
    assert len({file.stat().st_mtime_ns for file in files}) == 1
    assert len({tuple(chunks(file.read_bytes())) for file in files}) == 1
    assert all(len(file.stem) == 32 for file in files)


def test_names_and_orders_differ_where_all_else_is_the_same(tmp_path, sets):
    studies = [clinic.create_study(tmp_path / name, *sets) for name in ("one", "two")]
    with Store.open(studies[0]) as one, Store.open(studies[1]) as two:
        assert [image.source for image in one.images()] == [image.source for image in two.images()]
        assert {i.file for i in one.images()}.isdisjoint(i.file for i in two.images())
        orders = [
            [shown.item for shown in store.presentations(store.raters()[0])] for store in (one, two)
        ]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_a_study_holds_what_was_asked_for(tmp_path, sets, capsys):
    study = clinic.create_study(
        tmp_path / "study", *sets, "--num_pairs", "6", "--raters", "Dr A", "--title", "Scans"
    )
    facts = json.loads((study / "study.json").read_text(encoding="utf-8"))
    assert facts["title"] == "Scans" and facts["resolution"] == 64
    assert json.loads(capsys.readouterr().out)["raters"] == ["Dr A"]
    with Store.open(study) as store:
        assert store.facts == facts
        shown = store.presentations(store.raters()[0])
        singles = [one for one in shown if not one.is_pair and not one.is_repeat]
        pairs = [one for one in shown if one.is_pair and not one.is_repeat]
    assert Counter(one.images[0].arm for one in singles) == {"real": 4, "gan": 4}
    assert Counter(one.images[0].label for one in singles) == {"normal": 4, "drusen": 4}
    assert len(pairs) == 6 and {one.questions for one in pairs} == {("preference",)}
    assert (study / "tokens.json").stat().st_mode & 0o077 == 0
    assert study.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == [study]


def test_what_stays_visible_is_told(tmp_path, sets, capsys):
    clinic.create_study(tmp_path / "study", *sets, "--resolution", "128")
    log = capsys.readouterr().err
    assert "all 128 x 128 px (center_crop), gray, 8 bits" in log
    assert "the arms differ in size" in log
    assert "the arms differ in compression" in log and "lossy" in log
    assert "the arms differ in colour" in log
    assert "images are enlarged to 128 px and look soft: real, gan" in log
    assert "wording may tell" not in log


def test_texts_of_one_arm_alone_are_told(tmp_path, sets, capsys):
    real, _ = sets
    other = clinic.write_synthetic_set(tmp_path / "other", 24)
    table = other / "metadata.csv"
    table.write_text(table.read_text().replace("kind", "sort"), encoding="utf-8")
    clinic.create_study(tmp_path / "study", real, other)
    assert "no text of other is one of a real image: wording may tell" in capsys.readouterr().err


def test_problems_of_all_data_sets_are_told_at_once(tmp_path):
    real = clinic.write_real_set(tmp_path / "real", 8)
    synthetic = clinic.write_synthetic_set(tmp_path / "gan", 8)
    (real / "images" / "0001.jpg").write_bytes(b"")
    (synthetic / "images" / "0002.png").unlink()
    with pytest.raises(UserError) as error:
        clinic.create_study(tmp_path / "study", real, synthetic)
    assert "0001.jpg" in str(error.value) and "0002.png" in str(error.value)
    assert not (tmp_path / "study").exists()


def test_synthetic_sets_have_names_of_their_own(tmp_path, sets):
    real, synthetic = sets
    both = ["--synthetic_dir", f"before={synthetic}", f"after={synthetic}"]
    study = clinic.create_study(tmp_path / "study", real, synthetic, *both)
    with Store.open(study) as store:
        assert {image.arm for image in store.images()} == {"real", "before", "after"}
    for names in (("real", "x"), ("x", "x")):
        twice = [f"{name}={synthetic}" for name in names]
        with pytest.raises(UserError, match="two arms are called"):
            clinic.create_study(tmp_path / "no", real, synthetic, "--synthetic_dir", *twice)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--num_images", "0"], "--num_images"),
        (["--repeat_share", "0.6"], "--repeat_share"),
        (["--raters", "A", "A"], "--raters"),
        (["--raters", ""], "--raters"),
        (["--questions", "mood"], "--questions"),
        (["--questions", "turing", "--num_pairs", "3"], "--num_pairs"),
        (["--synthetic_dir", "a b=/tmp"], "--synthetic_dir"),
        (["--synthetic_dir", "/no/such/folder"], "--synthetic_dir"),
        (["--real_split", "dev"], "--real_split"),
        (["--resolution", "65"], "--resolution"),
    ],
)
def test_bad_flags_of_create_are_named(tmp_path, sets, capsys, flags, named):
    with pytest.raises(SystemExit) as exit_:
        clinic.create_study(tmp_path / "study", *sets, *flags)
    assert exit_.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["serve", "--port", "65536"], "--port"),
        (["serve", "--public_url", "ratings.example.org"], "--public_url"),
        (["serve", "--public_url", "https://a.example/path"], "--public_url"),
        (["serve", "--public_url", "https://a.example:x"], "--public_url"),
        (["serve", "--study_dir", "/no/such/folder"], "--study_dir"),
        (["raters", "--add", "A", "--revoke", "A"], "--add"),
    ],
)
def test_bad_flags_of_serve_and_raters_are_named(tmp_path, capsys, flags, named):
    with pytest.raises(SystemExit) as exit_:
        rate_images.main([flags[0], "--study_dir", str(tmp_path), *flags[1:]])
    assert exit_.value.code == 2
    assert named in capsys.readouterr().err


def test_a_folder_that_holds_something_is_not_written_to(tmp_path, sets, capsys):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(SystemExit):
        clinic.create_study(tmp_path, *sets)
    assert "--output_dir" in capsys.readouterr().err
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_raters_join_change_their_link_and_are_locked_out(tmp_path, sets, capsys):
    study = clinic.create_study(tmp_path / "study", *sets)
    before = clinic.tokens(study)
    flags = ["--add", "Dr C", "--renew", "Dr A", "--revoke", "Dr B", "--show_links"]
    capsys.readouterr()
    url = ["--public_url", "https://ratings.example.org/"]
    assert rate_images.main(["raters", "--study_dir", str(study), *flags, *url]) == 0
    listed = {one["rater"]: one for one in json.loads(capsys.readouterr().out)["raters"]}
    assert [one["active"] for one in listed.values()] == [True, False, True]
    assert listed["Dr B"]["link"] is None
    now = clinic.tokens(study)
    assert listed["Dr A"]["link"] == f"https://ratings.example.org/#{now['Dr A']}"
    with Store.open(study) as store:
        assert store.rater_by_token(before["Dr A"]) is None
        assert store.rater_by_token(before["Dr B"]) is None
        assert [store.rater_by_token(now[name]).name for name in now] == ["Dr A", "Dr C"]
    assert (study / "tokens.json").stat().st_mode & 0o077 == 0


def test_links_are_shown_when_asked_for_alone(tmp_path, sets, capsys):
    study = clinic.create_study(tmp_path / "study", *sets)
    rate_images.main(["raters", "--study_dir", str(study)])
    output = capsys.readouterr()
    assert not any(token in output.out + output.err for token in clinic.tokens(study).values())
    with clinic.running_server(study, tmp_path / "log") as (process, _):
        process.terminate()
        told = process.stdout.read().decode() + (tmp_path / "log").read_text()
    assert not any(token in told for token in clinic.tokens(study).values())


def test_help_and_bad_flags_answer_at_once():
    for flags, status in ((["--help"], 0), (["create", "--help"], 0), (["serve"], 2)):
        begin = time.monotonic()
        command = [sys.executable, str(clinic.ROOT / "rate_images.py"), *flags]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == status
        assert time.monotonic() - begin < 1.5
