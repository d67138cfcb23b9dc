"""Blocks of training steps, timed alike for every loop that is measured.

A block's first steps are not timed: workers start, queues fill, memory is found. From then on the
wall clock and the processor time of this process run to the end of the block, when the device has
done all of it.
"""

import resource
import statistics
import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Block:
    """What one block of a loop took.

    Attributes:
        seconds: Wall time of the timed steps.
        cpu_seconds: Processor time of all threads of this process in them.
        images: Images they went through.
        losses: Loss of every step, also of the untimed ones.
        peak_bytes: Most memory of the device allocated at once; 0 on a CPU.
    """

    seconds: float
    cpu_seconds: float
    images: int
    losses: list[float]
    peak_bytes: int

    @property
    def images_per_s(self) -> float:
        """Images a second."""
        return self.images / self.seconds


class BlockTimer:
    """Times the steps of one block after the first few."""

    def __init__(self, device: torch.device, *, untimed_steps: int) -> None:
        """Begin a block; the clock starts after ``untimed_steps`` calls of `end_step`, >= 1."""
        self._device = device
        self._untimed_steps = untimed_steps
        self._steps = 0
        self._wall = self._cpu = 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def end_step(self) -> None:
        """Note that a step was made."""
        self._steps += 1
        if self._steps == self._untimed_steps:
            self._wall, self._cpu = self._now()

    def end(self, losses: list[float], *, images_per_step: int) -> Block:
        """Stop the clock."""
        wall, cpu = self._now()
        timed_steps = self._steps - self._untimed_steps
        assert timed_steps > 0, "the block has no timed step"
        peak = 0
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
        images = timed_steps * images_per_step
        return Block(wall - self._wall, cpu - self._cpu, images, losses, peak)

    def _now(self) -> tuple[float, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), usage.ru_utime + usage.ru_stime


@dataclass(frozen=True)
class Ratio:
    """How many times faster ours is than the reference, from paired blocks."""

    median: float
    least: float
    most: float


def paired_ratio(reference: list[float], ours: list[float]) -> Ratio:
    """Ratio of the times of blocks that ran one after the other, pair by pair."""
    ratios = [theirs / own for theirs, own in zip(reference, ours, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
