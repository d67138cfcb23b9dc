"""Findings of a simulated chest radiograph: what disease and devices do to a drawn chest.

How each one looks follows the Fleischner Society's glossary (Hansell et al. 2008,
https://doi.org/10.1148/radiol.2462070712): a meniscus of fluid that blunts the angle, consolidation
that hides the borders it touches and shows air bronchograms, a visceral pleural line without
markings beyond it.
"""

from __future__ import annotations

import numpy as np

from demo.cxr_anatomy import branch
from demo.cxr_chest import RULER, SIDES, Chest, smooth_field

LOBES = ("right upper", "right middle", "right lower", "left upper", "left lower")
DEVICES = ("pacemaker", "central venous line", "endotracheal tube", "nasogastric tube")
# cardiothoracic ratios of mild, moderate and severe cardiomegaly; a normal one is below 0.50
RATIOS = ((0.54, 0.58), (0.58, 0.64), (0.64, 0.71))
NORMAL_RATIOS = (0.40, 0.485)


def add_effusion(rng: np.random.Generator, chest: Chest, *, level: int, side: str) -> float:
    """Fluid under a meniscus that climbs the chest wall; returns its height in centimetres."""
    body, sign = chest.body, SIDES[side]
    height = (6.2, 9.0, 12.5)[level] * rng.uniform(0.9, 1.12)
    lateral = np.clip(sign * chest.x / np.maximum(chest.wall, 1), 0, 1)
    fall = (4.2, 3.4, 3.0)[level] * rng.uniform(0.9, 1.1) * (1 - lateral * lateral)
    under = np.maximum(chest.y - (body.base - height) - fall, 0)
    fluid = (1 - np.exp(-under / 0.7)) * (sign * (chest.x - chest.shift) > 0)
    chest.air[side] = chest.air[side] * (1 - fluid)
    chest.vessels = chest.vessels * (1 - fluid)
    return height


def add_consolidation(rng: np.random.Generator, chest: Chest, *, level: int, lobe: str) -> float:
    """Airspaces of one lobe filled; returns the opacity's width in centimetres."""
    body, side = chest.body, lobe.split()[0]
    across = SIDES[side] * chest.x / np.maximum(chest.wall, 1)
    fissure = (chest.y - body.apex) / body.tall - 0.5 - 0.05 * np.sin(3 * across)
    where = {
        "right upper": ((0.60, 0.31), -fissure),
        "right middle": ((0.42, 0.68), np.minimum(fissure, (0.68 - across) / 4)),
        "right lower": ((0.66, 0.80), fissure - 0.10),
        "left upper": ((0.56, 0.35), 0.06 - fissure),
        "left lower": ((0.56, 0.80), fissure - 0.12),
    }
    (at_x, at_y), inside = where[lobe]
    middle = np.array([at_x * body.half_width * SIDES[side], body.apex + at_y * body.tall])
    radius = (3.2, 4.4, 5.8)[level] * rng.uniform(0.9, 1.1)
    distance = np.hypot(chest.x - float(middle[0]), (chest.y - float(middle[1])) * 1.15)
    grain = smooth_field(rng, chest.x.shape, 1.6 * chest.px_per_cm)
    grain = grain + 0.5 * smooth_field(rng, chest.x.shape, 0.6 * chest.px_per_cm)
    filled = 1 / (1 + np.exp(-(radius - distance + 0.7 * grain) / 0.7))
    filled *= np.clip(inside * (body.tall / 0.6) + 0.5, 0, 1)
    filled *= np.clip(rng.uniform(0.78, 0.9) + 0.07 * grain, 0.5, 1)
    chest.air[side] = chest.air[side] * (1 - filled)
    chest.vessels = chest.vessels * (1 - 0.8 * filled)
    chest.tissue = chest.tissue - filled * _bronchograms(rng, chest, middle, radius)
    return 2 * radius


def _bronchograms(
    rng: np.random.Generator, chest: Chest, middle: np.ndarray, radius: float
) -> np.ndarray:
    """Air in the open airways of a filled lobe, (H, W)."""
    sign = float(np.sign(middle[0]))
    root = np.array([sign * 2.8, chest.body.apex + 0.47 * chest.body.tall])
    dx, dy = (middle - root) * (sign, 1)
    curves, widths = branch(
        rng,
        np.tile(root, (3, 1)),
        sign=np.full(3, sign),
        angle=np.arctan2(dy, dx) + np.array([-0.3, 0.0, 0.3]),
        reach=np.full(3, np.hypot(dx, dy) + radius),
        width=np.full(3, 0.45),
        twigs=1,
    )
    return chest.stroke(curves, widths, 1.8 * widths) * (chest.lung["left"] + chest.lung["right"])


