"""Test scans with maps of what a report model reads while it names a finding or a side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from utils.attention_maps import span_map, word_maps
from utils.captioner import Captioner
from utils.finding_labeler import FindingLabeler, Mention
from utils.finding_scores import NAMED
from utils.gray_images import GrayImages

NUM_SCANS, MAX_WORDS = 6, 5
_ENOUGH = 2  # words of a scan: a finding and its side


@dataclass(frozen=True)
class ReadScan:
    """A scan, the report that the model wrote of it, and where it looked.

    Attributes:
        file_name: Of the scan.
        text: The report.
        pixels: (H, W) uint8, as the network sees them.
        maps: (words, map) in the order of the report; maps (h, w) float32.
    """

    file_name: str
    text: str
    pixels: np.ndarray
    maps: Sequence[tuple[str, np.ndarray]]


def read_scans(
    captioner: Captioner,
    images: GrayImages,
    texts: Sequence[str],
    labeler: FindingLabeler,
    *,
    places: Sequence[int],
) -> list[ReadScan]:
    """Maps of up to ``NUM_SCANS`` scans, those first that have words for finding and side.

    Args:
        captioner: The model.
        images: N test images at its resolution.
        texts: The N reports that it wrote of them.
        labeler: Finds the words.
        places: Test images to take them from, in order.
    """
    spans = {place: words_to_show(texts[place], labeler) for place in places}
    ranked = sorted(places, key=lambda place: -min(len(spans[place]), _ENOUGH))
    chosen = [place for place in ranked if spans[place]][:NUM_SCANS]
    plan = [np.array([place]) for place in chosen]
    found = []
    for (place,), pixels in images.batches(plan, rng=None):
        heats = _heats(captioner, pixels, texts[place], spans[place])
        name = images.records[place].file_name
        found.append(ReadScan(name, texts[place], pixels[0].numpy(), heats))
    return found


def words_to_show(text: str, labeler: FindingLabeler) -> list[tuple[int, int]]:
    """Places of up to ``MAX_WORDS`` words: of each finding that a text names, and of its side."""
    found: list[tuple[int, int]] = []
    seen: set[str] = set()
    for mention in labeler.mentions(text):
        if mention.status in NAMED and mention.finding not in seen:
            seen.add(mention.finding)
            found += [(mention.start, mention.end), *_side(text, mention)]
    apart: list[tuple[int, int]] = []
    for span in sorted(set(found)):
        if not apart or span[0] >= apart[-1][1]:
            apart.append(span)
    return apart[:MAX_WORDS]


def _side(text: str, mention: Mention) -> list[tuple[int, int]]:
    """The word for the mention's side that is nearest to it, as the attribute spells it."""
    side = mention.attributes.get("side")
    if not side:
        return []
    words = re.finditer(rf"\b{re.escape(side)}\w*", text, re.IGNORECASE)
    spans = sorted((word.span() for word in words), key=lambda span: abs(span[0] - mention.end))
    return spans[:1]


def _heats(
    captioner: Captioner, pixels: torch.Tensor, text: str, spans: Sequence[tuple[int, int]]
) -> list[tuple[str, np.ndarray]]:
    values = captioner.pixel_values(pixels)
    maps = word_maps(captioner.network, captioner.tokenizer, values, text)
    found = [(text[start:end], span_map(maps, start, end)) for start, end in spans]
    return [(words, heat) for words, heat in found if heat is not None]
