"""The runs of a sweep, one after the other: shared out over processes, kept, never done twice."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from utils.cli import available_cores
from utils.gray_images import GrayImages
from utils.process_group import from_main, wait_for_all
from utils.resumable_run import open_run
from utils.run_folder import get_logger, write_options
from utils.sweep_plan import RESULT_FILES, RunKey, in_stages, share_out
from utils.sweep_results import RUN_NAME, Result, RunResult
from utils.sweep_trainer import Trainer

SHOWN = ("train_loss", "val_loss", "val_auroc")  # of an epoch, beside the progress bar

logger = get_logger("diagnosis")

RUNS_FOLDER, NETWORK_FOLDER = "runs", "network"


def open_sweep(
    args: argparse.Namespace,
    *,
    identity: Mapping[str, object],
    free_flags: Collection[str],
    outputs: Collection[str],
) -> None:
    """Make --output_dir ready for a sweep, new or to be continued; its old results go.

    Arguments and errors as ``open_run``; the flags of this command replace those on record, as
    free ones may differ.
    """
    folder = args.output_dir
    options = {"identity": identity, "free_flags": free_flags, "outputs": outputs}
    open_run(folder, args, **options, anew=args.overwrite)
    write_options(folder, args, **identity)
    for name in RESULT_FILES:
        (folder / name).unlink(missing_ok=True)


def folder_of(key: RunKey, output_dir: Path) -> Path:
    """Where a run's files lie."""
    return output_dir / RUNS_FOLDER / key.name


def is_done(key: RunKey, output_dir: Path, *, needs_network: bool) -> bool:
    """Whether a run has ended, and its network is there if it is still needed."""
    folder = folder_of(key, output_dir)
    has_network = (folder / NETWORK_FOLDER / "config.json").is_file()
    return (folder / RUN_NAME).is_file() and (has_network or not needs_network)


def use_a_core_for_each(keys: Sequence[RunKey], *, device: str, state) -> None:
    """Compute with one thread a process, on a CPU.

    The last bits of a run depend on the number of threads; so they do not depend on the number of
    processes. Runs side by side also use the cores better than threads within a run.
    """
    if torch.device(device).type != "cpu":
        return
    torch.set_num_threads(1)
    cores = available_cores()
    if state.num_processes < min(cores, len(keys)):
        most = min(cores, len(keys))
        logger.info(
            "%d of %d cores are used; ACCELERATE_USE_CPU=true accelerate launch --multi_gpu "
            "--num_processes %d does as many runs side by side",
            *(state.num_processes, cores, most),
        )


def runs_to_do(
    keys: Sequence[RunKey], output_dir: Path, *, keep: Collection[RunKey]
) -> list[list[RunKey]]:
    """The runs of each stage that are not done, or whose network is needed and not there."""
    first, then = in_stages(keys)
    stages = ((first, set(first)), (then, set(keep)))
    return [
        [key for key in stage if not is_done(key, output_dir, needs_network=key in needed)]
        for stage, needed in stages
    ]


def run_sweep(
    keys: Sequence[RunKey],
    trainer: Trainer,
    *,
    test: GrayImages,
    output_dir: Path,
    keep: Collection[RunKey],
    state,
    result_type: type[Result] = RunResult,
) -> None:
    """Do the runs that are not done yet; all processes of ``accelerate launch`` share them.

    Args:
        keys: The runs.
        trainer: Trains one.
        test: The images that every run predicts.
        output_dir: Which all processes share.
        keep: Runs whose network is kept, beside those that others start from.
        state: ``PartialState`` of this process.
        result_type: What a run leaves.
    """
    trainer.prepare(keys[0], test)
    kept = {*keep, *in_stages(keys)[0]}
    for stage in range(2):
        todo = from_main(runs_to_do(keys, output_dir, keep=keep)[stage])
        shares = share_out(todo, num_processes=state.num_processes, cost_of=trainer.cost)
        own = shares[state.process_index]
        with tqdm(
            total=round(sum(map(trainer.cost, own))),
            desc=f"{len(todo)} runs",
            unit="img",
            unit_scale=True,
            disable=not (own and state.is_local_main_process),
        ) as bar:
            for number, key in enumerate(own, start=1):
                bar.set_description(f"{key.name} ({number} of {len(own)})")
                _do(
                    *(key, trainer, test),
                    output_dir=output_dir,
                    keep_network=key in kept,
                    result_type=result_type,
                    progress=_counter(bar, trainer, key),
                )
        wait_for_all(state)


def _counter(bar: tqdm, trainer: Trainer, key: RunKey) -> Callable[[dict | None], None]:
    """Moves the bar with each epoch, and, told None, by what the end of a run has saved."""
    per_step = trainer.cost(key) / trainer.num_steps(key)
    moved = 0.0

    def move(row: dict[str, float] | None) -> None:
        nonlocal moved
        if row is None:
            bar.total -= round(trainer.cost(key) - moved)
            bar.refresh()
            return
        bar.update(round(row["step"] * per_step - moved))
        moved = row["step"] * per_step
        bar.set_postfix({name: row[name] for name in SHOWN if name in row})

    return move


def _do(
    key: RunKey,
    trainer: Trainer,
    test: GrayImages,
    *,
    output_dir: Path,
    keep_network: bool,
    result_type: type[Result],
    progress: Callable[[dict | None], None],
) -> None:
    """Train, predict, write."""
    folder = folder_of(key, output_dir)
    # What a killed run has left, or one whose network is needed again.
    (folder / RUN_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder / NETWORK_FOLDER, ignore_errors=True)
    start = key.pretraining and folder_of(key.pretraining, output_dir) / NETWORK_FOLDER
    trained = trainer(key, pretrained=start, progress=progress)
    progress(None)
    predicted = trainer.predict(key, trained.model, test)
    if keep_network:
        trained.model.save(folder / NETWORK_FOLDER)
    result_type(key, predicted, trained.facts, trained.history).write(folder)


def read_sweep(
    keys: Sequence[RunKey], output_dir: Path, result_type: type[Result] = RunResult
) -> list[Result]:
    """What the runs found out."""
    return [result_type.read(folder_of(key, output_dir), key) for key in keys]


def candidates(keys: Sequence[RunKey]) -> list[RunKey]:
    """Runs of the largest label share: the classifier to keep is one of them."""
    largest = max(key.label_share for key in keys)
    return [key for key in keys if key.label_share == largest]


def winner(runs: Sequence[Result], quality: Callable[[Result], float]) -> Result:
    """The run whose model is kept, chosen on validation patients, never on the test.

    Of the arm and ratio with the highest quality in the mean of the seeds, the seed with the
    highest; of equals, the one with the lowest validation loss.

    Args:
        runs: Of ``candidates``.
        quality: Of a run on its validation patients; more is better.
    """
    groups: dict[tuple[str, float], list[Result]] = {}
    for run in runs:
        groups.setdefault((run.key.arm, run.key.synthetic_ratio), []).append(run)
    best = max(groups.values(), key=lambda group: sum(map(quality, group)) / len(group))
    return max(best, key=lambda run: (quality(run), -run.facts["val_loss"]))
