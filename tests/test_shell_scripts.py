import os
import shutil
import signal
import subprocess
import sys
import time
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
printf '%s %s' "${ACCELERATE_USE_CPU-unset}" "${OMP_NUM_THREADS-unset}" >"$RECORD.cpu"
pwd >"$RECORD.folder"
exit "${STUB_STATUS:-0}"
"""


@pytest.fixture
def call(tmp_path):
    """Run train.sh, or transfer_cxr.sh, against stubs of `accelerate` and `nvidia-smi`."""
    folder = tmp_path / "a folder"
    binaries = folder / "bin"
    binaries.mkdir(parents=True)
    for script in ("train.sh", "transfer_cxr.sh"):
        shutil.copy(ROOT / script, folder)

    def write_stub(name, text):
        path = binaries / name
        path.write_text(text)
        path.chmod(0o755)

    write_stub("accelerate", STUB)

    def run(*flags, num_gpus=0, script="train.sh", **settings):
        listing = "\n".join(f"echo 'GPU {number}: stub'" for number in range(num_gpus))
        write_stub("nvidia-smi", f"#!/usr/bin/env bash\n{listing}\n")
        record = tmp_path / "record"
        environment = {
            "PATH": f"{binaries}:/usr/bin:/bin",
            "RECORD": str(record),
            **settings,
        }
        done = subprocess.run(
            ["bash", str(folder / script), *flags],
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
        )
        run.devices = Path(f"{record}.devices").read_text()
        run.folder = Path(f"{record}.folder").read_text().strip()
        run.use_cpu, run.threads = Path(f"{record}.cpu").read_text().split()
        run.status = done.returncode
        return record.read_text().splitlines()

    run.folder_of_script = folder
    return run


def value_after(arguments, name):
    return arguments[arguments.index(name) + 1]


def flags_of(arguments):
    """What argparse would take of each flag: the last one wins."""
    given = [argument for argument in arguments if argument.startswith("--")]
    return dict(argument.split("=", 1) for argument in given if "=" in argument)


def test_transfer_goes_on_from_the_oct_model_without_mirroring(call):
    arguments = call(script="transfer_cxr.sh")
    flags = flags_of(arguments)
    assert flags["--pretrained_model_name_or_path"] == "runs/oct-sd"
    assert flags["--train_data_dir"] == "data/cxr"
    assert flags["--output_dir"] == "runs/cxr-sd"
    assert flags["--prompt_template"] == "{modality}: {text}"
    assert flags["--train"] == "unet+text_encoder"
    assert not {"--random_flip", "--rehearsal"} & {argument.split("=")[0] for argument in arguments}
    last = len(arguments) - arguments[::-1].index("--validation_prompts")
    assert all(prompt.startswith("CXR: ") for prompt in arguments[last:])


def test_transfer_takes_settings_and_later_flags_win(call):
    settings = {"REHEARSAL": "data/my oct", "RESOLUTION": "256", "LEARNING_RATE": "2e-4"}
    settings |= {"MODEL_NAME": "runs/mine", "OUTPUT_DIR": "runs/films"}
    arguments = call("--rehearsal_share=0.2", script="transfer_cxr.sh", **settings)
    flags = flags_of(arguments)
    wanted = {"--rehearsal": "data/my oct", "--rehearsal_share": "0.2", "--resolution": "256"}
    wanted |= {"--learning_rate": "2e-4", "--pretrained_model_name_or_path": "runs/mine"}
    wanted |= {"--output_dir": "runs/films"}
    assert wanted.items() <= flags.items()
    assert arguments[-1] == "--rehearsal_share=0.2"


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


def test_processes_on_a_cpu_train_together_with_the_cores_shared_out(call):
    arguments = call(NUM_PROCESSES="2")
    # accelerate's --cpu starts a single process whatever --num_processes says
    assert "--cpu" not in arguments
    assert "--multi_gpu" in arguments
    assert call.use_cpu == "true"
    assert int(call.threads) == max(1, os.sysconf("SC_NPROCESSORS_ONLN") // 2)
    call(NUM_PROCESSES="2", OMP_NUM_THREADS="3")
    assert call.threads == "3"


def test_on_gpus_neither_the_cpu_nor_the_threads_are_set(call):
    call(num_gpus=2)
    assert (call.use_cpu, call.threads) == ("unset", "unset")


def test_several_machines_are_counted_together(call):
    arguments = call(num_gpus=8, NUM_MACHINES="3", MACHINE_RANK="2", MAIN_PROCESS_IP="10.0.0.7")
    assert value_after(arguments, "--num_processes") == "24"
    assert value_after(arguments, "--num_machines") == "3"
    assert value_after(arguments, "--machine_rank") == "2"
    assert value_after(arguments, "--main_process_ip") == "10.0.0.7"
    assert value_after(arguments, "--main_process_port") == "29500"
    assert "--multi_gpu" in arguments
    other = {"NUM_MACHINES": "2", "MAIN_PROCESS_IP": "gpu1", "MAIN_PROCESS_PORT": "12345"}
    assert value_after(call(**other), "--main_process_port") == "12345"
    assert "--multi_gpu" in call(**other)  # one process each is two in all
    with_config = call(num_gpus=8, ACCELERATE_CONFIG="configs/fsdp.yaml", **other)
    assert value_after(with_config, "--num_processes") == "16"
    assert value_after(with_config, "--main_process_ip") == "gpu1"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"NUM_MACHINES": "2"}, "MAIN_PROCESS_IP"),
        ({"NUM_MACHINES": "0"}, "NUM_MACHINES"),
        ({"NUM_MACHINES": "2", "MACHINE_RANK": "2", "MAIN_PROCESS_IP": "a"}, "MACHINE_RANK"),
        ({"NUM_PROCESSES": "two"}, "NUM_PROCESSES"),
        ({"GRADIENT_CHECKPOINTING": "maybe"}, "GRADIENT_CHECKPOINTING"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, named):
    environment = {"PATH": "/usr/bin:/bin", **settings}
    command = ["bash", str(ROOT / "train.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert named in done.stderr


def test_gradient_checkpointing_can_be_turned_off(call):
    assert "--gradient_checkpointing" not in call(GRADIENT_CHECKPOINTING="no")


def test_resuming_by_itself_waits_for_a_first_checkpoint(call):
    flag = "--resume_from_checkpoint=latest"
    settings = {"RESUME": "auto", "OUTPUT_DIR": "my runs/one"}
    assert flag not in call(**settings)
    (call.folder_of_script / "my runs" / "one" / "checkpoint-2").mkdir(parents=True)
    assert flag in call(**settings)
    assert flag not in call(OUTPUT_DIR="my runs/one")
    assert "--resume_from_checkpoint=checkpoint-7" in call(RESUME="checkpoint-7")


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


# Stands for accelerate's launcher: starts a "trainer" that takes a while to save at SIGTERM.
LAUNCHER = f"""#!{sys.executable}
import pathlib, subprocess, sys
trainer = '''
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep(0.5)
    pathlib.Path("saved").touch()
    sys.exit(9)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
'''
sys.exit(subprocess.run([sys.executable, "-c", trainer]).returncode)
"""


@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_trainer_is_told_to_save_and_waited_for(tmp_path, number, whole_group):
    shutil.copy(ROOT / "train.sh", tmp_path)
    (tmp_path / "accelerate").write_text(LAUNCHER)
    (tmp_path / "accelerate").chmod(0o755)
    script = subprocess.Popen(
        ["bash", str(tmp_path / "train.sh")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        start_new_session=True,
        # A shell cannot trap what was ignored when it began, as in a job in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (os.killpg if whole_group else os.kill)(script.pid, number)
    assert script.wait(timeout=30) == 9
    assert (tmp_path / "saved").exists()


# Configurations


KINDS = {"one_gpu": "NO", "multi_gpu": "MULTI_GPU", "fsdp": "FSDP", "deepspeed": "DEEPSPEED"}


def test_every_config_has_its_kind():
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_the_configs_are_what_accelerate_reads(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "configs" / f"{name}.yaml"))
    assert config.distributed_type.value == KINDS[name]
    # accelerate refuses a second place for what DeepSpeed's own file says
    assert config.mixed_precision == (None if name == "deepspeed" else "bf16")


def launch_environment(name, monkeypatch, *flags):
    """What accelerate launch hands to the training processes with this configuration."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    monkeypatch.chdir(ROOT)
    argv = ["--config_file", f"configs/{name}.yaml", "--main_process_port", "0", *flags]
    monkeypatch.setattr(sys, "argv", ["accelerate", *argv, "train.py"])
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args())
    if not args.use_deepspeed:
        return prepare_multi_gpu_env(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return prepare_deepspeed_cmd_env(args)[1]


def test_deepspeeds_config_keeps_float32_weights_and_takes_sizes_from_the_trainer(monkeypatch):
    from accelerate import DeepSpeedPlugin

    # train.sh passes --mixed_precision: it must not turn the weights into bf16
    environment = launch_environment("deepspeed", monkeypatch, "--mixed_precision", "bf16")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("bf16")
    assert plugin.zero_stage == 2
    config = plugin.deepspeed_config
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert not config["bf16"]["enabled"]
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert config[key] == "auto"


# slurm

SRUN = f"""#!{sys.executable}
# Runs the command once for each node, as srun does; their output goes to the job's.
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda number, frame: None)
command = sys.argv[next(i for i, a in enumerate(sys.argv) if i and not a.startswith("-")) :]
nodes = int(next(a for a in sys.argv if a.startswith("--nodes=")).removeprefix("--nodes="))
tasks = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_NODEID": str(rank)}})
    for rank in range(nodes)
]
pids = " ".join(str(task.pid) for task in tasks)
open("pids", "w").write(pids)
sys.exit(max(task.wait() for task in tasks))
"""
TRAIN = """
printf '%s\\n' "$NUM_MACHINES $MAIN_PROCESS_IP $MAIN_PROCESS_PORT $RESUME $*" >"rank-$MACHINE_RANK"
if [[ -n "${WAITS-}" ]]; then
  trap 'touch "saved-$MACHINE_RANK"; exit 7' TERM
  touch "ready-$MACHINE_RANK"
  for _ in {1..300}; do sleep 0.1; done
fi
exit "${STATUS:-0}"
"""


@pytest.fixture
def job(tmp_path):
    """Start the slurm script with stubs of slurm's commands and of train.sh."""
    (tmp_path / "train.sh").write_text(TRAIN)
    stubs = {
        "srun": SRUN,
        "scontrol": """#!/usr/bin/env bash
if [[ "$1" == show ]]; then [[ "$3" == "node[4-5]" ]] && printf 'node4\\nnode5\\n'
else echo "$@" >requeued; fi
""",
        "scancel": '#!/usr/bin/env bash\n[[ "$1 $2" == "--signal=TERM 70123" ]] && kill $(<pids)\n',
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(*flags, **settings):
        slurm = {
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_NODELIST": "node[4-5]",
            "SLURM_JOB_ID": "70123",
        }
        return subprocess.Popen(
            ["bash", str(ROOT / "configs" / "slurm" / "train.sbatch"), *flags],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", **slurm, **settings},
        )

    return start


def test_slurm_starts_train_sh_once_a_machine_with_its_rank(job, tmp_path):
    assert job("--seed=1", "--caption", "OCT, {label}").wait(timeout=30) == 0
    for rank in (0, 1):
        told = (tmp_path / f"rank-{rank}").read_text().strip()
        assert told == "2 node4 20123 auto --seed=1 --caption OCT, {label}"
    assert not (tmp_path / "requeued").exists()


def test_a_slurm_job_that_fails_fails_and_is_not_queued_again(job, tmp_path):
    assert job(STATUS="5").wait(timeout=30) == 5
    assert not (tmp_path / "requeued").exists()


def test_a_slurm_job_whose_time_is_up_saves_and_queues_again(job, tmp_path):
    script = job(WAITS="yes")
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("ready-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    script.send_signal(signal.SIGUSR1)
    assert script.wait(timeout=30) == 0
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-0", "saved-1"}
    assert (tmp_path / "requeued").read_text().split() == ["requeue", "70123"]


def test_a_preempted_slurm_job_stays_until_the_trainers_have_saved(job, tmp_path):
    script = job(WAITS="yes")
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("ready-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    script.send_signal(signal.SIGTERM)  # preemption tells all; this script stays
    time.sleep(0.3)
    assert script.poll() is None
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        os.kill(pid, signal.SIGTERM)
    assert script.wait(timeout=30) == 7
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("name", ["train.sh", "configs/slurm/train.sbatch"])
def test_shell_scripts_stop_at_the_first_error(name):
    assert "set -euo pipefail" in (ROOT / name).read_text()
    subprocess.run(["bash", "-n", str(ROOT / name)], check=True)
