"""Sections of a free-text radiology report: findings, impression, and what stands around them.

The headings are those that MIMIC-CXR's reports have in their variety. Where a report has neither
findings nor impression, its last paragraphs are taken, as MIT-LCP's own section files do it
(https://github.com/MIT-LCP/mimic-cxr, ``txt/section_parser.py``).
"""

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

from utils.line_text import fold_spaces

SECTION_NAMES = (
    "findings",
    "impression",
    "indication",
    "history",
    "comparison",
    "technique",
    "examination",
)

_BOTH = "findings and impression"  # one section that is both
_TITLE = "title"  # the examination as a heading: "CHEST, PA AND LATERAL:"
_PART = "part"  # a heading within findings: "LUNGS:"
_WET_READ = "wet read"
_OTHER = "other"  # ends the section before it

_KNOWN_HEADINGS = {
    "findings": ("findings", "finding", "report", "description", "radiographic findings"),
    "impression": (
        "impression",
        "impressions",
        "conclusion",
        "conclusions",
        "interpretation",
        "opinion",
        "summary",
    ),
    _BOTH: ("findings and impression", "findings impression", "impression and findings"),
    "indication": (
        "indication",
        "indications",
        "clinical indication",
        "reason for exam",
        "reason for examination",
        "reason for study",
        "reason for this examination",
    ),
    "history": (
        "history",
        "clinical history",
        "patient history",
        "clinical information",
        "clinical data",
    ),
    "comparison": ("comparison", "comparisons", "comparison exam", "comparison film"),
    "technique": ("technique", "procedure", "views"),
    "examination": ("examination", "exam", "study", "type of examination", "type of exam"),
    _WET_READ: ("wet read", "wetread", "preliminary report", "preliminary read"),
    _OTHER: ("addendum", "notification", "recommendation", "recommendations", "date", "dose"),
}
_KIND_OF = {heading: kind for kind, names in _KNOWN_HEADINGS.items() for heading in names}
_MISSPELT = ("findings", "impression", "indication", "comparison", "examination", "technique")
_MISSPELT_LIKENESS = 0.8  # of difflib: one or two letters wrong, left out or exchanged

# Words of a heading that names the examination, and of one that divides findings by anatomy.
_EXAMINATION_WORDS = re.compile(
    r"\b(chest|portable|cxr|radiographs?|x-?rays?|views?|pa|ap|lateral|frontal|upright|ribs)\b"
)
_ANATOMY = re.compile(
    r"(?:(?:lungs?|pleurae?|pleural|heart|cardiac|cardiomediastinal|mediastin(?:um|al)|hila|hilar|"
    r"bones?|osseous|skeletal|soft|tissues?|chest wall|airways?|trachea|aorta|vessels|"
    r"vasculature|pulmonary|diaphragm|(?:upper )?abdomen|lines|tubes|devices|support|hardware|"
    r"catheters|silhouette|structures?|spaces?|and|or|the|of)(?: |$))+"
)

