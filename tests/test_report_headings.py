"""Sections are found in reports of all shapes."""

import pytest
from radiology_reports import FINAL, REPORTS

from utils.importers.radiology_sections import SECTION_NAMES, section_text, split_sections


@pytest.mark.parametrize(("report", "told"), [pytest.param(*rest, id=n) for n, *rest in REPORTS])
def test_findings_and_impression_are_read(report, told):
    findings, impression = told
    expected = findings if findings == impression else f"{findings} {impression}".strip()
    assert section_text(report, ("findings", "impression")) == expected


@pytest.mark.parametrize(("report", "told"), [pytest.param(*rest, id=n) for n, *rest in REPORTS])
def test_findings_alone_are_not_the_impression(report, told):
    assert section_text(report, ("findings",)) == told[0]


@pytest.mark.parametrize(("report", "told"), [pytest.param(*rest, id=n) for n, *rest in REPORTS])
def test_the_impression_alone_has_no_findings_in_it(report, told):
    without_headings = told[0] and not told[1] and "FINDINGS" not in report
    assert section_text(report, ("impression",)) == (told[0] if without_headings else told[1])


def test_the_order_is_the_one_asked_for():
    report = " FINDINGS:  One.\n \n IMPRESSION:  Two.\n"
    assert section_text(report, ("impression", "findings")) == "Two. One."


def test_every_section_can_be_asked_for():
    names = {
        "examination": "EXAM",
        "indication": "REASON FOR EXAMINATION",
        "history": "CLINICAL INFORMATION",
        "technique": "TECHNIQUE",
        "comparison": "COMPARISONS",
        "findings": "FINDINGS",
        "impression": "IMPRESSION",
    }
    report = FINAL + "".join(f" {heading}:  {name} it is\n" for name, heading in names.items())
    assert set(names) == set(SECTION_NAMES)
    for name in SECTION_NAMES:
        assert section_text(report, (name,)) == f"{name} it is"


def test_no_word_of_a_report_is_lost():
    report = "title\n HISTORY: a\n FINDINGS: b\n LUNGS: c\n IMPRESSION: d\n SIGNED BY: e\n"
    assert [section.kind for section in split_sections(report)] == [
        "",
        "history",
        "findings",
        "impression",
        "other",
    ]
    bodies = " ".join(section.body for section in split_sections(report))
    assert bodies.split() == ["title", "a", "b", "LUNGS:", "c", "d", "e"]
