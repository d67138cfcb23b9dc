"""Kill training at random moments, resume it, and compare the end with an uninterrupted run's.

    python -m benchmarks.kill_and_resume --num_kills 20 --minutes 30 --output_dir runs/kills
    python -m benchmarks.kill_and_resume --num_kills 10 --num_processes 2 --output_dir runs/kills2

One run goes through. Then the same command is started again and again, with
--resume_from_checkpoint latest once there is a checkpoint, and all its processes are killed
(SIGKILL) at a moment drawn from the time in which it trains, writes a checkpoint or writes the
pipeline; after --kills_per_run kills it may end. New runs follow up to --num_kills or --minutes.

After each kill every complete checkpoint is loaded, and one must be left if there was one before
(--checkpoints_total_limit is 1). Each run's U-Net, and its last checkpoint's U-Net and averaged
U-Net, must have the bytes of the uninterrupted run's. Prints JSON; status 1 if anything differs.
"""

import argparse
import hashlib
import pickle
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.training_attempt import (
    POLL_S,
    ROOT,
    START_LIMIT_S,
    Attempt,
    kill_once,
    signs,
    writing,
)
from utils import cli
from utils.checkpoints import STATE_FILE, is_complete, list_checkpoints, read_state
from utils.run_folder import get_logger, print_result, write_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
# What a kill is aimed at, and how often: steps (with what follows), a checkpoint being written,
# the pipeline being written at the end.
AIMS = {"step": 9, "checkpoint": 9, "pipeline": 2}
MAX_STEPS_AWAY = 4  # a kill aimed at steps comes this many mean steps later at most

logger = get_logger("kill_and_resume")


@dataclass
class Tally:
    """What was done and found.

    Attributes:
        kills: Of them that hit, by what they were aimed at.
        writing: Kills that left a checkpoint or pipeline half written.
        corrupt: Complete checkpoints that did not load.
        lost: Kills that left no complete checkpoint where there was one.
        differing: Files that are not as the uninterrupted run's.
        runs: Runs that came to their end after kills.
    """

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(AIMS, 0))
    writing: int = 0
    corrupt: list[str] = field(default_factory=list)
    lost: int = 0
    differing: list[str] = field(default_factory=list)
    runs: int = 0

    @property
    def num_kills(self) -> int:
        """Kills that hit."""
        return sum(self.kills.values())

    @property
    def clean(self) -> bool:
        """Whether nothing was corrupt, lost or different, and anything was tried."""
        return self.runs > 0 and not (self.corrupt or self.lost or self.differing)