_KNOWN = "|".join(sorted(map(re.escape, _KIND_OF), key=len, reverse=True))
_HEADING = re.compile(
    "|".join(
        (
            # IMPRESSION:   AP CHEST, 8:43 A.M.:
            r"^[ \t]*([A-Z](?:[A-Z0-9 ,.()/&'#_-]|(?<=\d):(?=\d)){1,70}?)[ \t]*:(?=\s|$)",
            # Impression:
            rf"^[ \t]*((?i:{_KNOWN}))[ \t]*:",
            # alone in its line
            r"^[ \t]*(FINDINGS|IMPRESSION|WET READ\b.*|(?:FINAL )?ADDENDUM)[ \t]*$",
            # ... are clear. IMPRESSION:
            r"(?<=[.!?])[ \t]+(FINDINGS|IMPRESSION|INDICATION|HISTORY|COMPARISON|TECHNIQUE|"
            r"Findings|Impression)[ \t]*:",
        )
    ),
    re.MULTILINE,
)
_FINAL_REPORT = re.compile(r"^[ \t]*FINAL REPORT[ \t]*:?[ \t]*$", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*[_=*-]{5,}[ \t]*$", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


class Section(NamedTuple):
    """One section: its kind (of `SECTION_NAMES`, or another word) and its text as it stands."""

    kind: str
    body: str


def split_sections(report: str) -> list[Section]:
    """Divide a report at its headings.

    What stands above the line FINAL REPORT (a preliminary wet read, an addendum) is left out.

    Args:
        report: The report as it lies on disk, with its lines.

    Returns:
        The sections in order; the first, of kind ``""``, is what stands before any heading.
    """
    text = report.replace("\r\n", "\n").replace("\r", "\n")
    finals = list(_FINAL_REPORT.finditer(text))
    text = _RULE.sub("", text[finals[-1].end() :] if finals else text)
    headings = []
    kind = ""
    for match in _HEADING.finditer(text):
        found = _kind_of(next(name for name in match.groups() if name))
        if found == _PART and kind in ("findings", "impression", _BOTH, _TITLE):
            continue
        kind = _OTHER if found == _PART else found
        headings.append((match.start(), match.end(), kind))
    starts = [0, *(end for _, end, _ in headings)]
    ends = [*(start for start, _, _ in headings), len(text)]
    kinds = ["", *(kind for _, _, kind in headings)]
    return [
        Section(kind, _without_signature(text[start:end]) if kind == _WET_READ else text[start:end])
        for kind, start, end in zip(kinds, starts, ends)
    ]


def section_text(report: str, wanted: Sequence[str]) -> str:
    """Text of the wanted sections of a report, in the order asked for, joined by a space.

    The last section of a kind that is not empty counts, as a later one corrects the earlier. A
    heading that names the examination ("CHEST, PA AND LATERAL:") stands for findings.

    Args:
        report: The report as it lies on disk.
        wanted: Of `SECTION_NAMES`.

    Returns:
        One line; empty if the report has none of them. Where findings or impression are wanted
        and the report has neither, what follows the first paragraph of its last section.
    """
    sections = [section for section in split_sections(report) if section.body.strip()]
    texts = {section.kind: fold_spaces(section.body) for section in sections}
    if "findings" not in texts and _TITLE in texts:
        texts["findings"] = texts[_TITLE]
    told = [kind for kind in ("findings", "impression", _BOTH) if kind in texts]
    if not told and {"findings", "impression"} & set(wanted):
        texts["impression" if "findings" not in wanted else "findings"] = _last_paragraphs(sections)
    kinds = [
        _BOTH if name in ("findings", "impression") and name not in texts else name
        for name in wanted
    ]
    return " ".join(text for kind in dict.fromkeys(kinds) if (text := texts.get(kind)))


def _kind_of(heading: str) -> str:
    name = fold_spaces(re.sub(r"[^a-z0-9-]+", " ", heading.lower()))
    name = name.removesuffix(" s")  # RECOMMENDATION(S)
    if name in _KIND_OF:
        return _KIND_OF[name]
    if " " not in name:
        near = difflib.get_close_matches(name, _MISSPELT, n=1, cutoff=_MISSPELT_LIKENESS)
        if near:
            return near[0]
    if name.startswith("wet read"):
        return _WET_READ
    if _ANATOMY.fullmatch(name):
        return _PART
    for word in ("addendum", "impression", "findings", "history", "comparison"):
        if re.search(rf"\b{word}\b", name):
            return _KIND_OF[word]
    return _TITLE if _EXAMINATION_WORDS.search(name) else _OTHER


def _without_signature(body: str) -> str:
    """A wet read without its first line, which says who read it when."""
    return body.partition("\n")[2]


def _last_paragraphs(sections: Sequence[Section]) -> str:
    """What follows the first paragraph of the last section that has more than one."""
    for section in reversed(sections):
        if section.kind == _OTHER:
            continue
        paragraphs = [part for part in _BLANK_LINE.split(section.body) if part.strip()]
        if section.kind not in ("", _WET_READ):
            paragraphs = paragraphs[1:]  # the first is what the heading announces
        elif len(paragraphs) + len(sections) > 2 and not paragraphs[0].rstrip().endswith("."):
            paragraphs = paragraphs[1:]  # a title, no sentence
        if paragraphs:
            return fold_spaces(" ".join(paragraphs))
    return ""
