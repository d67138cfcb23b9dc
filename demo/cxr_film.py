"""How a machine turns the beam behind a simulated chest into a radiograph.

The beam is weakened by Beer-Lambert's law; scatter is a blurred share of what comes through, the
quanta are Poisson (drawn as a Gaussian), and the machine shows the logarithm through the
sigmoid grey curve of film (Hurter and Driffield 1890). Attenuation coefficients are those of about
60 keV, a usual mean energy of chest films (Hubbell and Seltzer 1995,
https://dx.doi.org/10.18434/T4D01F).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from demo.cxr_chest import Chest, smooth_field

TISSUE, BONE, METAL = 0.206, 0.60, 3.5  # per centimetre: water, compact bone, titanium
LUNG_AIR = 0.74  # share of air in a lung's volume


@dataclass(frozen=True)
class Look:
    """How one machine shows a chest.

    Attributes:
        scatter: Scattered over primary radiation behind a lung.
        quanta: Photons on a square millimetre behind 1 / e**2, in thousands.
        blur_cm: Standard deviation of the focus' and detector's blur, in centimetres.
        gamma: Exponent of the grey curve; below 1 lifts the lungs.
        levelling: Share of the coarse contrast that the processing takes out, in [0, 1].
        tilt_deg: Standard deviation of the film's tilt.
        turn_cm: Standard deviation of the shift of front against back by a turned patient.
        breath: Shift of the diaphragm upwards in centimetres; lying patients breathe in less.
        collimated: Share of the films with a collimator's border.
        black: Gray level of the unweakened beam, in [0, 1].
    """

    scatter: float
    quanta: float
    blur_cm: float
    gamma: float
    levelling: float
    tilt_deg: float
    turn_cm: float
    breath: float
    collimated: float
    black: float


LOOKS = {
    "digital": Look(0.25, 60, 0.03, 0.95, 0.30, 1.2, 0.25, 0.0, 0.3, 0.01),
    "portable": Look(0.90, 14, 0.09, 0.85, 0.10, 3.0, 0.60, 2.0, 0.2, 0.05),
    "computed": Look(0.45, 9, 0.07, 1.10, 0.15, 1.6, 0.35, 0.3, 0.7, 0.02),
    "film": Look(0.40, 24, 0.11, 1.25, 0.0, 1.5, 0.30, 0.0, 0.5, 0.06),
}


def develop(rng: np.random.Generator, chest: Chest, *, look: Look, resolution: int) -> Image.Image:
    """From beam lengths to the machine's 8-bit picture (N, N)."""
    air = chest.air["left"] + chest.air["right"]
    field = smooth_field(rng, air.shape, 0.7 * chest.px_per_cm)
    aerated = LUNG_AIR * air * (1 + 0.012 * field)
    soft = np.maximum(chest.tissue - aerated + chest.vessels * (air > 0.5), 0)
    weakened = TISSUE * soft + BONE * chest.bone + METAL * chest.metal
    primary = _shrink(np.exp(-weakened), resolution)
    px_per_cm = chest.px_per_cm * resolution / air.shape[0]
    primary = _blur(primary, look.blur_cm * px_per_cm)
    beam = primary + look.scatter * _coarse(np.minimum(primary, 0.12), 4.0 * px_per_cm)
    quanta = look.quanta * 1e3 * (10 / px_per_cm) ** 2 * np.e**2 * beam
    noise = rng.standard_normal(beam.shape, dtype=np.float32) / np.sqrt(np.minimum(quanta, 1e9))
    shown = -np.log(beam * np.maximum(1 + noise, 0.05))
    shown = shown - look.levelling * (_coarse(shown, 3.5 * px_per_cm) - shown.mean())
    inner = shown[resolution // 8 : -resolution // 8, resolution // 8 : -resolution // 8]
    low, high = np.percentile(inner, (2.0, 96.0))
    exposure = rng.uniform(2.6, 3.6) * (shown - low) / (high - low) - rng.uniform(1.0, 1.8)
    gray = (1 / (1 + np.exp(-exposure))) ** look.gamma
    gray = look.black + (1 - look.black) * gray
    if rng.random() < look.collimated:
        gray = gray * _opening(rng, resolution)
    return Image.fromarray((np.clip(gray, 0, 1) * 255 + 0.5).astype(np.uint8))


def _opening(rng: np.random.Generator, size: int) -> np.ndarray:
    """1 inside the collimator's opening, 0 in the border that it shades, (N, N)."""
    near, far = rng.uniform(0, 0.04, 2), rng.uniform(0.96, 1, 2)
    place = (np.arange(size) + 0.5) / size
    inside = [(place > near[axis]) & (place < far[axis]) for axis in (0, 1)]
    return inside[0][:, None] & inside[1]


def _shrink(picture: np.ndarray, size: int) -> np.ndarray:
    fold = picture.shape[0] // size
    return picture.reshape(size, fold, size, fold).mean((1, 3))


def _blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur by a few taps."""
    reach = max(int(np.ceil(2.5 * sigma)), 1)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        around = [(reach, reach) if a == axis else (0, 0) for a in (0, 1)]
        wide = np.pad(picture, around, mode="edge")
        parts = [
            tap * (wide[i : i + len(picture)] if axis == 0 else wide[:, i : i + len(picture)])
            for i, tap in enumerate(taps)
        ]
        picture = np.sum(parts, axis=0)
    return picture


def _coarse(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Wide Gaussian blur, computed on a coarse grid."""
    size, grid = picture.shape[0], min(picture.shape[0], 32)
    small = Image.fromarray(picture.astype(np.float32)).resize((grid, grid), Image.Resampling.BOX)
    small = _blur(np.asarray(small), sigma * grid / size).astype(np.float32)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))
