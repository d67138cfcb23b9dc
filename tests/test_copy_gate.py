"""The gate against copies, and how a run's gate is put together, kept and found again."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_copy_audit import scans, unit
from test_generate_gate import save_classifier

from utils.audit_images import nearest
from utils.cli import UserError
from utils.copy_detector import CopyDetector, DetectorConfig, build_detector_network
from utils.copy_gate import CopyGate
from utils.copy_training import DetectorOptions
from utils.dataset import load_dataset, write_dataset
from utils.gate_inputs import check_inputs
from utils.gate_loading import gate_facts, load_gate
from utils.run_folder import FEATURE_CACHE

ROOT = Path(__file__).parents[1]
LABELS = ("cyst", "drusen", "edema")
VIEW = {"resolution": 64, "device": "cpu"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A small detector, and files remembered though they were written this very moment."""
    options = {"resolution": 32, "min_steps": 5, "max_steps": 5, "batch_size": 16}
    monkeypatch.setattr("utils.auditor.DetectorOptions", partial(DetectorOptions, **options))
    monkeypatch.setattr("utils.pixel_digests.SETTLED_NS", -1)


def write_set(folder, count, seed, split):
    """Scans with labels and patients of their own; rows of an earlier split stay."""
    rows = []
    for number, image in enumerate(scans(count, seed)):
        name = f"images/{split}{number:03d}.png"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
        label = LABELS[number % 3]
        patient = f"{split}{number}"
        rows.append({"file_name": name, "text": label, "label": label, "patient_id": patient})
        rows[-1]["split"] = split
    return rows


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    rows = write_set(folder, 40, 1, "train") + write_set(folder, 30, 2, "val")
    write_dataset(folder, rows)
    return folder


@pytest.fixture
def classifier(tmp_path):
    return save_classifier(tmp_path / "classifier")


def arguments(tmp_path, **given):
    names = ("classifier", "accept_prob", "accept_precision", "min_contrast", "train_dir")
    flags = dict.fromkeys((*names, "real_dir", "real_split"))
    flags |= {"resize_mode": "center_crop", "reject_duplicates": False, "seed": 0, "offline": True}
    return argparse.Namespace(**flags | {"output_dir": tmp_path / "set"} | given)


def against_copies(tmp_path, data, **more):
    return arguments(tmp_path, train_dir=data, real_dir=data, **more)


def wide_gate(num_train=1260):
    """A gate with an untrained detector and many embeddings near those of the scans asked for."""
    config = DetectorConfig(32, "center_crop", 128, 0.3, 0.2, 1, "none", {})
    detector = CopyDetector(config, build_detector_network(config, seed=0))
    rng = np.random.default_rng(0)
    centre = detector.embed(scans(1, 4))
    train = unit(centre + 0.02 * rng.normal(size=(num_train, 128)))
    return CopyGate(detector, train, np.zeros((1, 16), np.uint8), {"threshold": 0.9})


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_the_similarity_of_an_image_does_not_depend_on_its_company(at_once):
    gate, pictures = wide_gate(), scans(24, seed=5)
    together, _ = gate.examine(pictures)
    groups = [pictures[i : i + at_once] for i in range(0, 24, at_once)]
    found = np.concatenate([gate.examine(group)[0] for group in groups])
    assert found.tobytes() == together.tobytes()


def test_neither_the_threads_of_blas_nor_the_place_of_a_key_changes_a_bit():
    code = (
        "import numpy as np; from utils.audit_images import nearest; "
        "keys = np.random.default_rng(0).normal(size=(5003, 128)).astype('f4') / 11; "
        "some = (*keys[2490:2510], *keys[-8:]); "
        "print([nearest(key[None], keys)[1].tobytes().hex() for key in some])"
    )
    found = {
        subprocess.check_output(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"OPENBLAS_NUM_THREADS": count}
        )
        for count in "12"
    }
    assert len(found) == 1
    rng = np.random.default_rng(0)
    query, keys = unit(rng.normal(size=(1, 128))), unit(rng.normal(size=(69, 128)))
    keys[[3, 7, 40, 68]] = query + np.float32(1e-3)
    index, value = nearest(query, keys)
    assert index.tolist() == [3]
    assert value == (keys[68] * query[0]).sum()


