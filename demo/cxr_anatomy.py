"""A healthy simulated chest: trunk, lungs with vessels, heart, great vessels, windpipe, diaphragm.

Sizes are those of adult anatomy. The cardiothoracic ratio is the widest heart over the widest inner
chest (Danzer 1919); a normal one is below 0.5.
"""

from __future__ import annotations

import numpy as np

from demo.cxr_chest import RULER, SIDES, Body, Chest, smooth_knots
from demo.cxr_skeleton import draw_bones

BRANCHES = 18  # of each lung's vessels at the hilum


def draw_chest(rng: np.random.Generator, chest: Chest) -> None:
    """Fill in a healthy chest; findings come behind."""
    body = chest.body
    chest.heart = _heart(chest)
    chest.tissue = _trunk(chest) - _airways(chest)
    middle = np.maximum(_mediastinum(chest), chest.heart)
    up = body.up(RULER)
    depth = chest.profile(body.depth * np.sqrt(1 - 0.7 * up**2.5))
    across = chest.x / np.maximum(chest.wall, 0.1)
    room = np.maximum(depth * np.sqrt(np.maximum(1 - across * across, 0)) - middle, 0)
    room *= chest.edge(chest.wall - np.abs(chest.x)) * chest.edge(chest.y - body.apex)
    for side, sign in SIDES.items():
        distance = sign * (chest.x - chest.shift)
        above = _diaphragm(body, distance, side) - chest.y
        dome = chest.edge(above)
        sulcus = 0.16 * np.clip(1 + above / 4.0, 0, 1)  # lung behind the diaphragm's dome
        half = distance > 0
        chest.air[side] = room * half * np.maximum(dome, sulcus)
        chest.lung[side] = (room > 0) * half * dome
    chest.vessels = _vessels(rng, chest)
    chest.bone = draw_bones(rng, chest)
    chest.metal = np.zeros_like(chest.x)


def _diaphragm(body: Body, across: np.ndarray, side: str) -> np.ndarray:
    """Height of the diaphragm at distances `across` from the midline, on one side."""
    u = (across - 0.44 * body.half_width) / (0.56 * body.half_width)
    outer, inner = np.clip(u, 0, 1), np.clip(-u, 0, 1)
    fall = body.base + 0.6 - body.domes[side]
    return body.domes[side] + fall * outer * outer * np.sqrt(outer) + 1.1 * inner * inner


def _heart(chest: Chest) -> np.ndarray:
    """A leaning ellipsoid as wide as the cardiothoracic ratio says."""
    body = chest.body
    half = body.heart_ratio * body.half_width
    cosine, sine = 0.80, 0.60
    long, short = 1.10, 0.82
    scale = half / float(np.hypot(long * cosine, short * sine))
    dx = chest.x - (0.34 * half + chest.shift + 0.5 * chest.turn)
    dy = chest.y - (min(body.domes.values()) - 0.40 * half)
    along = (dx * cosine + dy * sine) / (long * scale)
    across = (dy * cosine - dx * sine) / (short * scale)
    deep = min(0.85 * body.depth, 2.1 * half)
    return deep * np.sqrt(np.maximum(1 - along * along - across * across, 0))


def _mediastinum(chest: Chest) -> np.ndarray:
    """Spine, great vessels and hila; they displace the lungs."""
    body, x = chest.body, chest.x - chest.shift
    arch = body.arch
    right = smooth_knots([0, body.apex, body.apex + 3, arch, arch + 8], [6.5, 5.6, 3.4, 2.8, 2.8])
    heights = [0, body.apex, body.apex + 3, arch, arch + 3, arch + 9]
    left = smooth_knots(heights, [6.5, 5.6, 3.4, 2.7, 3.0, 3.3])
    reach = np.where(
        x > 0, chest.profile(left + 0.4 * chest.turn), chest.profile(right - 0.4 * chest.turn)
    )
    share = x / reach
    both = body.depth * np.sqrt(np.maximum(1 - share * share, 0))
    front = chest.shift + 0.6 * chest.turn
    for at, size in (
        ((1.9 + front, arch), (1.9, 1.9, 4.5)),
        ((2.3 + front, arch + 3.4), (1.9, 2.3, 3.4)),
        ((3.4 + chest.shift, arch + 4.0), (1.6, 2.2, 1.3)),
        ((-3.4 + chest.shift, arch + 4.8), (1.5, 2.5, 1.3)),
    ):
        both = np.maximum(both, chest.ellipsoid(at, size))
    return both


