"""Where a generator of the demo starts that has to be weak: few reports, forgotten words."""

import csv

import pytest
from improvement_toys import write_clinic
from safetensors.torch import load_file

from demo import forgetful_base, hide_labels
from utils.cli import UserError
from utils.dataset import load_dataset


def rows_of(folder):
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_some_patients_of_every_finding_keep_their_reports_the_others_lose_all_that_tells(tmp_path):
    clinic, _ = write_clinic(tmp_path / "clinic")
    out = tmp_path / "out"
    hide_labels.main(["--data_dir", str(clinic), "--share", "0.3", "--output_dir", str(out)])
    labeled, hidden = load_dataset(out / "labeled"), rows_of(out / "unlabeled")
    train = [record for record in labeled if record.split == "train"]
    before = [record for record in load_dataset(clinic) if record.split == "train"]
    assert {r.labels for r in train} == {r.labels for r in before}
    assert 0 < len(hidden) == len(before) - len(train)
    assert {"text", "label", "split"}.isdisjoint(hidden[0])
    patients = {record.patient_id for record in labeled}
    assert patients.isdisjoint(row["patient_id"] for row in hidden)
    assert sum(record.split != "train" for record in labeled) == 24  # val and test stay


def test_a_clinic_that_is_not_divided_is_refused(tmp_path, toy_dataset):
    clinic, _ = write_clinic(tmp_path / "clinic")
    table = clinic / "metadata.csv"
    table.write_text(table.read_text().replace(",train", ",val"), encoding="utf-8")
    flags = ["--data_dir", str(clinic), "--share", "0.3", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"prepare_dataset\.py split"):
        hide_labels.main(flags)


def test_only_what_takes_in_the_text_is_forgotten(tiny_pipeline, tmp_path, capsys):
    out = tmp_path / "forgetful"
    forgetful_base.main(["--model", str(tiny_pipeline), "--output_dir", str(out)])
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(tiny_pipeline / name), load_file(out / name)
    changed = {key for key in before if not before[key].equal(after[key])}
    assert changed == {key for key in before if "attn2.to_k" in key or "attn2.to_v" in key}
    assert changed
    for part in ("vae", "text_encoder"):
        (weights,) = (tiny_pipeline / part).glob("*.safetensors")
        assert weights.read_bytes() == (out / part / weights.name).read_bytes()


def test_the_whole_unet_is_drawn_anew_if_asked(tiny_pipeline, tmp_path, capsys):
    out = tmp_path / "untrained"
    flags = ["--model", str(tiny_pipeline), "--output_dir", str(out), "--forget", "all"]
    forgetful_base.main([*flags, "--seed", "5"])
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(tiny_pipeline / name), load_file(out / name)
    same = {key for key in before if before[key].equal(after[key])}
    assert all("norm" in key or key.endswith("bias") for key in same)  # ones and zeros
    assert any("conv_in" in key for key in before.keys() - same)
