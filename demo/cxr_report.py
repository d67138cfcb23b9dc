"""The words of a simulated chest radiograph: a report composed from its truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NORMAL = (
    "Normal chest radiograph. Heart size is normal and both lungs are clear.",
    "No acute cardiopulmonary abnormality. Sharp costophrenic angles.",
    "Lungs are clear. Normal heart size, no pleural effusion or pneumothorax.",
    "Unremarkable chest radiograph, cardiothoracic ratio {ratio}.",
    "No active cardiopulmonary disease. The costophrenic angles are sharp.",
    "Clear lungs and a heart of normal size. No acute cardiopulmonary process.",
)
SENTENCES = {
    "cardiomegaly": (
        "{Severity} cardiomegaly with a cardiothoracic ratio of {ratio}.",
        "The heart is enlarged, cardiothoracic ratio {ratio}: {severity} cardiomegaly.",
        "{Severity} enlargement of the cardiac silhouette.",
        "Cardiac silhouette is enlarged, {severity}, with a cardiothoracic ratio of {ratio}.",
        "Increased cardiothoracic ratio of {ratio} in keeping with {severity} cardiomegaly.",
    ),
    "pleural effusion": (
        "{Severity} {side} pleural effusion with a blunted costophrenic angle.",
        "{Size} {side} pleural effusion.",
        "Blunting of the {side} costophrenic angle by a {severity} pleural effusion.",
        "{Side}-sided pleural effusion, {severity}, with a meniscus along the chest wall.",
        "{Size} effusion on the {side} side, about {cm} cm high.",
    ),
    "pneumothorax": (
        "{Severity} {side} pneumothorax.",
        "{Size} {side} pneumothorax with a visible pleural line, rim of about {cm} cm.",
        "{Side}-sided pneumothorax, {severity}: no lung markings beyond the visceral pleura.",
        "A pleural line is visible on the {side} side: {severity} pneumothorax.",
        "{Severity} pneumothorax on the {side} side with a rim of {cm} cm.",
    ),
    "consolidation": (
        "{Severity} consolidation in the {lobe}.",
        "{Lobe} consolidation, {severity}, with air bronchograms.",
        "{Size} airspace consolidation of the {lobe}.",
        "The {lobe} shows {severity} consolidation about {cm} cm wide.",
        "Dense consolidation of {severity} extent is seen in the {lobe}.",
    ),
    "pacemaker": (
        "Pacemaker in the {side} chest wall with its lead in the right ventricle.",
        "A {side}-sided pacemaker is in place.",
        "{Side} chest wall pacemaker with a ventricular lead.",
        "Pacemaker generator projects over the {side} upper chest.",
    ),
    "central venous line": (
        "{Side} central venous line with its tip in the superior vena cava.",
        "A {side}-sided central line is in place.",
        "{Side} jugular venous catheter ends in the superior vena cava.",
        "Tip of the {side} central venous catheter projects over the superior vena cava.",
    ),
    "endotracheal tube": (
        "Endotracheal tube with its tip above the carina.",
        "The endotracheal tube ends in the mid trachea.",
        "Intubated patient, endotracheal tube in good position.",
        "Endotracheal tube in place, tip well above the carina.",
    ),
    "nasogastric tube": (
        "Nasogastric tube with its tip in the stomach.",
        "A nasogastric tube ends below the diaphragm.",
        "The nasogastric tube is in place in the stomach.",
        "Nasogastric tube courses below the diaphragm into the stomach.",
    ),
}
_SIZES = {"mild": "small", "moderate": "medium-sized", "severe": "large"}
# said now and then of what is not there; none may be said of a finding that is
ASIDES = {
    "cardiomegaly": ("Heart size is normal.", "The cardiac silhouette is not enlarged."),
    "pleural effusion": ("No pleural effusion.", "There is no pleural effusion."),
    "pneumothorax": ("No pneumothorax.", "There is no evidence of pneumothorax."),
    "consolidation": ("No focal consolidation.", "No consolidation is seen."),
}
ASIDE_PROB = 0.4


def kind(label: str) -> str:
    """The finding without its side."""
    return label.removeprefix("left ").removeprefix("right ")


def compose(
    rng: np.random.Generator,
    *,
    labels: list[str],
    sizes: Mapping[str, float],
    truth: Mapping[str, str],
) -> str:
    """Write the report of one film.

    Args:
        rng: Source of the wording.
        labels: Findings, see `demo.cxr_phantom.FINDINGS`.
        sizes: Centimetres of each finding.
        truth: ``severity``, ``lobe``, ``device``, ``device_side`` and ``cardiothoracic_ratio``.

    Returns:
        One or two sentences, a finding each, at times followed by what is absent.
    """
    if labels == ["normal"]:
        return str(rng.choice(NORMAL)).format(ratio=truth["cardiothoracic_ratio"])
    sentences = [
        _sentence(rng, label=label, centimetres=sizes[label], truth=truth) for label in labels
    ]
    absent = [name for name in ASIDES if name not in {kind(label) for label in labels}]
    if rng.random() < ASIDE_PROB:
        sentences.append(str(rng.choice(ASIDES[str(rng.choice(absent))])))
    return " ".join(sentences)


def _sentence(
    rng: np.random.Generator, *, label: str, centimetres: float, truth: Mapping[str, str]
) -> str:
    device = label == "support device"
    words = filling(
        side=truth["device_side"] if device else label.split()[0],
        severity=truth["severity"],
        lobe=truth["lobe"],
        ratio=truth["cardiothoracic_ratio"],
        centimetres=centimetres,
    )
    name = truth["device"] if device else kind(label)
    return str(rng.choice(SENTENCES[name])).format(**words)


def filling(
    *, side: str, severity: str, lobe: str, ratio: str, centimetres: float
) -> dict[str, str]:
    """What a wording's braces hold; a capital name is for the start of a sentence."""
    words = {
        "side": side,
        "severity": severity,
        "size": _SIZES.get(severity, ""),
        "lobe": lobe,
        "ratio": ratio,
        "cm": f"{centimetres:.0f}",
    }
    return words | {word.capitalize(): value.capitalize() for word, value in words.items()}
