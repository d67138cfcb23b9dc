"""The anatomy of a simulated OCT B-scan: thirteen layers over a curved, tilted retina.

Thicknesses and reflectivities follow the consensus nomenclature of Staurenghi et al. 2014
(https://doi.org/10.1016/j.ophtha.2014.02.023).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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


@dataclass
class Eye:
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


def smooth_noise(rng: np.random.Generator, width: int, waves: int) -> np.ndarray:
    """A smooth random profile (width,) of unit amplitude from `waves` low harmonics."""
    x = np.linspace(0, 1, width, dtype=np.float32)
    n = np.arange(1, waves + 1, dtype=np.float32)[:, None]
    phase = rng.uniform(0, 2 * np.pi, (waves, 1)).astype(np.float32)
    weight = rng.normal(0, 1, (waves, 1)).astype(np.float32) / n
    return (weight * np.sin(np.pi * n * x + phase)).sum(0)


def draw_eye(rng: np.random.Generator, *, look: Look, size: int) -> Eye:
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
    wave = 5 * smooth_noise(rng, size, 4)
    base = look.depth_um * rng.uniform(0.50, 0.66) - bend + tilt + wave  # bottom of the RPE
    tops = (
        base
        - retina
        + np.concatenate([np.zeros((1, size), np.float32), np.cumsum(thickness, axis=0)])
    )
    bright = np.array([layer[3] for layer in LAYERS], np.float32)
    bright *= rng.uniform(0.9, 1.1, len(LAYERS)).astype(np.float32)
    depth = np.arange(size, dtype=np.float32)[:, None]
    return Eye((tops * px_per_um).astype(np.float32), x_um, px_per_um, depth, bright, [])
