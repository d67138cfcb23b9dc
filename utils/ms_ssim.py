"""Multi-scale structural similarity of gray images, and which pairs of a set to compare.

Pure numpy. Shapes: B pairs, N images, H x W pixels. The mean over pairs of one prompt tells how
alike its images are: higher is less diverse.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

# Wang, Simoncelli, Bovik 2003, section 3.2: finest scale first.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW_PX = 11
WINDOW_SIGMA_PX = 1.5
C1, C2 = 0.01**2, 0.03**2  # keep quotients finite; of images in [0, 1]
_BLOCK_BYTES = 32 << 20  # pixels of one block of pairs, as float32


def num_scales(height: int, width: int) -> int:
    """How many of the five scales fit: the coarsest image must hold one whole window.

    Raises:
        ValueError: If not even the first does.
    """
    side = min(height, width)
    if side < WINDOW_PX:
        raise ValueError(
            f"MS-SSIM needs {WINDOW_PX} pixels a side; the images are {width}x{height}"
        )
    fitting = (scale for scale in range(len(SCALE_WEIGHTS)) if side >> scale >= WINDOW_PX)
    return max(fitting) + 1


def scale_weights(height: int, width: int) -> np.ndarray:
    """Wang's weights of the scales that fit, finest first, scaled to sum to 1."""
    weights = np.array(SCALE_WEIGHTS[: num_scales(height, width)])
    return weights / weights.sum()


def ms_ssim(
    first: np.ndarray,
    second: np.ndarray,
    *,
    data_range: float = 1.0,
    weights: Sequence[float] | None = None,
) -> np.ndarray:
    """Multi-scale structural similarity of pairs of images.

    ``prod_j mean(cs_j)^w_j * mean(l_M cs_M)^w_M`` over scales j < M, Wang et al. 2003
    (https://ece.uwaterloo.ca/~z70wang/publications/msssim.pdf): Gaussian window of 11 pixels and
    sigma 1.5, whole windows only, 2 x 2 means between scales, negative means set to 0. Images of
    176 pixels or more have all five scales; smaller ones as many as fit, weights scaled to sum to
    1, so values at different sizes do not compare.

    Args:
        first: (B, H, W), any real type, in [0, data_range].
        second: (B, H, W).
        data_range: Distance between black and white; fixed, never read off the images.
        weights: Exponent per scale, finest first; None takes ``scale_weights``.

    Returns:
        (B,) float64 in [0, 1]; 1 for equal images.

    Raises:
        ValueError: If the shapes differ, or H or W is below 11.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 3:
        raise ValueError(f"expected two arrays (B, H, W), got {first.shape} and {second.shape}")
    if weights is None:
        weights = scale_weights(*first.shape[1:])
    places = np.arange(2 * len(first)).reshape(2, -1).T  # (B, 2)
    return _within(np.concatenate([first, second]) / data_range, places, weights)


def pairwise_ms_ssim(
    load: Callable[[int], np.ndarray],
    pairs: np.ndarray,
    *,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """MS-SSIM of chosen pairs of a set that need not fit into memory.

    Each block of pairs reads and filters an image once, however many pairs it is in.

    Args:
        load: Index -> (H, W) uint8, all of one size.
        pairs: (P, 2) indices; pairs that share an image should be neighbours.
        progress: Called with the number of pairs of each block done, as ``tqdm.update``.

    Returns:
        (P,) float64 in [0, 1].
    """
    if not len(pairs):
        return np.empty(0)
    size = max(1, _BLOCK_BYTES // (4 * load(int(pairs[0, 0])).size))
    done = []
    for start in range(0, len(pairs), size):
        used, places = np.unique(pairs[start : start + size], return_inverse=True)
        pixels = np.stack([load(int(index)) for index in used]).astype(np.float32) / 255
        done.append(_within(pixels, places.reshape(-1, 2), scale_weights(*pixels.shape[1:])))
        if progress is not None:
            progress(len(done[-1]))
    return np.concatenate(done)


def _within(pixels: np.ndarray, places: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """MS-SSIM of pairs ``places`` (P, 2) of the images ``pixels`` (N, H, W) in [0, 1]."""
    similarity = np.ones(len(places))
    for scale, weight in enumerate(weights):
        pixels = _halve(pixels) if scale else pixels
        blurs = tuple(_blur_matrix(length, pixels.dtype) for length in pixels.shape[1:])
        means = [_blur(image, blurs) for image in pixels]
        variances = [_blur(image * image, blurs) - m * m for image, m in zip(pixels, means)]
        last = scale == len(weights) - 1
        for row, (i, j) in enumerate(places):
            product = means[i] * means[j]
            covariance = _blur(pixels[i] * pixels[j], blurs) - product
            local = (2 * covariance + C2) / (variances[i] + variances[j] + C2)
            if last:
                local *= (2 * product + C1) / (means[i] ** 2 + means[j] ** 2 + C1)
            similarity[row] *= max(float(local.mean()), 0.0) ** float(weight)
    return similarity


def _blur_matrix(length: int, dtype: np.dtype) -> np.ndarray:
    """(length - 10, length): each row is the Gaussian window at one place.

    As a product of matrices the blur of a 256-pixel image is ten times as fast as a sum of
    shifted copies.
    """
    offsets = np.arange(WINDOW_PX) - WINDOW_PX // 2
    window = np.exp(-(offsets**2) / (2 * WINDOW_SIGMA_PX**2))
    rows = np.arange(length - WINDOW_PX + 1)[:, None]
    matrix = np.zeros((len(rows), length))
    matrix[rows, rows + np.arange(WINDOW_PX)] = window / window.sum()
    return matrix.astype(dtype)


def _blur(image: np.ndarray, blurs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Gaussian mean of every whole window: (H, W) to (H - 10, W - 10)."""
    return blurs[0] @ image @ blurs[1].T


