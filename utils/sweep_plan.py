"""Which runs a sweep consists of, which come first, and who does which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from utils import arms as kinds

# What a sweep leaves in its output folder: tables and pages, and the runs they come from.
RESULT_FILES = (
    *("results.json", "report.html", "results.csv", "comparisons.csv", "sources.csv"),
    *("runs.csv", "predictions.csv", "training.csv", "errors.png"),
)
RUN_FILES = ("runs/*/*.*", "runs/*/network/*")


@dataclass(frozen=True, order=True)
class RunKey:
    """One training: what is learned from, and the seed.

    Attributes:
        arm: See ``utils.arms``, or an arm of self_supervised.py.
        label_share: Labelled real patients in percent; 0 where no real label is used.
        synthetic_ratio: Synthetic images in percent of all real training images, whatever the
            label share; 0 where none is used.
        seed: Decides label subset, weights, order and augmentation.
    """

    arm: str
    label_share: float
    synthetic_ratio: float
    seed: int

    @property
    def name(self) -> str:
        """Of the run's folder."""
        arm = self.arm.replace("->", "-to-")
        return f"{arm}_share{self.label_share:g}_ratio{self.synthetic_ratio:g}_seed{self.seed}"

    @property
    def pretraining(self) -> RunKey | None:
        """The run whose network this one starts from, if there is one."""
        if self.arm != kinds.PRETRAINED:
            return None
        return replace(self, arm=kinds.SYNTHETIC, label_share=0.0)


def expand(
    arms: Iterable[str],
    *,
    label_shares: Sequence[float],
    synthetic_ratios: Sequence[float],
    seeds: Sequence[int],
) -> list[RunKey]:
    """Every run of a sweep once, in the order of the arms.

    Args:
        arms: Of ``utils.arms``.
        label_shares: In percent.
        synthetic_ratios: In percent; 0 adds nothing, for it is the same arm without synthetic
            images.
        seeds: Of the repetitions.
    """
    ratios = [ratio for ratio in synthetic_ratios if ratio > 0]
    return [
        RunKey(arm, share, ratio, seed)
        for arm in arms
        for share in (label_shares if kinds.uses_real(arm) else [0.0])
        for ratio in (ratios if kinds.uses_synthetic(arm) else [0.0])
        for seed in seeds
    ]


def in_stages(keys: Sequence[RunKey]) -> list[list[RunKey]]:
    """The runs that others start from, then the others; a stage waits for the one before."""
    first = {key.pretraining: None for key in keys if key.pretraining}
    return [list(first), [key for key in keys if key not in first]]


def share_out(
    keys: Sequence[RunKey], *, num_processes: int, cost_of: Callable[[RunKey], float]
) -> list[list[RunKey]]:
    """A list of runs for every process, the longest first, each to who has least to do."""
    parts: list[list[RunKey]] = [[] for _ in range(num_processes)]
    loads = [0.0] * num_processes
    for key in sorted(keys, key=cost_of, reverse=True):
        least = loads.index(min(loads))
        parts[least].append(key)
        loads[least] += cost_of(key)
    return parts


def count_by_arm(keys: Iterable[RunKey]) -> Mapping[str, int]:
    """Arm -> number of runs."""
    counts: dict[str, int] = {}
    for key in keys:
        counts[key.arm] = counts.get(key.arm, 0) + 1
    return counts