def _airways(chest: Chest) -> np.ndarray:
    """Air of the windpipe and main bronchi, and of the stomach."""
    body = chest.body
    fork = body.apex + 0.36 * body.tall
    bend = 0.6 * chest.shift * np.clip((RULER - body.apex) / 6, 0, 1) + 0.5 * chest.turn
    x = chest.x - chest.profile(bend)
    inside = np.sqrt(np.maximum(1 - (x / 0.95) ** 2, 0))
    air = 1.9 * inside * chest.edge(fork - chest.y)
    for sign, slope in ((1.0, 0.75), (-1.0, 1.15)):
        along = sign * x
        off = (chest.y - fork + 0.5 - along * slope) / (0.65 * float(np.hypot(1, slope)))
        bronchus = np.sqrt(np.maximum(1 - off * off, 0))
        air = np.maximum(air, 1.4 * bronchus * ((along > 0) & (along < 3.6)))
    if body.bubble > 0:
        at = (0.40 * body.half_width, body.domes["left"] + 2.0)
        gas = chest.ellipsoid(at, (body.bubble, 0.55 * body.bubble, 2.6))
        air = air + gas * chest.edge(chest.y - body.domes["left"] - 0.9)
    return air


def _trunk(chest: Chest) -> np.ndarray:
    """Neck, shoulders, trunk and breasts, as if there were no air."""
    body = chest.body
    side = body.half_width + body.wall
    heights = [-4.0, body.apex - 4, body.apex - 1, body.apex + 3, body.apex + 9, body.apex + 14, 40]
    widths = [6.0, 6.6, 15.0, side + 6.0, side + 5.0, side, side + 0.4]
    depths = [12.0, 12.5, 14.0, body.depth - 1, body.depth + 3, body.depth + 4, body.depth + 3.5]
    half = chest.profile(smooth_knots(heights, widths))
    thick = chest.profile(smooth_knots(heights, depths) + 0.9 * (body.wall - 3))
    across = chest.x / half
    beam = thick * np.sqrt(np.maximum(1 - across * across, 0))
    for sign in SIDES.values() if body.breasts else ():
        at = (sign * 0.56 * body.half_width, body.domes["right"] - 2.0)
        wide = 0.44 * body.half_width
        beam = beam + chest.ellipsoid(at, (wide, 0.85 * wide, body.breasts / 2))
    return beam


def _vessels(rng: np.random.Generator, chest: Chest) -> np.ndarray:
    """Branches that thin out from the hila."""
    body = chest.body
    num = 2 * BRANCHES
    sign = np.repeat(list(SIDES.values()), BRANCHES)
    angle = np.tile(np.linspace(-1.4, 1.3, BRANCHES), 2) + rng.normal(0, 0.08, num)
    root = body.apex + 0.45 * body.tall + rng.normal(0, 0.8, num)
    start = np.stack([sign * rng.uniform(2.6, 3.6, num) + chest.shift, root], 1)
    reach = rng.uniform(0.45, 0.72, num) * body.half_width * (1 + 0.4 * np.abs(np.sin(angle)))
    curves, widths = branch(
        rng, start, sign=sign, angle=angle, reach=reach, width=rng.uniform(0.34, 0.55, num)
    )
    return body.markings * chest.stroke(curves, widths, 1.5 * np.sqrt(widths))


def branch(
    rng: np.random.Generator,
    start: np.ndarray,
    *,
    sign: np.ndarray,
    angle: np.ndarray,
    reach: np.ndarray,
    width: np.ndarray,
    twigs: int = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """Trees of vessels, thick pieces last.

    Args:
        rng: Source of bends and forks.
        start: Where each tree begins, (K, 2) in centimetres.
        sign: Side it grows to, (K,), see `SIDES`.
        angle: Downwards from the outward direction in radians, (K,).
        reach: Its length in centimetres, (K,).
        width: Its width in centimetres at the start, (K,).
        twigs: Generations of twigs behind it.

    Returns:
        Pieces (M, 3, 2) and their widths (M,).
    """
    steps = np.linspace(0, 1, 7)
    bend = angle[:, None] + rng.normal(0, 0.35, (len(angle), 1)) * steps
    moves = np.stack([sign[:, None] * np.cos(bend), np.sin(bend)], 2) * reach[:, None, None] / 6
    path = start[:, None] + np.cumsum(moves, 1) - moves[:, :1]
    thin = width[:, None] * (1 - 0.75 * steps)
    pieces = np.concatenate([path[:, at : at + 3] for at in (4, 2, 0)])
    widths = np.concatenate([thin[:, at + 1] for at in (4, 2, 0)])
    if not twigs:
        return pieces, widths
    forks = [2, 4] if twigs == 1 else [2, 3, 5]
    turn = rng.choice((-1, 1), (len(angle), len(forks)))
    turn = turn * rng.uniform(0.35, 0.85, turn.shape)
    finer = branch(
        rng,
        path[:, forks].reshape(-1, 2),
        sign=np.repeat(sign, len(forks)),
        angle=(angle[:, None] + turn).ravel(),
        reach=np.repeat(0.5 * reach, len(forks)),
        width=(0.55 * thin[:, forks] + 0.04).ravel(),
        twigs=twigs - 1,
    )
    return np.concatenate([finer[0], pieces]), np.concatenate([finer[1], widths])
