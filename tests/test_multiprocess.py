"""Several processes, and several machines, train as one process does: run for real on CPUs (gloo).

Every run makes the same steps of two images each. The runs are made once; each takes about 20 s on
two cores, most of it imports.
"""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from preference_toys import write_pairs
from safetensors.torch import load_file

from utils.checkpoints import is_complete

ROOT = Path(__file__).parents[1]
NUM_STEPS = 4
IMAGES_PER_STEP = 2
TIME_LIMIT_S = 300  # of one run


def training_flags(pipeline, data, output_dir, *, num_processes):
    return [
        f"--pretrained_model_name_or_path={pipeline}",
        f"--train_data_dir={data}",
        f"--output_dir={output_dir}",
        f"--train_batch_size={IMAGES_PER_STEP // num_processes}",
        f"--max_train_steps={NUM_STEPS}",
        *("--lr_scheduler=linear", "--lr_warmup_steps=2", "--learning_rate=1e-3"),
        *("--resolution=64", "--center_crop", "--random_flip", "--use_ema", "--seed=3"),
        *("--checkpointing_steps=2", "--mixed_precision=no", "--report_to=none", "--offline"),
    ]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_together(commands, **settings):
    """Start commands at the same time, each with its own settings; all must end well."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    common = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", **settings}
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=common | own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for command, own in commands
    ]
    try:
        errors = [process.communicate(timeout=TIME_LIMIT_S)[1] for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, 9)
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(errors)


def launch_command(num_processes, flags):
    """accelerate launch on this machine's CPUs, where ACCELERATE_USE_CPU says so."""
    command = ["accelerate", "launch", "--dynamo_backend=no", "--num_machines=1"]
    command += [f"--num_processes={num_processes}", "--mixed_precision=no"]
    command += ["--multi_gpu", f"--main_process_port={free_port()}"] if num_processes > 1 else []
    return [*command, "train_text_to_image.py", *flags]


def launch(num_processes, flags):
    run_together([(launch_command(num_processes, flags), {})], ACCELERATE_USE_CPU="true")


@pytest.fixture(scope="module")
def runs(tiny_pipeline, toy_dataset, tmp_path_factory):
    """Folder of the runs `one` process, `two` processes, `resumed` with two, two `machines`."""
    folder = tmp_path_factory.mktemp("runs")

    def flags(name, num_processes):
        return training_flags(
            tiny_pipeline, toy_dataset, folder / name, num_processes=num_processes
        )

    launch(1, flags("one", 1))
    launch(2, flags("two", 2))
    shutil.copytree(folder / "two", folder / "resumed")
    for leftover in ("checkpoint-4", "unet", "model_index.json"):
        path = folder / "resumed" / leftover
        path.unlink() if path.is_file() else shutil.rmtree(path)
    launch(2, [*flags("resumed", 2), "--resume_from_checkpoint=latest"])
    # The machines count their processes themselves and find each other; later flags win.
    machine = ["bash", "train.sh", *flags("machines", 2), "--validation_prompts", "normal"]
    run_together(
        [(machine, {"MACHINE_RANK": str(rank)}) for rank in range(2)],
        MODEL_NAME=str(tiny_pipeline),
        DATASET_NAME=str(toy_dataset),
        MIXED_PRECISION="no",
        GRADIENT_ACCUMULATION_STEPS="1",
        GRADIENT_CHECKPOINTING="no",
        NUM_MACHINES="2",
        NUM_PROCESSES="1",
        MAIN_PROCESS_IP="127.0.0.1",
        MAIN_PROCESS_PORT=free_port(),
    )
    return folder


def column(folder, name):
    with (folder / "train_log.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def weights(folder, part="unet"):
    return load_file(folder / part / "diffusion_pytorch_model.safetensors")


def same_bytes(one, other, part="unet"):
    one, other = weights(one, part), weights(other, part)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["two", "machines"])
