"""Simulated chest radiographs with ground truth: a patient, a finding, and a machine's look.

A film is drawn in four steps: the patient in a pose, the anatomy as lengths of the beam in air,
soft tissue, bone and metal (demo/cxr_anatomy.py), the findings (demo/cxr_findings.py), and the
machine (demo/cxr_film.py). Films hang as seen from the front (PA convention): the patient's left
is on the right of the picture.

The pictures are phantoms: good for testing software and teaching, not for medical conclusions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from demo import cxr_report
from demo.cxr_anatomy import draw_chest
from demo.cxr_chest import SIDES, Body, Chest
from demo.cxr_film import LOOKS, Look, develop
from demo.cxr_findings import (
    DEVICES,
    LOBES,
    NORMAL_RATIOS,
    RATIOS,
    add_consolidation,
    add_device,
    add_effusion,
    add_pneumothorax,
)

FINDINGS = (
    "normal",
    "cardiomegaly",
    "left pleural effusion",
    "right pleural effusion",
    "left pneumothorax",
    "right pneumothorax",
    "consolidation",
    "support device",
)
SEVERITIES = ("mild", "moderate", "severe")


def draw(
    patient_rng: np.random.Generator,
    rng: np.random.Generator,
    *,
    labels: list[str],
    level: int,
    look: str,
    resolution: int,
) -> tuple[Image.Image, str, dict[str, str]]:
    """Draw a film of a patient and write its report.

    Args:
        patient_rng: Source of what all films of the patient share.
        rng: Source of what is the film's own.
        labels: One or more of `FINDINGS`.
        level: Severity, a place in `SEVERITIES`.
        look: Name out of `LOOKS`.
        resolution: Side of the square picture in pixels.

    Returns:
        The 8-bit gray picture, its report, and its truth as columns.
    """
    body = draw_body(patient_rng, labels=labels, level=level)
    lobe = str(patient_rng.choice(LOBES)) if "consolidation" in labels else ""
    device = str(patient_rng.choice(DEVICES)) if "support device" in labels else ""
    device_side = _device_side(patient_rng, device)
    chest = pose(rng, body, look=LOOKS[look], resolution=resolution, shift=_push(labels, level))
    draw_chest(rng, chest)
    sizes = {}
    for label in labels:
        sizes[label] = _add(rng, chest, label=label, level=level, place=(lobe, device, device_side))
    truth = {
        "severity": SEVERITIES[level] if set(labels) - {"normal", "support device"} else "none",
        "side": _side(labels[0], lobe=lobe, device_side=device_side),
        "count": "0" if labels[0] == "normal" else "1",
        "size_um": f"{1e4 * sizes[labels[0]]:.0f}",
        "lobe": f"{lobe} lobe" if lobe else "none",
        "device": device or "none",
        "cardiothoracic_ratio": f"{body.heart_ratio:.2f}",
    }
    words = {**truth, "device_side": device_side}
    text = cxr_report.compose(rng, labels=labels, sizes=sizes, truth=words)
    return develop(rng, chest, look=LOOKS[look], resolution=resolution), text, truth


def draw_body(rng: np.random.Generator, *, labels: list[str], level: int) -> Body:
    """A patient of usual or unusual build; the heart's width is the finding's."""
    large = float(np.clip(rng.normal(), -2, 2))
    woman = rng.random() < 0.5
    half = 14.4 + 0.7 * large - 0.8 * woman
    base = 30.0 + 0.6 * large - 0.8 * woman + rng.normal(0, 0.5)
    right = base - rng.uniform(3.6, 5.0)
    ratio = RATIOS[level] if "cardiomegaly" in labels else NORMAL_RATIOS
    return Body(
        half_width=half,
        apex=rng.uniform(4.5, 6.0),
        base=base,
        domes={"right": right, "left": right + rng.uniform(0.4, 1.4)},
        depth=17.0 + 0.8 * large,
        wall=float(np.clip(2.6 + 0.7 * large + rng.normal(0, 0.5), 1.4, 5.0)),
        heart_ratio=round(rng.uniform(*ratio), 2),
        breasts=rng.uniform(1.0, 3.4) if woman else 0.0,
        density=rng.uniform(0.75, 1.15),
        markings=rng.uniform(0.8, 1.4),
        rib_drop=rng.uniform(9.0, 12.0),
        bubble=rng.uniform(1.2, 3.2) if rng.random() < 0.6 else 0.0,
    )


def pose(
    rng: np.random.Generator, body: Body, *, look: Look, resolution: int, shift: float = 0.0
) -> Chest:
    """The empty film with the patient before it; twice as fine as the picture below 256 px."""
    size = resolution * (2 if resolution <= 256 else 1)
    breath = look.breath * rng.uniform(0.6, 1.3)
    lifted = {side: height - breath for side, height in body.domes.items()}
    body = replace(body, domes=lifted, base=body.base - breath)
    shown = max(2 * (body.half_width + body.wall), body.base + 4) * rng.uniform(0.92, 1.10)
    scale = size / shown
    tilt = np.deg2rad(rng.normal(0, look.tilt_deg))
    turned = scale * np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    reach = 0.46 * shown  # both costophrenic angles stay in the picture
    sway = max(reach - body.half_width - 0.5, 0.0)
    middle = (body.apex + body.base) / 2 + rng.normal(0.3, 0.9)
    middle = max(middle, body.base + 1.5 - reach)
    centre = np.array([np.clip(rng.normal(0, 0.8), -sway, sway), middle])
    offset = np.full(2, size / 2) - turned @ centre
    row, column = np.mgrid[0.5:size, 0.5:size].astype(np.float32)
    back = np.linalg.inv(turned)
    dx, dy = column - offset[0], row - offset[1]
    x = (back[0, 0] * dx + back[0, 1] * dy).astype(np.float32)
    y = (back[1, 0] * dx + back[1, 1] * dy).astype(np.float32)
    frame = np.concatenate([turned, offset[:, None]], 1)
    return Chest(body, x, y, frame, turn=rng.normal(0, look.turn_cm), shift=shift)


def _push(labels: list[str], level: int) -> float:
    """Shift of the mediastinum in centimetres, away from much fluid or air."""
    shift = 0.0
    for label in labels:
        side = label.split()[0]
        if side in SIDES and level == 2:
            shift -= SIDES[side] * (1.2 if "pneumothorax" in label else 0.8)
    return shift


def _device_side(rng: np.random.Generator, device: str) -> str:
    usual = {"pacemaker": "left", "central venous line": "right"}.get(device, "")
    if not usual:
        return ""
    return usual if rng.random() < 0.75 else ("left" if usual == "right" else "right")


def _side(label: str, *, lobe: str, device_side: str) -> str:
    """Side of a finding: the patient's left or right, or none."""
    words = {"consolidation": lobe, "support device": device_side}.get(label, label)
    first = words.split()[0] if words else ""
    return first if first in SIDES else "none"


def _add(
    rng: np.random.Generator, chest: Chest, *, label: str, level: int, place: tuple[str, str, str]
) -> float:
    """Draw one finding; returns its size in centimetres."""
    lobe, device, device_side = place
    if label.endswith("effusion"):
        return add_effusion(rng, chest, level=level, side=label.split()[0])
    if label.endswith("pneumothorax"):
        return add_pneumothorax(rng, chest, level=level, side=label.split()[0])
    if label == "consolidation":
        return add_consolidation(rng, chest, level=level, lobe=lobe)
    if label == "support device":
        add_device(rng, chest, device=device, side=device_side)
    return 2 * chest.body.heart_ratio * chest.body.half_width if label == "cardiomegaly" else 0.0
