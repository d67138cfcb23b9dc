"""From a DICOM frame's stored values to grey: rescale, windows, tables, padding, inversion.

The way of PS3.4 N.2: stored values, modality transformation (rescale or LUT), VOI transformation
(window or LUT), display. Tables are applied by pydicom; windows are given on as two values, so that
a window of the user's own can take their place.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

FAR_BELOW = -1e30  # grey value of padding, under any window, yet finite

# What says how a frame's stored values become grey; each may stand in the functional groups too.
_DISPLAY = (
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
)
_DISPLAY_GROUPS = (
    "PixelValueTransformationSequence",
    "IdentityPixelValueTransformationSequence",
    "FrameVOILUTSequence",
)


class Display(NamedTuple):
    """How grey values are shown: a window of values, or the finished picture where it is no window.

    Attributes:
        window: Values (low, high) that become black and white, before inversion.
        named: The file names it; else it is the smallest and largest value.
        rendered: Share of white, (H, W) in [0, 1], of a sigmoid or a VOI LUT; None of a window.
        problem: Why the file's own window is none; "" if it is sound.
    """

    window: tuple[float, float]
    named: bool = False
    rendered: np.ndarray | None = None
    problem: str = ""


def frame_attributes(header, frame: int = 0):
    """What holds for the display of one frame, functional groups included (PS3.3, C.7.6.16).

    Returns:
        A pydicom dataset of its own; changes leave ``header`` as it is.
    """
    from pydicom.dataset import Dataset

    found = Dataset()
    found.file_meta = header.file_meta
    for name in _DISPLAY:
        if name in header:
            found[name] = header[name]
    groups = [*header.get("SharedFunctionalGroupsSequence", ())[:1]]
    groups += header.get("PerFrameFunctionalGroupsSequence", ())[frame : frame + 1]
    for group in groups:
        for name in _DISPLAY_GROUPS:
            for item in group.get(name, ())[:1]:
                found.update({element.tag: element for element in item})
    return found


def colour_image(pixels: np.ndarray, bits: int) -> Image.Image:
    """Upper 8 bits of colour, (H, W, 3), as mode ``RGB``."""
    return Image.fromarray((pixels >> max(0, bits - 8)).astype(np.uint8))


def grey_image(pixels: np.ndarray, attributes) -> Image.Image:
    """A frame's values on their way to the display.

    Args:
        pixels: Stored values, (H, W), any integer or float type.
        attributes: As `frame_attributes` gives them.

    Returns:
        Mode ``L`` for 8 bits that need no window. Else mode ``F``: values after the modality
        transformation, padding as `FAR_BELOW` (negated if inverted), with ``info``:
        ``window`` (low, high); ``named``: whether the file names it; ``rendered`` where the file
        shows values by a sigmoid or a table: share of white, (H, W), before inversion;
        ``window_problem`` where its own window is none; ``inverted`` if small values are bright
        (MONOCHROME1).
    """
    from pydicom.pixels import apply_modality_lut

    inverted = attributes.PhotometricInterpretation == "MONOCHROME1"
    padding = _padding(pixels, attributes)
    if is_plain(attributes):
        grey = np.where(padding, 255 if inverted else 0, pixels).astype(np.uint8)
        return Image.fromarray(255 - grey if inverted else grey)
    if pixels.dtype.kind in "iu":
        pixels = pixels.astype(np.int64)  # a table may start below what the stored type can hold
    values = apply_modality_lut(pixels, attributes)
    display = _display(values, attributes, values[~padding])
    rendered = display.rendered
    if padding.any():
        values = np.where(padding, -FAR_BELOW if inverted else FAR_BELOW, values)
        rendered = None if rendered is None else np.where(padding, float(inverted), rendered)
    image = Image.fromarray(values.astype(np.float32))
    image.info.update(window=display.window, named=display.named, inverted=inverted)
    if rendered is not None:
        image.info["rendered"] = rendered
    if display.problem:
        image.info["window_problem"] = display.problem
    return image


def is_plain(attributes) -> bool:
    """Whether stored values are gray levels already: 8 bits that nothing transforms."""
    return (
        attributes.get("BitsStored") == 8
        and not attributes.get("PixelRepresentation")
        and not _has_table(attributes)
        and None in _window_tags(attributes)
        and not attributes.get("ModalityLUTSequence")
        and float(attributes.get("RescaleSlope") or 1) == 1
        and float(attributes.get("RescaleIntercept") or 0) == 0
    )


def _padding(pixels: np.ndarray, attributes) -> np.ndarray:
    """Where the frame is no image, (H, W) bool (PS3.3, C.7.5.1.1.2)."""
    first = attributes.get("PixelPaddingValue")
    if first is None:
        return np.zeros(pixels.shape, bool)
    last = attributes.get("PixelPaddingRangeLimit")
    low, high = sorted((first, first if last is None else last))
    return (pixels >= low) & (pixels <= high)


def _has_table(attributes) -> bool:
    tables = attributes.get("VOILUTSequence")
    return bool(tables) and "LUTDescriptor" in tables[0] and "LUTData" in tables[0]


def _window_tags(attributes) -> tuple[float | None, float | None]:
    """Center and width of the first window; None where the file does not say."""
    values = [attributes.get(name) for name in ("WindowCenter", "WindowWidth")]
    firsts = [np.atleast_1d([] if value is None else value)[:1] for value in values]
    return tuple(float(first[0]) if first.size else None for first in firsts)


def _display(values: np.ndarray, attributes, shown: np.ndarray) -> Display:
    """How the frame's values are shown; ``shown`` are those that are no padding."""
    extremes = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 1.0)
    if _has_table(attributes):
        return Display(extremes, True, _by_table(values, attributes))
    center, width = _window_tags(attributes)
    if center is None or width is None:
        return Display(extremes)
    function = str(attributes.get("VOILUTFunction") or "LINEAR").upper()
    if width < 1 if function == "LINEAR" else width <= 0:
        return Display(extremes, problem=f"Window Width {width:g} of function {function}")
    if function == "SIGMOID":  # PS3.3 C.11.2.1.3.1
        return Display(extremes, True, 1 / (1 + np.exp(-4 * (values - center) / width)))
    if function not in ("LINEAR", "LINEAR_EXACT"):
        return Display(extremes, problem="an unknown VOI LUT Function")
    if function == "LINEAR":  # PS3.3 C.11.2.1.2.1
        center, width = center - 0.5, width - 1
    return Display((center - width / 2, center + width / 2), named=True)


def _by_table(values: np.ndarray, attributes) -> np.ndarray:
    """Share of white by the first VOI LUT, (H, W) in [0, 1]."""
    from pydicom.dataset import Dataset
    from pydicom.pixels import apply_voi

    item = attributes.VOILUTSequence[0]
    entries, first, bits = item.LUTDescriptor
    # Of more than 256 entries of 8 bits pydicom would keep the index in 8 bits: taken as 16.
    table = Dataset()
    table.LUTDescriptor = [entries, first, max(bits, 16)]
    table["LUTData"] = item["LUTData"]
    found = Dataset()
    found.file_meta = attributes.file_meta
    found.VOILUTSequence = [table]
    last = first + (entries or 2**16) - 1
    indices = np.clip(values, first, last).astype(np.int64)
    return apply_voi(indices, found) / (2.0**bits - 1)
