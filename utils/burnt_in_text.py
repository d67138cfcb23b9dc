"""Text that is part of an image's pixels: lines of letters at the margins, without reading them.

Letters are strokes of one grey level on a smooth ground, of like height, on one line. What differs
in one of these is no text here: speckle and retinal layers (many grey levels), the white fill of
turned scans (too large), ticks of a scale (all alike), lines of a frame (too long).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage, sparse
from scipy.sparse import csgraph

MARGIN_SHARE = 0.25  # text is looked for this near to an edge, as a share of the side
MAX_WORK_SIDE = 1600  # larger images are shrunk by whole numbers before the search

_MAX_STROKE = 15  # side of the square that no stroke holds, in pixels of the search
_THRESHOLDS = (36, 100)  # grey levels above the ground: for faint text, and for text on speckle
_HEIGHTS = (5, 90)  # of letters, in pixels of the search
_MIN_LETTERS = 3
_MAX_INK_STEP = 45  # grey levels between neighbours
_MAX_GAP = 0.7  # between letters of a word, as a share of their height
_MAX_NOISE = 0.14  # of the ground, as a share of the contrast
_SMALL_LETTERS = 9  # height in pixels of the search up to which the ground between is unsure
_MAX_SPREAD = 0.2  # of the letters' ink, likewise
_MAX_STEP = 0.7  # between the ground above and below, as a share of the contrast: else an edge
_GAP_SHARE = 0.3  # of a line's height that is empty above and below it
_MAX_INK_OUTSIDE = 0.45  # ink there, as a share of the ink in the line
_MIN_MARKER = 8  # height of a lone letter in pixels of the search; smaller ones are speckle
_MARKER_HEIGHTS = (0.018, 0.1)  # of a lone letter, as a share of the longer side


class TextBox(NamedTuple):
    """Where text stands.

    Attributes:
        left: First column, in pixels of the image.
        top: First row.
        right: Column after the last.
        bottom: Row after the last.
        kind: ``text``: a line of letters; ``marker``: one letter, such as the L or R of an X-ray.
    """

    left: int
    top: int
    right: int
    bottom: int
    kind: str


class _Letters(NamedTuple):
    """Components that may be letters, as columns, one entry a component."""

    top: np.ndarray
    bottom: np.ndarray
    left: np.ndarray
    right: np.ndarray
    area: np.ndarray
    ink: np.ndarray  # grey level of the lightest pixel

    def pick(self, chosen: np.ndarray | Sequence[int]) -> _Letters:
        return _Letters(*(column[chosen] for column in self))

    @property
    def height(self) -> np.ndarray:
        return self.bottom - self.top

    @property
    def width(self) -> np.ndarray:
        return self.right - self.left

    @property
    def fill(self) -> np.ndarray:
        return self.area / (self.height * self.width)


def find_text(image: Image.Image) -> list[TextBox]:
    """Lines of text, and lone letters, at the margins of an image.

    Args:
        image: Mode ``L`` or ``RGB``.

    Returns:
        Boxes from top to bottom; those of kind ``text`` do not overlap each other.
    """
    factor = -(-max(image.size) // MAX_WORK_SIDE)
    grey = image.convert("L") if factor == 1 else image.convert("L").reduce(factor)
    pixels = np.asarray(grey)
    lines, markers = [], []
    for plane in (pixels, 255 - pixels):  # light letters, then dark ones
        strokes = _strokes(plane)
        for threshold in _THRESHOLDS:
            letters = _letters(plane, strokes, threshold)
            ink = strokes > threshold
            lines += [
                box
                for line in _lines(letters)
                if (box := _box(plane, line)) and _stands_alone(ink, box)
            ]
        markers += [
            box
            for box in _markers(plane, _letters(plane, strokes, _THRESHOLDS[1]))
            if _stands_alone(strokes > _THRESHOLDS[0], box)
        ]
    lines = _joined(lines)
    markers = [box for box in _joined(markers) if not any(_touch(box, line) for line in lines)]
    boxes = [(*box, "text") for box in lines] + [(*box, "marker") for box in markers]
    width, height = image.size
    scaled = [
        TextBox(left * factor, top * factor, min(right * factor, width), bottom * factor, kind)
        for left, top, right, bottom, kind in boxes
    ]
    return sorted(box._replace(bottom=min(box.bottom, height)) for box in scaled)


def _strokes(plane: np.ndarray) -> np.ndarray:
    """How much lighter a pixel is than its ground: the white top hat."""
    return plane - ndimage.grey_opening(plane, size=(_MAX_STROKE, _MAX_STROKE), mode="nearest")


def _letters(plane: np.ndarray, strokes: np.ndarray, threshold: int) -> _Letters:
    """Components of the strokes at the margins that have the size of letters."""
    height, width = plane.shape
    labels, count = ndimage.label(strokes > threshold, structure=np.ones((3, 3)))
    places = ndimage.find_objects(labels)
    rows = np.array([(s[0].start, s[0].stop, s[1].start, s[1].stop) for s in places], dtype=int)
    top, bottom, left, right = rows.reshape(-1, 4).T
    tall = bottom - top
    good = (tall >= _HEIGHTS[0]) & (tall <= _HEIGHTS[1]) & (right - left <= 5 * tall)
    band_y, band_x = MARGIN_SHARE * height, MARGIN_SHARE * width
    middle_y, middle_x = (top + bottom) / 2, (left + right) / 2
    good &= (np.minimum(middle_y, height - middle_y) < band_y) | (
        np.minimum(middle_x, width - middle_x) < band_x
    )
    chosen = np.flatnonzero(good)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    inside = labels > 0
    lightest = np.zeros(count + 1)
    np.maximum.at(lightest, labels[inside], plane[inside])
    columns = (top, bottom, left, right, areas, lightest[1:])
    return _Letters(*(column[chosen] for column in columns))


def _lines(letters: _Letters) -> Iterator[_Letters]:
    """Letters that follow one another on a line, from left to right."""
    if len(letters.top) < _MIN_LETTERS:
        return
    before, after = _neighbours(letters)
    size = len(letters.top)
    graph = sparse.coo_matrix((np.ones(len(before)), (before, after)), shape=(size, size))
    _, group = csgraph.connected_components(graph, directed=False)
    members = np.argsort(group, kind="stable")
    for chain in np.split(members, np.flatnonzero(np.diff(group[members])) + 1):
        if len(chain) >= _MIN_LETTERS:
            yield letters.pick(chain)


def _neighbours(letters: _Letters) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of letters of which the second is the next on the line of the first."""
    order = np.argsort(letters.left, kind="stable")
    lefts = letters.left[order]
    low = np.searchsorted(lefts, letters.right - 0.3 * letters.height)
    high = np.searchsorted(lefts, letters.right + 1.3 * letters.height, side="right")
    counts = np.maximum(high - low, 0)
    before = np.repeat(np.arange(len(lefts)), counts)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    after = order[np.repeat(low, counts) + np.arange(len(before)) - starts]
    talls = letters.height
    tall, short = np.maximum(talls[before], talls[after]), np.minimum(talls[before], talls[after])
    overlap = np.minimum(letters.bottom[before], letters.bottom[after])
    overlap = overlap - np.maximum(letters.top[before], letters.top[after])
    good = (before != after) & (overlap >= 0.6 * short) & (short >= 0.4 * tall)
    good &= np.abs(letters.ink[before] - letters.ink[after]) <= _MAX_INK_STEP
    before, after = before[good], after[good]
    near = np.lexsort((letters.left[after], before))  # the first of each is the nearest
    _, first = np.unique(before[near], return_index=True)
    return before[near][first], after[near][first]


