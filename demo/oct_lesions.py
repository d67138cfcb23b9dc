"""Lesions of a simulated OCT B-scan: they bend the layers' boundaries and add fluid."""

from __future__ import annotations

import numpy as np

from demo.oct_eye import FLUID, INL, ONL, RPE, Eye, smooth_noise


def _place(rng: np.random.Generator, eye: Eye, side: str, reach_um: float) -> float:
    """Lateral centre of a lesion in micrometres, on the asked side of the fovea."""
    low, high = 0.22 * reach_um, 0.85 * reach_um
    limits = float(eye.x_um[0]) * 0.72, float(eye.x_um[-1]) * 0.72
    at = {"left": -rng.uniform(low, high), "right": rng.uniform(low, high)}
    return float(np.clip(at.get(side, rng.normal(0, 120)), *limits))


def _dome(eye: Eye, *, centre: float, width: float, power: float = 2.0) -> np.ndarray:
    """A bump profile (W,) of height 1 and full width `width` micrometres; flat outside."""
    u = np.clip(np.abs(eye.x_um - centre) / (width / 2), 0, 1)
    return (1 - u**power) ** 1.5


def _add_edema(rng: np.random.Generator, eye: Eye, *, level: int, side: str) -> dict[str, float]:
    """Cystoid macular edema: thickened retina with dark cysts in the INL and the outer layers."""
    centre = _place(rng, eye, side, 1300)
    extent = (1500, 2200, 3000)[level] * rng.uniform(0.85, 1.15)
    swelling = (70, 140, 230)[level] * rng.uniform(0.85, 1.15)
    profile = swelling * _dome(eye, centre=centre, width=extent * 1.25)
    for row in range(ONL + 1):
        eye.boundaries[row] -= profile * (1 - row / (ONL + 1.6)) * eye.px_per_um
    count = int(rng.integers((2, 4, 6)[level], (4, 7, 10)[level]))
    largest = 0.0
    for at in np.linspace(-0.42, 0.42, count) * extent + rng.normal(0, 40, count):
        column = int(np.argmin(np.abs(eye.x_um - (centre + at))))
        outer = rng.random() < 0.65
        top = eye.boundaries[ONL if outer else INL, column]
        bottom = eye.boundaries[ONL + 1 if outer else ONL, column]
        room = max((bottom - top) / eye.px_per_um, 60)
        half_z = 0.5 * room * rng.uniform(0.75, 1.0)
        half_x = min(extent / count * rng.uniform(0.42, 0.6), half_z * 3.2) + 45
        dz = (eye.depth - (top + bottom) / 2) / (half_z * eye.px_per_um)
        dx = (eye.x_um - eye.x_um[column]) / half_x
        distance = np.sqrt(dz**2 + dx**2)
        eye.overlays.append((np.clip((1 - distance) * half_z * eye.px_per_um, 0, 1), FLUID))
        largest = max(largest, 2 * half_x)
    return {"count": count, "size_um": largest, "centre_um": centre}


def _add_drusen(rng: np.random.Generator, eye: Eye, *, level: int, side: str) -> dict[str, float]:
    """Drusen: small mounds of medium reflectivity between the RPE and Bruch's membrane."""
    centre = _place(rng, eye, side, 1400)
    count = int(rng.integers((2, 4, 6)[level], (4, 7, 10)[level]))
    spread = 480 * count
    flat = eye.boundaries[RPE + 1].copy()
    bump, largest = np.zeros_like(eye.x_um), 0.0
    for at in np.linspace(-0.5, 0.5, count) * spread:
        width = rng.uniform(280, 520)
        height = (48, 66, 88)[level] * rng.uniform(0.75, 1.25)
        profile = height * _dome(eye, centre=centre + at + rng.normal(0, 50), width=width)
        bump, largest = np.maximum(bump, profile), max(largest, width)
    eye.lift(slice(ONL + 1, RPE + 2), bump)
    eye.lift(slice(INL, ONL + 1), 0.35 * bump)
    eye.overlays.append((eye.band(eye.boundaries[RPE + 1], flat), rng.uniform(0.40, 0.52)))
    eye.boundaries[RPE + 1] = flat  # Bruch's membrane stays; the choroid begins there
    eye.overlays.append(
        (
            eye.band(flat - bump * eye.px_per_um - 24 * eye.px_per_um, flat - bump * eye.px_per_um),
            float(eye.bright[RPE]),
        )
    )
    return {"count": count, "size_um": largest, "centre_um": centre}