def _halve(images: np.ndarray) -> np.ndarray:
    """Mean of 2 x 2 pixels; an odd last row or column is dropped."""
    height, width = (length // 2 * 2 for length in images.shape[-2:])
    even = images[..., :height, :width]
    rows = even[..., ::2, :] + even[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def choose_pairs(
    groups: Sequence[Hashable], *, max_pairs: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of images of the same group, spread evenly over the groups.

    Args:
        groups: (N,) the group of each image, such as its prompt.
        max_pairs: At most so many pairs in all. With more groups than that, a seeded choice of
            groups gives one pair each.
        seed: Seed of every choice.

    Returns:
        ``pairs`` (P, 2) int64 with i < j, neighbours in order of group and i; ``owners`` (P,), an
        integer per group.
    """
    rng = np.random.default_rng(seed)
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    sets = [np.array(indices) for indices in members.values() if len(indices) > 1]
    if len(sets) > max_pairs:
        sets = [sets[k] for k in np.sort(rng.choice(len(sets), max_pairs, replace=False))]
    available = np.array([len(indices) * (len(indices) - 1) // 2 for indices in sets], np.int64)
    chosen, owners = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    for owner, count in enumerate(_shares(available, max_pairs)):
        drawn = np.sort(rng.choice(available[owner], count, replace=False))
        chosen.append(sets[owner][_pair_of(drawn, len(sets[owner]))])
        owners.append(np.full(count, owner))
    return np.concatenate(chosen), np.concatenate(owners)


def _shares(available: np.ndarray, total: int) -> np.ndarray:
    """How many of ``total`` each group gives: all groups alike, small ones what they have."""
    given = np.zeros_like(available)
    while (left := total - int(given.sum())) and (places := np.flatnonzero(given < available)).size:
        each = left // places.size
        if each == 0:  # fewer pairs left than groups: one more for the first of them
            places, each = places[:left], 1
        given[places] += np.minimum(each, (available - given)[places])
    return given


def _pair_of(numbers: np.ndarray, size: int) -> np.ndarray:
    """The (i, j), i < j, of pair numbers counted row by row: (0, 1), (0, 2), … (1, 2) and so on."""
    firsts = np.arange(size - 1)
    starts = firsts * (2 * size - firsts - 1) // 2
    i = np.searchsorted(starts, numbers, side="right") - 1
    return np.stack([i, numbers - starts[i] + i + 1], axis=1)
