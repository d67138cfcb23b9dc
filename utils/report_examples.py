"""Test scans with their reports, true and written, findings marked as right, missed or invented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np

from utils.dataset import Record
from utils.finding_labeler import FindingLabeler, Mention
from utils.finding_scores import NAMED, names_in
from utils.html_cards import DENIED, INVENTED, MISSED, RIGHT, Mark
from utils.sweep_cells import arm_name, cell_of, shown_cells, shown_shares
from utils.sweep_plan import RunKey

NUM_EXAMPLES = 30
_STRONGEST = (INVENTED, MISSED, RIGHT, DENIED)  # of findings at the same place
_NOTHING = ""  # the finding of a report that names none


@dataclass(frozen=True)
class MarkedReport:
    """A report with its marks in order, none over another; ``counts``: kind -> findings."""

    text: str
    marks: Sequence[Mark]
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A test scan: its record, what the true report names, and the reports.

    Attributes:
        place: In the test set.
        record: What stands there.
        named: Findings of the true report.
        true: The true report; what at least one arm missed is marked as missed, and by how many.
        written: Arm -> its report.
    """

    place: int
    record: Record
    named: Sequence[str]
    true: MarkedReport
    written: Mapping[str, MarkedReport]


def count_named(labeler: FindingLabeler, texts: Sequence[str]) -> dict[str, int]:
    """Finding, in the order of the rules -> how many of the texts name it."""
    counts = Counter(name for text in texts for name in names_in(labeler, text))
    return {name: counts[name] for name in labeler.names}


def runs_to_show(keys: Sequence[RunKey]) -> dict[str, RunKey]:
    """Arm -> the run whose reports are shown: smallest label share, main ratio, first seed.

    With few pairs the arms differ most, so there is most to learn from their errors.
    """
    cells = [cell_of(key) for key in keys]
    shown = shown_cells(cells, shown_shares(cells)[0])
    first = {cell_of(key): key for key in sorted(keys, key=lambda key: -key.seed)}
    return {arm: first[cell] for arm, cell in shown.items()}


def choose_examples(
    named: Sequence[Collection[str]],
    patients: Sequence[str],
    *,
    count: int = NUM_EXAMPLES,
    seed: int = 0,
) -> list[int]:
    """Scans of different patients, findings in turn, so that the rare ones occur too.

    Args:
        named: Findings of each of N test reports.
        patients: (N,) names; of a patient one scan at most is chosen.
        count: Most scans.
        seed: Of the choice.

    Returns:
        Places in the test set, in the order of choice; fewer than ``count`` if there are fewer
        patients.
    """
    order = np.random.default_rng(seed).permutation(len(named)).tolist()
    groups: dict[str, list[int]] = {}
    for place in order:
        for finding in named[place] or (_NOTHING,):
            groups.setdefault(finding, []).append(place)
    queues = [groups[name] for name in sorted(groups, key=lambda name: (len(groups[name]), name))]
    chosen: list[int] = []
    taken: set[str] = set()
    most = min(count, len(set(patients)))
    for queue in cycle(queues):
        if len(chosen) == most:
            break
        free = next((place for place in queue if patients[place] not in taken), None)
        if free is not None:
            chosen.append(free)
            taken.add(patients[free])
    return chosen


def make_examples(
    records: Sequence[Record],
    written: Mapping[str, Sequence[str]],
    labeler: FindingLabeler,
    patients: Sequence[str],
    *,
    count: int = NUM_EXAMPLES,
    seed: int = 0,
) -> list[Example]:
    """Chosen test scans with every arm's report.

    Args:
        records: N of the test set; ``text`` is the true report.
        written: Arm -> its N reports.
        labeler: Names the findings.
        patients: (N,) names.
        count: See ``choose_examples``; likewise ``seed``.
        seed: See above.
    """
    named = [names_in(labeler, record.text) for record in records]
    return [
        Example(
            place,
            records[place],
            named[place],
            mark_true(records[place].text, {arm: t[place] for arm, t in written.items()}, labeler),
            {
                arm: mark_written(texts[place], named[place], labeler)
                for arm, texts in written.items()
            },
        )
        for place in choose_examples(named, patients, count=count, seed=seed)
    ]


def mark_written(text: str, true: Collection[str], labeler: FindingLabeler) -> MarkedReport:
    """A written report: its findings are right if the true report names them, else invented.

    Args:
        text: Written by a model.
        true: Findings of the true report.
        labeler: Names the findings.
    """
    found = set(names_in(labeler, text))
    counts = {
        RIGHT: len(found & set(true)),
        MISSED: len(set(true) - found),
        INVENTED: len(found - set(true)),
    }
    marks = []
    for mention in labeler.mentions(text):
        kind = RIGHT if mention.finding in true else INVENTED
        marks.append(_mark(mention, kind=kind, tag="", judged=kind))
    return MarkedReport(text, _apart(marks), counts)


def mark_true(text: str, written: Mapping[str, str], labeler: FindingLabeler) -> MarkedReport:
    """The true report: its findings are missed if an arm does not name them, else right.

    Args:
        text: The true report.
        written: Arm -> its report.
        labeler: Names the findings.
    """
    said = {arm: names_in(labeler, one) for arm, one in written.items()}
    marks: list[Mark] = []
    told: set[str] = set()
    for mention in labeler.mentions(text):
        by = [arm_name(arm) for arm, found in said.items() if mention.finding not in found]
        tag = ""
        if by and mention.status in NAMED and mention.finding not in told:
            tag = f"missed by {'all' if len(by) == len(said) else f'{len(by)} of {len(said)}'}"
            told.add(mention.finding)
        judged = f"missed by {', '.join(by)}" if by else RIGHT
        marks.append(_mark(mention, kind=MISSED if by else RIGHT, tag=tag, judged=judged))
    return MarkedReport(text, _apart(marks))


def _mark(mention: Mention, *, kind: str, tag: str, judged: str) -> Mark:
    """The mark of a finding; of one that the text denies no judgement."""
    start, end = mention.start, mention.end
    if mention.status not in NAMED:
        return Mark(start, end, DENIED, "", f"{mention.finding}: {DENIED}")
    doubt = "" if mention.status == "present" else ", uncertain"
    return Mark(start, end, kind, tag, f"{mention.finding}: {judged}{doubt}")


def _apart(marks: Sequence[Mark]) -> list[Mark]:
    """Marks in order, those that overlap made one, of the strongest kind."""
    joined: list[Mark] = []
    for mark in marks:
        if not joined or mark.start >= joined[-1].end:
            joined.append(mark)
            continue
        before = joined.pop()
        kind, tag = min(
            (before.kind, before.tag), (mark.kind, mark.tag), key=lambda m: _STRONGEST.index(m[0])
        )
        note = "; ".join(dict.fromkeys([*before.note.split("; "), mark.note]))
        joined.append(Mark(before.start, max(before.end, mark.end), kind, tag, note))
    return joined