def _box(plane: np.ndarray, line: _Letters) -> tuple[int, int, int, int] | None:
    """The line's box, if it is text."""
    box = (line.left.min(), line.top.min(), line.right.max(), line.bottom.max())
    contrast, noise, step = _ground(plane, line, box)
    if contrast < _THRESHOLDS[0] or noise > _MAX_NOISE * contrast or step > _MAX_STEP * contrast:
        return None
    even = np.std(line.ink) < _MAX_SPREAD * contrast
    return box if even and _looks_written(line) else None


def _ground(plane: np.ndarray, line: _Letters, box: Sequence[int]) -> tuple[float, float, float]:
    """Grey levels between ink and ground, of the ground's noise, and across the line."""
    left, top, right, bottom = box
    patch = plane[top:bottom, left:right].astype(float)
    ink = np.median(line.ink)
    paper = patch[patch < (ink + np.median(patch)) / 2]
    if not paper.size:
        return 0.0, 0.0, 0.0
    ground = np.median(paper)
    noise = np.median(np.abs(paper - ground))
    bands = [band.astype(float) for band in _bands(plane, box)]
    if not bands:
        return float(ink - ground), float(noise), 0.0
    # The ground in a line of small letters is blurred by these; that above and below it is not.
    levels = [np.median(band) for band in bands]
    # Of small, clear letters each by itself; how these differ is the step's part.
    small = np.median(line.height) <= _SMALL_LETTERS and ink - ground >= _THRESHOLDS[1]
    around = [
        np.abs(band - (level if small else np.median(np.concatenate(bands))))
        for band, level in zip(bands, levels, strict=True)
    ]
    noise = min(noise, np.mean(np.concatenate(around)))
    step = np.ptp(levels)
    return float(ink - ground), float(noise), float(step)


