"""The data of a training run, read and checked before a model is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.captioned_data import load_captioned
from utils.cli import UserError
from utils.dataset_records import USUAL_COLUMNS, Columns
from utils.dataset_sources import read_source
from utils.lazy_records import cells
from utils.preference_flags import trains_on_images
from utils.preference_pairs import load_pairs
from utils.prompt_template import settle_template
from utils.run_folder import get_logger
from utils.training_data import check_sides
from utils.training_notes import tell_crop

if TYPE_CHECKING:
    from accelerate import Accelerator

    from utils.dataset import Dataset

_logger = get_logger("train")


@dataclass(frozen=True)
class TrainingDatasets:
    """What a run learns from and what it is measured on; None where there is no such data.

    Attributes:
        images: To train on.
        held_out: To measure the loss on.
        pairs: Images of preference pairs (`utils.preference_pairs.load_pairs`).
        rehearsal: Of what the model knows already, mixed in.
        rehearsal_held_out: To measure what is forgotten.
        template: Of the prompts that these captions are; None for plain captions.
    """

    images: Dataset | None
    held_out: Dataset | None = None
    pairs: Dataset | None = None
    rehearsal: Dataset | None = None
    rehearsal_held_out: Dataset | None = None
    template: str | None = None

    def trained_on(self) -> Iterator[Dataset]:
        """Those that are there of what is trained on."""
        for dataset in (self.images, self.rehearsal, self.pairs):
            if dataset is not None:
                yield dataset

    def describe(self) -> dict:
        """What a checkpoint remembers of the data, to tell if a resumed run has others."""
        return {
            "images": len(self.images) if self.images is not None else 0,
            "data": None if self.images is None else self.images.fingerprint,
            "rehearsed": len(self.rehearsal) if self.rehearsal is not None else 0,
            "rehearsed_data": None if self.rehearsal is None else self.rehearsal.fingerprint,
            "template": self.template,
            "pairs": len(self.pairs) // 2 if self.pairs is not None else 0,
            "pairs_data": None if self.pairs is None else self.pairs.fingerprint,
        }

    def found(self) -> dict:
        """What options.json tells of the data beside: rows that were dropped, and notes."""
        return {
            "skipped": [problem for dataset in self.trained_on() for problem in dataset.skipped],
            "notes": [note for dataset in self.trained_on() for note in dataset.notes],
        }


def load_training_data(
    args: argparse.Namespace, accelerator: Accelerator, seed: int
) -> TrainingDatasets:
    """Read and check everything; of several processes only the first decodes every image.

    Args:
        args: The script's flags.
        accelerator: Tells which process this is.
        seed: Draws ``--max_train_samples``.

    Raises:
        UserError: With everything that is wrong with the first source that is not sound.
    """
    template = settle_template(args.prompt_template, args.pretrained_model_name_or_path)
    if template is not None:
        _logger.info("prompts are %s", template)
    loader = _Loader(args, accelerator, template)
    images, held_out = _load_images(loader, seed)
    rehearsal, rehearsal_held_out = _load_rehearsal(loader)
    pairs = None
    if args.preference_pairs is not None:
        with accelerator.main_process_first():
            pairs = load_pairs(
                args.preference_pairs,
                check_pixels=loader.checks_pixels,
                skip_invalid=args.skip_invalid,
                template=template,
            )
    datasets = TrainingDatasets(images, held_out, pairs, rehearsal, rehearsal_held_out, template)
    for dataset in datasets.trained_on():
        if args.random_flip and not args.flip_swaps_sides:
            check_sides(dataset)
        tell_crop(dataset, args.resize_mode)
    return datasets


@dataclass(frozen=True)
class _Loader:
    args: argparse.Namespace
    accelerator: Accelerator
    template: str | None

    @property
    def checks_pixels(self) -> bool:
        """Whether this process decodes every image."""
        return self.accelerator.is_main_process or self.args.skip_invalid

    def load(
        self,
        source: Path | str,
        split: str,
        columns: Columns = USUAL_COLUMNS,
        **own: object,
    ) -> Dataset:
        """Read and check one split of a source; ``own`` goes to `load_captioned`."""
        options = {"template": None, "allow_empty": False, "weight_column": None} | own
        with self.accelerator.main_process_first():
            return load_captioned(
                source,
                columns=columns,
                split=None if split == "all" else split,
                prompt_template=self.template,
                check_pixels=self.checks_pixels,
                skip_invalid=self.args.skip_invalid,
                offline=self.args.offline,
                **options,
            )


def _load_images(loader: _Loader, seed: int) -> tuple[Dataset | None, Dataset | None]:
    """Images to train on, unless there are pairs alone, and to measure the loss on, if wished."""
    args = loader.args
    # The example's defaults are column names of the hub; here they mean the usual ones.
    image_column = None if args.image_column == "image" else args.image_column
    caption_column = None if args.caption_column == "text" else args.caption_column
    source = args.train_data_dir or args.dataset_name
    columns = Columns(image_column, caption_column, args.label_column, args.patient_column)
    own = {"template": args.caption, "allow_empty": args.allow_empty_captions}
    dataset = held_out = None
    if trains_on_images(args):
        weight = args.weight_column
        dataset = loader.load(source, args.train_split, columns, weight_column=weight, **own)
    elif source is not None:
        _logger.warning("--denoising_weight 0: the images of the data are not trained on")
    if args.validation_split is not None:
        held_out = loader.load(source, args.validation_split, columns, **own)
        if all(record.split is None for record in held_out):
            raise UserError("--validation_split: the data has no column split")
    if args.max_train_samples is not None and args.max_train_samples < len(dataset):
        drawn = np.random.default_rng(seed).permutation(len(dataset))[: args.max_train_samples]
        dataset = dataset.select(sorted(drawn.tolist()))
    return dataset, held_out


def _load_rehearsal(loader: _Loader) -> tuple[Dataset | None, Dataset | None]:
    """What the model knows already, to train on and, where it has splits, to measure."""
    args = loader.args
    if args.rehearsal is None:
        return None, None
    dataset = loader.load(args.rehearsal, args.train_split)
    if args.validation_split is None or all(record.split is None for record in dataset):
        return dataset, None
    if _has_split(args.rehearsal, args.validation_split, offline=args.offline):
        return dataset, loader.load(args.rehearsal, args.validation_split)
    _logger.warning(
        "--rehearsal %s has no image in split %s: what is forgotten is not measured",
        *(args.rehearsal, args.validation_split),
    )
    return dataset, None


def _has_split(source: Path | str, split: str, *, offline: bool) -> bool:
    table = read_source(source, USUAL_COLUMNS, offline=offline)
    return any(cell.strip() == split for cell in cells(table.records, "split"))
