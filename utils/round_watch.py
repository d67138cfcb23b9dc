"""When a loop of self-improvement has to stop, and which of its rounds is the output.

A reward can be satisfied by pictures that are no scans (Gao et al. 2023,
https://arxiv.org/abs/2210.10760): what was not optimised is watched, and a round that hurts it is
not kept, however high its reward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Scores = Mapping[str, float]

# Score that decides which round is best -> whether higher is better.
SELECTABLE = {"agreement": True, "fid": False, "held_out_reward": True, "denoising_loss": False}


@dataclass(frozen=True)
class Limits:
    """How far a round may fall behind the first model.

    Attributes:
        recall_drop: Share of its recall that may be lost, in [0, 1].
        similarity_rise: By how much images of one prompt may become more alike, in MS-SSIM.
        agreement_drop: Share of images with the right finding that may be lost.
        loss_rise: Share by which the held-out denoising loss may rise.
        distance: Mean squared difference of predictions from the first model's, as a share of its
            held-out denoising loss.
    """

    recall_drop: float
    similarity_rise: float
    agreement_drop: float
    loss_rise: float
    distance: float


def alarms(first: Scores, scores: Scores, limits: Limits) -> list[str]:
    """What is wrong with a round beside the first model, in sentences; scores not there pass.

    Args:
        first: Of the model that all started from.
        scores: Of the round.
        limits: What is tolerated.
    """

    def change(name: str) -> float:
        return scores[name] - first[name] if name in scores and name in first else 0.0

    found = [
        f"{name} is no finite number"
        for name, value in scores.items()
        if value is None or not math.isfinite(value)
    ]
    if found:
        return found
    if change("recall") < -limits.recall_drop * first.get("recall", 0.0):
        found.append(f"recall fell from {first['recall']:.3f} to {scores['recall']:.3f}")
    if change("ms_ssim") > limits.similarity_rise:
        found.append(
            f"images of one prompt became more alike: MS-SSIM {first['ms_ssim']:.3f} to "
            f"{scores['ms_ssim']:.3f}"
        )
    if change("agreement") < -limits.agreement_drop:
        found.append(
            f"the right finding is seen less often: {first['agreement']:.3f} to "
            f"{scores['agreement']:.3f}"
        )
    if change("denoising_loss") > limits.loss_rise * first.get("denoising_loss", 0.0):
        found.append(
            f"the denoising loss on real scans rose from {first['denoising_loss']:.4f} to "
            f"{scores['denoising_loss']:.4f}"
        )
    if scores.get("distance_to_first", 0.0) > limits.distance * first.get("denoising_loss", 0.0):
        found.append(
            f"the model is far from the first one: {scores['distance_to_first']:.4f}, more than "
            f"{limits.distance:g} of its denoising loss"
        )
    if change("reward") > 0 > change("held_out_reward"):
        found.append(
            f"the reward rose by {change('reward'):.3f}, that of held-out raters fell by "
            f"{-change('held_out_reward'):.3f}: the reward is being gamed"
        )
    return found


@dataclass(frozen=True)
class Verdict:
    """What came of the rounds so far.

    Attributes:
        best: Number of the best round; 0 is the first model.
        stop: Why no further round is made; empty if one is.
    """

    best: int
    stop: str


def judge_rounds(
    rounds: Sequence[Scores],
    alarms_of: Sequence[Sequence[str]],
    *,
    select_by: str,
    patience: int,
    num_rounds: int,
) -> Verdict:
    """The best round so far, and whether to go on.

    Args:
        rounds: Scores of the first model and of each round after it.
        alarms_of: Of each, what is wrong with it; one with alarms is never the best.
        select_by: One of `SELECTABLE`.
        patience: Rounds without a better one after which it stops, >= 1.
        num_rounds: Rounds in all.
    """
    sign = 1 if SELECTABLE[select_by] else -1
    best = 0
    for number, (scores, wrong) in enumerate(zip(rounds, alarms_of, strict=True)):
        if not wrong and sign * (scores[select_by] - rounds[best][select_by]) > 0:
            best = number
    last = len(rounds) - 1
    stop = ""
    if alarms_of[last]:
        stop = f"round {last}: " + "; ".join(alarms_of[last])
    elif last - best >= patience:
        stop = f"{select_by} has not become better since round {best}"
    elif last >= num_rounds:
        stop = f"all {last} rounds are done"
    return Verdict(best, stop)
