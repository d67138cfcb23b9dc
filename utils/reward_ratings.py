"""Doctors' ratings and comparisons of images as arrays, read from an export folder.

Shapes: N images, R raters, Q questions of the scale, M ratings, P comparisons.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.cli import UserError
from utils.dataset import Dataset, Record, load_dataset
from utils.rating_flags import ANSWERS_NAME
from utils.rating_table import REAL_ARM, SCALE, Answer, read_answers

QUESTIONS = ("quality", "agreement")
PREFERENCE = "preference"
WINS = {"image": 1.0, "other": 0.0, "tie": 0.5}  # a tie is half a win of either
MIN_IMAGES = 20  # fewer judged images: whatever is learnt is chance


@dataclass(frozen=True)
class Ratings:
    """What R raters said about N images; repeats, which measure self-agreement, are left out.

    Attributes:
        raters: R names, sorted.
        questions: Q of `QUESTIONS` that were answered, in that order.
        num_images: N.
        image: (M,) int64, index of the rated image.
        rater: (M,) int64.
        question: (M,) int64.
        level: (M,) int64 in 0..4, the rating less 1.
        pair: (P, 2) int64, the compared images.
        pair_rater: (P,) int64.
        win: (P,) float64: 1 where the first is better, 0 the second, 0.5 a tie.
    """

    raters: tuple[str, ...]
    questions: tuple[str, ...]
    num_images: int
    image: np.ndarray
    rater: np.ndarray
    question: np.ndarray
    level: np.ndarray
    pair: np.ndarray
    pair_rater: np.ndarray
    win: np.ndarray

    def keep(self, images: np.ndarray, raters: np.ndarray | None = None) -> Ratings:
        """What these raters (R,) bool said about these images (N,) bool; indices stay.

        A comparison stays if both its images do.
        """
        raters = np.ones(len(self.raters), bool) if raters is None else raters
        rows = images[self.image] & raters[self.rater]
        pairs = images[self.pair].all(axis=1) & raters[self.pair_rater]
        columns = ("image", "rater", "question", "level")
        kept = {name: getattr(self, name)[rows] for name in columns}
        kept |= {name: getattr(self, name)[pairs] for name in ("pair", "pair_rater", "win")}
        return replace(self, **kept)

    def judged(self) -> np.ndarray:
        """(N,) bool: which images have a rating or a comparison."""
        seen = np.zeros(self.num_images, bool)
        seen[self.image] = True
        seen[self.pair] = True
        return seen


def is_held_out(record: Record) -> bool:
    """Whether an image of an export may show a patient who is tested on.

    A real one, unless the study was made of the split train: then the export says so.
    """
    return record.row.get("source") == REAL_ARM and record.split != "train"


def read_ratings(
    export_dir: Path, *, raters: Collection[str] | None = None, without_held_out: bool = False
) -> tuple[Dataset, Ratings]:
    """The images of an export folder of rate_images.py, and what was said about them.

    Args:
        export_dir: With ``metadata.csv`` and ``answers.csv``.
        raters: Use these alone, so that others can judge what came of it; None: all.
        without_held_out: Leave out what was said about images that `is_held_out` names.

    Raises:
        UserError: If there is no such folder, an answer is about an image that is not in it, a
            rater is not known, or too little was rated.
        DatasetError: If the images are unsound.
    """
    path = export_dir / ANSWERS_NAME
    if not path.is_file():
        raise UserError(f"{export_dir}: no export of ratings ({ANSWERS_NAME} is missing)")
    answers = read_answers(path)
    known = {answer.rater for answer in answers}
    if unknown := sorted(set(raters or ()) - known):
        raise UserError(f"{path}: nothing of {', '.join(unknown)}; raters are {sorted(known)}")
    if raters is not None:
        answers = [answer for answer in answers if answer.rater in raters]
    dataset = load_dataset(export_dir, allow_duplicates=True, num_workers=0)
    if without_held_out:
        lost = {record.file_name for record in dataset if is_held_out(record)}
        answers = [a for a in answers if not lost & {a.image, a.other_image}]
    names = [record.file_name for record in dataset]
    return dataset, to_ratings(answers, names, where=str(path))


def to_ratings(answers: Sequence[Answer], names: Sequence[str], *, where: str) -> Ratings:
    """Answers as arrays; checks that they are enough to learn from.

    Args:
        answers: Of any questions; those of other questions and of repeats are left out.
        names: File names of the N images, as the answers call them.
        where: File of the answers, for messages.

    Raises:
        UserError: If a value or an image is not known, or fewer than ``MIN_IMAGES`` images were
            judged.
    """
    used = [a for a in answers if not a.is_repeat and a.question in (*QUESTIONS, PREFERENCE)]
    raters = tuple(sorted({answer.rater for answer in used}))
    asked = {answer.question for answer in used}
    questions = tuple(name for name in QUESTIONS if name in asked)
    index = {name: number for number, name in enumerate(names)}
    rows, pairs = [], []
    for answer in used:
        rater = raters.index(answer.rater)
        if answer.question == PREFERENCE:
            places = [_place(index, name, where) for name in (answer.image, answer.other_image)]
            pairs.append((*places, rater, _value(WINS, answer, where)))
        else:
            levels = {str(value): value - SCALE.start for value in SCALE}
            place, level = _place(index, answer.image, where), _value(levels, answer, where)
            rows.append((place, rater, questions.index(answer.question), level))
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    compared = np.array([row[:3] for row in pairs], np.int64).reshape(-1, 3)
    wins = np.array([row[3] for row in pairs], np.float64)
    found = Ratings(raters, questions, len(names), *columns, compared[:, :2], compared[:, 2], wins)
    if (count := int(found.judged().sum())) < MIN_IMAGES:
        raise UserError(
            f"{where}: {count} images with ratings of {' or '.join(QUESTIONS)} or with "
            f"preferences; a reward needs at least {MIN_IMAGES}, better a hundred: rate more"
        )
    return found


def _place(index: dict[str, int], name: str, where: str) -> int:
    if name not in index:
        raise UserError(f"{where}: the image {name!r} is not in metadata.csv beside it")
    return index[name]


def _value(values: dict[str, float], answer: Answer, where: str) -> float:
    if answer.value not in values:
        raise UserError(
            f"{where}: {answer.rater}, item {answer.item}: {answer.question} is "
            f"{answer.value!r}, none of {', '.join(values)}"
        )
    return values[answer.value]
