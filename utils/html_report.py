"""One self-contained HTML page: text, tables, pictures and charts, readable without the code.

No script, no external file: pictures are PNG data URIs, charts are inline SVG, and a content
security policy forbids the page to load anything, so that it can be mailed, archived and opened on
a machine without a network. Every text that enters is escaped.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from utils import html_cards, html_charts, run_folder
from utils.html_charts import Point
from utils.html_style import STYLE
from utils.html_text import escape, format_number

if TYPE_CHECKING:
    from PIL import Image

NOTICE_KINDS = ("note", "warning")
# A cell such as "12.3 [11.0, 13.9]" or "93 %" reads as a number, and is aligned like one.
_NUMBER_LIKE = re.compile(r"^[\s\d.,%+\-−–±×/\[\]()<>≤≥eE:]*$")

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def png_data_uri(image: Image.Image) -> str:
    """The picture as a ``data:image/png;base64,…`` address."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _shrink(image: Image.Image, longest_px: int | None) -> Image.Image:
    """The picture, or an antialiased smaller copy whose longer side is ``longest_px``."""
    if longest_px is None or max(image.size) <= longest_px:
        return image
    smaller = image.copy()
    smaller.thumbnail((longest_px, longest_px))
    return smaller


def _cell_text(value: object) -> str:
    """A table cell as text: numbers formatted, None and NaN as a dash."""
    value = value.item() if hasattr(value, "dtype") else value  # a NumPy scalar
    return str(value) if isinstance(value, (str, Path)) else format_number(value)


