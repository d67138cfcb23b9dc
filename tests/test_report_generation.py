"""report_generation.py: arms, tables, page and privacy; killed, resumed, in two processes."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from report_clinic import write_reports
from test_multiprocess import free_port
from transformers import AutoTokenizer, VisionEncoderDecoderModel

import report_generation
from utils.captioner import Captioner
from utils.cli import UserError
from utils.dataset import load_dataset

ROOT = Path(__file__).parents[1]
SPLITS = ("train",) * 14 + ("val",) * 4 + ("test",) * 8
QUICK = [
    *("--resolution", "32", "--batch_size", "4", "--max_train_steps", "4", "--max_epochs", "9"),
    *("--num_beams", "2", "--num_workers", "0", "--num_resamples", "50", "--device", "cpu"),
    *("--max_tokens", "20", "--checkpointing_steps", "3", "--offline"),
]
SWEEP = [
    *("--arms", "real", "synthetic", "real+synthetic", "synthetic->real"),
    *("--label_shares", "50", "100", "--num_seeds", "2"),
]
TABLES = ("results.csv", "comparisons.csv", "runs.csv", "predictions.csv", "training.csv")
NUM_RUNS = 4 + 2 + 4 + 4


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    return write_reports(tmp_path_factory.mktemp("clinic") / "data", SPLITS)


@pytest.fixture(scope="module")
def synthetic(clinic, tmp_path_factory):
    """Other scans, "drawn" from the captions of the training patients."""
    texts = [record.text for record in load_dataset(clinic) if record.split == "train"]
    return write_reports(
        tmp_path_factory.mktemp("synthetic") / "data",
        ("",) * 12,
        population=1,
        columns=["file_name", "text"],
        text=lambda row: texts[int(row["file_name"][-7:-4])],
    )


def command(clinic, output_dir, *flags):
    return [*map(str, ("--real_dir", clinic, "--output_dir", output_dir)), *QUICK, *flags]


def sweep(clinic, synthetic, output_dir, *flags):
    return command(clinic, output_dir, *SWEEP, "--synthetic_dir", str(synthetic), *flags)


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def finished(clinic, synthetic, tmp_path_factory):
    """A whole sweep in one process, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "sweep"
    told = io.StringIO()
    threads = torch.get_num_threads()
    with contextlib.redirect_stdout(told):
        report_generation.main(sweep(clinic, synthetic, folder))
    torch.set_num_threads(threads)
    return folder, json.loads(told.getvalue())


def test_every_run_of_every_arm_is_in_the_tables(finished):
    folder, printed = finished
    rows = read_csv(folder / "runs.csv")
    assert len(rows) == printed["num_runs"] == NUM_RUNS
    seen = {(r["arm"], r["label_share"]): (r["num_real"], r["num_synthetic"]) for r in rows}
    assert seen["real", "100"] == ("28", "0") and seen["real", "50"] == ("14", "0")
    assert seen["real+synthetic", "50"] == ("14", "24")
    assert seen["synthetic->real", "50"] == ("14", "0")
    assert seen["synthetic", "0"][0] == "0" and int(seen["synthetic", "0"][1]) < 24
    scored = {(r["arm"], r["label_share"], r["seed"]) for r in read_csv(folder / "results.csv")}
    assert ("most frequent report", "50", "1") in scored
    assert ("nearest training scan", "100", "0") in scored
    assert {(r["arm"], r["label_share"], r["seed"]) for r in rows} < scored


def test_arms_and_baselines_are_compared_with_real(finished):
    folder, printed = finished
    rows = read_csv(folder / "comparisons.csv")
    assert {row["reference_arm"] for row in rows} == {"real"}
    main = [row for row in rows if (row["target"], row["metric"]) == ("all", "finding_f1")]
    # two shares of two arms and two baselines, and synthetic against real at both shares
    assert len(main) == len(printed["verdict"]) == 2 * 2 + 2 * 2 + 2
    assert any(s.startswith("With 50 % of the pairs") for s in printed["verdict"])


