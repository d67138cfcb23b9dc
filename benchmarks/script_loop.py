"""The loop of ``train_text_to_image.py`` itself, called block by block."""

from dataclasses import replace

import train_text_to_image
from benchmarks.blocks import Block, BlockTimer
from utils.interruption import Interruption
from utils.training_journal import Journal


class _TimedJournal(Journal):
    """The script's journal, which also drives the clock."""

    timer: BlockTimer

    def end_step(self, step: int, **facts) -> None:
        super().end_step(step, **facts)
        self.timer.end_step()


class ScriptLoop:
    """A run of the script; each block is the next segment of its data stream."""

    def __init__(self, flags: list[str]) -> None:
        """Parse the script's flags and load what it loads: data, models, cache."""
        self._run = train_text_to_image.load_run(train_text_to_image.parse_args(flags))
        self._step = 0

    def run_block(self, num_steps: int, *, untimed_steps: int) -> Block:
        """Train ``num_steps`` steps on by the script's ``train``."""
        run, first, last = self._run, self._step, self._step + num_steps
        plan = replace(
            run.plan, first_step=first, last_step=last, first_position=run.plan.position(first)
        )
        journal = _TimedJournal(
            run.accelerator,
            run.args.output_dir,
            steps=range(first, last),
            log_steps=run.args.log_steps,
            images_per_step=plan.images_per_step,
        )
        journal.timer = BlockTimer(run.accelerator.device, untimed_steps=untimed_steps)
        with Interruption(num_processes=1) as interruption:
            train_text_to_image.train(replace(run, plan=plan), journal, interruption)
        self._step = last
        losses = [float(row["loss"]) for row in journal.rows[-num_steps:]]
        return journal.timer.end(losses, images_per_step=plan.images_per_step)
