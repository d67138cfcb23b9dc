"""How long a sweep takes on this machine, from a few steps measured."""

from __future__ import annotations

import time
from collections.abc import Sequence

from utils.arm_training import ArmTrainer
from utils.sweep_plan import RunKey, in_stages, share_out

FEW, MANY = 2, 8  # steps of the two trainings whose difference is measured
FORWARD_SHARE = 1 / 3  # of a training step's time: what validating an image takes


def seconds_per_image(trainer: ArmTrainer, key: RunKey) -> float:
    """Time that an image takes in training, from the difference of two short ones."""
    taken = []
    for num_steps in (FEW, FEW, MANY):  # the first is slow for other reasons
        started = time.perf_counter()
        trainer.shortened(num_steps)(key, pretrained=None)
        taken.append(time.perf_counter() - started)
    step = max(taken[2] - taken[1], 1e-6) / (MANY - FEW)
    return step / (trainer.cost(key) / trainer.num_steps(key))


def estimate_seconds(
    keys: Sequence[RunKey], trainer: ArmTrainer, *, num_processes: int, per_image: float
) -> float:
    """Longest time that the runs take, if none stops early.

    Args:
        keys: The runs.
        trainer: Of the runs.
        num_processes: That share the runs.
        per_image: Of ``seconds_per_image``.
    """

    def cost_of(key: RunKey) -> float:
        epochs = trainer.num_steps(key) / trainer.options.steps_per_epoch
        return trainer.cost(key) + FORWARD_SHARE * epochs * len(trainer.pools.val)

    loads = [
        max(
            sum(map(cost_of, part))
            for part in share_out(stage, num_processes=num_processes, cost_of=cost_of)
        )
        for stage in in_stages(keys)
    ]
    return per_image * sum(loads)
