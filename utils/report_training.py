"""One run of a report sweep: the model that an arm's pairs make, and the reports it writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from utils.captioner import Captioner, Decoding, Written
from utils.captioner_networks import CaptionerSpec, build_network
from utils.captioner_training import CaptionerOptions, CaptionerResult, train_captioner
from utils.gray_images import GrayImages
from utils.patient_division import patients_of
from utils.report_data import ReportPools, ReportSelection, select
from utils.run_folder import write_json
from utils.sweep_plan import RunKey
from utils.sweep_results import RUN_NAME
from utils.sweep_runner import folder_of
from utils.sweep_trainer import Progress, Trained

CHECKPOINT_NAME = "training.safetensors"


@dataclass(frozen=True)
class ReportResult:
    """One training, and the reports of the N test images.

    Attributes:
        key: Which run.
        reports: In the order of the test images.
        facts: num_real, num_synthetic, num_patients, steps, best_epoch, val_loss and more.
        history: One row an epoch.
    """

    key: RunKey
    reports: Sequence[Written]
    facts: dict[str, object]
    history: list[dict[str, float]]

    def write(self, folder: Path) -> None:
        """Write the run's file; with it there is nothing left to go on from."""
        reports = [asdict(report) for report in self.reports]
        found = {"facts": self.facts, "history": self.history, "reports": reports}
        write_json(folder / RUN_NAME, found)
        (folder / CHECKPOINT_NAME).unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: Path, key: RunKey) -> ReportResult:
        """Read a folder that ``write`` has written."""
        found = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
        reports = [Written(**report) for report in found["reports"]]
        return cls(key, reports, found["facts"], found["history"])


class ReportTrainer:
    """Trains report models on the pairs of an arm; a ``sweep_trainer.Trainer``.

    Every run takes as many steps, whatever it learns from; that of ``synthetic->real`` as many
    again as its pre-training has had.
    """

    def __init__(
        self,
        pools: ReportPools,
        *,
        spec: CaptionerSpec,
        options: CaptionerOptions,
        fine_tuning_rate: float,
        decoding: Decoding,
        resize_mode: str,
        mixed_precision: str,
        device: str,
        output_dir: Path,
    ):
        """Take over what all runs have in common.

        Args:
            pools: Where pairs are drawn from.
            spec: The network.
            options: How to train; each run has its own seed.
            fine_tuning_rate: Peak learning rate after pre-training on synthetic pairs.
            decoding: How reports are searched for.
            resize_mode: How images were brought to the network's size.
            mixed_precision: ``no``, ``bf16`` or ``fp16``.
            device: Where to train.
            output_dir: Of the sweep.
        """
        self.pools, self.spec, self.options = pools, spec, options
        self.fine_tuning_rate, self.decoding = fine_tuning_rate, decoding
        self.resize_mode, self.mixed_precision = resize_mode, mixed_precision
        self.device, self.output_dir = device, output_dir

    def check(self, key: RunKey) -> None:
        """Build the network of a run for nothing, so that what is wrong with it shows at once.

        Raises:
            UserError: As ``build_network``.
        """
        build_network(self.spec, select(key, self.pools).train.texts, seed=key.seed)

    def prepare(self, key: RunKey, test: GrayImages) -> None:
        """Nothing; see ``Trainer``."""

    def num_steps(self, key: RunKey) -> int:
        """Steps of a run, at most."""
        return self.options.total_steps

    def cost(self, key: RunKey) -> float:
        """Images of all steps."""
        return self.options.total_steps * self.options.batch_size

    def __call__(
        self, key: RunKey, *, pretrained: Path | None, progress: Progress | None = None
    ) -> Trained:
        """Train; see ``Trainer``."""
        chosen = select(key, self.pools)
        options = replace(self.options, seed=key.seed)
        if pretrained is None:
            network, tokenizer, settings = build_network(
                self.spec, chosen.train.texts, seed=key.seed
            )
            captioner = Captioner(
                network,
                tokenizer,
                settings,
                resize_mode=self.resize_mode,
                device=self.device,
                mixed_precision=self.mixed_precision,
            )
        else:
            captioner = Captioner.load(
                pretrained, device=self.device, mixed_precision=self.mixed_precision
            )
            captioner.network.requires_grad_(True)
            options = replace(options, learning_rate=self.fine_tuning_rate)
        result = train_captioner(
            captioner,
            chosen.train,
            chosen.val,
            options=options,
            checkpoint=folder_of(key, self.output_dir) / CHECKPOINT_NAME,
            progress=progress,
        )
        return Trained(captioner, _facts(chosen, result), result.history)

    def predict(self, key: RunKey, model: Captioner, test: GrayImages) -> list[Written]:
        """Reports; see ``Trainer``."""
        return model.write(test, self.decoding, batch_size=self.options.batch_size)


def _facts(chosen: ReportSelection, result: CaptionerResult) -> dict[str, object]:
    best = result.history[result.best_epoch - 1]
    real = chosen.train.images.records[: chosen.num_real]
    return {
        "num_real": chosen.num_real,
        "num_patients": len(set(patients_of(real))),
        "num_val": len(chosen.val),
        "num_synthetic": chosen.num_synthetic,
        "steps": result.steps,
        "epochs": len(result.history),
        "best_epoch": result.best_epoch,
        "stopped_early": result.stopped_early,
        "val_loss": best["val_loss"],
        "val_loss_per_character": best["val_loss_per_character"],
        "num_cut_reports": result.num_cut,
    }
