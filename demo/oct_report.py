"""The words of a simulated scan: a report composed from its ground truth, in varied wording."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}
_PLACES = {
    "left": ("to the left of the fovea", "on the left side", "left of the foveal centre"),
    "right": ("to the right of the fovea", "on the right side", "right of the foveal centre"),
    "central": ("at the fovea", "in the foveal centre", "centrally"),
}
_SIZES = {"mild": "small", "moderate": "medium-sized", "severe": "large"}

_NORMAL = (
    "Normal macula. The foveal contour is regular and all retinal layers are intact.",
    "Normal retinal OCT with a regular foveal pit.",
    "No abnormality: continuous retinal layers and a normal foveal depression.",
    "Normal scan, the retinal pigment epithelium is flat and no fluid is seen.",
)
_SENTENCES = {
    "macular edema": (
        "{Severity} macular edema with {number} {size} intraretinal cysts {place}.",
        "Cystic low-reflective areas of varying sizes can be seen between retinal layers {place}, "
        "{severity} macular edema.",
        "The retina is thickened by {severity} macular edema; {number} cystoid spaces of up to "
        "{microns} µm lie {place}.",
        "Macular edema, {severity}: {number} dark cysts in the inner nuclear and outer layers "
        "{place}.",
    ),
    "drusen": (
        "{Number} {size} drusen {place}, {severity}.",
        "{Severity} drusen: {number} mound-like elevations of the retinal pigment epithelium "
        "{place}.",
        "Drusen {place}; {number} nodules beneath the retinal pigment epithelium, up to "
        "{microns} µm wide.",
        "The retinal pigment epithelium is undulating over {number} {severity} drusen {place}.",
    ),
    "pigment epithelial detachment": (
        "{Severity} pigment epithelial detachment {place}.",
        "Retinal pigment epithelium detachment {place}, a {size} dome about {microns} µm wide.",
        "Pigment epithelial detachment, {severity}: dome-shaped elevation of the retinal pigment "
        "epithelium {place}.",
        "Retinal pigment epithelial layer with strong reflection and bulge {place}, {severity} "
        "pigment epithelial detachment.",
    ),
    "subretinal fluid": (
        "{Severity} subretinal fluid {place}.",
        "Subretinal fluid {place}: a low-reflective space about {microns} µm wide between "
        "photoreceptors and retinal pigment epithelium.",
        "The neurosensory retina is elevated by {severity} subretinal fluid {place}.",
        "Subretinal fluid, {severity}, forms a {size} dark lens over a flat retinal pigment "
        "epithelium {place}.",
    ),
    "epiretinal membrane": (
        "{Severity} epiretinal membrane {place} with folds of the inner retina.",
        "Epiretinal membrane: a highly reflective line on the retinal surface {place}, {severity} "
        "wrinkling.",
        "The foveal pit is flattened by a {severity} epiretinal membrane {place}.",
        "Epiretinal membrane, {severity}, about {microns} µm wide, lies {place} on a wrinkled "
        "inner surface.",
    ),
}


def compose(
    rng: np.random.Generator,
    *,
    lesions: Mapping[str, Mapping[str, float]],
    severity: str,
    side: str,
) -> str:
    """Write the report of one scan.

    Args:
        rng: Source of the wording.
        lesions: Lesion name to its ``count`` and ``size_um`` (micrometres); empty is normal.
        severity: mild, moderate or severe.
        side: left, central or right of the fovea, as seen in the picture.

    Returns:
        One sentence a lesion.
    """
    if not lesions:
        return str(rng.choice(_NORMAL))
    sentences = []
    for name, lesion in lesions.items():
        number = _NUMBERS.get(int(lesion["count"]), "several")
        words = {
            "number": number,
            "severity": severity,
            "size": _SIZES[severity],
            "microns": f"{round(lesion['size_um'], -2):.0f}",
            "place": str(rng.choice(_PLACES[side])),
        }
        capitals = {"Number": number.capitalize(), "Severity": severity.capitalize()}
        sentences.append(str(rng.choice(_SENTENCES[name])).format(**words, **capitals))
    return " ".join(sentences)
