import base64
import re
from io import BytesIO

import numpy as np
from PIL import Image

from utils.audit_page import NUM_PAIRS, add_audit
from utils.copy_audit import Audit, copy_threshold
from utils.html_report import Page


def found(similarities, held_out, notes=()):
    count = len(similarities)
    no = np.zeros(count, bool)
    return Audit(
        names=tuple(f"<s{index}>" for index in range(count)),
        train_names=("t0", "t1"),
        neighbours=np.arange(count) % 2,
        similarities=np.asarray(similarities),
        held_out=np.asarray(held_out),
        threshold=copy_threshold(held_out),
        mirrored=np.arange(count) == 1,
        exact=np.arange(count) == 0,
        perceptual=no,
        repeated=no,
        repeated_perceptually=no,
        notes=notes,
    )


def html_of(audit):
    asked = []

    def picture(kind):
        def image(index):
            asked.append((kind, index))
            return Image.new("L", (64, 64), 100 if kind == "synthetic" else 200)

        return image

    page = Page("Test")
    add_audit(page, audit, synthetic_image=picture("synthetic"), train_image=picture("train"))
    return page.html(), asked


def test_page_shows_the_most_similar_pairs_with_their_verdict():
    similarities = np.linspace(1, 0.1, 20)
    html, asked = html_of(found(similarities, np.linspace(0, 0.97, 40)))
    assert asked[:4] == [("synthetic", 0), ("train", 0), ("synthetic", 1), ("train", 1)]
    assert len(asked) == 2 * NUM_PAIRS
    rows = re.findall(r"<tr>(.*?)</tr>", html)[1:]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert [row[-1] for row in cells[:3]] == [
        "equal pixel for pixel",
        "copy, mirrored",
        "below the threshold",
    ]
    assert cells[0][:2] == ["&lt;s0&gt;", "t0"]
    sheet = re.search(r'src="data:image/png;base64,([^"]+)"', html).group(1)
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(sheet))).convert("L"))
    assert pixels[70, 70] == 100  # the synthetic image is on the left of its pair
    assert pixels[70, 220] == 200


def test_page_tells_the_share_beside_its_floor_and_draws_both_histograms():
    html, _ = html_of(found([0.95, 0.99, 0.2, 0.1], np.linspace(0, 0.92, 40)))
    assert "2 of 4: 50.0 % (95 % interval 15.0 % – 85.0 %), 1 of them mirrored" in html
    assert "2.5 %: the held-out images" in html.replace("&#x27;", "'")
    assert html.count("<polyline") == 3
    for name in ("held-out real", "synthetic", "threshold"):
        assert f"{name}</li>" in html


def test_page_without_a_threshold_says_why():
    html, _ = html_of(found([1.0, 0.5], np.empty(0), notes=("no held-out image is left",)))
    assert "No held-out image is left." in html
    assert "<polyline" not in html
    assert ">equal pixel for pixel</td>" in html
    assert ">no threshold</td>" in html


def test_histogram_of_equal_similarities_can_be_drawn():
    html, _ = html_of(found([1.0, 1.0], np.ones(30)))
    assert "<polyline" in html