def test_the_captioner_is_one_of_transformers_and_of_the_best_validated_run(finished):
    folder, printed = finished
    rows = [r for r in read_csv(folder / "runs.csv") if r["label_share"] == "100"]
    losses = {}
    for row in rows:
        losses.setdefault(row["arm"], []).append(float(row["val_loss_per_character"]))
    best = min(losses, key=lambda arm: sum(losses[arm]))
    assert printed["captioner"]["run"].startswith(best.replace("->", "-to-") + "_share100")
    VisionEncoderDecoderModel.from_pretrained(folder / "captioner")
    assert AutoTokenizer.from_pretrained(folder / "captioner").eos_token == "<eos>"
    captioner = Captioner.load(folder / "captioner")
    assert captioner.sha256 == printed["captioner"]["sha256"]
    assert (captioner.resolution, captioner.resize_mode) == (32, "center_crop")


def test_no_report_is_on_the_page_or_in_the_output_unless_asked(finished, clinic):
    folder, _ = finished
    page = (folder / "report.html").read_text(encoding="utf-8")
    printed = json.dumps(finished[1])
    assert "--show_reports" in page and "<img" not in page
    for record in load_dataset(clinic):
        assert record.text not in page and record.text not in printed
    assert "reference" not in read_csv(folder / "predictions.csv")[0]
    written = [row["report"] for row in read_csv(folder / "predictions.csv") if row["report"]]
    assert not any(text in page for text in written)


def test_reports_are_shown_where_asked_and_the_page_warns(finished, clinic, synthetic, capsys):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")}
    captioner = (folder / "captioner/model.safetensors").read_bytes()
    report_generation.main(sweep(clinic, synthetic, folder, "--show_reports"))
    page = (folder / "report.html").read_text(encoding="utf-8")
    report_generation.main(sweep(clinic, synthetic, folder))  # for the other tests
    assert all(path.stat().st_mtime_ns == seen for path, seen in before.items())
    assert (folder / "captioner/model.safetensors").read_bytes() == captioner
    assert "Do not pass it on" in page and "<img" in page
    tested = [record.text for record in load_dataset(clinic) if record.split == "test"]
    assert any(text.split(",")[0].split(":")[0] in page for text in tested)


def few(clinic, synthetic, output_dir, *flags):
    """A sweep of three runs, one of which starts from another."""
    small = ["--arms", "real", "synthetic->real", "--label_shares", "50", "--max_train_steps", "7"]
    sources = ["--synthetic_dir", str(synthetic)]
    return command(clinic, output_dir, *small, *sources, *flags)


