"""Make a rating study of data sets: draw, re-encode, and write the folder that is served."""

from __future__ import annotations

import argparse
import os
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from utils import rating_answers as asked
from utils.blind_images import blind_image, smallest_common_side, visible_differences
from utils.cli import UserError
from utils.dataset import Dataset, DatasetError, Record, load_dataset
from utils.image_sets import set_names
from utils.rating_draw import draw_balanced, label_of, labels_known
from utils.rating_links import add_raters
from utils.rating_pairs import Pair, draw_pairs
from utils.rating_shown import StudyImage
from utils.rating_store import IMAGES_DIR, Store
from utils.rating_table import REAL_ARM
from utils.run_folder import atomic_folder, get_logger, write_bytes, write_json, write_options

STUDY_FILE = "study.json"
_ALL_SPLITS = "all"

Shown = tuple[str, Record]  # arm, record

_logger = get_logger("study")


def create_study(args: argparse.Namespace) -> dict:
    """Make a study from the flags of ``create``; returns its facts.

    Raises:
        UserError: With all problems of the data sets, or what they lack for what is asked.
    """
    sources = _sources(args)
    arms = _load(sources, args)
    images, pairs = _draw(arms, args)
    shown = _distinct(images, pairs)
    by_arm = {name: [record for arm, record in shown if arm == name] for name in arms}
    resolution = args.resolution or smallest_common_side(by_arm)
    _tell(by_arm, resolution, args)
    facts = {
        "title": args.title,
        "questions": [name for name in asked.QUESTIONS if name in args.questions],
        "diagnoses": sorted({name for dataset in arms.values() for name in dataset.labels}),
        "arms": {
            name: {
                "source": str(sources[name]),
                "num_images": len(by_arm[name]),
                "split": _split_of(arms[name]),
            }
            for name in arms
        },
        "num_images": args.num_images,
        "num_pairs": len(pairs),
        "repeat_share": args.repeat_share,
        "resolution": resolution,
        "resize_mode": args.resize_mode,
        "color": args.color,
        "seed": args.seed,
    }
    with atomic_folder(args.output_dir) as folder:
        folder.chmod(0o700)
        write_options(folder, args)
        study_images = _write_images(folder, shown, facts, args.num_workers)
        items = _items(images, pairs, study_images, facts["questions"])
        with Store.create(
            folder, facts=facts, images=list(study_images.values()), items=items
        ) as store:
            add_raters(store, args.raters)
        write_json(folder / STUDY_FILE, facts)
    return facts


def _sources(args: argparse.Namespace) -> dict[str, str]:
    """Data source of each arm, the real one first."""
    unnamed = set_names([source for name, source in args.synthetic_dir if name is None])
    names = [name or unnamed.pop(0) for name, _ in args.synthetic_dir]
    repeated = {name for name in [REAL_ARM, *names] if [REAL_ARM, *names].count(name) > 1}
    if repeated:
        raise UserError(
            f"--synthetic_dir: two arms are called {', '.join(sorted(repeated))}; give another "
            "name as NAME=DIR"
        )
    return {REAL_ARM: args.real_dir} | dict(zip(names, (s for _, s in args.synthetic_dir)))


def _load(sources: Mapping[str, str], args: argparse.Namespace) -> dict[str, Dataset]:
    """Read and check all data sets; what is wrong with all of them is told together."""
    needs_text = any(name in args.questions for name in ("agreement", "errors"))
    arms: dict[str, Dataset] = {}
    problems: list[str] = []
    for name, source in sources.items():
        is_real = name == REAL_ARM
        split = args.real_split if is_real and args.real_split != _ALL_SPLITS else None
        try:
            arms[name] = load_dataset(
                source,
                split=split,
                require_text=needs_text,
                require_label="diagnosis" in args.questions,
                allow_duplicates=not is_real,
                skip_invalid=args.skip_invalid,
                num_workers=args.num_workers,
                offline=args.offline,
            )
        except DatasetError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return arms


def _split_of(dataset: Dataset) -> str:
    """The split that all images are of; empty if they are of several, or it is not known."""
    splits = {record.split or "" for record in dataset}
    return splits.pop() if len(splits) == 1 else ""


