"""Reports for unlabeled scans, by a tiny network of random weights that tells scans apart."""

import csv
import json
import math
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image

from utils import captioning
from utils.caption_journal import JournalWriter, part_path, read_journal
from utils.captioned_set import is_accepted
from utils.captioner import Captioner, Decoding, Written
from utils.captioner_networks import CaptionerSpec, build_network
from utils.cli import UserError
from utils.dataset import DatasetError, load_dataset
from utils.gray_images import GrayImages

ROOT = Path(__file__).parents[1]
NUM_SCANS = 40  # two whole batches of a CPU, and a half one
SPREAD = 5  # of the random weights: else every scan gets the same report
TEXTS = ["drusen under the pigment epithelium", "normal retina", "macular edema with cysts"]
COLUMNS = ("file_name", "label", "patient_id", "split", "site")

# Kills a process that has begun, then lets two finish; all are copies of one that has imported.
PROCESSES = """
import os, signal, sys, time
from argparse import Namespace
from pathlib import Path
import torch
from accelerate import PartialState
from utils import captioning

torch.set_num_threads(1)
args = Namespace(**{flags})

def start(**settings):
    child = os.fork()
    if child:
        return child
    os.environ.update(settings)
    captioning.run(args, PartialState(cpu=True))
    os._exit(0)

first = start()
while not any(path.stat().st_size for path in args.output_dir.glob("journal/*.jsonl")):
    assert os.waitpid(first, os.WNOHANG) == (0, 0), "ended before it was killed"
    time.sleep(0.001)
os.kill(first, signal.SIGKILL)
assert os.waitpid(first, 0)[1] == signal.SIGKILL, "ended before it was killed"
recorded = sum(len(path.read_bytes().splitlines()) for path in args.output_dir.glob("journal/*"))
two = [
    start(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
          MASTER_PORT="{port}", ACCELERATE_USE_CPU="true")
    for rank in range(2)
]
assert [os.waitpid(child, 0)[1] for child in two] == [0, 0]
print(recorded)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner") / "captioner"
    spec = CaptionerSpec(resolution=64, max_tokens=16)
    network, tokenizer, settings = build_network(spec, TEXTS * 3, seed=0)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.mul_(SPREAD)
    unprintable = [
        number
        for token, number in tokenizer.get_vocab().items()
        if not tokenizer.convert_tokens_to_string([token]).strip().isalpha()
    ]
    network.generation_config.suppress_tokens = [
        number for number in unprintable if number != tokenizer.eos_token_id
    ]
    Captioner(network, tokenizer, settings, resize_mode="stretch").save(folder)
    return folder


def write_scans(folder, columns=COLUMNS, num_scans=NUM_SCANS, **cells):
    """A dataset folder without texts; ``cells`` are functions of the scan's number."""
    usual = {
        "file_name": lambda i: f"scans/scan {i}.png",
        "label": lambda i: TEXTS[i % 3],
        "patient_id": lambda i: f"p{i // 2}",
        "split": lambda i: "val" if i // 2 % 5 == 0 else "train",
        "site": lambda i: "north",
    } | cells
    (folder / "scans").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for index in range(num_scans):
            table.writerow([usual[name](index) for name in columns])
            noise = rng.normal(10 + 5 * index, 30, (48, 80)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / "scans" / f"scan {index}.png")
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("source") / "scans")


def make_args(caption_dir, model, output_dir, **changes):
    flags = {
        "caption_dir": str(caption_dir),
        "model": str(model),
        "output_dir": output_dir,
        "min_confidence": None,
        "num_beams": 2,
        "length_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "max_tokens": 9,
        "batch_size": 16,
        "mixed_precision": "no",
        "device": "cpu",
        "num_workers": 0,
        "offline": True,
        "overwrite": False,
        "skip_invalid": False,
        "image_column": None,
        "patient_column": None,
        "show_reports": False,
    }
    assert changes.keys() <= flags.keys()
    return Namespace(**flags | changes)


