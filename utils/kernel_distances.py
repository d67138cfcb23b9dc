"""Distances of feature sets by kernels (maximum mean discrepancy): KID and CMMD.

Shapes: N images (N_r real, N_s synthetic), D features, S subsets. All in float64.
"""

from __future__ import annotations

import numpy as np

from utils.feature_sets import check_features, draw_subsets

CMMD_SIGMA = 10.0  # Jayasumana et al. 2024, section 4
CMMD_SCALE = 1000.0  # likewise: only makes the numbers readable
_BLOCK_ELEMENTS = 1 << 24  # of a kernel matrix held at a time


def kernel_inception_distance(
    *,
    real: np.ndarray,
    synthetic: np.ndarray,
    subset_size: int,
    num_subsets: int = 100,
    seed: int,
) -> tuple[float, float]:
    """Kernel distance of two feature sets (KID on Inception features), mean over random subsets.

    Unbiased squared maximum mean discrepancy with the kernel ``(x.y / D + 1)^3``, Binkowski et al.
    2018 (https://arxiv.org/abs/1801.01401). Lower is closer; its mean does not depend on N, so it
    fits small sets, and it may be negative where the sets are alike. Same draws as torch-fidelity
    for the same seed.

    Args:
        real: (N_r, D), any float type.
        synthetic: (N_s, D).
        subset_size: Images of each subset, 2 <= subset_size <= min(N_r, N_s); drawn without
            replacement.
        num_subsets: S >= 1.
        seed: Seed of the draws.

    Returns:
        Mean and standard deviation (divisor S) over the subsets.

    Raises:
        ValueError: If the sets differ in D, one has fewer than ``subset_size`` images, or a feature
            is NaN or infinite.
    """
    check_features(real, synthetic, min_images=2, purpose="a kernel distance")
    if subset_size < 2:
        raise ValueError(f"a subset needs 2 images or more, got {subset_size}")
    sizes = (len(real), len(synthetic))
    draws = draw_subsets(*sizes, size=subset_size, num_draws=num_subsets, seed=seed)
    elements = sizes[0] ** 2 + sizes[0] * sizes[1] + sizes[1] ** 2
    if elements <= 3 * num_subsets * subset_size**2:  # the whole kernel is less than its parts
        members = [np.zeros((num_subsets, size)) for size in sizes]
        for row, drawn in enumerate(draws):
            for member, index in zip(members, drawn):
                member[row, index] = 1
        values = _unbiased_mmd2((real, synthetic), members)
    else:
        whole = [np.ones((1, subset_size))] * 2
        parts = ((real[first], synthetic[second]) for first, second in draws)
        values = np.concatenate([_unbiased_mmd2(part, whole) for part in parts])
    return float(np.mean(values)), float(np.std(values))


def _unbiased_mmd2(
    features: tuple[np.ndarray, np.ndarray], members: list[np.ndarray]
) -> np.ndarray:
    """(S,) squared discrepancy of each subset; ``members`` (S, N_r) and (S, N_s) are 0 or 1."""
    real, synthetic = (np.asarray(x, np.float64) for x in features)
    size = members[0][0].sum()
    within = _subset_sums(real, real, members[0], members[0])
    within += _subset_sums(synthetic, synthetic, members[1], members[1])
    between = _subset_sums(real, synthetic, *members)
    return within / (size * (size - 1)) - 2 * between / size**2


def _subset_sums(
    first: np.ndarray, second: np.ndarray, members_1: np.ndarray, members_2: np.ndarray
) -> np.ndarray:
    """(S,) sum of the cubic kernel over each subset; of a set with itself without the diagonal."""
    sums = np.zeros(len(members_1))
    for rows in _row_blocks(len(first), len(second)):
        kernel = first[rows] @ second.T
        kernel /= first.shape[1]
        kernel += 1
        kernel *= kernel * kernel
        if first is second:
            kernel[np.arange(len(kernel)), np.arange(rows.start, rows.stop)] = 0
        sums += np.einsum("sn,sn->s", members_1[:, rows] @ kernel, members_2)
    return sums


def cmmd(*, real: np.ndarray, synthetic: np.ndarray) -> float:
    """CLIP maximum mean discrepancy of two sets of image embeddings.

    ``1000 (mean k(r, r') + mean k(s, s') - 2 mean k(r, s))`` with ``k = exp(-|x - y|^2 / 200)`` on
    embeddings of length 1, the diagonals included, Jayasumana et al. 2024
    (https://arxiv.org/abs/2401.09603). Lower is closer; 0 for equal sets. No Gaussian is fitted, so
    it needs fewer images than a Fréchet distance; the diagonals bias it upwards by at most
    ``20 (1 / N_r + 1 / N_s)``.

    Args:
        real: (N_r, D), any float type; brought to length 1 here.
        synthetic: (N_s, D).

    Returns:
        The distance, >= 0.

    Raises:
        ValueError: If the sets differ in D, one is empty, or an embedding is zero, NaN or infinite.
    """
    check_features(real, synthetic, min_images=1, purpose="a CMMD")
    real, synthetic = _unit_length("real", real), _unit_length("synthetic", synthetic)
    within = _mean_gaussian(real, real) + _mean_gaussian(synthetic, synthetic)
    return max(0.0, CMMD_SCALE * (within - 2 * _mean_gaussian(real, synthetic)))


def _unit_length(name: str, embeddings: np.ndarray) -> np.ndarray:
    """(N, D) float64 rows of length 1."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True).astype(np.float64)
    if not lengths.all():
        raise ValueError(f"a {name} embedding is zero and has no direction")
    return embeddings / lengths


def _mean_gaussian(first: np.ndarray, second: np.ndarray) -> float:
    """Mean of ``k - 1`` over all pairs of unit vectors; the ones cancel, and digits with them."""
    total = 0.0
    for rows in _row_blocks(len(first), len(second)):
        exponent = first[rows] @ second.T  # |x - y|^2 = 2 - 2 x.y
        exponent -= 1
        exponent /= CMMD_SIGMA**2
        total += float(np.expm1(exponent, out=exponent).sum())
    return total / (len(first) * len(second))


def _row_blocks(num_rows: int, num_columns: int) -> list[slice]:
    """Rows of a matrix in blocks of bounded size."""
    step = max(1, _BLOCK_ELEMENTS // num_columns)
    return [slice(i, min(i + step, num_rows)) for i in range(0, num_rows, step)]
