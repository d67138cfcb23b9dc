"""Simulated retinal OCT B-scans with ground truth, from a layered model of the macula.

A scan is drawn in four steps: the anatomy (demo/oct_eye.py), the lesions (demo/oct_lesions.py), a
reflectivity map at twice the resolution, and the device's look (shadows, speckle, compression).
Fully developed speckle is multiplicative and exponential in intensity (Goodman 1976,
https://doi.org/10.1364/JOSA.66.001145).

The pictures are phantoms: good for testing software and teaching, not for medical conclusions.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from demo import oct_report
from demo.oct_eye import RPE, SCLERA, Eye, Look, draw_eye
from demo.oct_lesions import LESIONS

FINDINGS = ("normal", *LESIONS)
SEVERITIES = ("mild", "moderate", "severe")

LOOKS = {
    "spectral": Look(1050, 6000, 9, 0.62, 0.03, 0.012, 190, 0.25),
    "cirrus": Look(1250, 5600, 8, 0.52, 0.12, 0.025, 150, 0.30),
    "swept": Look(1150, 7200, 7, 0.72, 0.06, 0.020, 420, 0.40),
    "portable": Look(950, 5000, 5, 0.55, 0.09, 0.030, 120, 0.60),
}


def reflectivity(rng: np.random.Generator, eye: Eye, *, look: Look) -> np.ndarray:
    """Reflectivity map (H, W) float32 in [0, 1]: layers, choroidal vessels, overlays, decay."""
    height, width = eye.depth.shape[0], eye.x_um.shape[0]
    steps = np.diff(np.concatenate([[0.0], eye.bright, [SCLERA]])).astype(np.float32)
    field = np.zeros((height, width), np.float32)
    for top, step in zip(eye.boundaries, steps):
        field += step * np.clip(eye.depth - top + 0.5, 0, 1)
    top, bottom = eye.boundaries[-2], eye.boundaries[-1]
    for _ in range(int(rng.integers(12, 22))):  # Haller's layer: dark vessel lumina
        column = int(rng.integers(width))
        radius = rng.uniform(18, 48) * eye.px_per_um
        row = top[column] + rng.uniform(0.15, 0.95) * (bottom[column] - top[column])
        reach = int(2.2 * radius) + 1
        rows = slice(max(int(row) - reach, 0), max(int(row) + reach, 0))
        columns = slice(max(column - 2 * reach, 0), column + 2 * reach)
        dz = eye.depth[rows] - row
        dx = (np.arange(width)[columns] - column) / 1.7
        inside = np.clip(1.6 - 1.6 * np.sqrt(dz**2 + dx**2) / radius, 0, 1)
        field[rows, columns] *= 1 - rng.uniform(0.35, 0.65) * inside
    for coverage, value in eye.overlays:
        field += coverage * (value - field)
    below = np.maximum(eye.depth - eye.boundaries[RPE + 1], 0) / eye.px_per_um
    return np.maximum(field, 0) * np.exp(-below / look.penetration_um)


def shadows(rng: np.random.Generator, eye: Eye) -> np.ndarray:
    """Transmission (H, W) in (0, 1]: retinal vessels shade everything below them."""
    shade = np.ones((1, eye.x_um.shape[0]), np.float32)
    for _ in range(int(rng.integers(1, 5))):
        centre = rng.uniform(eye.x_um[0], eye.x_um[-1])
        if abs(centre) < 450:  # the foveal avascular zone
            continue
        width, strength = rng.uniform(35, 90), rng.uniform(0.2, 0.55)
        shade *= 1 - strength * np.exp(-(((eye.x_um - centre) / width) ** 2))
    under = np.clip((eye.depth - eye.boundaries[1]) / (40 * eye.px_per_um), 0, 1)
    return 1 - under * (1 - shade)


def develop(rng: np.random.Generator, field: np.ndarray, *, look: Look) -> Image.Image:
    """From reflectivity (2N, 2N) to the device's 8-bit picture (N, N)."""
    speckle = rng.standard_gamma(look.looks, field.shape, dtype=np.float32) / look.looks
    intensity = field * speckle * rng.uniform(0.85, 1.1)
    size = field.shape[0] // 2
    intensity = intensity.reshape(size, 2, size, 2).mean((1, 3))
    gray = np.power(intensity, look.gamma) * (1 - look.floor) + look.floor * rng.uniform(0.8, 1.2)
    gray += rng.standard_normal(gray.shape, dtype=np.float32) * look.floor_noise
    sigma = look.blur_px * size / 128
    side = np.exp(-0.5 / sigma**2)
    for axis in (0, 1):  # a three-tap Gaussian is enough below one pixel
        before = np.roll(gray, 1, axis) + np.roll(gray, -1, axis)
        gray = (gray + side * before) / (1 + 2 * side)
    return Image.fromarray((np.clip(gray, 0, 1) * 255 + 0.5).astype(np.uint8))


def draw(
    patient_rng: np.random.Generator,
    rng: np.random.Generator,
    *,
    labels: list[str],
    level: int,
    look: str,
    resolution: int,
) -> tuple[Image.Image, str, dict[str, str]]:
    """Draw a scan of a patient and write its report.

    Args:
        patient_rng: Source of what all scans of the patient share.
        rng: Source of what is the scan's own.
        labels: One or more of `FINDINGS`.
        level: Severity, a place in `SEVERITIES`.
        look: Name out of `LOOKS`.
        resolution: Side of the square picture in pixels.

    Returns:
        The 8-bit gray picture, its report, and its truth as columns.
    """
    side = str(patient_rng.choice(["left", "central", "right"]))
    eye = draw_eye(rng, look=LOOKS[look], size=2 * resolution)
    lesions = {
        name: LESIONS[name](rng, eye, level=level, side=side) for name in labels if name != "normal"
    }
    field = reflectivity(rng, eye, look=LOOKS[look]) * shadows(rng, eye)
    first = next(iter(lesions.values()), {"count": 0, "size_um": 0.0})
    truth = {
        "severity": SEVERITIES[level] if lesions else "none",
        "side": side if lesions else "none",
        "count": str(int(first["count"])),
        "size_um": f"{first['size_um']:.0f}",
    }
    text = oct_report.compose(rng, lesions=lesions, severity=truth["severity"], side=side)
    return develop(rng, field, look=LOOKS[look]), text, truth
