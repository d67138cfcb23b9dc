"""report.html of a check for privacy: what was found, counted, and examples with it blacked out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from utils.dataset_records import Record
from utils.html_report import Page
from utils.privacy_check import IMAGE, Found

EXAMPLES = 4  # per kind
_AROUND = 28  # characters shown on each side
_STRIPS = 24  # pictures in the gallery
_BLOCK = "█"

_LEAD = (
    "What could give persons away, as rules and a search for letters found it. What no rule "
    "describes is not here: a clean report is no proof."
)


class PrivacyResult(NamedTuple):
    """What the page tells.

    Attributes:
        records: The rows.
        found: What was found in them.
        counts: See `utils.privacy_check.summary`.
        clean: Of the clean copy: ``folder`` and ``remaining`` counts; None without one.
    """

    records: Sequence[Record]
    found: Sequence[Found]
    counts: Mapping
    clean: Mapping | None


def build_page(result: PrivacyResult, *, show_findings: bool) -> Page:
    """The page; with ``show_findings`` it holds what was found, in words and pictures."""
    page = Page("Check for privacy", lead=_LEAD)
    if show_findings:
        page.notice("Names and pictures of patients are on this page (--show_findings).")
    counts = result.counts
    page.heading("What was found")
    page.facts(
        {
            "Rows": counts["rows"],
            "Rows with something": counts["rows_with_identities"],
            "Findings": counts["identities"],
            "Images looked at": counts["images"],
        }
    )
    page.table(
        [
            {
                "kind": kind,
                "findings": number,
                "rows": counts["rows_per_kind"][kind],
                "share": f"{counts['share_of_rows'][kind]:.1%}",
            }
            for kind, number in counts["findings"].items()
        ],
        ("kind", "findings", "rows", "share"),
        caption="A marker is a lone letter such as L or R; it is nobody's identity.",
    )
    if counts["by_column"]:
        page.bars({"findings": dict(counts["by_column"])}, title="Findings by column and kind")
    _examples(page, result, show_findings)
    if show_findings:
        _gallery(page, result)
    if result.clean is not None:
        page.heading("Clean copy")
        page.facts({"Folder": result.clean["folder"]})
        remaining = result.clean["remaining"]["findings"]
        text = ", ".join(f"{kind}: {number}" for kind, number in remaining.items())
        page.paragraph(f"Checked again: {text or 'nothing was found in it'}.")
    return page


def _examples(page: Page, result: PrivacyResult, show_findings: bool) -> None:
    """Some findings of each kind with the words around them; all that was found is blacked out."""
    in_cell: dict[tuple[int, str], list[Found]] = defaultdict(list)
    examples: dict[str, list[Found]] = defaultdict(list)
    for item in result.found:
        if item.column != IMAGE:
            in_cell[item.index, item.column].append(item)
            examples[item.kind].append(item)
    rows = []
    for kind, items in sorted(examples.items()):
        for item in items[:EXAMPLES]:
            record = result.records[item.index]
            text = record.row[item.column]
            if not show_findings:
                text = _blacked(text, in_cell[item.index, item.column])
            part = text[max(0, item.start - _AROUND) : item.end + _AROUND]
            row = {"kind": kind, "rule": item.rule, "line": record.where, "column": item.column}
            rows.append({**row, "example": part.strip()})
    if rows:
        page.heading("Examples")
        page.table(rows, caption=f"At most {EXAMPLES} of each kind; privacy.csv lists all.")


def _blacked(text: str, found: Sequence[Found]) -> str:
    letters = list(text)
    for item in found:
        letters[item.start : item.end] = _BLOCK * (item.end - item.start)
    return "".join(letters)


def _gallery(page: Page, result: PrivacyResult) -> None:
    items = [item for item in result.found if item.box is not None and item.box.kind == "text"]
    strips = []
    for item in items[:_STRIPS]:
        strips.append(result.records[item.index].image().crop(item.box[:4]))
    if strips:
        page.heading("Text in images")
        names = [result.records[item.index].file_name for item in items[:_STRIPS]]
        page.gallery(
            {"Strips": strips},
            captions={"Strips": names},
            caption=f"{len(strips)} of {len(items)} strips",
            tile_px=320,
            large=True,
        )
