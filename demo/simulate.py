"""Simulated images with ground truth and report: OCT B-scans and chest radiographs.

`simulate` draws one, `write_scans` a dataset folder of them. How they are drawn stands in
demo/oct_phantom.py and demo/cxr_phantom.py. The pictures are phantoms: good for testing software
and teaching, not for medical conclusions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from demo import cxr_phantom, oct_phantom
from demo.oct_eye import LAYERS
from demo.oct_phantom import FINDINGS, LOOKS, SEVERITIES
from utils import images

__all__ = [
    "FINDINGS",
    "LAYERS",
    "LOOKS",
    "MODALITIES",
    "SCANS_PER_PATIENT",
    "SEVERITIES",
    "Modality",
    "Scan",
    "simulate",
    "write_scans",
]

SCANS_PER_PATIENT = 2


@dataclass(frozen=True)
class Modality:
    """What can be drawn of one kind of image.

    Attributes:
        findings: Names of the findings, ``normal`` first.
        looks: Names of the devices.
        draw: Draws one image, see `demo.oct_phantom.draw`.
    """

    findings: tuple[str, ...]
    looks: tuple[str, ...]
    draw: Callable[..., tuple[Image.Image, str, dict[str, str]]]


MODALITIES = {
    "OCT": Modality(FINDINGS, tuple(LOOKS), oct_phantom.draw),
    "CXR": Modality(cxr_phantom.FINDINGS, tuple(cxr_phantom.LOOKS), cxr_phantom.draw),
}


@dataclass(frozen=True)
class Scan:
    """One simulated image.

    Attributes:
        image: 8-bit gray picture, resolution x resolution.
        text: The report, composed from `truth`.
        label: Findings joined by ``;``.
        truth: Ground truth, one column a key: severity, side, count, size_um, look, patient_id;
            of a chest radiograph also lobe, device and cardiothoracic_ratio.
    """

    image: Image.Image
    text: str
    label: str
    truth: dict[str, str]


def simulate(
    index: int,
    *,
    seed: int,
    findings: Sequence[str] | None = None,
    looks: Sequence[str] | None = None,
    resolution: int = 128,
    combination_prob: float = 0.0,
    modality: str = "OCT",
) -> Scan:
    """Draw scan number `index` of the simulated population `seed`.

    Args:
        index: Number of the scan, >= 0. Two successive scans show the same patient.
        seed: Population; with `index` it fixes every pixel and word.
        findings: The modality's names to take turns by patient; all by default.
        looks: The modality's devices, one of which is drawn by patient; all by default.
        resolution: Side of the square picture in pixels.
        combination_prob: Probability in [0, 1] that a patient with a lesion has a second one.
        modality: OCT or CXR, see `MODALITIES`.

    Returns:
        The scan with its truth.

    Raises:
        KeyError: If the modality, a finding or a look does not exist.
    """
    kind = MODALITIES[modality]
    patient = index // SCANS_PER_PATIENT
    patient_rng = np.random.default_rng([seed, patient])
    names = list(findings or kind.findings)
    labels = [names[patient % len(names)]]
    devices = list(looks or kind.looks)
    unknown = {*labels, *devices} - {*kind.findings, *kind.looks}
    if unknown:
        raise KeyError(f"{', '.join(sorted(unknown))}: not drawn in {modality}")
    look = devices[int(patient_rng.integers(len(devices)))] if len(devices) > 1 else devices[0]
    if labels[0] != "normal" and patient_rng.random() < combination_prob:
        others = [name for name in kind.findings if name not in ("normal", labels[0])]
        labels.append(str(patient_rng.choice(others)))
    level = int(patient_rng.integers(len(SEVERITIES)))
    image, text, truth = kind.draw(
        patient_rng,
        np.random.default_rng([seed, patient, index]),
        labels=labels,
        level=level,
        look=look,
        resolution=resolution,
    )
    truth = {**truth, "look": look, "patient_id": f"S{seed}-{patient:05d}"}
    return Scan(image, text, ";".join(labels), truth)


def _write_one(index: int, *, output_dir: Path, modality: str, **kwargs: object) -> dict[str, str]:
    """Draw one scan, write its PNG, return its metadata row."""
    scan = simulate(index, modality=modality, **kwargs)
    file_name = f"images/{index:06d}.png"
    images.save_png(scan.image, output_dir / file_name)
    truth = dict(scan.truth)
    patient = truth.pop("patient_id")
    source = f"simulated-{truth.pop('look')}"
    row = {"file_name": file_name, "text": scan.text, "label": scan.label, "patient_id": patient}
    return {**row, "source": source, "modality": modality, **truth}


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
    modality: str = "OCT",
) -> list[dict[str, str]]:
    """Draw scans 0 .. `num_images` - 1 of population `seed` as PNGs below ``output_dir/images``.

    Findings take turns by patient, so that the classes are balanced.

    Args:
        output_dir: Dataset folder to fill; exists.
        num_images: How many scans.
        seed: Population, see `simulate`.
        resolution: Side of the square pictures in pixels.
        looks: See `simulate`.
        findings: See `simulate`.
        combination_prob: See `simulate`.
        num_workers: Processes that draw; the number changes no pixel.
        modality: See `simulate`.

    Returns:
        The rows of metadata.csv, in order.
    """
    (output_dir / "images").mkdir(exist_ok=True)
    draw = partial(
        _write_one,
        output_dir=output_dir,
        modality=modality,
        seed=seed,
        findings=findings,
        looks=looks,
        resolution=resolution,
        combination_prob=combination_prob,
    )
    with get_context("spawn").Pool(num_workers) as pool:
        drawn = pool.imap(draw, range(num_images), chunksize=16)
        return list(tqdm(drawn, total=num_images, desc="draw scans", unit="image"))