def run(*places, **changes):
    return captioning.run(make_args(*places, **changes), PartialState(cpu=True))


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    """Bytes of all files but the times in options.json."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "options.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def done(scans, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done") / "set"
    return folder, run(scans, model, folder)


def test_every_scan_has_the_report_that_the_captioner_writes_of_it(done, scans, model):
    folder, result = done
    captioner = Captioner.load(model)
    images = GrayImages(load_dataset(scans).records, resolution=64, resize_mode="stretch")
    written = captioner.write(images, Decoding(num_beams=2, max_new_tokens=8))
    rows = rows_of(folder / "metadata.csv")
    assert [row["text"] for row in rows] == [report.text for report in written]
    assert [row["confidence"] for row in rows] == [f"{r.confidence:.3f}" for r in written]
    assert len({row["text"] for row in rows}) > 3
    assert result["num_scans"] == result["num_accepted"] == result["num_written_now"] == NUM_SCANS
    assert json.loads((folder / "results.json").read_text())["num_accepted"] == NUM_SCANS


def test_the_set_is_a_data_set_with_what_the_scans_brought(done, scans, model):
    folder, result = done
    found, source = load_dataset(folder, require_text=True), load_dataset(scans)
    assert {record.row["model_hash"] for record in found} == {Captioner.load(model).sha256}
    for record, scan in zip(found, source, strict=True):
        assert record.path.read_bytes() == scan.path.read_bytes()
        assert not record.path.samefile(scan.path)
        assert (record.labels, record.patient_id) == (scan.labels, scan.patient_id)
        assert record.split == scan.split
        assert record.row["text_source"] == "generated"
        assert record.row["accepted"] == "true"
        assert record.row["model_hash"] == result["model_hash"]
    assert "site" not in found[0].row
    assert "source" not in found[0].row
    names = [row["source_file_name"] for row in rows_of(folder / "manifest.csv")]
    assert names == [scan.file_name for scan in source]


def test_a_threshold_keeps_the_reports_that_reach_it_and_writes_none_again(
    done, scans, model, tmp_path
):
    folder, _ = done
    again = tmp_path / "set"
    shutil.copytree(folder, again)
    all_rows = rows_of(folder / "manifest.csv")
    limit = sorted(float(row["confidence"]) for row in all_rows)[NUM_SCANS // 2]
    result = run(scans, model, again, min_confidence=limit)
    assert result["num_written_now"] == 0
    kept = [row for row in rows_of(again / "manifest.csv") if row["accepted"] == "true"]
    assert kept == [row for row in all_rows if float(row["confidence"]) >= limit]
    assert 0 < result["num_accepted"] == len(kept) < NUM_SCANS
    assert [row["file_name"] for row in rows_of(again / "metadata.csv")] == [
        row["file_name"] for row in kept
    ]
    assert len(list((again / "images").iterdir())) == len(kept)
    run(scans, model, again)
    assert contents(again) == contents(folder)


def test_a_threshold_that_nothing_reaches_leaves_no_data_set(done, scans, model, tmp_path):
    again = tmp_path / "set"
    shutil.copytree(done[0], again)
    with pytest.raises(UserError, match=r"--min_confidence 0.*no report of 40"):
        run(scans, model, again, min_confidence=0.0)
    assert not (again / "metadata.csv").exists()
    assert not (again / "results.json").exists()


def test_unusable_reports_are_never_accepted():
    assert is_accepted(Written("a line\nand another", -0.5), -0.5)
    assert not is_accepted(Written("a line", -0.501), -0.5)
    assert not is_accepted(Written(" \n", 0.0), None)
    assert not is_accepted(Written("a\x00b", 0.0), None)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_changes_no_byte_on_a_cpu(done, scans, model, tmp_path, batch_size):
    run(scans, model, tmp_path / "set", batch_size=batch_size, num_workers=2)
    assert contents(tmp_path / "set") == contents(done[0])


def test_killed_and_continued_by_two_processes_it_has_the_bytes_of_one(done, model, tmp_path):
    folder, _ = done
    options = json.loads((folder / "options.json").read_text())["flags"]
    flags = {key: value for key, value in options.items() if key != "output_dir"}
    code = PROCESSES.replace(
        "**{flags}", f"**{flags!r}, output_dir=Path({str(tmp_path / 'set')!r})"
    )
    code = code.replace("{port}", free_port())
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    assert 0 < int(child.stdout.splitlines()[-1]) < NUM_SCANS
    assert contents(tmp_path / "set") == contents(folder)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_a_line_that_a_killed_process_left_unfinished_does_not_count(tmp_path):
    first = part_path(tmp_path, start=0, process=0)
    with JournalWriter(first) as writer:
        writer.append([4, 5], [Written("two\nlines, “quoted”", -0.25), Written("", -1.5)])
    with first.open("a") as file:
        file.write('{"index": 6, "text": "nor')
    with JournalWriter(part_path(tmp_path, start=1, process=0)) as writer:
        writer.append([5, 6], [Written("later", 0.0), Written("normal", -0.125)])
    assert read_journal(tmp_path) == {
        4: Written("two\nlines, “quoted”", -0.25),
        5: Written("", -1.5),
        6: Written("normal", -0.125),
    }


def test_only_batches_that_are_not_recorded_are_written(done, scans, model, tmp_path):
    folder = tmp_path / "set"
    run(scans, model, folder)
    rows = rows_of(folder / "manifest.csv")
    (folder / "manifest.csv").unlink()
    planted = [Written("planted", -0.5) for _ in range(16)]
    with JournalWriter(part_path(folder, start=0, process=0)) as writer:
        writer.append(range(16, 32), planted)
    assert run(scans, model, folder, batch_size=7)["num_written_now"] == NUM_SCANS - 16
    texts = [row["text"] for row in rows_of(folder / "metadata.csv")]
    assert texts[16:32] == ["planted"] * 16
    assert texts[:16] + texts[32:] == [row["text"] for row in rows[:16] + rows[32:]]
    assert not (folder / "journal").exists()


def test_texts_of_doctors_are_refused_all_at_once(model, tmp_path):
    texts = {3: "drusen", 17: "normal retina", 30: "x"}
    source = write_scans(
        tmp_path / "scans", ("file_name", "text"), text=lambda index: texts.get(index, " ")
    )
    before = contents(source)
    with pytest.raises(UserError) as error:
        run(source, model, tmp_path / "set")
    message = str(error.value)
    assert "3 of 40 rows have a text" in message
    assert "metadata.csv:5, metadata.csv:19, metadata.csv:32" in message
    assert not (tmp_path / "set").exists()
    assert contents(source) == before


def test_many_texts_are_counted_and_ten_named(model, tmp_path):
    source = write_scans(tmp_path / "scans", ("file_name", "text"), text=lambda index: "normal")
    with pytest.raises(UserError, match=r"40 of 40 .*metadata.csv:11 and 30 more"):
        run(source, model, tmp_path / "set", overwrite=True)


def test_reports_longer_than_the_model_reads_are_refused(scans, model, tmp_path):
    with pytest.raises(UserError, match="--max_tokens 500: the decoder reads 16 at most"):
        run(scans, model, tmp_path / "set", max_tokens=500)


def test_without_a_length_reports_are_as_long_as_the_model_was_trained_for(model, tmp_path):
    source = write_scans(tmp_path / "scans", num_scans=2)
    assert run(source, model, tmp_path / "set", max_tokens=None)["num_scans"] == 2


@pytest.mark.parametrize("place", ["scans", "scans/inside", "."])
def test_the_output_may_not_touch_the_source(model, tmp_path, place):
    source = write_scans(tmp_path / "scans", num_scans=2)
    with pytest.raises(UserError, match=r"(lies in it|holds --caption_dir)"):
        run(source, model, tmp_path / place)
    assert {path.name for path in tmp_path.iterdir()} == {"scans"}


def test_a_table_may_lie_beside_the_output(model, tmp_path):
    write_scans(tmp_path / "scans", num_scans=2)
    table = tmp_path / "table.csv"
    table.write_text("Image,Case\nscans/scans/scan 0.png,a\nscans/scans/scan 1.png,b\n")
    flags = {"image_column": "Image", "patient_column": "Case"}
    assert run(table, model, tmp_path / "set", **flags)["num_accepted"] == 2
    assert [record.patient_id for record in load_dataset(tmp_path / "set")] == ["a", "b"]


def test_unreadable_scans_are_told_and_dropped_only_if_asked(model, tmp_path):
    source = write_scans(tmp_path / "scans", num_scans=4)
    (source / "scans" / "scan 2.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"metadata.csv:4"):
        run(source, model, tmp_path / "set")
    result = run(source, model, tmp_path / "set", skip_invalid=True)
    assert (result["num_scans"], result["num_skipped"]) == (3, 1)


def test_another_model_or_decoding_does_not_continue(done, scans, model, tmp_path):
    again = tmp_path / "set"
    shutil.copytree(done[0], again)
    with pytest.raises(UserError, match=r"--num_beams: 2 before, 3 now"):
        run(scans, model, again, num_beams=3)
    other = tmp_path / "captioner"
    captioner = Captioner.load(model)
    with torch.no_grad():
        next(captioner.network.parameters()).add_(1)
    captioner.save(other)
    with pytest.raises(UserError, match="model_hash"):
        run(scans, other, again)
    assert contents(again) == contents(done[0])
    assert run(scans, model, again, num_beams=1, overwrite=True)["num_written_now"] == NUM_SCANS


def test_a_network_whose_numbers_overflow_writes_nothing(scans, model, tmp_path):
    broken = tmp_path / "captioner"
    captioner = Captioner.load(model)
    with torch.no_grad():
        captioner.network.decoder.transformer.wte.weight.fill_(math.nan)
    captioner.save(broken)
    with pytest.raises(UserError, match=r"metadata.csv:2: the model's confidence is nan"):
        run(scans, broken, tmp_path / "set")
    assert not (tmp_path / "set" / "metadata.csv").exists()


def test_the_page_quotes_reports_only_if_asked(done, scans, model, tmp_path):
    folder, _ = done
    words = {row["text"] for row in rows_of(folder / "metadata.csv")}
    silent = (folder / "report.html").read_text()
    assert not any(text in silent for text in words)
    assert f"{len(words)} different reports for 40 scans" in silent
    again = tmp_path / "set"
    shutil.copytree(folder, again)
    run(scans, model, again, show_reports=True)
    loud = (again / "report.html").read_text()
    assert any(text in loud for text in words)
    assert "Patients&#x27; texts" in loud and "Patients&#x27; texts" not in silent


def test_progress_goes_to_the_terminal_with_rate_and_rest(scans, model, tmp_path, capsys):
    run(scans, model, tmp_path / "set")
    shown = capsys.readouterr()
    assert "40/40" in shown.err and "scan/s" in shown.err
    assert not shown.out