def add_pneumothorax(rng: np.random.Generator, chest: Chest, *, level: int, side: str) -> float:
    """Air between lung and chest wall; returns the widest rim in centimetres."""
    body, sign = chest.body, SIDES[side]
    rim = (2.2, 3.8, 6.0)[level] * rng.uniform(0.9, 1.1)
    top = body.apex + 0.9 * rim
    gap = rim * (0.45 + 0.5 * body.up(RULER))
    line = np.where(top < RULER, body.inner_wall(RULER - 0.9 * rim) - gap, -1.0)
    kept = chest.edge(chest.profile(line) - sign * chest.x)
    half = sign * chest.x > 0
    shrunk = (0.97, 0.90, 0.78)[level]
    chest.air[side] = chest.air[side] * (shrunk * kept + 1.25 * (1 - kept))
    chest.vessels = chest.vessels * (1 - half * (1 - kept))
    seen = (line > 2.5) & (body.base + 1 > RULER)
    pleura = np.stack([sign * line[seen], RULER[seen]], 1)[::20]
    edge = chest.stroke(pleura[None], np.array([0.22]), np.array([1.0]))
    chest.tissue = chest.tissue + edge * chest.lung[side]
    return rim


def add_device(rng: np.random.Generator, chest: Chest, *, device: str, side: str) -> None:
    """A pacemaker, line or tube at its place."""
    body, sign = chest.body, SIDES.get(side, -1.0)
    arch, floor = body.arch, body.domes["left"]
    caval = [(-2.1, arch), (-2.3, arch + 4.5)]
    vein = [(sign * 2.6, body.apex + 3.4), (-1.6, body.apex + 4.8)]
    wander = rng.normal(0, 0.3)
    if device == "pacemaker":
        can = (sign * 0.70 * body.half_width + wander, body.apex + 5.2)
        chest.metal = chest.metal + chest.paint(_box(can, (2.6, 2.3))[None], 1.0)
        way = [(can[0], can[1] - 2), (sign * 6.5, body.apex + 3.2), *vein, *caval]
        way += [(-2.6, floor - 7), (0.5, floor - 3.4), (4.2 + wander, floor - 2.6)]
        wires = [(way, 0.36, 0.60)]
    elif device == "central venous line":
        neck = [(sign * 3.8, -1.0), (sign * 3.3, body.apex), *vein]
        wires = [([*(neck if sign > 0 else neck[:3]), *caval], 0.36, 0.60)]
    elif device == "endotracheal tube":
        tip = body.apex + 0.36 * body.tall - rng.uniform(2.5, 4.5)
        wall = [[(x + chest.turn / 2, -1.0), (x + chest.turn / 2, tip)] for x in (-0.45, 0.45)]
        wires = [(wall[0], 0.28, 0.35), (wall[1], 0.40, 0.60)]
    else:
        way = [(0.3, -1.0), (0.5 + wander, arch), (0.7, floor - 3), (2.0, floor + 1.2)]
        wires = [([*way, (5.0, floor + 3.2), (8.0 + wander, floor + 3.8)], 0.40, 0.60)]
    for way, width, thick in wires:
        line = chest.stroke(_rounded(way)[None], np.array([width]), np.array([thick]))
        chest.metal = np.maximum(chest.metal, line)


def _box(middle: tuple[float, float], half: tuple[float, float]) -> np.ndarray:
    """Outline (N, 2) of a box with round corners (a superellipse)."""
    t = np.linspace(0, 2 * np.pi, 40)
    circle = np.stack([np.cos(t), np.sin(t)], 1)
    return np.array(middle) + np.sign(circle) * np.abs(circle) ** 0.6 * half


def _rounded(way: list[tuple[float, float]]) -> np.ndarray:
    """A smooth curve (N, 2) along a polygon by cutting its corners (Chaikin 1974)."""
    curve = np.asarray(way, float)
    for _ in range(4):
        near = 0.75 * curve[:-1] + 0.25 * curve[1:]
        far = 0.25 * curve[:-1] + 0.75 * curve[1:]
        inner = np.stack([near, far], 1).reshape(-1, 2)
        curve = np.concatenate([curve[:1], inner[1:-1], curve[-1:]])
    return curve