def test_what_finds_copies_is_loaded_without_the_images(tmp_path, data, capsys):
    args = against_copies(tmp_path, data)
    facts = gate_facts(args, labels=[], **VIEW)
    assert facts == json.loads(json.dumps(facts))
    assert (facts["copy"]["num_train"], facts["copy"]["num_held_out"]) == (40, 30)
    pictures = [*scans(3, 1), *scans(6, 7)]
    first = load_gate(args, facts, **VIEW).examine(pictures, [()] * 9)
    assert ["copy" in verdict.reasons for verdict in first[:3]] == [True] * 3
    assert not all(verdict.reasons for verdict in first)
    shutil.rmtree(data)
    capsys.readouterr()
    assert load_gate(args, facts, **VIEW).examine(pictures, [()] * 9) == first
    assert capsys.readouterr().err == ""


def refuse(*_, **__):
    raise AssertionError("read again")


def test_the_next_start_reads_no_image_but_remembers_by_content(tmp_path, data, monkeypatch):
    args = against_copies(tmp_path, data)
    facts = gate_facts(args, labels=[], **VIEW)
    with monkeypatch.context() as patch:
        patch.setattr("utils.auditor.read_images", refuse)
        patch.setattr("utils.dataset_pixels.decode", refuse)
        assert gate_facts(args, labels=[], **VIEW) == facts
    renamed = tmp_path / "renamed"
    shutil.copytree(data, renamed)
    rows = [dict(record.row) for record in load_dataset(data)]
    for row in rows:
        old, row["file_name"] = row["file_name"], row["file_name"].replace("/", "/scan_")
        (renamed / old).rename(renamed / row["file_name"])
    write_dataset(renamed, rows)
    with monkeypatch.context() as patch:
        patch.setattr("utils.auditor.read_images", refuse)
        again = gate_facts(against_copies(tmp_path, renamed), labels=[], **VIEW)
    assert again["copy"]["cache_key"] == facts["copy"]["cache_key"]
    for flags in ({"seed": 1}, {"resize_mode": "stretch"}):
        other = gate_facts(against_copies(tmp_path, data, **flags), labels=[], **VIEW)
        assert other["copy"]["cache_key"] != facts["copy"]["cache_key"]
    for name in ("train003.png", "val003.png"):
        path = data / "images" / name
        before = path.read_bytes()
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        other = gate_facts(args, labels=[], **VIEW)
        assert other["copy"]["cache_key"] != facts["copy"]["cache_key"]
        path.write_bytes(before)


def _delete_all(cache):
    shutil.rmtree(cache)


def _delete_detector(cache):
    shutil.rmtree(next(cache.glob("copy_detector-*")))


def _cut(cache):
    path = next(cache.glob("copy_gate-*"))
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [_delete_all, _delete_detector, _cut])
def test_a_lost_or_damaged_cache_is_made_again_to_the_same_verdicts(tmp_path, data, damage, capsys):
    args, pictures = against_copies(tmp_path, data), scans(6, 7)
    facts = gate_facts(args, labels=[], **VIEW)
    first = load_gate(args, facts, **VIEW).examine(pictures, [()] * 6)
    damage(tmp_path / FEATURE_CACHE)
    assert load_gate(args, facts, **VIEW).examine(pictures, [()] * 6) == first
    assert "another one judges" not in capsys.readouterr().err
    assert len(list((tmp_path / FEATURE_CACHE).glob("copy_gate-*"))) == 1


def test_a_detector_that_cannot_be_trained_again_is_told_once_and_has_its_own_threshold(
    tmp_path, data, capsys
):
    args = against_copies(tmp_path, data)
    facts = gate_facts(args, labels=[], **VIEW)
    foreign = facts | {"copy": facts["copy"] | {"detector_sha256": "0", "threshold": -1.0}}
    foreign["copy"]["cache_key"] = "made on another GPU"
    gate = load_gate(args, foreign, **VIEW)
    assert "another one judges" in capsys.readouterr().err
    assert not all(verdict.reasons for verdict in gate.examine(scans(6, 7), [()] * 6))
    load_gate(args, foreign, quiet=True, **VIEW)
    assert "another one judges" not in capsys.readouterr().err


def test_weights_that_changed_beside_the_embeddings_are_noticed(tmp_path, data, capsys):
    args = against_copies(tmp_path, data)
    facts = gate_facts(args, labels=[], **VIEW)
    detector = next((tmp_path / FEATURE_CACHE).glob("copy_detector-*"))
    found = CopyDetector.load(detector)
    found.network.head.weight.data *= -1
    found.save(detector)
    load_gate(args, facts, **VIEW)
    assert "made with another detector" in capsys.readouterr().err