def _add_ped(rng: np.random.Generator, eye: Eye, *, level: int, side: str) -> dict[str, float]:
    """Pigment epithelial detachment: one dome of RPE over serous or fibrovascular content."""
    centre = _place(rng, eye, side, 1300)
    width = (1100, 1700, 2400)[level] * rng.uniform(0.85, 1.15)
    height = (110, 165, 230)[level] * rng.uniform(0.85, 1.15)
    dome = height * _dome(eye, centre=centre, width=width)
    flat = eye.boundaries[RPE + 1].copy()
    eye.lift(slice(0, RPE + 2), dome)
    lifted = eye.boundaries[RPE + 1].copy()
    content = rng.choice((0.05, 0.30))
    eye.overlays.append((eye.band(lifted, flat), float(content)))
    line = 10 * eye.px_per_um * (dome > 4)
    eye.overlays.append((eye.band(flat, flat + line), 0.5))  # Bruch's membrane shows below
    eye.boundaries[RPE + 1] = flat
    rim = 26 * eye.px_per_um
    eye.overlays.append((eye.band(lifted - rim, lifted) * (dome > 4), float(eye.bright[RPE])))
    return {"count": 1, "size_um": width, "centre_um": centre}


def _add_fluid(rng: np.random.Generator, eye: Eye, *, level: int, side: str) -> dict[str, float]:
    """Subretinal fluid: a dark lens between the photoreceptors and a flat RPE."""
    centre = _place(rng, eye, side, 1200)
    width = (1700, 2500, 3300)[level] * rng.uniform(0.85, 1.15)
    height = (80, 125, 180)[level] * rng.uniform(0.85, 1.15)
    dome = height * _dome(eye, centre=centre, width=width)
    bed = eye.boundaries[RPE].copy()
    eye.lift(slice(0, RPE + 1), dome)
    eye.overlays.append((eye.band(eye.boundaries[RPE], bed), FLUID))
    eye.boundaries[RPE] = bed
    return {"count": 1, "size_um": width, "centre_um": centre}


def _add_membrane(rng: np.random.Generator, eye: Eye, *, level: int, side: str) -> dict[str, float]:
    """Epiretinal membrane: a bright line over folds of the inner retina; the pit is flattened."""
    centre = _place(rng, eye, side, 900)
    width = (2600, 3400, 4300)[level] * rng.uniform(0.9, 1.1)
    where = _dome(eye, centre=centre, width=width, power=6.0)
    pit = np.exp(-((eye.x_um / 560) ** 2)) * (60, 95, 125)[level]
    period = rng.uniform(300, 520)
    height = (12, 18, 25)[level] * where
    folds = height * np.sin(2 * np.pi * eye.x_um / period + rng.uniform(0, 2 * np.pi))
    folds *= 1 + 0.4 * smooth_noise(rng, folds.shape[0], 6)
    pull = (pit + (20, 40, 65)[level]) * where
    for row in range(INL + 1):
        share = 1 - row / (INL + 1.5)
        eye.boundaries[row] -= (pull + folds) * share * eye.px_per_um
    valley = np.maximum(0.7 * height - folds, 0)  # the membrane bridges the valleys
    line = eye.boundaries[0] - valley * eye.px_per_um
    thick = (18, 22, 27)[level] * eye.px_per_um
    eye.overlays.append((eye.band(line - thick, line) * (where > 0.05), 0.95))
    return {"count": 1, "size_um": width, "centre_um": centre}


LESIONS = {
    "macular edema": _add_edema,
    "drusen": _add_drusen,
    "pigment epithelial detachment": _add_ped,
    "subretinal fluid": _add_fluid,
    "epiretinal membrane": _add_membrane,
}
