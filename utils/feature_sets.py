"""Pairs of feature sets, real and synthetic: what a metric may take, and parts of a set to compare.

Shapes: N images (N_r real, N_s synthetic), D features.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np


def check_features(
    real: np.ndarray, synthetic: np.ndarray, *, min_images: int, purpose: str
) -> None:
    """Refuse sets that a metric cannot take.

    Args:
        real: Should be (N_r, D), N_r >= ``min_images``, finite.
        synthetic: Should be (N_s, D), likewise.
        min_images: Of each set.
        purpose: What needs them, for the message, such as "a Fréchet distance".

    Raises:
        ValueError: If the sets differ in D, one has too few images, or a feature is NaN or
            infinite.
    """
    if real.ndim != 2 or synthetic.ndim != 2 or real.shape[1] != synthetic.shape[1]:
        raise ValueError(
            f"features must be (N, D) with one D; real is {real.shape}, "
            f"synthetic is {synthetic.shape}"
        )
    for name, features in (("real", real), ("synthetic", synthetic)):
        if len(features) < min_images:
            raise ValueError(
                f"{purpose} needs {min_images} {name} images or more, got {len(features)}"
            )
        if not np.isfinite(features).all():
            raise ValueError(f"the {name} features hold NaN or infinite values")


def draw_subsets(
    num_real: int, num_synthetic: int, *, size: int, num_draws: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random subsets of both sets, without replacement.

    The draws are those of torch-fidelity's KID for the same seed, so that values agree and not
    only their expectation.

    Args:
        num_real: N_r.
        num_synthetic: N_s.
        size: Images of each subset.
        num_draws: Pairs of subsets.
        seed: Seed of the draws.

    Yields:
        (size,) indices of real and of synthetic images.

    Raises:
        ValueError: If a set has fewer than ``size`` images, or ``num_draws`` is below 1.
    """
    if size > min(num_real, num_synthetic) or num_draws < 1:
        raise ValueError(
            f"cannot draw {num_draws} times {size} images from {num_real} real and "
            f"{num_synthetic} synthetic ones"
        )
    rng = np.random.RandomState(seed)
    for _ in range(num_draws):
        first = rng.choice(num_real, size, replace=False)
        yield first, rng.choice(num_synthetic, size, replace=False)


def split_halves(groups: Sequence[Hashable], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of a set that share no group, for a real-against-real floor.

    Args:
        groups: (N,) the patient of each image, or any value that is different for each image.
        seed: Seed of the order in which groups are dealt.

    Returns:
        Indices of the two halves, each sorted; as equal in size as whole groups allow.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    sets = list(members.values())
    halves: tuple[list[int], list[int]] = ([], [])
    for k in np.random.default_rng(seed).permutation(len(sets)):
        min(halves, key=len).extend(sets[k])
    return np.sort(np.array(halves[0], np.int64)), np.sort(np.array(halves[1], np.int64))