def _looks_written(line: _Letters) -> bool:
    """Whether components stand on one line, near each other, and are strokes of several shapes."""
    tall = np.percentile(line.height, 75)
    level = np.abs(line.bottom - np.median(line.bottom)) <= max(1, 0.2 * tall)
    order = np.argsort(line.left)
    gaps = line.left[order][1:] - line.right[order][:-1]
    near = gaps.size == 0 or np.median(gaps) <= _MAX_GAP * tall
    alike = np.std(line.width) <= 0.12 * tall and np.std(line.height) <= 0.05 * tall
    fill = line.fill.mean()
    ticks = alike and fill > 0.7
    return bool(near and level.mean() >= 0.65 and 0.18 < fill < 0.8 and not ticks)


def _stands_alone(ink: np.ndarray, box: Sequence[int]) -> bool:
    """Whether there is less ink just above and below a line than in it; in speckle there is not."""
    bands = _bands(ink, box)
    left, top, right, bottom = box
    inside = ink[top:bottom, left:right].mean()
    return not bands or np.concatenate(bands).mean() < _MAX_INK_OUTSIDE * inside


def _bands(plane: np.ndarray, box: Sequence[int]) -> list[np.ndarray]:
    """Pixels just above and just below a line, those that are within the image."""
    left, top, right, bottom = box
    gap = max(2, round(_GAP_SHARE * (bottom - top)))
    bands = plane[max(0, top - gap) : top, left:right], plane[bottom : bottom + gap, left:right]
    return [band.ravel() for band in bands if band.size]


def _markers(plane: np.ndarray, letters: _Letters) -> list[tuple[int, int, int, int]]:
    """Lone letters: of one grey level, on a dark and smooth ground, drawn with strokes."""
    side = max(plane.shape)
    found = []
    for index in range(len(letters.top)):
        one = letters.pick([index])
        tall, wide, fill = one.height[0], one.width[0], one.fill[0]
        letter_like = 0.35 < wide / tall < 1.25 and 0.2 < fill < 0.6
        low = max(_MIN_MARKER, _MARKER_HEIGHTS[0] * side)
        if letter_like and low < tall < _MARKER_HEIGHTS[1] * side:
            box = _box(plane, one)
            if box is not None:
                found.append(box)
    return found


def _touch(one: Sequence[int], other: Sequence[int], slack: int = 0) -> bool:
    return (
        one[0] - slack < other[2]
        and other[0] - slack < one[2]
        and one[1] < other[3]
        and other[1] < one[3]
    )


def _joined(boxes: Sequence[tuple]) -> list[tuple[int, int, int, int]]:
    """Boxes that overlap as one box around them."""
    joined: list[tuple[int, int, int, int]] = []
    for box in boxes:
        current = tuple(int(value) for value in box)
        while other := next((one for one in joined if _touch(one, current)), None):
            joined.remove(other)
            current = (
                min(current[0], other[0]),
                min(current[1], other[1]),
                max(current[2], other[2]),
                max(current[3], other[3]),
            )
        joined.append(current)
    return joined
