"""Which probability of its own label lets an image pass the gate; nothing heavy is imported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli
from utils.cli import UserError
from utils.json_file import read_json

if TYPE_CHECKING:
    from utils.prompts import Prompt

DEFAULT_KEY = "default"  # in a file of thresholds: what labels get that it does not name


def positive_probability(text: str) -> float:
    """Flag type: a number in (0, 1]."""
    value = cli.probability(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in (0, 1]")
    return value


def parse_accept_prob(text: str) -> float | Path:
    """Flag type: a probability in (0, 1] for every label, or a JSON file with one for each."""
    if text.lower().endswith(".json"):
        return cli.existing_file(text)
    try:
        return positive_probability(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number in (0, 1] nor a file .json"
        ) from error


def read_thresholds(path: Path, *, labels: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """Thresholds of labels from a JSON file ``{label: probability, ..., "default": probability}``.

    Args:
        path: The file; ``default`` may be left out.
        labels: Labels that need a threshold.
        known: Labels the file may name: those of the classifier.

    Returns:
        Label -> probability in (0, 1], for each of ``labels``.

    Raises:
        UserError: With all that is wrong: not JSON, unknown labels, wrong values, none for a label.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: it must be an object {{label: probability}}")
    problems = []
    for key, value in found.items():
        if key not in known and key != DEFAULT_KEY:
            problems.append(f"{key!r} is no label of the classifier ({', '.join(known)})")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            problems.append(f"{key!r}: {value!r} is not a number in (0, 1]")
    missing = [label for label in labels if label not in found]
    if missing and DEFAULT_KEY not in found:
        names = ", ".join(map(repr, missing))
        problems.append(f"no threshold for {names}; add it, or {DEFAULT_KEY!r} for all others")
    if problems:
        raise UserError("\n  ".join([f"{path}: {len(problems)} problem(s)", *problems]))
    return {label: float(found.get(label, found.get(DEFAULT_KEY))) for label in labels}


def check_labels(
    prompts: Sequence[Prompt], known: Sequence[str], *, multi_label: bool
) -> list[str]:
    """Refuse prompts whose images a classifier could not judge by their own labels.

    Args:
        prompts: The prompts, or the plan that repeats them.
        known: The classifier's labels.
        multi_label: Whether it lets labels occur together (sigmoid), else they exclude each other.

    Returns:
        The labels that are asked for, in the order of ``known``.

    Raises:
        UserError: With all that is wrong: prompts without label, labels the classifier does not
            know, several labels in a prompt where labels exclude each other.
    """
    distinct = list(dict.fromkeys(prompts))
    places: dict[str, list[str]] = {}
    for prompt in distinct:
        for label in prompt.label.split(";"):
            places.setdefault(label, []).append(prompt.where)
    unlabeled = places.pop("", [])
    unknown = [label for label in places if label not in known]
    several = [prompt for prompt in distinct if ";" in prompt.label]
    problems = []
    if unlabeled:
        problems.append(
            f"{len(unlabeled)} prompt(s) have no label, first: {unlabeled[0]}; give every prompt "
            "the label its images are judged by"
        )
    problems += [
        f"label {label!r} ({len(places[label])} prompt(s), first: {places[label][0]}) is unknown "
        "to it"
        for label in unknown
    ]
    if several and not multi_label:
        problems.append(
            f"{len(several)} prompt(s) have several labels, first: {several[0].where} "
            f"({several[0].label}), but its labels exclude each other; train one with "
            "semi_supervised.py --task multilabel"
        )
    if problems:
        lines = "\n  ".join(problems)
        raise UserError(
            f"--classifier cannot judge these images:\n  {lines}\n"
            f"It knows: {', '.join(known)}. Without --classifier no label is checked."
        )
    return [label for label in known if label in places]
