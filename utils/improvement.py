"""A loop of self-improvement: what all its rounds share, and how one is measured."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from utils.dataset import Dataset, load_dataset
from utils.denoising_probe import Denoised, DenoisingProbe
from utils.images import contact_sheet
from utils.improvement_data import ImprovementData, write_prompts
from utils.round_record import RoundRecord, round_dir, write_record
from utils.round_scores import Judge, Outcome, compare, judge_round
from utils.round_stages import Stages
from utils.round_watch import Limits, alarms
from utils.run_folder import atomic_path
from utils.scores import Side

HELD_OUT = "held_out"  # folder of the images that measure a round
SHEET_PER_LABEL = 4
SHEET_TILE_PX = 128
_TEST_SEED_OFFSET = 1_000_000  # of the images that measure once; no round draws with it


@dataclass(frozen=True)
class Improvement:
    """What all rounds share.

    Attributes:
        args: Of self_improve.py.
        data: Real and unlabeled scans.
        stages: Draw, train, caption.
        judge: Measures.
        device: Where the networks of this process run.
    """

    args: argparse.Namespace
    data: ImprovementData
    stages: Stages
    judge: Judge
    device: str

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.args.output_dir

    @property
    def limits(self) -> Limits:
        """What a round may lose."""
        args = self.args
        return Limits(
            recall_drop=args.max_recall_drop,
            similarity_rise=args.max_similarity_rise,
            agreement_drop=args.max_agreement_drop,
            loss_rise=args.max_loss_rise,
            distance=args.max_distance,
        )

    def prompts(self, split: str) -> Path:
        """Table of the texts of train, val or test, written where it is not there yet."""
        path = self.folder / "prompts" / f"{split}.csv"
        if not path.is_file():
            write_prompts(path, getattr(self.data, split).records)
        return path

    @cached_property
    def real(self) -> Side:
        """The held-out real scans that choose the best round."""
        return self.judge.look_at("real", self.data.val)

    @cached_property
    def probe(self) -> DenoisingProbe:
        """Asks models what they make of held-out real scans."""
        args = self.args
        where = (self.stages.resolution, args.resize_mode, args.seed, self.device)
        return DenoisingProbe(self.data.val, *where)

    @cached_property
    def first(self) -> Outcome:
        """Of the model that all started from."""
        return judge_round(self.judge, self.real, self.held_out(0, self.args.model))

    @cached_property
    def first_denoised(self) -> Denoised:
        """What that model predicts on held-out real scans."""
        return self.probe.ask(self.args.model, offline=self.args.offline)

    def held_out(self, number: int, model: str) -> Dataset:
        """The images that measure a round, drawn where they are not there yet."""
        folder = self.stages.draw(
            f"{round_dir(self.folder, number).name}/{HELD_OUT}",
            model=model,
            prompts=self.prompts("val"),
            num_images=self.args.num_eval_images,
            seed=self.args.seed,
        )
        return load_dataset(folder, check_pixels=False)

    def measure(self, number: int, model: str, material: Mapping[str, object]) -> RoundRecord:
        """Measure a round, keep its record and its picture sheet.

        Args:
            number: Of the round; 0 is the first model.
            model: Its pipeline.
            material: What it learned from.
        """
        drawn = self.held_out(number, model)
        denoised, outcome, compared = self.first_denoised, self.first, {}
        if number:
            outcome = judge_round(self.judge, self.real, drawn)
            compared = compare(self.first, outcome, self.real, seed=self.args.seed)
            denoised = self.probe.ask(model, offline=self.args.offline)
        scores = outcome.scores | {
            "denoising_loss": denoised.loss,
            "distance_to_first": denoised.distance(self.first_denoised),
        }
        first = self.first.scores | {"denoising_loss": self.first_denoised.loss}
        wrong = alarms(first, scores, self.limits) if number else []
        record = RoundRecord(
            number, str(model), scores, outcome.yardsticks, compared, material, wrong
        )
        write_sheet(round_dir(self.folder, number) / "sheet.png", drawn)
        write_record(self.folder, record)
        return record

    def test(self, best: RoundRecord) -> dict[str, object]:
        """The first and the best model on texts and scans of test patients, used for nothing else.

        Args:
            best: The best round.

        Returns:
            ``first`` and ``best``: name -> value; ``compared``: differences with intervals;
            ``real``: the real scans' own values.
        """
        real = self.judge.look_at("real", self.data.test)
        outcomes = []
        for number, model in ((0, self.args.model), (best.number, best.model)):
            folder = self.stages.draw(
                f"test/round-{number}",
                model=model,
                prompts=self.prompts("test"),
                num_images=self.args.num_eval_images,
                seed=self.args.seed + _TEST_SEED_OFFSET,
            )
            dataset = load_dataset(folder, check_pixels=False)
            outcomes.append(judge_round(self.judge, real, dataset))
        first, other = outcomes
        return {
            "first": first.scores,
            "best": other.scores,
            "real": other.yardsticks,
            "compared": compare(first, other, real, seed=self.args.seed),
        }


def sheet_records(dataset: Dataset) -> list[int]:
    """The images of a sheet: the first few of each label; the same of every round."""
    taken: dict[tuple[str, ...], int] = {}
    chosen = []
    for index, record in enumerate(dataset):
        count = taken.get(record.labels, 0)
        if count < SHEET_PER_LABEL:
            taken[record.labels] = count + 1
            chosen.append(index)
    return sorted(chosen, key=lambda index: (dataset[index].labels, index))


def write_sheet(path: Path, dataset: Dataset) -> None:
    """A picture sheet: a row for each label, drawn from the same noise in every round."""
    chosen = [dataset[index] for index in sheet_records(dataset)]
    tiles: list[Image.Image] = [record.image() for record in chosen]
    captions = [";".join(record.labels) for record in chosen]
    sheet = contact_sheet(tiles, columns=SHEET_PER_LABEL, captions=captions, tile_px=SHEET_TILE_PX)
    with atomic_path(path) as temporary:
        sheet.save(temporary)