def _draw(
    arms: Mapping[str, Sequence[Record]], args: argparse.Namespace
) -> tuple[list[Shown], list[Pair]]:
    """The images that are shown alone, and the pairs."""
    images: list[Shown] = []
    pairs: list[Pair] = []
    if any(name in asked.IMAGE_QUESTIONS for name in args.questions):
        drawn = draw_balanced(arms, args.num_images, seed=args.seed)
        images = [(name, record) for name, records in drawn.items() for record in records]
        if not labels_known(arms):
            _logger.warning("an arm has no labels: the draw is not balanced by diagnosis")
    if "preference" in args.questions:
        pairs = draw_pairs(arms, args.num_pairs or args.num_images, seed=args.seed)
        of_text = sum(pair.text == pair.first[1].text == pair.second[1].text for pair in pairs)
        _logger.info("%d pairs of one text, %d of one diagnosis", of_text, len(pairs) - of_text)
    return images, pairs


def _distinct(images: Sequence[Shown], pairs: Sequence[Pair]) -> list[Shown]:
    """Every image that is shown, once, by arm."""
    shown = [*images, *(side for pair in pairs for side in (pair.first, pair.second))]
    distinct = {(arm, record.file_name): (arm, record) for arm, record in shown}
    return list(distinct.values())


def _tell(
    by_arm: Mapping[str, Sequence[Record]], resolution: int, args: argparse.Namespace
) -> None:
    """Log how images are brought to one form, and what may give an arm away all the same."""
    _logger.info(
        "%s images, all %d x %d px (%s), %s, 8 bits, uncompressed PNG without metadata",
        " + ".join(f"{len(records)} {name}" for name, records in by_arm.items()),
        resolution,
        resolution,
        args.resize_mode,
        args.color,
    )
    for note in visible_differences(by_arm, resolution=resolution, resize_mode=args.resize_mode):
        _logger.warning("%s", note)
    if any(name in asked.TEXT_QUESTIONS for name in args.questions):
        texts = {name: {record.text for record in records} for name, records in by_arm.items()}
        for name, own in texts.items():
            if name != REAL_ARM and own.isdisjoint(texts[REAL_ARM]):
                _logger.warning("no text of %s is one of a real image: wording may tell", name)


def _write_images(
    folder: Path, shown: Sequence[Shown], facts: Mapping, num_workers: int
) -> dict[tuple[str, str], StudyImage]:
    """Re-encode all images under random names, in random order, with one time stamp."""
    (folder / IMAGES_DIR).mkdir(mode=0o700)
    moment = time.time_ns() // 10**9 * 10**9
    encode = partial(
        blind_image,
        resolution=facts["resolution"],
        resize_mode=facts["resize_mode"],
        color=facts["color"],
    )
    numbered = list(enumerate(shown))
    random.SystemRandom().shuffle(numbered)
    found: dict[tuple[str, str], StudyImage] = {}
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        # A few at a time: what waits to be written is held in memory.
        for start in range(0, len(numbered), 64):
            batch = numbered[start : start + 64]
            encoded = pool.map(encode, (record for _, (_, record) in batch))
            for (number, (arm, record)), data in zip(batch, encoded):
                image = _study_image(number, arm, record, facts)
                write_bytes(folder / IMAGES_DIR / image.file, data)
                os.utime(folder / IMAGES_DIR / image.file, ns=(moment, moment))
                found[arm, record.file_name] = image
    return dict(sorted(found.items(), key=lambda item: item[1].id))


def _study_image(number: int, arm: str, record: Record, facts: Mapping) -> StudyImage:
    return StudyImage(
        id=number,
        file=f"{secrets.token_hex(16)}.png",
        arm=arm,
        label=label_of(record),
        text=record.text,
        source=f"{facts['arms'][arm]['source']}: {record.file_name}",
    )


def _items(
    images: Sequence[Shown],
    pairs: Sequence[Pair],
    known: Mapping[tuple[str, str], StudyImage],
    questions: Sequence[str],
) -> list[tuple[int, int | None, str, list[str]]]:
    """Items as `Store.create` takes them: images first, then pairs."""
    of_images = [name for name in questions if name in asked.IMAGE_QUESTIONS]
    items: list = [
        (known[arm, record.file_name].id, None, record.text, of_images) for arm, record in images
    ]
    for pair in pairs:
        first, second = (
            known[arm, record.file_name].id for arm, record in (pair.first, pair.second)
        )
        items.append((first, second, pair.text, list(asked.PAIR_QUESTIONS)))
    return items
