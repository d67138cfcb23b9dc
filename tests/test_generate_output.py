"""What the generator writes and reads beside a folder: shards, templates, counts."""

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from test_generate import contents, flags, table

import generate_synthetic_dataset as generate
from utils import generated_set
from utils.cli import UserError
from utils.dataset import load_dataset


@pytest.fixture(scope="module")
def nine(tiny_pipeline, tmp_path_factory):
    """Nine images of three labels, as a folder and as shards of four."""
    folder = tmp_path_factory.mktemp("nine")
    (folder / "p.csv").write_text(
        'text,label,num_images\n"cysts, large",cyst;edema,4\ndrusen / soft,drusen,5\nhole,hole,0\n'
    )
    more = ["--prompts_file", folder / "p.csv"]
    generate.main(flags(tiny_pipeline, folder / "folder", *more))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generated_set, "IMAGES_PER_SHARD", 4)
        generate.main(flags(tiny_pipeline, folder / "shards", *more, "--format", "webdataset"))
    return folder


def test_a_table_of_counts_decides_how_often_each_prompt_is_drawn(nine):
    rows = table(nine / "folder/metadata.csv")
    assert Counter(row["label"] for row in rows) == {"cyst;edema": 4, "drusen": 5}


def test_shards_hold_the_same_records_as_the_folder(nine):
    folder, shards = load_dataset(nine / "folder"), load_dataset(str(nine / "shards/*.tar"))
    assert len(list(nine.glob("shards/*.tar"))) == 3
    for one, other in zip(folder, shards, strict=True):
        assert (one.text, one.labels) == (other.text, other.labels)
        assert one.image().tobytes() == other.image().tobytes()
        for name in ("seed", "prompt", "model_hash", "guidance", "accepted", "source"):
            assert one.row[name] == other.row[name]
    assert not (nine / "shards/images").exists()
    assert not (nine / "shards/metadata.csv").exists()


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(generated_set, "IMAGES_PER_SHARD", 4)


def test_a_finished_run_of_shards_is_not_drawn_again(
    nine, tiny_pipeline, tmp_path, small_shards, capsys
):
    folder = Path(shutil.copytree(nine / "shards", tmp_path / "set"))
    more = ["--prompts_file", nine / "p.csv", "--format", "webdataset"]
    generate.main(flags(tiny_pipeline, folder, *more))
    assert json.loads(capsys.readouterr().out)["num_drawn_now"] == 0
    assert contents(folder) == contents(nine / "shards")


@pytest.mark.parametrize("damage", ["lost", "cut", "unpacked"])
def test_a_damaged_shard_is_drawn_again_to_the_same_bytes(
    nine, tiny_pipeline, tmp_path, small_shards, damage
):
    folder = Path(shutil.copytree(nine / "shards", tmp_path / "set"))
    shard = folder / "00001.tar"
    if damage == "unpacked":  # as if killed before it was packed
        (folder / "images").mkdir()
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    data = tar.extractfile(member).read()
                    (folder / "images" / member.name).write_bytes(data)
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-4096])
    else:
        shard.unlink()
    more = ["--prompts_file", nine / "p.csv", "--format", "webdataset"]
    generate.main(flags(tiny_pipeline, folder, *more))
    assert contents(folder) == contents(nine / "shards")


def test_a_template_is_drawn_with_its_labels(tiny_pipeline, tmp_path):
    template = {
        "template": "{severity} {finding}, {side}",
        "slots": {
            "severity": ["mild", "severe"],
            "finding": {"edema": ["macular edema", "cysts"], "drusen": "soft drusen"},
            "side": ["left eye"],
        },
        "label": "{finding}",
    }
    (tmp_path / "t.json").write_text(json.dumps(template))
    more = ["--template", tmp_path / "t.json"]
    generate.main(flags(tiny_pipeline, tmp_path / "set", *more))
    rows = table(tmp_path / "set/metadata.csv")
    assert [(row["text"], row["label"]) for row in rows][:2] == [
        ("mild macular edema, left eye", "edema"),
        ("mild cysts, left eye", "edema"),
    ]
    assert len(rows) == 6
    balanced = ["--class_balanced", "--num_images", 8]
    generate.main(flags(tiny_pipeline, tmp_path / "balanced", *more, *balanced))
    labels = Counter(row["label"] for row in table(tmp_path / "balanced/metadata.csv"))
    assert labels == {"edema": 4, "drusen": 4}


def test_a_broken_template_is_refused_before_anything_is_written(tiny_pipeline, tmp_path):
    (tmp_path / "t.json").write_text('{"template": "{finding}", "slots": {}}')
    with pytest.raises(UserError, match=r"t\.json.*finding"):
        generate.main(flags(tiny_pipeline, tmp_path / "set", "--template", tmp_path / "t.json"))
    assert not (tmp_path / "set").exists()


def test_thresholds_calibrated_on_real_images_end_in_gates_json(
    tiny_pipeline, toy_dataset, tmp_path
):
    from test_generate_gate import save_classifier

    labels = ("drusen", "macular edema", "normal")
    judge = save_classifier(tmp_path / "classifier", labels=labels)
    more = ["--prompts_from", toy_dataset, "--classifier", judge, "--real_dir", toy_dataset]
    more += ["--real_split", "train", "--accept_precision", "0.2", "--max_attempts", "1"]
    generate.main(flags(tiny_pipeline, tmp_path / "set", *more))
    facts = json.loads((tmp_path / "set/gates.json").read_text())["class"]
    assert facts["thresholds"].keys() == set(labels)
    for label in labels:
        found = facts["calibration"][label]
        assert found["precision"] >= 0.2
        assert found["threshold"] == facts["thresholds"][label]
    for row in table(tmp_path / "set/manifest.csv"):
        passes = float(row["score"]) >= facts["thresholds"][row["label"]] - 5e-5
        assert passes or row["reason"] == "class"
