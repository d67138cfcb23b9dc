"""Captions that speak of a side: find the words, and swap them when the picture is mirrored.

A mirrored scan with an unmirrored caption teaches the model the wrong side.
"""

import re

_PAIRS = (
    ("left", "right"),
    ("nasal", "temporal"),
    ("od", "os"),
    ("o.d.", "o.s."),
    ("le", "re"),
    ("dexter", "sinister"),
)
_MIRRORED = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}

# Letters may not touch a word, so that "bright" is no side, but "left_eye" is one.
_SIDE = re.compile(
    r"""(?<![^\W\d_])(?:
        (?P<picture>left|right)(?:wards?|most|hand|side|sided)?
      | (?:super|infer|supra|infra|medi)?(?:o|ior)?-?(?P<anatomy>nasal|temporal)(?:ly|wards?)?
      | (?P<eye>od|os|o\.d\.|o\.s\.)
      | oculus\s+(?P<latin>dexter|sinister)
      | (?P<initials>(?-i:LE|RE))
    )(?![^\W\d_])""",
    re.IGNORECASE | re.VERBOSE,
)
_NAMED_EYE = re.compile(
    r"""(?<![^\W\d_])(?:
        (?:left|right)[\s_-]*eyes?
      | (?:eye|laterality)\s*[:=]\s*(?:left|right)
      | od|os|o\.d\.|o\.s\. | oculus\s+(?:dexter|sinister) | (?-i:LE|RE)
    )(?![^\W\d_])""",
    re.IGNORECASE | re.VERBOSE,
)


def find_sides(text: str) -> list[str]:
    """The words of a caption that speak of a side, as they stand there.

    Left and right, nasal and temporal (also inferonasal, temporally, left-sided), OD and OS, LE
    and RE in capitals, oculus dexter and sinister. English and Latin only. Errs on the side of
    finding too much: "right" is found where it means "correct", OD where it is the optic disc.
    """
    return [match.group() for match in _SIDE.finditer(text)]


def swap_sides(text: str) -> str:
    """The caption of the mirrored picture: each word of a side swapped, its case kept.

    Nasal and temporal are places in the eye, not in the picture: mirrored, a right eye's scan looks
    like a left eye's, and what was nasal still is. So where the caption names the eye, the eye is
    swapped and these two stay; where it does not, they are taken for sides of the picture.
    """
    anatomy_stays = _NAMED_EYE.search(text) is not None

    def mirrored(match: re.Match) -> str:
        kind = match.lastgroup
        if kind == "anatomy" and anatomy_stays:
            return match.group()
        start, end = (position - match.start() for position in match.span(kind))
        phrase, word = match.group(), match.group(kind)
        return phrase[:start] + _in_case_of(word, _MIRRORED[word.lower()]) + phrase[end:]

    return _SIDE.sub(mirrored, text)


def _in_case_of(model: str, word: str) -> str:
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word
