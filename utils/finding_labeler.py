"""Findings that a report names: present, absent or uncertain, with side, size and number.

A rule-based labeler in the line of NegEx (Chapman et al. 2001,
https://doi.org/10.1006/jbin.2001.1029) and CheXpert's (Irvin et al. 2019,
https://arxiv.org/abs/1901.07031): phrases name findings, cues before or behind them deny or doubt
them as far as their scope goes. All words are in YAML (utils/finding_rules).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from utils.finding_attributes import joined, merge_attributes, sentence_attributes
from utils.finding_rules import Rules, read_rules
from utils.phrase_matcher import Match, Token

STATUSES = ("present", "uncertain", "absent")  # an earlier one wins within a report


@dataclass(frozen=True)
class Mention:
    """A finding named in a text.

    Attributes:
        finding: Its name in the rules.
        status: present, absent or uncertain.
        start: First character of its words in the text.
        end: Behind their last character.
        attributes: What the text tells of ``side`` (left, right, central, both), ``size_um`` and
            ``count`` (integers as text).
    """

    finding: str
    status: str
    start: int
    end: int
    attributes: dict[str, str]


def load_labeler(name_or_path: str) -> FindingLabeler:
    """A labeler by the shipped rules ``oct`` or ``cxr``, or by a YAML file.

    Raises:
        UserError: If there is no such file, or with everything that is wrong with it.
    """
    return FindingLabeler(read_rules(name_or_path))


class FindingLabeler:
    """Names findings in reports.

    Attributes:
        names: All findings in the order of the rules.
    """

    def __init__(self, rules: Rules):
        self._rules = rules
        self.names = rules.names

    def mentions(self, text: str) -> list[Mention]:
        """All mentions in order of start, those that follow from another at the same place.

        "Normal" is left out where another finding is present or uncertain (CheXpert's rule).
        """
        found = [
            mention
            for tokens, matches in self._rules.matcher.sentences(text)
            for mention in self._sentence_mentions(tokens, matches)
        ]
        rules = self._rules
        beside = rules.beside_normal | {rules.normal}
        if any(m.status != "absent" and m.finding not in beside for m in found):
            found = [mention for mention in found if mention.finding != rules.normal]
        return found

    def findings(self, text: str) -> dict[str, str]:
        """Finding to status, in the order of `names`; present over uncertain over absent."""
        said: dict[str, str] = {}
        for mention in self.mentions(text):
            known = said.get(mention.finding, "absent")
            said[mention.finding] = min(known, mention.status, key=STATUSES.index)
        return {name: said[name] for name in self.names if name in said}

    def attributes(self, text: str) -> dict[str, dict[str, str]]:
        """Attributes of each finding that is present or uncertain, over all its mentions."""
        parts: dict[str, list[dict[str, str]]] = {}
        for mention in self.mentions(text):
            if mention.status != "absent":
                parts.setdefault(mention.finding, []).append(mention.attributes)
        return {name: merge_attributes(parts[name]) for name in self.names if name in parts}

    def _sentence_mentions(
        self, tokens: Sequence[Token], matches: Sequence[Match]
    ) -> list[Mention]:
        matches = [match for match in matches if "ignore" not in match.meanings]
        places = [at for at, match in enumerate(matches) if "finding" in match.meanings]
        if not places:
            return []
        naming = [at for at in places if "words" in dict(matches[at].meanings["finding"]).values()]
        attributes = sentence_attributes(tokens, matches, naming) if naming else {}
        found = []
        for at in places:
            start, end = tokens[matches[at].first].start, tokens[matches[at].last - 1].end
            cued = _status_behind(matches, at) or _status_before(matches, at)
            for finding, kind in dict(matches[at].meanings["finding"]).items():
                status = _status(kind, cued)
                implied = self._rules.implies[finding] if status in STATUSES[:2] else ()
                found += [
                    Mention(name, status, start, end, attributes.get(at, {}))
                    for name in (finding, *implied)
                    if status is not None
                ]
        return found


def _status(kind: str, cued: str | None) -> str | None:
    """Status by the kind of words and the cue; None where they do not name the finding."""
    if kind == "words":
        return cued or "present"
    if kind == "words_if_denied":
        return cued if cued == "absent" else None
    return {None: "absent", "uncertain": "uncertain"}.get(cued)  # words_of_absence


def _status_before(matches: Sequence[Match], mention: int) -> str | None:
    """Status by the cues before a mention; the outermost governs ("no possible …" is absent).

    A cue right behind a break starts anew: "no drusen, possible CNV".
    """
    status, broken = None, False
    for at in range(mention - 1, -1, -1):
        meanings = matches[at].meanings
        cue = meanings.get("before")
        applies = cue is not None and not (cue["near"] and broken)
        if applies:
            status = cue["status"]
        if "end" in meanings or (applies and _follows_break(matches, at)):
            break
        broken = broken or "break" in meanings
    return status


def _follows_break(matches: Sequence[Match], at: int) -> bool:
    before = matches[at - 1] if at else None
    return before is not None and before.last == matches[at].first and "break" in before.meanings


def _status_behind(matches: Sequence[Match], mention: int) -> str | None:
    """Status by the nearest cue behind a mention, or behind the list that the mention is in."""
    cue = _cue_behind(matches, mention)
    while cue is None:
        following = next(
            (at for at in range(mention + 1, len(matches)) if "finding" in matches[at].meanings),
            None,
        )
        if following is None or not joined(matches, mention, following):
            return None
        mention = following
        cue = _cue_behind(matches, mention)
        if cue is not None and cue["near"]:
            return None
    return cue["status"]


def _cue_behind(matches: Sequence[Match], mention: int) -> dict | None:
    for match in matches[mention + 1 :]:
        if "after" in match.meanings:
            return match.meanings["after"]
        if not match.meanings.keys().isdisjoint(("end", "break", "before")):
            return None
    return None
