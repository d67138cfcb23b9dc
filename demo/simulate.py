"""Simulated retinal OCT B-scans with ground truth and report, from a layered model of the macula.

A scan is drawn in four steps: the anatomy (boundaries of thirteen layers over a curved, tilted
retina with a foveal pit), the lesions (which bend the boundaries and add fluid), a reflectivity map
at twice the resolution, and the device's look (shadows, speckle, compression). Reflectivities and
thicknesses follow the consensus nomenclature of Staurenghi et al. 2014
(https://doi.org/10.1016/j.ophtha.2014.02.023); fully developed speckle is multiplicative and
exponential in intensity (Goodman 1976, https://doi.org/10.1364/JOSA.66.001145).

The pictures are phantoms: good for testing software and teaching, not for medical conclusions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from demo import oct_report
from utils import images

FINDINGS = (
    "normal",
    "macular edema",
    "drusen",
    "pigment epithelial detachment",
    "subretinal fluid",
    "epiretinal membrane",
)
SEVERITIES = ("mild", "moderate", "severe")
SCANS_PER_PATIENT = 2

# name, thickness in micrometres at the fovea and 1.5 mm away from it, reflectivity in [0, 1]
LAYERS = (
    ("RNFL", 4.0, 34.0, 0.62),
    ("GCL", 3.0, 38.0, 0.36),
    ("IPL", 6.0, 34.0, 0.44),
    ("INL", 8.0, 36.0, 0.21),
    ("OPL", 10.0, 26.0, 0.42),
    ("ONL", 95.0, 62.0, 0.15),
    ("ELM", 9.0, 9.0, 0.36),
    ("myoid", 18.0, 14.0, 0.20),
    ("EZ", 18.0, 17.0, 0.78),
    ("OS", 28.0, 18.0, 0.32),
    ("RPE", 24.0, 24.0, 0.95),
    ("choriocapillaris", 22.0, 22.0, 0.50),
    ("choroid", 200.0, 220.0, 0.36),
)
NAMES = tuple(layer[0] for layer in LAYERS)
EZ, OS, RPE = NAMES.index("EZ"), NAMES.index("OS"), NAMES.index("RPE")
INL, ONL = NAMES.index("INL"), NAMES.index("ONL")
SCLERA = 0.26
FLUID = 0.02  # reflectivity of clear fluid: almost nothing scatters


@dataclass(frozen=True)
class Look:
    """How one device shows a retina.

    Attributes:
        depth_um: Depth shown, in micrometres; sets the aspect.
        width_um: Width shown, in micrometres.
        looks: Independent speckle frames averaged by the device; more is smoother.
        gamma: Exponent of the compression from intensity to gray.
        floor: Gray level of the empty vitreous, in [0, 1].
        floor_noise: Standard deviation of the vitreous' noise, in [0, 1].
        penetration_um: Depth below the RPE at which the signal falls to 1 / e.
        blur_px: Standard deviation of the optics' blur, in pixels of the final image at 128 px.
    """

    depth_um: float
    width_um: float
    looks: float
    gamma: float
    floor: float
    floor_noise: float
    penetration_um: float
    blur_px: float


LOOKS = {
    "spectral": Look(1050, 6000, 9, 0.62, 0.03, 0.012, 190, 0.25),
    "cirrus": Look(1250, 5600, 8, 0.52, 0.12, 0.025, 150, 0.30),
    "swept": Look(1150, 7200, 7, 0.72, 0.06, 0.020, 420, 0.40),
    "portable": Look(950, 5000, 5, 0.55, 0.09, 0.030, 120, 0.60),
}


@dataclass(frozen=True)
class Scan:
    """One simulated B-scan.

    Attributes:
        image: 8-bit gray picture, resolution x resolution.
        text: The report, one or two sentences composed from `truth`.
        label: Findings joined by ``;``.
        truth: Ground truth, one column a key: severity, side, count, size_um, look, patient_id.
    """

    image: Image.Image
    text: str
    label: str
    truth: dict[str, str]


@dataclass
class _Eye:
    """A retina being drawn; lengths in pixels of the double-resolution canvas, (W,) a row."""

    boundaries: np.ndarray  # (L + 1, W): top of each layer, last row = top of the sclera
    x_um: np.ndarray  # (W,) lateral distance from the fovea
    px_per_um: float  # in depth
    depth: np.ndarray  # (H, 1) row coordinates
    bright: np.ndarray  # (L,) reflectivities of the layers
    overlays: list[tuple[np.ndarray, float]]  # (H, W) coverage in [0, 1], reflectivity

    def lift(self, layers: slice, by_um: np.ndarray) -> None:
        """Move the tops of `layers` towards the vitreous by a profile (W,) in micrometres."""
        self.boundaries[layers] -= by_um * self.px_per_um

    def band(self, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        """Antialiased coverage (H, W) of the band between two boundaries (W,)."""
        return np.clip(self.depth - top + 0.5, 0, 1) * np.clip(bottom - self.depth + 0.5, 0, 1)


def _smooth_noise(rng: np.random.Generator, width: int, waves: int) -> np.ndarray:
    """A smooth random profile (width,) of unit amplitude from `waves` low harmonics."""
    x = np.linspace(0, 1, width, dtype=np.float32)
    n = np.arange(1, waves + 1, dtype=np.float32)[:, None]
    phase = rng.uniform(0, 2 * np.pi, (waves, 1)).astype(np.float32)
    weight = rng.normal(0, 1, (waves, 1)).astype(np.float32) / n
    return (weight * np.sin(np.pi * n * x + phase)).sum(0)


def _draw_eye(rng: np.random.Generator, *, look: Look, size: int) -> _Eye:
    """A healthy retina on a canvas of `size` pixels each way."""
    px_per_um = size / look.depth_um
    fovea = rng.uniform(-0.12, 0.12) * look.width_um
    x_um = np.linspace(-0.5, 0.5, size, dtype=np.float32) * look.width_um - fovea
    pit = np.exp(-((x_um / rng.uniform(420, 620)) ** 2))  # 1 at the fovea
    nasal = 1 + rng.choice((-1, 1)) * 0.25 * np.tanh(x_um / 2000)
    thickness = []
    for name, central, peripheral, _ in LAYERS:
        share = pit * rng.uniform(0.85, 1.0) if name != "choroid" else pit
        layer = central * share + peripheral * rng.uniform(0.85, 1.15) * (1 - share)
        thickness.append(layer * nasal if name == "RNFL" else layer)
    retina = sum(thickness[: RPE + 1])
    bend = rng.uniform(-0.4, 1.3) * (x_um / 1000) ** 2 * 12  # bowl-shaped: the edges rise
    tilt = rng.normal(0, 16) * x_um / 1000
    wave = 5 * _smooth_noise(rng, size, 4)
    base = look.depth_um * rng.uniform(0.50, 0.66) - bend + tilt + wave  # bottom of the RPE
    tops = (
        base
        - retina
        + np.concatenate([np.zeros((1, size), np.float32), np.cumsum(thickness, axis=0)])
    )
    bright = np.array([layer[3] for layer in LAYERS], np.float32)
    bright *= rng.uniform(0.9, 1.1, len(LAYERS)).astype(np.float32)
    depth = np.arange(size, dtype=np.float32)[:, None]
    return _Eye((tops * px_per_um).astype(np.float32), x_um, px_per_um, depth, bright, [])


def _place(rng: np.random.Generator, eye: _Eye, side: str, reach_um: float) -> float:
    """Lateral centre of a lesion in micrometres, on the asked side of the fovea."""
    low, high = 0.22 * reach_um, 0.85 * reach_um
    limits = float(eye.x_um[0]) * 0.72, float(eye.x_um[-1]) * 0.72
    at = {"left": -rng.uniform(low, high), "right": rng.uniform(low, high)}
    return float(np.clip(at.get(side, rng.normal(0, 120)), *limits))


def _dome(eye: _Eye, *, centre: float, width: float, power: float = 2.0) -> np.ndarray:
    """A bump profile (W,) of height 1 and full width `width` micrometres; flat outside."""
    u = np.clip(np.abs(eye.x_um - centre) / (width / 2), 0, 1)
    return (1 - u**power) ** 1.5


def _add_edema(rng: np.random.Generator, eye: _Eye, *, level: int, side: str) -> dict[str, float]:
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


def _add_drusen(rng: np.random.Generator, eye: _Eye, *, level: int, side: str) -> dict[str, float]:
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


def _add_ped(rng: np.random.Generator, eye: _Eye, *, level: int, side: str) -> dict[str, float]:
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


def _add_fluid(rng: np.random.Generator, eye: _Eye, *, level: int, side: str) -> dict[str, float]:
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


def _add_membrane(
    rng: np.random.Generator, eye: _Eye, *, level: int, side: str
) -> dict[str, float]:
    """Epiretinal membrane: a bright line over folds of the inner retina; the pit is flattened."""
    centre = _place(rng, eye, side, 900)
    width = (2600, 3400, 4300)[level] * rng.uniform(0.9, 1.1)
    where = _dome(eye, centre=centre, width=width, power=6.0)
    pit = np.exp(-((eye.x_um / 560) ** 2)) * (60, 95, 125)[level]
    period = rng.uniform(300, 520)
    height = (12, 18, 25)[level] * where
    folds = height * np.sin(2 * np.pi * eye.x_um / period + rng.uniform(0, 2 * np.pi))
    folds *= 1 + 0.4 * _smooth_noise(rng, folds.shape[0], 6)
    pull = (pit + (20, 40, 65)[level]) * where
    for row in range(INL + 1):
        share = 1 - row / (INL + 1.5)
        eye.boundaries[row] -= (pull + folds) * share * eye.px_per_um
    valley = np.maximum(0.7 * height - folds, 0)  # the membrane bridges the valleys
    line = eye.boundaries[0] - valley * eye.px_per_um
    thick = (18, 22, 27)[level] * eye.px_per_um
    eye.overlays.append((eye.band(line - thick, line) * (where > 0.05), 0.95))
    return {"count": 1, "size_um": width, "centre_um": centre}


_LESIONS = {
    "macular edema": _add_edema,
    "drusen": _add_drusen,
    "pigment epithelial detachment": _add_ped,
    "subretinal fluid": _add_fluid,
    "epiretinal membrane": _add_membrane,
}


def _reflectivity(rng: np.random.Generator, eye: _Eye, *, look: Look) -> np.ndarray:
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


def _shadows(rng: np.random.Generator, eye: _Eye) -> np.ndarray:
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


def _develop(rng: np.random.Generator, field: np.ndarray, *, look: Look) -> Image.Image:
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


def simulate(
    index: int,
    *,
    seed: int,
    findings: Sequence[str] | None = None,
    looks: Sequence[str] | None = None,
    resolution: int = 128,
    combination_prob: float = 0.0,
) -> Scan:
    """Draw scan number `index` of the simulated population `seed`.

    Args:
        index: Number of the scan, >= 0. Two successive scans show the same patient.
        seed: Population; with `index` it fixes every pixel and word.
        findings: Names out of `FINDINGS` to take turns by patient; all by default.
        looks: Names out of `LOOKS`, one of which is drawn by patient; all by default.
        resolution: Side of the square picture in pixels.
        combination_prob: Probability in [0, 1] that a patient with a lesion has a second one.

    Returns:
        The scan with its truth.

    Raises:
        KeyError: If a finding or a look does not exist.
    """
    patient = index // SCANS_PER_PATIENT
    rng = np.random.default_rng([seed, patient])
    names = list(findings or FINDINGS)
    labels = [names[patient % len(names)]]
    devices = list(looks or LOOKS)
    look_name = devices[int(rng.integers(len(devices)))] if len(devices) > 1 else devices[0]
    if labels[0] != "normal" and rng.random() < combination_prob:
        labels.append(str(rng.choice([f for f in _LESIONS if f != labels[0]])))
    level = int(rng.integers(len(SEVERITIES)))
    side = str(rng.choice(["left", "central", "right"]))
    rng = np.random.default_rng([seed, patient, index])
    device = LOOKS[look_name]
    eye = _draw_eye(rng, look=device, size=2 * resolution)
    lesions = {
        name: _LESIONS[name](rng, eye, level=level, side=side)
        for name in labels
        if name != "normal"
    }
    field = _reflectivity(rng, eye, look=device) * _shadows(rng, eye)
    first = next(iter(lesions.values()), {"count": 0, "size_um": 0.0})
    truth = {
        "severity": SEVERITIES[level] if lesions else "none",
        "side": side if lesions else "none",
        "count": str(int(first["count"])),
        "size_um": f"{first['size_um']:.0f}",
        "look": look_name,
        "patient_id": f"S{seed}-{patient:05d}",
    }
    text = oct_report.compose(rng, lesions=lesions, severity=truth["severity"], side=side)
    return Scan(_develop(rng, field, look=device), text, ";".join(labels), truth)


def _write_one(index: int, *, output_dir: Path, **kwargs: object) -> dict[str, str]:
    """Draw one scan, write its PNG, return its metadata row."""
    scan = simulate(index, **kwargs)
    file_name = f"images/{index:06d}.png"
    images.save_png(scan.image, output_dir / file_name)
    truth = dict(scan.truth)
    patient = truth.pop("patient_id")
    source = f"simulated-{truth.pop('look')}"
    row = {"file_name": file_name, "text": scan.text, "label": scan.label, "patient_id": patient}
    return {**row, "source": source, "modality": "OCT", **truth}


def write_scans(
    output_dir: Path,
    *,
    num_images: int,
    seed: int,
    resolution: int = 128,
    looks: Sequence[str] | None = None,
    findings: Sequence[str] | None = None,
    combination_prob: float = 0.0,
    num_workers: int = 1,
) -> list[dict[str, str]]:
    """Draw scans 0 .. `num_images` - 1 of population `seed` as PNGs below ``output_dir/images``.

    Findings take turns by patient, so that the classes are balanced.

    Args:
        output_dir: Dataset folder to fill; exists.
        num_images: How many scans.
        seed: Population, see `simulate`.
        resolution: Side of the square pictures in pixels.
        looks: Names out of `LOOKS`; all by default.
        findings: Names out of `FINDINGS`; all by default.
        combination_prob: See `simulate`.
        num_workers: Processes that draw; the number changes no pixel.

    Returns:
        The rows of metadata.csv, in order.
    """
    (output_dir / "images").mkdir(exist_ok=True)
    draw = partial(
        _write_one,
        output_dir=output_dir,
        seed=seed,
        findings=findings,
        looks=looks,
        resolution=resolution,
        combination_prob=combination_prob,
    )
    with get_context("spawn").Pool(num_workers) as pool:
        drawn = pool.imap(draw, range(num_images), chunksize=16)
        return list(tqdm(drawn, total=num_images, desc="draw scans", unit="image"))
