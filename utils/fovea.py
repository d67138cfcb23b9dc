"""Guesses which B-scan of a macular volume passes through the fovea.

At the fovea the inner retina is thinnest and its surface dips: the pit is the smallest distance
between the inner limiting membrane (the first step from dark to bright, from above) and the pigment
epithelium (the brightest line, made smooth along the scan). The distances of all B-scans in the
middle half of the volume make a map; the map is smoothed, and its minimum is the pit if it is
deeper than its surroundings by a share of their thickness. A guess for choosing frames, nothing to
measure by: fluid, holes, and scans far from the macula have no pit, or another one.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

_GRID = (128, 96)  # rows and columns that a B-scan is shrunk to
_EDGE_SHARE = 0.35  # of the step from vitreous to retina that counts as the retina's surface
_NO_RETINA = 12.0  # grey levels: less contrast than this is an empty scan
_MIN_DEPTH = 0.12  # of the surrounding thickness: normal pits have 0.3 and more
_MAX_SCANS = 65  # looked at; of denser volumes every second, third, ...


def guess_fovea(read: Callable[[int], np.ndarray], num_frames: int) -> int | None:
    """Number of the B-scan through the foveal pit; None if no pit is found.

    Args:
        read: Gives a B-scan by its number from 0: 8-bit grey (H, W), vitreous above.
        num_frames: Of the volume.
    """
    first, last = num_frames // 4, num_frames - num_frames // 4  # the middle half
    step = -(-(last - first) // _MAX_SCANS)
    scans = range(first, last, step)
    if len(scans) < 3:
        return None
    thickness = np.stack([retinal_thickness(read(scan)) for scan in scans])  # (K, W)
    if not np.isfinite(thickness).all(axis=1).any():
        return None
    thickness = _filled(thickness)
    # Across scans the pit spans some 0.8 mm of usually 6 mm, so a tenth of the map is smoothed.
    sigma = (max(1.0, len(scans) / 12), _GRID[1] / 24)
    smooth = ndimage.gaussian_filter(ndimage.median_filter(thickness, 3), sigma, mode="nearest")
    middle = smooth[:, _GRID[1] // 5 : -_GRID[1] // 5]  # near the edges the retina thins too
    scan, column = np.unravel_index(np.argmin(middle), middle.shape)
    around = np.percentile(smooth, 75)
    at_rim = scan in (0, len(scans) - 1)  # the map falls towards something outside of it
    if at_rim or middle[scan, column] > (1 - _MIN_DEPTH) * around:
        return None
    return scans[int(scan)]


def retinal_thickness(scan: np.ndarray) -> np.ndarray:
    """Distance from the inner limiting membrane to the pigment epithelium along a B-scan.

    Args:
        scan: 8-bit grey, (H, W).

    Returns:
        In shares of the scan's height, at 96 places from left to right; NaN of a scan without a
        retina.
    """
    rows, columns = _GRID
    small = Image.fromarray(scan).resize((columns, rows), Image.Resampling.BOX)
    grey = ndimage.gaussian_filter(np.asarray(small, np.float32), (1.2, 1.5))  # (rows, columns)
    dark, bright = np.percentile(grey, (10, 95))
    if bright - dark < _NO_RETINA:
        return np.full(columns, np.nan)
    inner = np.argmax(grey > dark + _EDGE_SHARE * (bright - dark), axis=0).astype(float)
    inner = ndimage.median_filter(inner, 9, mode="nearest")
    below = np.arange(rows)[:, None] > inner + 0.06 * rows  # not the nerve fibres just below it
    outer = np.argmax(np.where(below, grey, 0), axis=0).astype(float)
    return (_smooth_line(outer) - inner) / rows


def _smooth_line(rows: np.ndarray) -> np.ndarray:
    """A cubic through most points, (W,): what is off by much after the first fit has no say."""
    x = np.linspace(-1, 1, len(rows))
    kept = np.abs(rows - ndimage.median_filter(rows, 31, mode="nearest")) < 6
    for _ in range(3):
        fit = np.polynomial.Polynomial.fit(x[kept], rows[kept], 3)(x)
        off = np.abs(rows - fit)
        kept = off <= max(2.0, 2 * float(np.median(off)))
    return fit


def _filled(thickness: np.ndarray) -> np.ndarray:
    """Scans without a retina, (K, W), take the place of their nearest neighbour with one."""
    good = np.flatnonzero(np.isfinite(thickness).all(axis=1))
    nearest = good[np.argmin(np.abs(np.arange(len(thickness))[:, None] - good), axis=1)]
    return thickness[nearest]
