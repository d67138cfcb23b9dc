"""What shows a test patient to a classifier in training is refused."""

import json

import numpy as np
import pytest

from utils.cli import UserError
from utils.dataset import Record
from utils.leakage import (
    refuse_shared_pixels,
    refuse_test_captions,
    refuse_test_patients,
    refuse_test_provenance,
)


def record(name, *, text="", patient=None, row=None):
    return Record(name, text, ("a",), patient, None, row or {}, f"m.csv:{name}", name)


class Pictures:
    def __init__(self, *values):
        self.records = [record(str(n)) for n in range(len(values))]
        self.values = values

    def __iter__(self):
        return (np.full((2, 2), value, np.uint8) for value in self.values)


def test_an_image_of_a_test_patient_is_refused_and_named():
    test = [record("t", patient="9")]
    with pytest.raises(UserError, match=r"1 images of --unlabeled_dir .* 9 \(m.csv:u\)"):
        refuse_test_patients("--unlabeled_dir", [record("u", patient="9")], test)
    refuse_test_patients("--unlabeled_dir", [record("u", patient="8"), record("v")], test)
    refuse_test_patients("--unlabeled_dir", [record("v")], [record("t")])


def test_the_pixels_of_a_test_image_are_refused_under_whatever_name():
    with pytest.raises(
        UserError, match=r"1 images of --synthetic_dir are test images: m\.csv:1 = "
    ):
        refuse_shared_pixels(Pictures(1, 2), {"--synthetic_dir": Pictures(5, 2)})
    refuse_shared_pixels(Pictures(1, 2), {"--synthetic_dir": Pictures(5, 6)})


def test_a_caption_that_only_test_patients_have_is_refused():
    test = [record("t", text="two  cysts"), record("u", text="normal")]
    learned = [record("l", text="normal")]
    drawn = [record("s", text="x", row={"prompt": "two cysts"}), record("r", text="normal")]
    with pytest.raises(UserError, match=r"1 images .* only test patients have: m.csv:s\."):
        refuse_test_captions(drawn, learned=learned, test=test)
    with pytest.raises(UserError, match="1 images"):
        refuse_test_captions([record("s", text="two cysts")], learned=learned, test=test)
    refuse_test_captions(drawn[1:], learned=learned, test=test)
    refuse_test_captions([record("s")], learned=[], test=[record("t")])  # no captions at all


def options(folder, **flags):
    folder.mkdir(exist_ok=True)
    (folder / "options.json").write_text(json.dumps({"flags": flags}))
    return folder


def test_captions_of_the_split_test_are_refused(tmp_path):
    made = {"prompts_from": str(tmp_path / "clinic"), "model": "x"}
    root = options(tmp_path / "set", prompts_split="test", **made)
    with pytest.raises(UserError, match="captions of the split test"):
        refuse_test_provenance(root, test_source=str(tmp_path / "clinic"), has_splits=True)
    refuse_test_provenance(root, test_source=str(tmp_path / "elsewhere"), has_splits=True)


def test_a_generator_that_was_trained_on_an_undivided_set_is_refused(tmp_path):
    model = options(tmp_path / "model", train_data_dir=str(tmp_path / "clinic"))
    root = options(tmp_path / "set", model=str(model), prompts_split="train")
    source = str(tmp_path / "clinic")
    with pytest.raises(UserError, match="was trained on all of"):
        refuse_test_provenance(root, test_source=source, has_splits=False)
    assert refuse_test_provenance(root, test_source=source, has_splits=True) == []


def test_what_cannot_be_found_out_is_told(tmp_path):
    (tmp_path / "set").mkdir()
    for root in (None, tmp_path / "set"):
        (note,) = refuse_test_provenance(root, test_source="x", has_splits=True)
        assert "cannot be found out" in note
    root = options(tmp_path / "set", model=str(tmp_path / "gone"))
    (note,) = refuse_test_provenance(root, test_source="x", has_splits=True)
    assert "generator" in note
