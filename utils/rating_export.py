"""Export of a rating study: answers, the images rated as a data set, and preference pairs."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from utils.cli import UserError
from utils.dataset_tables import write_dataset
from utils.image_files import read_image, save_png
from utils.judged_pairs import COLUMNS, Pair, preference_pairs, rating_pairs
from utils.provenance import source_type
from utils.rating_flags import ANSWERS_NAME, PREFERENCE, RATINGS
from utils.rating_matrix import anonymous_names
from utils.rating_table import REAL_ARM, Answer, write_answers
from utils.resumable_run import only_writer, open_run
from utils.run_folder import get_logger, write_csv, write_text

OUTPUTS = ("images/*.png", "metadata.csv", "pairs.csv", "answers.jsonl", ANSWERS_NAME)
DATASET_FIELDS = ("file_name", "text", "label", "source", "split")
_logger = get_logger("export")


@dataclass(frozen=True)
class RatedImage:
    """An image of a study.

    Attributes:
        name: What answers call it, ``images/000012.png``.
        path: Where its pixels are.
        text: Finding or report; may be empty.
        label: Diagnosis; may be empty.
        arm: ``real`` or the synthetic set.
        split: Of a real image: train, val or test; empty where it is not known.
    """

    name: str
    path: Path
    text: str
    label: str
    arm: str
    split: str = ""


def run(args: argparse.Namespace) -> dict[str, object]:
    """Export the study of ``args``; returns what is to be printed.

    Raises:
        UserError: If there is no study, no answer, or the folder holds something else.
    """
    answers, images = read_study(args.study_dir)
    if not answers:
        raise UserError(f"--study_dir {args.study_dir}: no answer yet, nothing to export")
    if args.anonymous:
        answers = without_names(answers)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with only_writer(args.output_dir):
        open_run(
            args.output_dir,
            args,
            identity={"exported_answers": answers_hash(answers)},
            free_flags=(),
            outputs=OUTPUTS,
            anew=True,
        )
        return write_export(
            args.output_dir,
            answers,
            images,
            origins=args.pairs_from,
            min_gap=args.min_point_gap,
        )


def read_study(study_dir: Path) -> tuple[list[Answer], list[RatedImage]]:
    """All current answers of a study, and its images."""
    from utils.rating_store import IMAGES_DIR, Store

    with Store.open(study_dir) as store:
        splits = {name: arm.get("split", "") for name, arm in store.facts.get("arms", {}).items()}
        images = [
            RatedImage(
                one.export_name,
                study_dir / IMAGES_DIR / one.file,
                *(one.text, one.label, one.arm),
                split=splits.get(one.arm, "") if one.arm == REAL_ARM else "",
            )
            for one in store.images()
        ]
        return store.answers(), images


def without_names(answers: Iterable[Answer]) -> list[Answer]:
    """The same answers of rater 1, rater 2, ..."""
    answers = list(answers)
    names = anonymous_names(answers)
    return [replace(one, rater=names[one.rater]) for one in answers]


def answers_hash(answers: Iterable[Answer]) -> str:
    """SHA-256 of the answers, as hex."""
    digest = hashlib.sha256()
    for one in answers:
        digest.update(json.dumps(asdict(one)).encode())
    return digest.hexdigest()


def write_export(
    folder: Path,
    answers: Sequence[Answer],
    images: Iterable[RatedImage],
    *,
    origins: Sequence[str] = (PREFERENCE,),
    min_gap: int = 1,
) -> dict[str, object]:
    """Write an export folder, ``answers.csv`` last: a folder that has it is whole.

    Args:
        folder: Of the export.
        answers: All current answers.
        images: Of the study; those that no answer names are left out.
        origins: Where pairs come from, of ``PAIR_ORIGINS``.
        min_gap: Of pairs from ratings, see `rating_pairs`.

    Returns:
        Paths and counts.
    """
    named = {name for one in answers for name in (one.image, one.other_image) if name}
    rated = [one for one in images if one.name in named]
    if lost := named - {one.name for one in rated}:
        raise UserError(f"the study lacks {len(lost)} images that answers name: {min(lost)}")
    for one in rated:
        write_image(folder / one.name, one)
    rows = [
        dict(zip(DATASET_FIELDS, (one.name, one.text, one.label, one.arm, one.split)))
        for one in rated
    ]
    write_dataset(folder, rows, fieldnames=DATASET_FIELDS)
    pairs = collect_pairs(answers, origins, min_gap=min_gap)
    write_csv(folder / "pairs.csv", map(asdict, pairs), COLUMNS)
    lines = (json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in answers)
    write_text(folder / "answers.jsonl", "".join(lines))
    write_answers(folder / ANSWERS_NAME, answers)
    if not pairs:
        _logger.warning("no pairs for preference training: pairs.csv has a header only")
    return {
        "output_dir": folder,
        "answers": len(answers),
        "raters": len({one.rater for one in answers}),
        "images": dict(Counter(one.arm for one in rated)),
        "pairs": dict(Counter(one.origin for one in pairs)),
    }


def write_image(path: Path, image: RatedImage) -> None:
    """Write an image as a plain PNG; a synthetic one is marked as such again, as blinding ends."""
    mark = {"synthetic": "true", **source_type()} if image.arm != REAL_ARM else {}
    pixels = read_image(image.path)
    pixels.info.clear()  # a profile or comment of the file would be written along
    save_png(pixels, path, text=mark)


def collect_pairs(answers: Sequence[Answer], origins: Sequence[str], *, min_gap: int) -> list[Pair]:
    """Pairs of the wanted origins."""
    found = preference_pairs(answers) if PREFERENCE in origins else []
    return found + rating_pairs(answers, min_gap=min_gap) if RATINGS in origins else found
