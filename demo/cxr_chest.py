"""The canvas of a simulated chest radiograph: one patient's measures and maps of beam lengths.

Coordinates are the patient's own: x in centimetres from the midline, positive towards the
patient's left (the right of the picture, as a film is hung), y downwards. Every organ is a solid
that gives the length of the beam inside it, in centimetres at each pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

SIDES = {"left": 1.0, "right": -1.0}  # sign of x
PER_CM = 40.0  # gray levels of a drawing for one centimetre of beam
RULER = np.linspace(-10, 50, 6001)  # heights at which profiles are known
STEPS_PER_CM = 100


@dataclass(frozen=True)
class Body:
    """What one patient brings to every film; lengths in centimetres.

    Attributes:
        half_width: Half the widest inner chest.
        apex: Height of the lungs' tops, from the film's top.
        base: Height of the costophrenic angles.
        domes: Height of the diaphragm's tops, by side.
        depth: Front to back inside the chest.
        wall: Thickness of the soft chest wall at the side.
        heart_ratio: Cardiothoracic ratio, in (0, 1).
        breasts: Thickness of the breasts; 0 in men.
        density: Bone mineral, 1 is a young adult's.
        markings: Visibility of the lungs' vessels, 1 is usual.
        rib_drop: How far a rib falls from back to front.
        bubble: Half width of the stomach's gas.
    """

    half_width: float
    apex: float
    base: float
    domes: dict[str, float]
    depth: float
    wall: float
    heart_ratio: float
    breasts: float
    density: float
    markings: float
    rib_drop: float
    bubble: float

    @property
    def tall(self) -> float:
        """Height of the lungs."""
        return self.base - self.apex

    @property
    def arch(self) -> float:
        """Height of the aortic arch."""
        return self.apex + 0.27 * self.tall

    def up(self, y: np.ndarray) -> np.ndarray:
        """Share of the lungs' height at `y`: 0 at the base, 1 at the apex."""
        return np.clip((self.base - y) / self.tall, 0, 1)

    def inner_wall(self, y: np.ndarray) -> np.ndarray:
        """Distance of the inner chest wall from the midline at heights `y`."""
        up = self.up(y)
        return self.half_width * np.sqrt(np.maximum(1 - up**2.8, 0)) * (1 - 0.06 * up)


@dataclass
class Chest:
    """A film being drawn: maps (H, W) float32 of beam lengths in centimetres."""

    body: Body
    x: np.ndarray  # patient's coordinates of each pixel
    y: np.ndarray
    frame: np.ndarray  # (2, 3) from (x, y, 1) in centimetres to pixels
    turn: float  # shift of front structures by a turned patient
    shift: float  # of the mediastinum, by fluid or air under pressure
    px_per_cm: float = field(init=False)
    row: np.ndarray = field(init=False)  # place of each pixel's height on the ruler
    wall: np.ndarray = field(init=False)  # distance of the inner wall from the midline
    air: dict[str, np.ndarray] = field(init=False, default_factory=dict)  # in each lung
    lung: dict[str, np.ndarray] = field(init=False, default_factory=dict)  # coverage in [0, 1]
    heart: np.ndarray = field(init=False)
    vessels: np.ndarray = field(init=False)
    tissue: np.ndarray = field(init=False)  # the whole trunk, as if the lungs held none
    bone: np.ndarray = field(init=False)
    metal: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.px_per_cm = float(np.hypot(*self.frame[:, 0]))
        place = (self.y - RULER[0]) * STEPS_PER_CM + 0.5
        self.row = np.clip(place, 0, len(RULER) - 1).astype(np.int32)
        self.wall = self.profile(self.body.inner_wall(RULER))

    def profile(self, values: np.ndarray) -> np.ndarray:
        """At each pixel, the value of a profile known along `RULER`."""
        return values.astype(np.float32)[self.row]

    def edge(self, distance: np.ndarray) -> np.ndarray:
        """Antialiased coverage of where a distance in centimetres is positive."""
        return np.clip(distance * self.px_per_cm + 0.5, 0, 1)

    def ellipsoid(self, at: tuple[float, float], size: tuple[float, float, float]) -> np.ndarray:
        """Beam inside an upright ellipsoid with half axes `size` (across, up, along the beam)."""
        dx, dy = (self.x - at[0]) / size[0], (self.y - at[1]) / size[1]
        return 2 * size[2] * np.sqrt(np.maximum(1 - dx * dx - dy * dy, 0))

    def paint(self, outlines: np.ndarray, thickness: np.ndarray | float) -> np.ndarray:
        """Beam (H, W) in polygons (K, N, 2) of a thickness (K,); a later one covers."""
        canvas = Image.new("L", self.x.shape[::-1])
        pen = ImageDraw.Draw(canvas)
        fills = np.broadcast_to(np.minimum(np.multiply(thickness, PER_CM), 255), len(outlines))
        for outline, fill in zip(self._pixels(outlines), fills.tolist()):
            pen.polygon(outline, fill=round(fill))
        return np.asarray(canvas, np.float32) / PER_CM

    def stroke(self, curves: np.ndarray, width: np.ndarray, thickness: np.ndarray) -> np.ndarray:
        """Beam (H, W) in lines (K, N, 2) of a width (K,) and thickness (K,).

        A line under a pixel's width is drawn a pixel wide and as much thinner along the beam.
        """
        canvas = Image.new("L", self.x.shape[::-1])
        pen = ImageDraw.Draw(canvas)
        wanted = np.broadcast_to(np.multiply(width, self.px_per_cm), len(curves))
        drawn = np.maximum(np.round(wanted), 1)
        fills = np.minimum(np.multiply(thickness, PER_CM) * np.minimum(wanted / drawn, 1.2), 255)
        lines = zip(self._pixels(curves), drawn.astype(int).tolist(), fills.tolist())
        for line, pixels, fill in lines:
            pen.line(line, fill=round(fill), width=pixels)
        return np.asarray(canvas, np.float32) / PER_CM

    def _pixels(self, curves: np.ndarray) -> list[list[float]]:
        """Flat pixel coordinates of each curve of (K, N, 2)."""
        at = curves @ self.frame[:, :2].T + self.frame[:, 2]
        return at.reshape(len(at), -1).tolist()


def ribbon(curves: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """Outlines (K, 2 N, 2) of bands along curves (K, N, 2); the width is one or (N,)."""
    along = np.gradient(curves, axis=1)
    across = np.stack([-along[..., 1], along[..., 0]], -1)
    across /= np.linalg.norm(across, axis=-1, keepdims=True) + 1e-6
    offset = across * np.broadcast_to(np.divide(width, 2), curves.shape[1])[:, None]
    return np.concatenate([curves + offset, (curves - offset)[:, ::-1]], 1)


def smooth_knots(heights: list[float], values: list[float]) -> np.ndarray:
    """A smooth profile along `RULER` through knots."""
    coarse = RULER[::20]
    line = np.interp(coarse, heights, values)
    kernel = np.hanning(17)
    smooth = np.convolve(np.pad(line, 8, mode="edge"), kernel / kernel.sum(), mode="valid")
    return np.interp(RULER, coarse, smooth)


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], cell_px: float) -> np.ndarray:
    """Random field (H, W) of about unit deviation whose grains measure `cell_px` pixels."""
    coarse = [int(np.ceil(n / max(cell_px, 1))) + 1 for n in shape]
    grid = Image.fromarray(rng.standard_normal(coarse, dtype=np.float32))
    return np.asarray(grid.resize(shape[::-1], Image.Resampling.BICUBIC))