class Page:
    """Collects the parts of a page in reading order, then writes it as one file.

    Every method that adds a part escapes what it is given; captions say what is seen and with how
    many images.
    """

    def __init__(self, title: str, *, lead: str | None = None):
        """Start a page.

        Args:
            title: Name of the page, shown on top and in the browser's tab.
            lead: One sentence under the title: what this is about.
        """
        self.title = title
        self._lead = lead
        self._parts: list[str] = []
        self._sections: list[tuple[str, str]] = []

    def heading(self, text: str, *, level: int = 2) -> None:
        """A section heading; those of level 2 also enter the list of sections on top."""
        if level not in (2, 3):
            raise ValueError(f"heading level is {level}; a page has levels 2 and 3 under its title")
        key = f"s{len(self._parts)}"
        if level == 2:
            self._sections.append((key, text))
        self._parts.append(f'<h{level} id="{key}">{escape(text)}</h{level}>')

    def paragraph(self, text: str) -> None:
        """A paragraph of plain text."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def bullets(self, items: Sequence[str]) -> None:
        """A bulleted list of plain texts; nothing for an empty one."""
        if items:
            inner = "".join(f"<li>{escape(item)}</li>" for item in items)
            self._parts.append(f'<ul class="list">{inner}</ul>')

    def notice(
        self, text: str | Sequence[str], *, kind: str = "note", title: str | None = None
    ) -> None:
        """A box of one or more paragraphs, not to be overlooked; "note" or "warning"."""
        if kind not in NOTICE_KINDS:
            raise ValueError(f"kind is {kind!r}; expected one of {', '.join(NOTICE_KINDS)}")
        head = title if title is not None else kind.capitalize()
        texts = [text] if isinstance(text, str) else text
        inner = "".join(f"<p>{escape(one)}</p>" for one in texts)
        self._parts.append(
            f'<div class="notice {kind}" role="note"><b>{escape(head)}</b>{inner}</div>'
        )

    def preformatted(self, text: str) -> None:
        """A command or log excerpt, in a fixed-width face."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def link(self, text: str, target: str) -> None:
        """A line with a link to a web address, or to a file relative to this page."""
        if urlsplit(target).scheme not in ("", "http", "https"):
            raise ValueError(f"link target {target!r}: expected a relative path or http(s) address")
        address = target if "://" in target else quote(target)
        self._parts.append(f'<p><a href="{escape(address)}">{escape(text)}</a></p>')

    def facts(self, items: Mapping[str, object]) -> None:
        """A short list of names and values: what was compared, with which network, when."""
        inner = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(_cell_text(value))}</dd>"
            for name, value in items.items()
        )
        self._parts.append(f'<dl class="facts">{inner}</dl>')

    def table(
        self,
        rows: Sequence[Mapping[str, object]],
        columns: Sequence[str] | Mapping[str, str] | None = None,
        *,
        caption: str | None = None,
        dense: bool = False,
    ) -> None:
        """A table; numbers are formatted and right-aligned, the first column names the row.

        Args:
            rows: One mapping per row. A missing key, None and NaN show as a dash.
            columns: Keys in order, or key -> heading; by default the keys of the first row.
            caption: Text under the table: what is counted, over how many images.
            dense: Whether many columns shall fit: smaller, and numbers may break at a space.
        """
        if columns is None:
            columns = list(rows[0]) if rows else []
        heads = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
        cells = [[_cell_text(row.get(key)) for key in heads] for row in rows]
        css = [
            ' class="num"' if cells and all(_NUMBER_LIKE.match(r[i]) for r in cells) else ""
            for i in range(len(heads))
        ]
        head = "".join(f'<th scope="col"{c}>{escape(h)}</th>' for c, h in zip(css, heads.values()))
        body = ""
        for row in cells:
            first = f'<th scope="row"{css[0]}>{escape(row[0])}</th>' if row else ""
            rest = "".join(f"<td{c}>{escape(v)}</td>" for c, v in zip(css[1:], row[1:]))
            body += f"<tr>{first}{rest}</tr>"
        note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        look = ' class="dense"' if dense else ""
        self._parts.append(
            f'<figure><div class="scroll" tabindex="0"><table{look}><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{note}</figure>"
        )

    def image(self, image: Image.Image, caption: str, *, longest_px: int | None = None) -> None:
        """One picture with its caption; ``longest_px`` shrinks it before it is embedded."""
        uri = png_data_uri(_shrink(image, longest_px))
        self._parts.append(
            f'<figure><img src="{uri}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def gallery(
        self,
        sides: Mapping[str, Sequence[Image.Image]],
        *,
        caption: str | None = None,
        captions: Mapping[str, Sequence[str]] | None = None,
        tile_px: int = 128,
        large: bool = False,
    ) -> None:
        """Grids of pictures next to each other, such as real beside synthetic.

        Args:
            sides: Heading of a grid -> its pictures; an empty grid says that there are none.
            caption: Text under all grids.
            captions: Heading -> one text per picture.
            tile_px: Longer side of an embedded picture, in pixels.
            large: Whether few pictures shall be shown larger.
        """
        columns = []
        for name, pictures in sides.items():
            texts = (captions or {}).get(name, [""] * len(pictures))
            if len(texts) != len(pictures):
                raise ValueError(f"{name}: {len(pictures)} pictures but {len(texts)} captions")
            tiles = "".join(
                f'<div><img src="{png_data_uri(_shrink(picture, tile_px))}" '
                f'alt="{escape(text or f"{name}, image {index + 1}")}">'
                + (f"<span>{escape(text)}</span>" if text else "")
                + "</div>"
                for index, (picture, text) in enumerate(zip(pictures, texts))
            )
            look = "tiles large" if large else "tiles"
            inner = f'<div class="{look}">{tiles}</div>' if tiles else "<p>No image.</p>"
            columns.append(f"<div><h4>{escape(name)}</h4>{inner}</div>")
        note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        self._parts.append(f'<figure><div class="sides">{"".join(columns)}</div>{note}</figure>')

    def cards(
        self, cards: Sequence[html_cards.Card], *, meanings: Mapping[str, str], num_open: int
    ) -> None:
        """Pictures beside texts with marks, whose key comes first.

        Args:
            cards: From top to bottom.
            meanings: Kind of mark -> what it means.
            num_open: Cards to show; the others open on demand.
        """
        self._parts.append(html_cards.key_of_marks(meanings))
        self._parts.append(html_cards.cards(cards, num_open=num_open))

    def curve(
        self,
        series: Mapping[str, Sequence[Point]],
        *,
        title: str,
        x_label: str,
        y_label: str,
        caption: str | None = None,
        log_x: bool = False,
        log_y: bool = False,
        smooth: float = 0.0,
        intervals: Mapping[str, Mapping[float, Point | None]] | None = None,
    ) -> None:
        """A line chart; arguments as in ``html_charts.line_chart``."""
        drawing = html_charts.line_chart(
            series,
            title=title,
            x_label=x_label,
            y_label=y_label,
            log_x=log_x,
            log_y=log_y,
            smooth=smooth,
            intervals=intervals,
        )
        self._chart(drawing, title=title, caption=caption)

    def bars(
        self,
        groups: Mapping[str, Mapping[str, float | None]],
        *,
        title: str,
        caption: str | None = None,
        intervals: Mapping[str, Mapping[str, Point | None]] | None = None,
        x_label: str = "",
    ) -> None:
        """A chart of horizontal bars; arguments as in ``html_charts.bar_chart``."""
        drawing = html_charts.bar_chart(groups, title=title, intervals=intervals, x_label=x_label)
        self._chart(drawing, title=title, caption=caption)

    def _chart(self, drawing: str, *, title: str, caption: str | None) -> None:
        note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        self._parts.append(
            f'<figure class="chart-box"><p class="caption-title">{escape(title)}</p>'
            f"{drawing}{note}</figure>"
        )

    def html(self) -> str:
        """The whole page as text."""
        lead = f'<p class="lead">{escape(self._lead)}</p>' if self._lead else ""
        links = " ".join(f'<a href="#{key}">{escape(text)}</a>' for key, text in self._sections)
        nav = f'<nav aria-label="Sections">{links}</nav>' if len(self._sections) > 2 else ""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head><body><main>"
            f"<header><h1>{escape(self.title)}</h1>{lead}{nav}</header>\n"
            + "\n".join(self._parts)
            + "\n</main></body></html>\n"
        )

    def write(self, path: Path | str) -> None:
        """Write the page atomically.

        Args:
            path: File to write, usually ``report.html`` of a run folder.
        """
        run_folder.write_text(Path(path), self.html())
