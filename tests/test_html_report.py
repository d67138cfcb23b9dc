"""The page: safe, self-contained, accessible, and right about its numbers."""

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from utils import html_charts
from utils.chart_axes import nice_ticks
from utils.html_report import Page
from utils.html_text import escape, format_number

VOID = {"meta", "img", "br"}
NASTY = "<script>alert(\"1\")</script> & 'x' \x00\udc80"


class Reader(HTMLParser):
    """Collects tags, attributes and text; checks that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def gray(value=128, size=(20, 10)):
    return Image.new("L", size, value)


def full_page(text="text"):
    """A page with every kind of part, each holding ``text``."""
    page = Page(text, lead=text)
    for _ in range(3):
        page.heading(text)
    page.heading(text, level=3)
    page.paragraph(text)
    page.bullets([text])
    page.notice(text, kind="warning", title=text)
    page.preformatted(text)
    page.link(text, "a b/report.html?x=<y>")
    page.facts({text: text})
    page.table([{text: text, "n": 3}], caption=text)
    page.image(gray(), text)
    page.gallery({text: [gray(), gray()]}, caption=text, captions={text: [text, text]})
    page.curve({text: [(1, 2.0)], "b": []}, title=text, x_label=text, y_label=text, caption=text)
    page.bars({text: {text: 0.5, "b": None}}, title=text, x_label=text, caption=text)
    return page


def test_every_text_is_escaped_and_every_tag_closes():
    reader = Reader(full_page(NASTY).html())
    assert not reader.all("script")
    assert sum(NASTY[:20] in text for text in reader.texts) > 20
    assert "\x00" not in "".join(reader.texts)


def test_the_page_loads_nothing_and_forbids_loading():
    html = full_page().html()
    reader = Reader(html)
    assert all(image["src"].startswith("data:image/png;base64,") for image in reader.all("img"))
    assert not reader.all("link")
    assert "@import" not in html
    assert "url(" not in html
    policies = [m["content"] for m in reader.all("meta") if "http-equiv" in m]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_ids_are_unique_and_the_sections_are_listed():
    reader = Reader(full_page().html())
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"].removeprefix("#") for a in reader.all("a") if a["href"].startswith("#")]
    assert len(targets) == 3
    assert set(targets) <= set(ids)


def test_every_picture_and_chart_has_a_spoken_name():
    html = full_page("scan 7").html()
    reader = Reader(html)
    assert all(image["alt"] for image in reader.all("img"))
    charts = re.findall(r"<svg.*?</svg>", html)
    assert len(charts) == 2
    for chart in charts:
        root = ET.fromstring(chart)
        names = root.attrib["aria-labelledby"].split()
        spoken = {
            child.attrib["id"]: child.text for child in root if child.tag in ("title", "desc")
        }
        assert root.attrib["role"] == "img"
        assert [bool(spoken[name]) for name in names] == [True, True]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (math.inf, "–"),
        (True, "yes"),
        (0, "0"),
        (1234567, "1,234,567"),
        (0.0, "0"),
        (12.3456, "12.35"),
        (0.91234, "0.9123"),
        (-0.5, "−0.5000"),
        (1234.5, "1,234"),
        (0.000012, "1.20e-05"),
        (99.996, "100.00"),
    ],
)
def test_numbers_read_as_a_reader_wants_them(value, text):
    assert format_number(value) == text


def test_numeric_columns_are_aligned_and_texts_are_not():
    page = Page("t")
    rows = [
        {"name": "a", "value": np.float32(0.5), "range": "1.2 – 3.4", "note": "12 of them"},
        {"name": "b", "value": None, "range": None, "note": None},
    ]
    page.table(rows, {"name": "Name", "value": "Value", "range": "Range", "note": "Note"})
    heads = Reader(page.html()).all("th")
    assert [head.get("class") for head in heads[:4]] == [None, "num", "num", None]
    assert ">0.5000<" in page.html()


def test_a_table_without_rows_shows_its_columns():
    page = Page("t")
    page.table([], ["a", "b"])
    assert [head["scope"] for head in Reader(page.html()).all("th")] == ["col", "col"]


def test_a_gallery_shows_each_picture_small_and_says_where_there_is_none():
    page = Page("t")
    page.gallery({"real": [gray(size=(400, 200))], "synthetic": []}, tile_px=40)
    assert len(Reader(page.html()).all("img")) == 1
    assert "No image." in page.html()
    assert len(page.html()) - len(Page("t").html()) < 1000
    with pytest.raises(ValueError, match="real: 1 pictures but 2 captions"):
        page.gallery({"real": [gray()]}, captions={"real": ["a", "b"]})


@pytest.mark.parametrize(
    "target", ["javascript:alert(1)", "file:///etc/passwd", "data:text/html,x"]
)
def test_links_lead_to_files_beside_the_page_or_to_the_web(target):
    with pytest.raises(ValueError, match="link target"):
        Page("t").link("x", target)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="kind is 'danger'"):
        Page("t").notice("x", kind="danger")
    with pytest.raises(ValueError, match="heading level is 1"):
        Page("t").heading("x", level=1)


def test_writing_replaces_the_old_page(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    Page("new é").write(path)
    assert "<h1>new é</h1>" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.13, 0.87), (-3, 12), (1e-5, 3e-5), (0, 0), (7, 7), (0, 123456)]
)
def test_ticks_are_round_and_enclose_the_data(low, high):
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert ticks[0] - 1e-9 * step <= low <= high <= ticks[-1] + 1e-9 * step
    assert 2 <= len(ticks) <= 9
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - nice) for nice in (1, 2, 2.5, 5)) < 1e-6


def places(svg, tag, *names):
    return [
        [float(element.attrib[name]) for name in names]
        for element in ET.fromstring(re.search(r"<svg.*?</svg>", svg)[0]).iter(tag)
    ]


def test_a_higher_value_is_drawn_higher_and_a_later_one_further_right():
    svg = html_charts.line_chart(
        {"low": [(0, 1.0), (4, 2.0)], "high": [(0, 5.0), (2, 9.0)]},
        title="t",
        x_label="x",
        y_label="y",
    )
    (low_x, low_y), (high_x, high_y) = places(svg, "circle", "cx", "cy")
    assert high_x < low_x
    assert high_y < low_y


def test_points_that_are_not_finite_are_left_out_and_said():
    chart = html_charts.line_chart(
        {"a": [(0, float("nan")), (1, 0.5), (2, math.inf)], "b": [(0, None)]},
        title="t",
        x_label="x",
        y_label="y",
    )
    points = (
        ET.fromstring(re.search(r"<svg.*?</svg>", chart)[0]).find(".//polyline").attrib["points"]
    )
    assert len(points.split()) == 1
    assert "a: 0.5000 at the start, 0.5000 at the end; b: no value" in chart
    empty = html_charts.line_chart({"a": []}, title="Loss", x_label="x", y_label="y")
    assert empty == "<p>Loss: nothing to draw, no finite value was recorded.</p>"


def test_logarithmic_axes_leave_out_zero():
    svg = html_charts.line_chart(
        {"a": [(0, 1.0), (1, 0.0), (10, 1.0), (100, 0.01)]},
        title="t",
        x_label="x",
        y_label="y",
        log_x=True,
        log_y=True,
    )
    points = ET.fromstring(re.search(r"<svg.*?</svg>", svg)[0]).find(".//polyline").attrib["points"]
    assert len(points.split()) == 2


def test_long_curves_are_thinned_and_keep_their_last_point():
    points = [(k, float(k)) for k in range(100_001)]
    svg = html_charts.line_chart({"a": points}, title="t", x_label="x", y_label="y")
    assert len(svg) < 40_000
    assert "100,000 at the end" in svg


def test_smoothing_is_unbiased_at_the_start_and_flattens_noise():
    flat = html_charts.smooth_points([(k, 3.0) for k in range(5)], 0.9)
    assert [y for _, y in flat] == pytest.approx([3.0] * 5)
    noisy = [(k, float(k % 2)) for k in range(400)]
    tail = [y for _, y in html_charts.smooth_points(noisy, 0.98)][-50:]
    assert tail == pytest.approx([0.5] * 50, abs=0.02)


def test_bars_are_as_long_as_their_values_and_start_at_zero():
    svg = html_charts.bar_chart({"a": {"real": 0.2, "synthetic": 0.8}}, title="t")
    (x1, w1), (x2, w2) = places(svg, "rect", "x", "width")
    assert x1 == x2
    assert w2 == pytest.approx(4 * w1, rel=0.01)


def test_negative_bars_lie_left_of_zero_and_missing_ones_are_a_dash():
    svg = html_charts.bar_chart({"a": {"x": -1.0, "y": 1.0}, "b": {"x": None}}, title="t")
    (x1, w1), (x2, _) = places(svg, "rect", "x", "width")
    assert x1 + w1 == pytest.approx(x2, abs=0.2)
    assert len(places(svg, "rect", "x")) == 2
    assert svg.count(">–</text>") == 2


def test_a_whisker_spans_its_interval():
    svg = html_charts.bar_chart({"a": {"x": 0.5}}, title="t", intervals={"a": {"x": (0.0, 1.0)}})
    ((x, _),) = places(svg, "rect", "x", "width")
    low, high = map(float, re.search(r'whisker" d="M([\d.]+) [\d.]+H([\d.]+)', svg).groups())
    assert low == pytest.approx(x, abs=0.1)
    assert high > 500


def test_escape_marks_what_no_page_can_hold():
    assert escape("a\x00b\udc80c\n") == "a�b?c\n"