@pytest.fixture(scope="module")
def undisturbed(clinic, synthetic, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "sweep"
    threads = torch.get_num_threads()
    report_generation.main(few(clinic, synthetic, folder))
    torch.set_num_threads(threads)
    return folder


def test_killed_and_resumed_it_finds_what_it_would_have_found(
    undisturbed, clinic, synthetic, tmp_path
):
    folder = tmp_path / "sweep"
    words = [sys.executable, "report_generation.py", *few(clinic, synthetic, folder)]
    for pattern in ("runs/*/training.safetensors", "runs/synthetic_*/run.json"):
        run = subprocess.Popen(
            words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 180
        while not list(folder.glob(pattern)) and run.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert not (folder / "results.json").exists()
    leftover = next(folder.glob("runs/synthetic_*")) / ".tmp-network"
    leftover.mkdir()  # as a kill within the saving of a network leaves it
    (leftover / "config.json").write_text("{}")
    report_generation.main(few(clinic, synthetic, folder))
    assert_same(folder, undisturbed)
    assert not list(folder.rglob("training.safetensors")) and not list(folder.rglob(".tmp-*"))


def assert_same(one, other):
    for name in (*TABLES, "captioner/model.safetensors", "captioner/tokenizer.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_two_processes_find_what_one_finds(undisturbed, clinic, synthetic, tmp_path):
    flags = [
        *("--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--main_process_port", str(free_port()), "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"),
    ]
    subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", *flags),
            *("report_generation.py", *few(clinic, synthetic, tmp_path / "sweep")),
        ],
        check=True,
        cwd=ROOT,
        env=environment() | {"ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.DEVNULL,
    )
    assert_same(tmp_path / "sweep", undisturbed)


def test_chinese_reports_are_learned_and_written(tmp_path, capsys):
    reports = {"normal": "黄斑区形态正常。", "drusen": "视网膜色素上皮下可见玻璃膜疣。"}
    other = "黄斑水肿，层间囊腔。"
    folder = write_reports(
        tmp_path / "data", SPLITS, text=lambda row: reports.get(row["label"], other)
    )
    report_generation.main(command(folder, tmp_path / "out", "--show_reports"))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "黄斑" in page
    assert "no finding in any test report" in page  # the rules are English
    rows = read_csv(tmp_path / "out" / "results.csv")
    assert {row["metric"] for row in rows} > {"bleu_4", "cider", "finding_f1"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --real_dir to train and compare, or --caption_dir"),
        (["--real_dir", "CLINIC", "--caption_dir", "CLINIC"], "give --real_dir"),
        (["--caption_dir", "CLINIC"], "--caption_dir needs --model"),
        (["--real_dir", "CLINIC", "--min_confidence", "-1"], "--min_confidence does not go with"),
        (
            ["--caption_dir", "CLINIC", "--model", "x", "--synthetic_dir", "CLINIC"],
            "--synthetic_dir does not go with --caption_dir",
        ),
        (["--caption_dir", "CLINIC", "--model", "x", "--min_confidence", "0.5"], "0 or less"),
        (
            ["--caption_dir", "CLINIC", "--model", "x", "--resolution", "64"],
            "--resolution does not go with --caption_dir",
        ),
        (["--real_dir", "CLINIC", "--model", "x", "--encoder", "y"], "--model is a whole model"),
        (["--real_dir", "CLINIC", "--arms", "real+unlabeled"], "is none of real, synthetic"),
        (["--real_dir", "CLINIC", "--arms", "synthetic-"], "quote it in the shell"),
        (["--real_dir", "CLINIC", "--arms", "synthetic"], "needs --synthetic_dir"),
        (["--real_dir", "CLINIC", "--bert_score_layer", "3"], "goes with --bert_score_model"),
        (["--real_dir", "CLINIC", "--max_tokens", "3"], "--max_tokens 3 is below 8"),
        (["--real_dir", "CLINIC", "--label_shares", "5", "5"], "names a value twice"),
        (["--real_dir", "CLINIC", "--resolution", "16"], "--resolution 16 is below 32"),
    ],
)
def test_bad_flags_end_before_anything_is_loaded(flags, message, clinic, tmp_path, capsys):
    words = [str(clinic) if word == "CLINIC" else word for word in flags]
    with pytest.raises(SystemExit) as ended:
        report_generation.parse_args([*words, "--output_dir", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_broken_rules_and_missing_networks_are_told_before_a_training(clinic, tmp_path):
    rules = tmp_path / "own.yaml"
    rules.write_text("findings: 3\n", encoding="utf-8")
    for flags, message in (
        (["--finding_rules", str(rules)], "own.yaml"),
        (["--finding_rules", "eye"], "eye"),
        (["--wordnet_dir", str(tmp_path)], "--wordnet_dir|WordNet"),
        (["--bert_score_model", "no/such"], "--bert_score_model no/such"),
        (["--encoder", "no/such"], "--encoder no/such"),
        (["--decoder", "no/such"], "--decoder no/such"),
        (["--model", str(tmp_path)], "--model"),
    ):
        with pytest.raises(UserError, match=message):
            report_generation.main(command(clinic, tmp_path / "out", *flags))
        assert not list((tmp_path / "out").glob("runs/*")), flags


def test_a_set_that_shows_test_patients_is_refused(clinic, tmp_path):
    splits = ("train",) * 14 + ("val",) * 4 + ("test",) * 8
    same = write_reports(tmp_path / "same", splits)  # the clinic itself
    flags = ["--arms", "real+synthetic", "--synthetic_dir", str(same)]
    with pytest.raises(UserError, match="of --synthetic_dir are of test patients"):
        report_generation.main(command(clinic, tmp_path / "out", *flags))
    nameless = write_reports(tmp_path / "nameless", splits, columns=["file_name", "text"])
    flags[-1] = str(nameless)
    with pytest.raises(UserError, match="captions that only test patients have"):
        report_generation.main(command(clinic, tmp_path / "out", *flags))
    wordless = write_reports(
        tmp_path / "wordless", splits, columns=["file_name", "text"], text=lambda row: "Drusen."
    )
    flags[-1] = str(wordless)
    with pytest.raises(UserError, match="--synthetic_dir are test images"):
        report_generation.main(command(clinic, tmp_path / "out", *flags))


def test_reports_of_test_patients_behind_another_prompt_are_refused(clinic, tmp_path):
    tested = [r.text for r in load_dataset(clinic) if r.split == "test"]
    learned = {r.text for r in load_dataset(clinic) if r.split != "test"}
    own = [text for text in tested if text not in learned]
    folder = write_reports(
        tmp_path / "data",
        ("",) * 12,
        population=1,
        columns=["file_name", "text", "prompt"],
        text=lambda row: own[int(row["file_name"][-7:-4]) % len(own)],
        prompt=lambda row: "a scan",
    )
    flags = ["--arms", "real+synthetic", "--synthetic_dir", str(folder)]
    with pytest.raises(UserError, match="captions that only test patients have"):
        report_generation.main(command(clinic, tmp_path / "out", *flags))


def test_reports_of_a_model_are_no_reference(tmp_path):
    folder = write_reports(tmp_path / "data", SPLITS, text_source=lambda row: "generated")
    with pytest.raises(UserError, match=r"test reports were written by a model .* metadata\.csv"):
        report_generation.main(command(folder, tmp_path / "out"))


def test_a_share_of_less_than_a_patient_is_one(tmp_path, capsys):
    folder = write_reports(
        tmp_path / "data", SPLITS, columns=["file_name", "text", "patient_id", "split"]
    )
    report_generation.main(command(folder, tmp_path / "out", "--label_shares", "1"))
    (row,) = read_csv(tmp_path / "out" / "runs.csv")
    assert (row["num_patients"], row["num_val"]) == ("1", "2")


def test_synthetic_pairs_alone_are_set_beside_the_reports_without_a_model(
    clinic, synthetic, tmp_path, capsys
):
    flags = ["--arms", "synthetic", "--synthetic_dir", str(synthetic)]
    report_generation.main(command(clinic, tmp_path / "out", *flags))
    arms = {row["arm"] for row in read_csv(tmp_path / "out" / "results.csv")}
    assert arms == {"synthetic", "most frequent report", "nearest training scan"}


def test_an_empty_report_is_told_with_its_line(tmp_path):
    folder = write_reports(
        tmp_path / "data", SPLITS, text=lambda row: "" if "-003" in row["file_name"] else "Drusen."
    )
    with pytest.raises(UserError, match=r"metadata\.csv:5"):
        report_generation.main(command(folder, tmp_path / "out"))


def test_other_flags_do_not_continue_a_sweep(finished, clinic, synthetic):
    with pytest.raises(UserError, match="--num_beams: 2 before, 1 now"):
        report_generation.main(sweep(clinic, synthetic, finished[0], "--num_beams", "1"))
