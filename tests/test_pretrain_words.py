"""The script that taught the demo's text encoder the words of films, at a scale of seconds."""

import json

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from demo import pretrain_words
from demo.forgetful_base import BASE
from demo.pretrain_words import _draw, facts_of, prompt
from utils.run_folder import hash_folder


@pytest.fixture(scope="module")
def reports():
    return {name: [_draw(index, modality=name) for index in range(40)] for name in ("CXR", "OCT")}


def states(text_encoder, texts):
    """Of the end token and all the padding after it, as the U-Net gets them: (B, L, C)."""
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    ids = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        return text_encoder(ids)[0]


def test_facts_are_those_that_the_report_tells(reports):
    left = next(scan for scan in reports["CXR"] if scan.label == "left pleural effusion")
    assert {"label left pleural effusion", "side left"} < facts_of(left)
    assert "left" in left.text.lower()


def test_prompts_are_reports_labels_or_empty(reports):
    scan = reports["CXR"][0]
    assert prompt(scan, modality="CXR", chances=(0.0, 0.9, 0.9)) == ""
    assert prompt(scan, modality="CXR", chances=(0.9, 0.1, 0.1)) == f"CXR: {scan.label}"
    assert prompt(scan, modality="CXR", chances=(0.9, 0.9, 0.9)) == scan.text


def test_only_the_text_encoder_changes_and_oct_reports_mean_what_they_meant(tmp_path, reports):
    flags = ["--model", str(BASE), "--output_dir", str(tmp_path / "base"), "--num_reports", "80"]
    sizes = ["--max_train_steps", "8", "--batch_size", "4", "--learning_rate", "1e-4"]
    assert pretrain_words.main([*flags, *sizes]) == 0
    for part in ("unet", "vae", "tokenizer", "scheduler"):
        assert hash_folder(tmp_path / "base" / part) == hash_folder(BASE / part)
    old, new = (
        CLIPTextModel.from_pretrained(x / "text_encoder") for x in (BASE, tmp_path / "base")
    )
    assert new.dtype == torch.float32
    texts = [scan.text for scan in reports["OCT"]]
    known, kept = states(old, texts), states(new, texts)
    assert 0 < (kept - known).pow(2).mean() < 0.01 * known.var()


def test_the_base_tells_left_from_right_and_other_findings_apart(reports):
    """A linear readout of the shipped text encoder, of reports of one half, reads the other."""
    encoder = CLIPTextModel.from_pretrained(BASE / "text_encoder")
    scans = [_draw(index, modality="CXR") for index in range(0, 640, 2)]
    scans = [scan for scan in scans if ";" not in scan.label]
    names = sorted({scan.label for scan in scans})
    last = states(encoder, [f"CXR: {scan.text}" for scan in scans])[:, -1]
    truth = torch.tensor([names.index(scan.label) for scan in scans])
    half = len(scans) // 2
    targets = torch.nn.functional.one_hot(truth[:half]).float()
    design = torch.cat([last, torch.ones(len(last), 1)], 1)
    gram = design[:half].T @ design[:half] + 1e-1 * torch.eye(design.shape[1])
    weights = torch.linalg.solve(gram, design[:half].T @ targets)
    right = ((design[half:] @ weights).argmax(1) == truth[half:]).float().mean()
    assert right > 0.95


def test_the_result_says_what_was_learned(tmp_path, capsys):
    flags = ["--model", str(BASE), "--output_dir", str(tmp_path / "base"), "--num_reports", "40"]
    pretrain_words.main([*flags, "--max_train_steps", "1", "--batch_size", "2"])
    figures = json.loads(capsys.readouterr().out)
    assert 0 <= figures["findings_read"] <= 1
    assert 0 < figures["oct_change"] < 0.2
