"""What a training run says while it runs: train_log.csv, trackers, progress bar, the stop at NaN.

Losses stay on the device and are fetched every ``log_steps`` steps only: this is the one place of
the loop that waits for the device.
"""

import csv
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from utils.cli import UserError
from utils.run_folder import write_csv

LOG_FILE = "train_log.csv"
HELD_OUT_FILE = "validation_log.csv"
COLUMNS = (
    *("step", "epoch", "loss", "lr", "grad_norm"),
    *("images_per_s", "seconds", "seconds_left", "peak_memory_gib"),
)
_TRACKED_COLUMNS = COLUMNS[2:6]
_TRACKED = {"loss": "train_loss"}  # the name that diffusers' example gives the trackers
ADVICE = "a lower --learning_rate, --lr_warmup_steps, or --mixed_precision bf16 in place of fp16"
SMOOTHED_STEPS = 50  # the loss told at the end is a mean over this many steps


class _Step(NamedTuple):
    step: int
    epoch: float
    lr: float
    values: torch.Tensor  # (2 + E,): loss, gradient norm, what else is told
    names: list[str]


class Journal:
    """Collects what each step tells and writes it down every ``log_steps`` steps.

    Attributes:
        rows: Rows of train_log.csv of this run and, if it was resumed, of the steps before; on the
            main process.
        held_out: (step, loss on held-out images) of each measurement, also of those before.
        drawn: Steps whose validation pictures this run has drawn.
    """

    def __init__(
        self,
        accelerator,
        output_dir: Path,
        *,
        steps: range,
        log_steps: int,
        images_per_step: int,
        told: Sequence[str] = (),
        advice: str = ADVICE,
    ) -> None:
        """Open the log; rows of steps that a resumed run repeats are dropped.

        Args:
            accelerator: Gathers the losses of all processes and feeds the trackers.
            output_dir: The run's folder.
            steps: Steps done when the run starts, up to those at its end.
            log_steps: Interval between looks at the device.
            images_per_step: Over all processes and accumulated batches.
            told: Names of what each batch tells beside its loss; columns after the usual ones.
            advice: What to try where the loss is no longer finite.
        """
        self._accelerator = accelerator
        self._advice = advice
        self._told = tuple(told)
        self._columns = (*COLUMNS, *self._told)
        self._path = output_dir / LOG_FILE
        self._last_step = steps.stop
        self._log_steps = log_steps
        self._images_per_step = images_per_step
        self._losses: list[torch.Tensor] = []
        self._names: list[str] = []
        self._steps: list[_Step] = []
        self.held_out: list[tuple[int, float]] = []
        self.drawn: set[int] = set()
        self._start = self._last_flush = time.perf_counter()
        self._held_out_path = output_dir / HELD_OUT_FILE
        self.rows: list[dict] = []
        if accelerator.is_main_process:
            self.rows = _drop_rows_after(self._path, steps.start, self._columns)
            before = _drop_rows_after(self._held_out_path, steps.start)
            self.held_out = [(int(row["step"]), float(row["loss"])) for row in before]
        self.held_out = broadcast_object_list([self.held_out])[0]
        self._seconds_before = float(self.rows[-1]["seconds"]) if self.rows else 0.0
        self._bar = tqdm(
            total=steps.stop,
            initial=steps.start,
            desc="train",
            unit="step",
            disable=not accelerator.is_local_main_process,
        )

    def add_batch(
        self,
        loss: torch.Tensor,
        names: Sequence[str],
        told: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Note a batch's loss (a scalar on the device) and the images it is made of.

        Args:
            loss: See above.
            names: Of the images.
            told: What else there is to tell, scalars on the device, by the names given at first.
        """
        others = [told[name] for name in self._told]
        self._losses.append(torch.stack([loss.detach(), *others]))
        self._names += names

    def end_step(self, step: int, *, epoch: float, lr: float, grad_norm) -> None:
        """Note that the optimizer made its ``step``-th step with the batches added since."""
        losses = torch.stack(self._losses).mean(dim=0)  # (1 + E,)
        norm = torch.as_tensor(grad_norm, dtype=losses.dtype, device=losses.device)
        values = torch.cat([losses[:1], norm[None], losses[1:]])
        self._steps.append(_Step(step, epoch, lr, values, self._names))
        self._losses, self._names = [], []
        self._bar.update()
        if step % self._log_steps == 0:
            self.flush()

    def flush(self) -> None:
        """Fetch, check and write what was noted since the last time; call it on all processes.

        Raises:
            UserError: If a loss or gradient is NaN or infinite, with step, process and images.
        """
        if not self._steps:
            return
        mine = torch.stack([entry.values for entry in self._steps])  # (S, 2 + E)
        values = self._accelerator.gather(mine[None]).cpu()  # (processes, S, 2 + E)
        self._stop_if_not_finite(values[..., :2])
        now = time.perf_counter()
        speed = len(self._steps) * self._images_per_step / max(now - self._last_flush, 1e-9)
        seconds = self._seconds_before + now - self._start
        new_rows = []
        memory = peak_memory_gib(self._accelerator.device)
        for entry, (loss, grad_norm, *told) in zip(self._steps, values.mean(dim=0).tolist()):
            left = (self._last_step - entry.step) * self._images_per_step / speed
            numbers = (entry.step, entry.epoch, loss, entry.lr, grad_norm)
            numbers += (speed, seconds, left, memory, *told)
            new_rows.append(dict(zip(self._columns, (f"{number:.8g}" for number in numbers))))
        self._last_flush = now
        self._steps = []
        self.rows += new_rows
        self._tell(new_rows)

    def restart_clock(self) -> None:
        """Leave what was done since the last flush (pictures, checkpoints) out of the speed."""
        self._last_flush = time.perf_counter()

    def _tell(self, new_rows: list[dict]) -> None:
        for row in new_rows:
            tracked = (*_TRACKED_COLUMNS, *self._told)
            logs = {_TRACKED.get(key, key): float(row[key]) for key in tracked}
            self._accelerator.log(logs, step=int(row["step"]))
        last = new_rows[-1]
        self._bar.set_postfix_str(
            f"loss {float(last['loss']):.4f}, {float(last['images_per_s']):.1f} images/s"
        )
        if self._accelerator.is_main_process:
            _append_rows(self._path, new_rows, self._columns)

    def _stop_if_not_finite(self, values: torch.Tensor) -> None:
        # With fp16 an infinite gradient is part of the plan: the scaler skips that step.
        checked = values[..., :1] if self._accelerator.scaler is not None else values
        bad = (~checked.isfinite()).any(dim=-1).nonzero()  # (bad entries, 2): process, step
        if len(bad) == 0:
            return
        place = int(bad[:, 1].min())
        at_step = values[:, place]  # (processes, 2)
        # The gradient is common to all processes; a loss that is not finite tells whose images.
        guilty = (~at_step[:, 0].isfinite()).nonzero().flatten().tolist() or range(len(at_step))
        entry = self._steps[place]
        by_process = gather_object([entry.names])
        names = [name for process in guilty for name in by_process[process]]
        loss, grad_norm = at_step[guilty[0]].tolist()
        raise UserError(
            f"step {entry.step}: loss {loss:g}, gradient norm {grad_norm:g}; training stopped. "
            f"Images of that step: {', '.join(names)}\n"
            f"Look at these images; else try {self._advice}."
        )

    def add_held_out(self, step: int, loss: float, by_timestep: Mapping[str, float]) -> None:
        """Write the loss on held-out images down, in `HELD_OUT_FILE` and the trackers.

        Args:
            step: Optimizer steps done.
            loss: Mean over all of them.
            by_timestep: Mean over those whose timestep is in a bucket, by the bucket's name.
        """
        self.held_out.append((step, loss))
        numbers = {"loss": loss, **by_timestep}
        logs = {f"validation_{name}": number for name, number in numbers.items()}
        self._accelerator.log(logs, step=step)
        if self._accelerator.is_main_process:
            row = {"step": step, **numbers}  # in full: a resumed run compares with them
            _append_rows(self._held_out_path, [row], tuple(row))

    def has_measured(self, step: int) -> bool:
        """Whether the held-out loss after this step is known."""
        return bool(self.held_out) and self.held_out[-1][0] == step

    def measurements_since_best(self) -> int:
        """How many held-out losses were measured since the lowest one."""
        losses = [loss for _, loss in self.held_out]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()  # or a message would stand in its line

    def summary(self) -> dict[str, float | None]:
        """Loss at the start and at the end (means over `SMOOTHED_STEPS`), speed and time."""
        losses = [float(row["loss"]) for row in self.rows]
        speeds = [float(row["images_per_s"]) for row in self.rows]
        return {
            "loss_first": _mean(losses[:SMOOTHED_STEPS]),
            "loss_last": _mean(losses[-SMOOTHED_STEPS:]),
            "validation_loss": self.held_out[-1][1] if self.held_out else None,
            "validation_loss_best": min((loss for _, loss in self.held_out), default=None),
            "images_per_s": _mean(speeds),
            "seconds": float(self.rows[-1]["seconds"]) if self.rows else 0.0,
        } | {f"{name}_last": self._last(name) for name in self._told}

    def _last(self, name: str) -> float | None:
        return _mean([float(row[name]) for row in self.rows[-SMOOTHED_STEPS:] if row[name]])


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _append_rows(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=columns, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def _drop_rows_after(path: Path, step: int, columns: Sequence[str] | None = None) -> list[dict]:
    """Keep a log's rows up to a step, and return them; without any, the log goes.

    Args:
        path: The log.
        step: The last one to keep.
        columns: What the rows kept have; a column that the log does not have yet is empty, and
            one that is not wanted goes. None takes what is there.
    """
    rows, needed = [], ()
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle)
            rows = list(reader)
            needed = COLUMNS if columns else reader.fieldnames or ()
            columns = columns or needed
    # A run killed while it wrote leaves a last line cut short.
    whole = [row for row in rows if all(row.get(column) for column in needed)]
    kept = [
        {column: row.get(column) or "" for column in columns}
        for row in whole
        if int(row["step"]) <= step
    ]
    if kept:
        write_csv(path, kept, columns)
    else:
        path.unlink(missing_ok=True)
    return kept


def peak_memory_gib(device: torch.device) -> float:
    """Most memory this process held so far: of the GPU where there is one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