def test_the_same_global_batch_gives_the_same_losses(runs, name):
    losses = column(runs / "one", "loss")
    assert len(losses) == NUM_STEPS
    assert len(set(losses)) == NUM_STEPS
    assert column(runs / name, "loss") == pytest.approx(losses, abs=1e-6)
    norms = column(runs / "one", "grad_norm")
    assert column(runs / name, "grad_norm") == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("name", ["two", "machines"])
def test_the_learning_rate_does_not_depend_on_the_number_of_processes(runs, name):
    rates = column(runs / "one", "lr")
    assert rates == pytest.approx([0, 5e-4, 1e-3, 5e-4])  # warm-up, then down
    assert column(runs / name, "lr") == rates
    assert column(runs / name, "epoch") == column(runs / "one", "epoch")


@pytest.mark.parametrize("part", ["unet", "unet_ema"])
def test_two_machines_of_one_process_are_two_processes(runs, part):
    checkpoint = f"checkpoint-{NUM_STEPS}"
    assert same_bytes(runs / "two" / checkpoint, runs / "machines" / checkpoint, part)


@pytest.mark.parametrize("part", ["unet", "unet_ema"])
def test_two_processes_that_were_stopped_end_like_two_that_were_not(runs, part):
    checkpoint = f"checkpoint-{NUM_STEPS}"
    assert same_bytes(runs / "two" / checkpoint, runs / "resumed" / checkpoint, part)
    assert same_bytes(runs / "two", runs / "resumed")
    assert column(runs / "two", "loss") == column(runs / "resumed", "loss")


@pytest.mark.parametrize("what", ["unet", "lora"])
def test_two_processes_learn_preferences_as_one_does(tiny_pipeline, toy_dataset, tmp_path, what):
    pairs = write_pairs(tmp_path / "pairs.csv", toy_dataset, weight=[1, 2, 3, 4])
    # beta is small, or it would magnify the rounding too
    own = [f"--preference_pairs={pairs}", f"--train={what}", "--dpo_beta=10"]
    for count in (1, 2):
        out = tmp_path / str(count)
        launch(count, [*training_flags(tiny_pipeline, toy_dataset, out, num_processes=count), *own])
    for name in ("loss", "denoising_loss", "dpo_loss"):
        numbers = column(tmp_path / "1", name)
        assert len(set(numbers)) >= NUM_STEPS - 1  # the first step of the warm-up changes nothing
        assert column(tmp_path / "2", name) == pytest.approx(numbers, abs=1e-5)


def test_every_process_leaves_its_random_state_in_a_checkpoint(runs):
    names = {path.name for path in (runs / "two" / "checkpoint-2").iterdir()}
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= names


def test_a_signal_to_one_process_stops_all_after_the_same_step(
    tiny_pipeline, toy_dataset, tmp_path
):
    out = tmp_path / "out"
    flags = training_flags(tiny_pipeline, toy_dataset, out, num_processes=2)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    launcher = subprocess.Popen(
        launch_command(2, [*flags, "--max_train_steps=100000", "--checkpointing_steps=100000"]),
        cwd=ROOT,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(out / "train_log.csv", launcher)
        trainers = psutil.Process(launcher.pid).children()
        assert len(trainers) == 2
        trainers[1].send_signal(signal.SIGTERM)
        _, told = launcher.communicate(timeout=TIME_LIMIT_S)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, 9)
    assert launcher.returncode != 0
    assert "--resume_from_checkpoint latest" in told
    (checkpoint,) = out.glob("checkpoint-*")
    assert is_complete(checkpoint)
    names = {path.name for path in checkpoint.iterdir()}
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= names
    assert column(out, "step")[-1] == float(checkpoint.name.removeprefix("checkpoint-"))


def wait_for(path, process):
    end = time.monotonic() + TIME_LIMIT_S
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"{path} was not written in time"
        time.sleep(0.1)
