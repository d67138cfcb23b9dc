"""Text in pixels at the margins: planted strips are found, scans without any are left alone."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from privacy_pictures import planted_pictures, scans

from utils.burnt_in_text import find_text
from utils.clean_copy import Margins, clean_image

AUTO = Margins(None, crop=False)


def covered(boxes, box, size) -> float:
    """Share of a box that found text covers."""
    mask = np.zeros(size[::-1], dtype=bool)
    for left, top, right, bottom, kind in boxes:
        if kind == "text":
            mask[top:bottom, left:right] = True
    left, top, right, bottom = box
    return float(mask[top:bottom, left:right].mean())


def test_at_least_95_percent_of_60_planted_pictures_are_found():
    missed = [
        name
        for name, picture, box in planted_pictures()
        if covered(find_text(picture), box, picture.size) < 0.8
    ]
    assert len(missed) <= 3, missed


def test_masking_leaves_no_text_and_keeps_the_rest_of_the_image():
    for name, picture, (left, top, right, bottom) in list(planted_pictures())[::4]:
        boxes = find_text(picture)
        masked = clean_image(picture, boxes, AUTO)
        assert not [b for b in find_text(masked) if b.kind == "text"], name
        changed = np.asarray(picture) != np.asarray(masked)
        more = 12
        changed[max(0, top - more) : bottom + more, max(0, left - more) : right + more] = False
        assert not changed.any(), name


def test_at_most_5_percent_of_simulated_scans_without_text_are_false_alarms():
    clean = [scan for side in (128, 256, 512) for scan in scans(12, resolution=side)]
    false = [scan for scan in clean if any(box.kind == "text" for box in find_text(scan))]
    assert len(false) <= 0.05 * len(clean)


def test_white_corners_speckle_and_ticks_of_a_scale_are_no_text():
    speckle = np.random.default_rng(0).gamma(1.0, 30.0, (400, 512)).clip(0, 255)
    picture = Image.fromarray(speckle.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(0, 0), (512, 0), (512, 40), (0, 10)], fill=255)
    for x in range(40, 400, 20):
        draw.rectangle((x, 380, x + 2, 392), fill=255)
    assert [box for box in find_text(picture) if box.kind == "text"] == []


def test_a_lone_letter_at_the_margin_is_a_marker():
    grey = np.linspace(20, 120, 400).astype(np.uint8)
    picture = Image.fromarray(np.tile(grey, (400, 1)))
    ImageDraw.Draw(picture).text((350, 12), "L", fill=255, font=ImageFont.load_default(28))
    assert [box.kind for box in find_text(picture)] == ["marker"]


def test_a_marker_is_not_masked():
    picture = Image.new("L", (400, 400), 30)
    ImageDraw.Draw(picture).text((350, 12), "L", fill=255, font=ImageFont.load_default(28))
    masked = clean_image(picture, find_text(picture), AUTO)
    assert np.array_equal(np.asarray(masked), np.asarray(picture))


def test_fixed_margins_are_filled_with_the_grey_around_them_or_cut_off():
    pixels = np.full((50, 80), 90, dtype=np.uint8)
    pixels[:10], pixels[45:] = 250, 0
    picture = Image.fromarray(pixels)
    masked = np.asarray(clean_image(picture, (), Margins((10, 0, 0, 5), crop=False)))
    assert (masked[:45] == 90).all()
    assert (masked[45:, 5:] == 0).all()
    cropped = clean_image(picture, (), Margins((10, 0, 0, 5), crop=True))
    assert cropped.size == (75, 40)


def test_found_text_is_cut_off_by_the_edge_next_to_it():
    picture = Image.new("L", (300, 200), 20)
    ImageDraw.Draw(picture).text((8, 180), "MRN 4482913", fill=250)
    cropped = clean_image(picture, find_text(picture), Margins(None, crop=True))
    assert cropped.width == 300
    assert 150 < cropped.height < 184


def test_large_images_give_boxes_in_their_own_pixels():
    picture = Image.new("L", (3600, 2400), 15)
    text = "LINDQVIST, HANNA"
    ImageDraw.Draw(picture).text((2400, 40), text, fill=240, font=ImageFont.load_default(60))
    (box,) = find_text(picture)
    assert box.left > 2380
    assert 30 < box.top < box.bottom < 130


@pytest.mark.parametrize(
    ("letters", "grey", "ground"), [(29, 203, 54), (32, 189, 68), (36, 210, 58)]
)
def test_small_letters_over_a_ground_that_changes_below_them_are_found(letters, grey, ground):
    middle = 7 + letters // 8
    rows = np.interp(np.arange(120), [middle - 6, middle + 6], [8, ground]).astype(np.uint8)
    large = Image.fromarray(np.tile(rows[:, None], (1, 320))).resize((1280, 480))
    draw, font = ImageDraw.Draw(large), ImageFont.load_default(letters)
    place, text = (900, 20), "26/03/2020, 16:09:32"
    stroke = int(letters > 30)
    draw.text(place, text, fill=grey, font=font, stroke_width=stroke)
    box = [value // 4 for value in draw.textbbox(place, text, font=font)]
    picture = large.reduce(4)  # as a viewer shrinks a screen
    assert covered(find_text(picture), box, picture.size) >= 0.85
