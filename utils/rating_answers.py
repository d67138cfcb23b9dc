"""What a rater may answer: the questions of a study, and the check of one item's answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from utils.rating_table import ERROR_KINDS, SCALE, UNSURE

IMAGE_QUESTIONS = ("turing", "quality", "agreement", "diagnosis", "errors")
PAIR_QUESTIONS = ("preference",)
QUESTIONS = IMAGE_QUESTIONS + PAIR_QUESTIONS
TEXT_QUESTIONS = ("agreement", "errors", "preference")  # cannot be answered without the text
COMMENT = "comment"
NO_ERRORS = "none"
TURING_ANSWERS = ("real", "synthetic")
SIDES = ("left", "right")
PREFERENCES = (*SIDES, "tie")
MAX_COMMENT_CHARS = 2000
MAX_SECONDS = 24 * 3600.0


class AnswerError(ValueError):
    """Answers that are not ones to the item's questions; the text says which and why."""


def check_answers(
    given: object, *, questions: Sequence[str], diagnoses: Sequence[str]
) -> dict[str, str]:
    """Answers of the page as the values that are stored, in the order of the questions.

    Args:
        given: Question to answer: text, for a scale an integer 1 to 5, for errors a list of kinds.
        questions: Those of the item; each must be answered, and no other.
        diagnoses: Names to choose from, besides ``unsure``.

    Raises:
        AnswerError: If anything is missing, unknown or out of range.
    """
    if not isinstance(given, Mapping):
        raise AnswerError("answers: an object of question to answer is needed")
    if missing := [name for name in questions if name not in given]:
        raise AnswerError(f"not answered: {', '.join(missing)}")
    if len(given) > len(questions):
        raise AnswerError(f"this item asks for {', '.join(questions)} and nothing else")
    return {name: _value(name, given[name], diagnoses) for name in questions}


def _value(question: str, answer: object, diagnoses: Sequence[str]) -> str:
    if question in ("quality", "agreement"):
        if type(answer) is not int or answer not in SCALE:
            raise AnswerError(f"{question}: an integer {SCALE[0]} to {SCALE[-1]} is needed")
        return str(answer)
    if question == "errors":
        return _errors(answer)
    choices = {
        "turing": TURING_ANSWERS,
        "diagnosis": (*diagnoses, UNSURE),
        "preference": PREFERENCES,
    }[question]
    if not isinstance(answer, str) or answer not in choices:
        raise AnswerError(f"{question}: one of {', '.join(choices)} is needed")
    return answer


def _errors(answer: object) -> str:
    known = isinstance(answer, list) and all(
        isinstance(kind, str) and kind in ERROR_KINDS for kind in answer
    )
    if not known:
        raise AnswerError(f"errors: a list of {', '.join(ERROR_KINDS)} is needed, empty for none")
    return ";".join(kind for kind in ERROR_KINDS if kind in answer) or NO_ERRORS


def check_comment(comment: object) -> str:
    """A comment as it is stored: verbatim.

    Raises:
        AnswerError: If it is no text, too long, or holds what no file can hold.
    """
    if not isinstance(comment, str):
        raise AnswerError("comment: a text is needed")
    if len(comment) > MAX_COMMENT_CHARS:
        raise AnswerError(f"comment: at most {MAX_COMMENT_CHARS} characters")
    if "\0" in comment or any("\ud800" <= character <= "\udfff" for character in comment):
        raise AnswerError("comment: holds a NUL or half of a character")
    return comment


def check_seconds(seconds: object) -> float:
    """Time from showing an item to its answer, cut to a day.

    Raises:
        AnswerError: If it is no finite number of 0 or more.
    """
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds < math.inf:
        raise AnswerError("seconds: a number of 0 or more is needed")
    return float(min(seconds, MAX_SECONDS))


def page_answers(values: Mapping[str, str]) -> dict[str, object]:
    """Stored values as the page sends and shows them; the inverse of `check_answers`."""
    shown: dict[str, object] = {}
    for question, value in values.items():
        if question in ("quality", "agreement"):
            shown[question] = int(value)
        elif question == "errors":
            shown[question] = [] if value == NO_ERRORS else value.split(";")
        else:
            shown[question] = value
    return shown