@dataclass(frozen=True)
class Pace:
    """How long the uninterrupted run took for a step, all in all, and to write a checkpoint."""

    step_s: float
    writing_s: float


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the runs, new")
    parser.add_argument("--num_kills", type=cli.positive_int, default=20, help="kills in all")
    parser.add_argument(
        "--kills_per_run", type=cli.positive_int, default=5, help="kills before a run may end"
    )
    parser.add_argument(
        "--num_processes", type=int, choices=(1, 2), default=1, help="processes that train together"
    )
    parser.add_argument(
        "--minutes", type=cli.positive_float, default=30.0, help="no new run after this time"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument(
        "--max_train_steps", type=cli.positive_int, default=12, help="length of a run; even"
    )
    parser.add_argument(
        "--model", type=cli.existing_dir, default=ROOT / "demo" / "base", help="pipeline folder"
    )
    parser.add_argument(
        "--train_data_dir", type=cli.existing_path, help="data (default: 24 simulated scans)"
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.max_train_steps % 2:
        parser.error("--max_train_steps: must be even, for a checkpoint to follow the last step")
    if args.output_dir.exists() and any(args.output_dir.iterdir()):
        parser.error(f"--output_dir: {args.output_dir} is not empty")
    return args


def simulate_scans(folder: Path) -> Path:
    """Draw 24 simulated scans of 64 px."""
    command = [sys.executable, "prepare_dataset.py", "simulate", "--num_images=24"]
    command += ["--resolution=64", "--num_workers=0", f"--output_dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder


def command_of(args: argparse.Namespace, output_dir: Path) -> list[str]:
    """The training command; it resumes if there is a checkpoint to resume from."""
    start = [sys.executable, "train_text_to_image.py"]
    if args.num_processes > 1:
        start = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
        start += ["--multi_gpu", f"--num_processes={args.num_processes}", "--num_machines=1"]
        start += ["--dynamo_backend=no", "--mixed_precision=no", "--main_process_port=0"]
        start += ["train_text_to_image.py"]
    flags = [
        f"--pretrained_model_name_or_path={args.model}",
        f"--train_data_dir={args.train_data_dir}",
        f"--output_dir={output_dir}",
        f"--max_train_steps={args.max_train_steps}",
        *(
            "--resolution=64",
            "--center_crop",
            "--random_flip",
            "--flip_swaps_sides",
            "--train_batch_size=2",
        ),
        *("--lr_scheduler=linear", "--lr_warmup_steps=2", "--learning_rate=1e-4", "--use_ema"),
        *("--checkpointing_steps=2", "--checkpoints_total_limit=1", "--log_steps=1"),
        *("--mixed_precision=no", "--report_to=none", "--seed=0", "--offline"),
    ]
    if any(is_complete(path) for path in list_checkpoints(output_dir)):
        flags.append("--resume_from_checkpoint=latest")
    return [*start, *flags]


def problems_of(checkpoint: Path, num_processes: int) -> Iterator[str]:
    """What does not load of a checkpoint that says it is complete."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    def load(path: Path) -> object:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.name == STATE_FILE:
            return read_state(checkpoint)
        return torch.load(path, weights_only="random" not in path.name)

    names = ["unet/" + WEIGHTS, "unet_ema/" + WEIGHTS, "optimizer.bin", "scheduler.bin", STATE_FILE]
    names += [f"random_states_{rank}.pkl" for rank in range(num_processes)]
    for name in names:
        try:
            load(checkpoint / name)
        except (
            OSError,
            ValueError,
            RuntimeError,
            SafetensorError,
            pickle.UnpicklingError,
        ) as error:
            yield f"{checkpoint / name}: {error}"


def fingerprints(output_dir: Path, last_step: int) -> dict[str, str]:
    """SHA-256 of what two equal runs have in common."""
    checkpoint = f"checkpoint-{last_step}"
    names = [
        f"{part}/{WEIGHTS}" for part in ("unet", f"{checkpoint}/unet", f"{checkpoint}/unet_ema")
    ]
    return {name: hashlib.sha256((output_dir / name).read_bytes()).hexdigest() for name in names}


def inspect(args: argparse.Namespace, output_dir: Path, tally: Tally, *, had: bool) -> bool:
    """Look at what a kill left; returns whether there is a complete checkpoint."""
    complete = [path for path in list_checkpoints(output_dir) if is_complete(path)]
    for checkpoint in complete:
        tally.corrupt += problems_of(checkpoint, args.num_processes)
    tally.lost += had and not complete
    return bool(complete)


def draw_moment(rng: random.Random, pace: Pace) -> tuple[str, float]:
    """What the next kill is aimed at, and how many seconds after its sign it comes."""
    (aim,) = rng.choices(list(AIMS), weights=list(AIMS.values()))
    longest = MAX_STEPS_AWAY * pace.step_s if aim == "step" else pace.writing_s
    return aim, rng.uniform(0, longest)


def interrupted_run(
    args: argparse.Namespace, output_dir: Path, tally: Tally, *, rng: random.Random, pace: Pace
) -> None:
    """Kill and resume one run, then let it end."""
    has_checkpoint = False
    for _ in range(min(args.kills_per_run, args.num_kills - tally.num_kills)):
        aim, delay_s = draw_moment(rng, pace)
        before, written_before = signs(output_dir, aim), writing(output_dir)
        attempt = Attempt(command_of(args, output_dir))
        if not kill_once(attempt, output_dir, aim, before=before, delay_s=delay_s):
            attempt.finish()
            break
        tally.kills[aim] += 1
        tally.writing += bool(writing(output_dir) - written_before)
        has_checkpoint = inspect(args, output_dir, tally, had=has_checkpoint)
        left = [path.name for path in sorted(output_dir.iterdir()) if "checkpoint" in path.name]
        logger.info("kill %d (%s): left %s", tally.num_kills, aim, ", ".join(left) or "none")
    else:
        Attempt(command_of(args, output_dir)).finish()
    tally.runs += 1


def uninterrupted_run(args: argparse.Namespace, output_dir: Path) -> Pace:
    """Run through, and see how long a step and the writing of a checkpoint take."""
    attempt = Attempt(command_of(args, output_dir))
    attempt.wait_until(lambda: bool(signs(output_dir, "step")), START_LIMIT_S)
    first_sign = time.monotonic()
    polls = Counter()
    while attempt.is_running:
        polls[bool(signs(output_dir, "checkpoint"))] += 1
        time.sleep(POLL_S)
    attempt.finish()
    seconds = time.monotonic() - first_sign
    num_checkpoints = args.max_train_steps // 2
    writing_s = seconds * polls[True] / (polls.total() * num_checkpoints)
    return Pace(step_s=seconds / args.max_train_steps, writing_s=writing_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Run through once, then kill and compare."""
    args = parse_args(argv)
    start = time.monotonic()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.train_data_dir is None:
        args.train_data_dir = simulate_scans(args.output_dir / "scans")
    whole = args.output_dir / "uninterrupted"
    pace = uninterrupted_run(args, whole)
    expected = fingerprints(whole, args.max_train_steps)
    tally, rng = Tally(), random.Random(args.seed)
    while tally.num_kills < args.num_kills:
        if time.monotonic() - start > 60 * args.minutes:
            logger.warning("--minutes are over after %d kills", tally.num_kills)
            break
        output_dir = args.output_dir / f"run-{tally.runs + 1}"
        interrupted_run(args, output_dir, tally, rng=rng, pace=pace)
        found = fingerprints(output_dir, args.max_train_steps)
        tally.differing += [
            f"{output_dir}/{name}" for name in found if found[name] != expected[name]
        ]
    result = {
        "clean": tally.clean,
        "num_processes": args.num_processes,
        **vars(tally),
        **vars(pace),
        "seconds": time.monotonic() - start,
    }
    write_json(args.output_dir / "results.json", result)
    print_result(result)
    return 0 if tally.clean else 1


if __name__ == "__main__":
    cli.main_guard(main)
