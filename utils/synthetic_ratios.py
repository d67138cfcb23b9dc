"""How much synthetic data a run gets, in percent of the real training data."""

from __future__ import annotations

from collections.abc import Sequence

from utils.cli import UserError


def num_synthetic(ratio: float, num_real: int) -> int:
    """Synthetic images of a run, for a ratio in percent of the real training images."""
    return round(ratio / 100 * num_real)


def usable_ratios(
    asked: Sequence[float] | None, *, num_real: int, available: int, fewest: int, unit: str
) -> list[float]:
    """Ratios in percent; by default the one of all there are.

    Args:
        asked: ``--synthetic_ratios``.
        num_real: Real training images.
        available: Synthetic ones; 0 gives no ratio.
        fewest: Images that are enough to train on and to validate.
        unit: What they are called: ``images``, ``pairs``.

    Raises:
        UserError: If there are too few synthetic images for a ratio, or it asks for too few.
    """
    if not available:
        return []
    most = 100 * available / num_real
    if asked is None:
        return [most]
    for ratio in asked:
        wanted = num_synthetic(ratio, num_real)
        if wanted > available:
            raise UserError(
                f"--synthetic_ratios {ratio:g}: that is {wanted} {unit}, --synthetic_dir has "
                f"{available} ({most:.5g} percent)"
            )
        if ratio > 0 and wanted < fewest:
            raise UserError(
                f"--synthetic_ratios {ratio:g}: that is {wanted} {unit}, and fewer than {fewest} "
                "are too few to train on and to validate"
            )
    return list(asked)
