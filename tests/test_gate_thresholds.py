"""Thresholds of the gate by flag and file, and labels that a classifier cannot judge."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from utils.cli import UserError
from utils.gate_thresholds import check_labels, parse_accept_prob, read_thresholds
from utils.prompts import Prompt

KNOWN = ("drusen", "edema", "normal")


def _file(tmp_path, content):
    path = tmp_path / "p.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def _prompts(*labels):
    return [Prompt(f"text {i}", label, "", f"p.csv:{i}") for i, label in enumerate(labels, 2)]


def test_the_flag_takes_a_probability_or_a_file(tmp_path):
    path = _file(tmp_path, {})
    assert parse_accept_prob("0.35") == 0.35
    assert parse_accept_prob("1") == 1
    assert parse_accept_prob(str(path)) == path


@pytest.mark.parametrize("text", ["0", "-0.1", "1.01", "nan", "", "high", "thresholds.csv"])
def test_another_value_of_the_flag_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"neither a number in \(0, 1\] nor"):
        parse_accept_prob(text)


def test_a_file_that_is_not_there_is_refused_by_the_flag():
    with pytest.raises(argparse.ArgumentTypeError, match=r"no such file.*none\.json"):
        parse_accept_prob("none.json")


def test_the_flag_type_imports_nothing_heavy():
    code = "import sys, utils.gate_thresholds; print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_a_file_gives_each_label_its_threshold_and_the_others_the_default(tmp_path):
    path = _file(tmp_path, {"edema": 0.9, "drusen": 1, "default": 0.5})
    found = read_thresholds(path, labels=["edema", "normal"], known=KNOWN)
    assert found == {"edema": 0.9, "normal": 0.5}


def test_everything_wrong_with_a_file_of_thresholds_is_reported_at_once(tmp_path):
    path = _file(
        tmp_path, {"Edema": 0.5, "drusen": 0, "default ": 0.5, "edema": True, "scar": "0.5"}
    )
    with pytest.raises(UserError) as caught:
        read_thresholds(path, labels=["normal", "edema"], known=KNOWN)
    assert str(caught.value).split("\n  ") == [
        f"{path}: 7 problem(s)",
        "'Edema' is no label of the classifier (drusen, edema, normal)",
        "'drusen': 0 is not a number in (0, 1]",
        "'default ' is no label of the classifier (drusen, edema, normal)",
        "'edema': True is not a number in (0, 1]",
        "'scar' is no label of the classifier (drusen, edema, normal)",
        "'scar': '0.5' is not a number in (0, 1]",
        "no threshold for 'normal'; add it, or 'default' for all others",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[0.5]", "it must be an object"),
        ('{"edema": 0.5,\n}', "not JSON: .* line [12] column"),
        ('{"edema": 0.5, "edema": 0.6}', "'edema' stands twice"),
        ('{"edema": Infinity}', "Infinity"),
        ('{"edema": 1.0001}', "1.0001 is not a number"),
    ],
)
def test_a_file_that_is_no_table_of_thresholds_is_refused(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        read_thresholds(_file(tmp_path, content), labels=["edema"], known=KNOWN)


def test_labels_asked_for_come_in_the_classifiers_order():
    prompts = _prompts("normal", "edema;drusen", "normal") * 3
    assert check_labels(prompts, KNOWN, multi_label=True) == ["drusen", "edema", "normal"]
    assert check_labels(prompts[:1], KNOWN, multi_label=False) == ["normal"]


def test_everything_a_classifier_cannot_judge_is_told_once_per_prompt():
    prompts = _prompts("normal", "", "Edema", "edema;drusen", "", "Edema;scar") * 2
    with pytest.raises(UserError) as caught:
        check_labels(prompts, KNOWN, multi_label=False)
    message = str(caught.value)
    assert "2 prompt(s) have no label, first: p.csv:3" in message
    assert "label 'Edema' (2 prompt(s), first: p.csv:4) is unknown" in message
    assert "label 'scar' (1 prompt(s), first: p.csv:7) is unknown" in message
    assert "2 prompt(s) have several labels, first: p.csv:5 (edema;drusen)" in message
    assert "It knows: drusen, edema, normal" in message
    with pytest.raises(UserError) as caught:
        check_labels(prompts, KNOWN, multi_label=True)
    assert "several labels" not in str(caught.value)
