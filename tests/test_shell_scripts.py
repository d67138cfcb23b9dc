import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIRST_RELEASE_PROMPTS = [
    "normal",
    "mild retinal edema",
    "retinal pigment epithelium detachment",
    "Retinal pigment epithelial layer with strong reflection and bulge",
    "Cystic low-reflective areas of varying sizes can be seen between retinal layers",
]

# Writes what it was called with, one argument a line.
STUB = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$RECORD"
printf '%s' "${CUDA_VISIBLE_DEVICES-unset}" >"$RECORD.devices"
pwd >"$RECORD.folder"
exit "${STUB_STATUS:-0}"
"""


@pytest.fixture
def call(tmp_path):
    """Run train.sh against a stub `accelerate` and a stub `nvidia-smi`."""
    folder = tmp_path / "a folder"
    binaries = folder / "bin"
    binaries.mkdir(parents=True)
    shutil.copy(ROOT / "train.sh", folder)

    def write_stub(name, text):
        path = binaries / name
        path.write_text(text)
        path.chmod(0o755)

    write_stub("accelerate", STUB)

    def run(*flags, num_gpus=0, **settings):
        listing = "\n".join(f"echo 'GPU {number}: stub'" for number in range(num_gpus))
        write_stub("nvidia-smi", f"#!/usr/bin/env bash\n{listing}\n")
        record = tmp_path / "record"
        environment = {
            "PATH": f"{binaries}:/usr/bin:/bin",
            "RECORD": str(record),
            **settings,
        }
        done = subprocess.run(
            ["bash", str(folder / "train.sh"), *flags],
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
        )
        run.devices = Path(f"{record}.devices").read_text()
        run.folder = Path(f"{record}.folder").read_text().strip()
        run.status = done.returncode
        return record.read_text().splitlines()

    return run


def value_after(arguments, name):
    return arguments[arguments.index(name) + 1]


def test_the_defaults_are_the_first_releases(call):
    arguments = call()
    assert arguments[0] == "launch"
    script = arguments.index("train_text_to_image.py")
    assert "--pretrained_model_name_or_path=CompVis/stable-diffusion-v1-4" in arguments[script:]
    for flag in (
        *("--use_ema", "--center_crop", "--gradient_checkpointing", "--resolution=512"),
        *("--learning_rate=1e-05", "--lr_scheduler=constant", "--lr_warmup_steps=0"),
        *("--max_grad_norm=1", "--max_train_steps=5000"),
    ):
        assert flag in arguments[script:]
    prompts = arguments.index("--validation_prompts")
    assert arguments[prompts + 1 : prompts + 6] == FIRST_RELEASE_PROMPTS


def test_settings_come_from_the_environment_and_may_hold_spaces(call):
    arguments = call(
        MODEL_NAME="my models/sd",
        DATASET_NAME="my data/reports 1.csv",
        OUTPUT_DIR="my runs/one",
        MIXED_PRECISION="fp16",
        NUM_PROCESSES="3",
    )
    assert "--pretrained_model_name_or_path=my models/sd" in arguments
    assert "--train_data_dir=my data/reports 1.csv" in arguments
    assert "--output_dir=my runs/one" in arguments
    assert value_after(arguments, "--mixed_precision") == "fp16"
    assert value_after(arguments, "--num_processes") == "3"


def test_flags_given_to_the_script_come_last(call):
    arguments = call("--resolution=64", "--validation_prompts", "one prompt", "--seed=1")
    assert arguments[-4:] == ["--resolution=64", "--validation_prompts", "one prompt", "--seed=1"]


def test_there_is_one_process_without_a_gpu(call):
    arguments = call()
    assert value_after(arguments, "--num_processes") == "1"
    assert "--cpu" in arguments
    assert "--multi_gpu" not in arguments


def test_there_is_one_process_for_each_gpu(call):
    arguments = call(num_gpus=4)
    assert value_after(arguments, "--num_processes") == "4"
    assert "--multi_gpu" in arguments
    assert "--cpu" not in arguments
    assert call.devices == "unset"


def test_only_visible_gpus_count(call):
    arguments = call(num_gpus=8, CUDA_VISIBLE_DEVICES="2,5")
    assert value_after(arguments, "--num_processes") == "2"
    assert call.devices == "2,5"


def test_one_gpu_needs_no_data_parallel(call):
    arguments = call(num_gpus=1)
    assert value_after(arguments, "--num_processes") == "1"
    assert "--multi_gpu" not in arguments


def test_a_config_file_takes_the_place_of_launch_flags(call):
    arguments = call(num_gpus=4, ACCELERATE_CONFIG="configs/multi_gpu.yaml")
    assert value_after(arguments, "--config_file") == "configs/multi_gpu.yaml"
    assert value_after(arguments, "--num_processes") == "4"
    assert "--multi_gpu" not in arguments


def test_it_runs_in_its_own_folder_wherever_it_is_called(call):
    call()
    assert call.folder.endswith("/a folder")


def test_its_exit_status_is_that_of_the_training(call):
    call(STUB_STATUS="3")
    assert call.status == 3


def test_the_flags_it_passes_exist(call, tmp_path):
    import train_text_to_image

    (tmp_path / "data.csv").touch()
    arguments = call(DATASET_NAME=str(tmp_path / "data.csv"), OUTPUT_DIR=str(tmp_path / "out"))
    script = arguments.index("train_text_to_image.py")
    args = train_text_to_image.parse_args(arguments[script + 1 :])
    assert args.validation_prompts == FIRST_RELEASE_PROMPTS
    assert args.resize_mode == "center_crop"


@pytest.mark.parametrize("name", ["one_gpu", "multi_gpu"])
def test_the_configs_are_what_accelerate_reads(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "configs" / f"{name}.yaml"))
    assert config.mixed_precision == "bf16"
    assert str(config.distributed_type.value) == {"one_gpu": "NO", "multi_gpu": "MULTI_GPU"}[name]


def test_train_sh_stops_at_the_first_error():
    assert "set -euo pipefail" in (ROOT / "train.sh").read_text()
    subprocess.run(["bash", "-n", str(ROOT / "train.sh")], check=True)