def test_calibrated_thresholds_come_with_the_facts(tmp_path, data, classifier):
    flags = {"classifier": classifier, "real_dir": data, "accept_precision": 0.1}
    args = arguments(tmp_path, **flags)
    facts = gate_facts(args, labels=LABELS, **VIEW)
    assert facts == json.loads(json.dumps(facts))
    assert set(facts["class"]["calibration"]) == set(facts["class"]["thresholds"]) == set(LABELS)
    shutil.rmtree(data)
    [verdict] = load_gate(args, facts, **VIEW).examine(scans(1, 1), [("cyst",)])
    assert ("class" in verdict.reasons) is (verdict.score < facts["class"]["thresholds"]["cyst"])
    high = facts | {"class": facts["class"] | {"thresholds": dict.fromkeys(LABELS, 1.0)}}
    assert load_gate(args, high, **VIEW).examine(scans(1, 1), [("cyst",)])[0].reasons == ("class",)
    save_classifier(classifier, labels=(*LABELS, "hole"))
    with pytest.raises(UserError, match="not the one this set was begun with"):
        load_gate(args, facts, **VIEW)


def test_inputs_are_told_apart_without_a_decoded_image(tmp_path, data, classifier):
    for path in data.glob("images/*.png"):
        path.write_bytes(b"no image")
    flags = {"classifier": classifier, "accept_prob": tmp_path / "thresholds.json"}
    args = against_copies(tmp_path, data, **flags)

    def inputs(thresholds='{"default": 0.5}'):
        args.accept_prob.write_text(thresholds)
        return check_inputs(args, LABELS[:2])

    before = inputs()
    names = ("classifier_sha256", "thresholds", "real_fingerprint", "train_fingerprint")
    assert tuple(before) == names
    assert before == json.loads(json.dumps(before)) == inputs(' {"default":  0.5, "edema": 0.7}')
    assert inputs('{"default": 0.5, "drusen": 0.6}') != before
    config = classifier / "config.json"
    config.write_text(config.read_text().replace("cyst", "cleft"))
    assert inputs()["classifier_sha256"] != before["classifier_sha256"]
    table = data / "metadata.csv"
    table.write_text(table.read_text().replace("train0,", "train00,"))
    after = inputs()
    assert after["train_fingerprint"] != before["train_fingerprint"]
    assert after["real_fingerprint"] == before["real_fingerprint"]
    assert not (tmp_path / FEATURE_CACHE).exists()


def test_a_split_that_is_not_there_is_told_with_those_that_are(tmp_path, data):
    args = against_copies(tmp_path, data, real_split="test")
    expected = r"--real_dir .*no image in split test; it has: train \(40 .*val \(30 .*--real_split"
    with pytest.raises(UserError, match=expected):
        check_inputs(args, [])
    write_dataset(data, write_set(data, 3, 1, "val"))
    expected = r"--train_dir .*no image in split train; it has: val \(3 images\)$"
    with pytest.raises(UserError, match=expected):
        check_inputs(against_copies(tmp_path, data), [])
    write_dataset(data, write_set(data, 1, 1, "train") + write_set(data, 3, 2, "val"))
    with pytest.raises(UserError, match=r"--train_dir .*: 1 image; 2 or more are needed"):
        check_inputs(against_copies(tmp_path, data), [])


def test_labels_without_real_images_are_told_at_once(tmp_path, data, classifier):
    args = arguments(tmp_path, classifier=classifier, real_dir=data, accept_precision=0.5)
    with pytest.raises(UserError, match="no image of hole to calibrate"):
        check_inputs(args, ["cyst", "hole"])


def test_held_out_images_that_are_the_training_images_are_called_so(tmp_path, data):
    rows = write_set(data, 4, 1, "train")
    write_dataset(data, [{k: v for k, v in row.items() if k != "split"} for row in rows])
    with pytest.raises(UserError, match="--real_dir: the same images as --train_dir"):
        check_inputs(against_copies(tmp_path, data), [])
    copied = shutil.copytree(data, tmp_path / "copied")
    args = arguments(tmp_path, train_dir=data, real_dir=copied)
    with pytest.raises(UserError, match="--real_dir: the same images as --train_dir"):
        gate_facts(args, labels=[], **VIEW)


def test_only_reasons_that_apply_are_told(tmp_path):
    rows = write_set(tmp_path / "train", 4, 1, "train")
    others = write_set(tmp_path / "real", 3, 2, "val")
    for row, other in zip(rows, others):
        other["patient_id"] = row["patient_id"]
    write_dataset(tmp_path / "train", rows)
    write_dataset(tmp_path / "real", others)
    args = arguments(tmp_path, train_dir=tmp_path / "train", real_dir=tmp_path / "real")
    expected = r"none of its 3 images .* is: 3 are of a patient of the training images$"
    with pytest.raises(UserError, match=expected):
        gate_facts(args, labels=[], **VIEW)
