"""Bones of a simulated chest radiograph: lengths of the beam in compact bone, centimetres."""

from __future__ import annotations

import numpy as np

from demo.cxr_chest import RULER, SIDES, Chest, ribbon

NUM_RIBS = 11
NUM_FRONT = 7  # ribs whose front ends are bone; the others' are cartilage, or free


def draw_bones(rng: np.random.Generator, chest: Chest) -> np.ndarray:
    """Ribs behind and in front, spine, collarbones and shoulder blades, (H, W)."""
    behind, ahead = _ribs(rng, chest)
    cartilage = np.clip((np.abs(chest.x) - 4.5) / 5, 0, 1)  # bone fades into it
    bone = _hollow(chest, behind, 0.95) + 0.75 * cartilage * _hollow(chest, ahead, 1.15)
    return chest.body.density * (bone + _spine(chest) + _collarbones(chest) + _shoulders(chest))


def _hollow(chest: Chest, curves: np.ndarray, width: float) -> np.ndarray:
    """Long bones along curves: a dense rind around a lighter core."""
    rind, core = ribbon(curves, width), ribbon(curves, 0.6 * width)
    outlines = np.stack([rind, core], 1).reshape(-1, *rind.shape[1:])
    return chest.paint(outlines, np.tile([0.52, 0.42], len(curves)))


def _ribs(rng: np.random.Generator, chest: Chest) -> tuple[np.ndarray, np.ndarray]:
    """Curves (K, N, 2) of the ribs behind and in front: tilted loops seen from the front."""
    body = chest.body
    number = np.arange(NUM_RIBS)[:, None]
    origin = body.apex - 0.5 + number * body.tall / 9.6 + rng.normal(0, 0.06, (NUM_RIBS, 1))
    drop = body.rib_drop * np.minimum(0.5 + 0.1 * number, 1.1)
    wide = body.inner_wall(origin + 0.5 * drop) + 0.3
    parts = []
    for first, last, shift in ((0.035, 0.5, -0.2), (0.5, 0.87, 0.6)):
        t = np.linspace(first, last, 20) * np.pi
        hump = 0.9 * np.sin(2 * t) * (last <= 0.5)
        y = origin + drop * (1 - np.cos(t)) / 2 - hump
        x = wide * np.sin(t) ** 0.9
        sides = [np.stack([s * x + shift * chest.turn, y], -1) for s in SIDES.values()]
        parts.append(
            np.concatenate([side[: NUM_RIBS if last <= 0.5 else NUM_FRONT] for side in sides])
        )
    return parts[0], parts[1]


def _spine(chest: Chest) -> np.ndarray:
    """Vertebrae with discs between them, pedicles and spinous processes."""
    x = np.abs(chest.x + 0.3 * chest.turn)
    row = (RULER % 2.5) / 2.5
    disc = chest.profile(1 - 0.5 * np.exp(-(((row - 0.5) / 0.11) ** 2)))
    process = chest.profile(np.exp(-(((row - 0.1) / 0.22) ** 2)))
    pedicle = chest.profile(np.exp(-(((row - 0.05) / 0.2) ** 2)))
    square = (x / 1.75) ** 2
    body = 0.55 * disc * np.sqrt(np.maximum(1 - square * square, 0))
    near = x < 3
    body[near] += 0.4 * process[near] * np.exp(-((x[near] / 0.35) ** 2))
    body[near] += 0.25 * pedicle[near] * np.exp(-(((x[near] - 1.1) / 0.35) ** 2))
    return body


def _collarbones(chest: Chest) -> np.ndarray:
    t = np.linspace(0, 1, 18)
    y = chest.body.apex + 3.2 - 3.4 * t - 0.8 * np.sin(2 * np.pi * t)
    curves = np.stack([np.stack([s * (1.9 + 13.5 * t) + chest.turn, y], 1) for s in SIDES.values()])
    width = 1.2 + 0.5 * (2 * t - 1) ** 2
    outlines = np.concatenate([ribbon(curves, width), ribbon(curves, 0.6 * width)])
    return chest.paint(outlines, np.repeat([0.66, 0.5], 2))


def _shoulders(chest: Chest) -> np.ndarray:
    """Shoulder blades, turned out of the lungs, and the heads of the arms' bones."""
    body = chest.body
    x = body.half_width + np.array([-0.8, 0.0, 0.5, 2.2, 6.0, 5.0])
    blade = np.stack([x, body.apex + np.array([2.5, 8.0, 13.0, 10.0, 3.5, 1.0])], 1)
    core = blade.mean(0) + 0.86 * (blade - blade.mean(0))
    t = np.linspace(0, 2 * np.pi, 24)
    ball = np.stack([np.cos(t), np.sin(t)], 1) * 2.5 + [body.half_width + 6.5, body.apex + 2]
    mirrors = np.array([[[s, 1.0]] for s in SIDES.values()])
    blades = chest.paint(
        np.concatenate([blade * mirrors, core * mirrors]), np.repeat([0.3, 0.2], 2)
    )
    return blades + chest.paint(ball * mirrors, 1.0)
