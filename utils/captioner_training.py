"""Training of a report model: augmented images, teacher forcing, EMA, exact resume.

A killed training goes on where its last checkpoint was, to the same bytes on a CPU: the checkpoint
has weights, their average, the optimiser, the random generators and the history in one safetensors
file. Shapes: B images of a batch, H = W pixels, L tokens of the longest report of a batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from utils.augmentation import augment
from utils.captioner import Captioner
from utils.captioner_losses import report_loss, token_losses
from utils.classifier import CPU_BATCH, to_unit
from utils.classifier_optim import (
    learning_rate_at,
    parameter_groups,
    step_randomness,
    update_average,
)
from utils.cli import UserError
from utils.epoch_choice import EpochChoice
from utils.report_data import Pairs
from utils.report_tokenizer import encode_reports
from utils.shuffled_batches import endless_batches
from utils.training_file import load_state, save_state

_NETWORKS = ("network", "average", "best")  # of a run


@dataclass(frozen=True)
class CaptionerOptions:
    """How to train; see ``utils.classifier_training.TrainingOptions`` for what is alike.

    Attributes:
        steps_per_epoch: Steps between two looks at the validation pairs.
        checkpointing_steps: Steps between two checkpoints.
        max_tokens: Longest report, first and last token included; the rest is cut off.
    """

    total_steps: int
    steps_per_epoch: int
    checkpointing_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    augment: str
    ema_decay: float
    patience: int
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class CaptionerResult:
    """The trained model is the ``Captioner`` that was given; one row of ``history`` an epoch."""

    history: list[dict[str, float]]
    best_epoch: int
    steps: int
    stopped_early: bool
    num_cut: int


def train_captioner(
    captioner: Captioner,
    train: Pairs,
    val: Pairs,
    *,
    options: CaptionerOptions,
    checkpoint: Path,
    progress: Callable[[dict[str, float]], object] | None = None,
) -> CaptionerResult:
    """Train until the schedule ends or the validation loss has not improved for long.

    Args:
        captioner: Trained in place; in the end it has the (averaged) weights of the epoch that
            ``utils.epoch_choice`` keeps.
        train: Pairs to learn from.
        val: Pairs of other patients.
        options: How to train.
        checkpoint: File to save the state to and, if it is there, to go on from.
        progress: Called with each row of the history; at once with the last one of a checkpoint.

    Raises:
        UserError: If the loss is no longer finite, or that of the validation pairs never was.
    """
    run = _Run(captioner, train, val, options)
    if checkpoint.is_file():
        run.load(checkpoint)
        if run.history and progress is not None:
            progress(run.history[-1])
    while not run.is_over():
        num_epochs = len(run.history)
        run.train_to(run.next_stop())
        if run.step % options.steps_per_epoch == 0 or run.step == options.total_steps:
            run.end_epoch()
        if run.step % options.checkpointing_steps == 0:
            run.save(checkpoint)
        if progress is not None and len(run.history) > num_epochs:
            progress(run.history[-1])
    if not run.choice.best_epoch:
        raise UserError("the validation loss was never finite: lower --learning_rate")
    captioner.network.load_state_dict(run.best.state_dict())
    captioner.network.eval()
    stopped_early = run.step < options.total_steps
    return CaptionerResult(
        run.history, run.choice.best_epoch, run.step, stopped_early, run.tokens.num_cut
    )


class _Tokens:
    """The reports of pairs as numbers."""

    def __init__(self, captioner: Captioner, texts: Sequence[str], max_tokens: int):
        self.ids, self.num_cut = encode_reports(captioner.tokenizer, texts, max_tokens=max_tokens)
        self.pad = captioner.tokenizer.pad_token_id
        self.device = captioner.device

    def batch(self, places: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and mask of some reports, each (B, L) int64."""
        rows = [self.ids[place] for place in places]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return ids.to(self.device), mask.to(self.device)


class _Run:
    """What one training carries from step to step."""

    def __init__(self, captioner: Captioner, train: Pairs, val: Pairs, options: CaptionerOptions):
        self.captioner, self.options = captioner, options
        self.network = captioner.network
        self.train, self.val = train, val
        self.tokens = _Tokens(captioner, train.texts, options.max_tokens)
        self.val_tokens = _Tokens(captioner, val.texts, options.max_tokens)
        self.average = copy.deepcopy(self.network) if options.ema_decay else self.network
        self.best = copy.deepcopy(self.average)
        groups = parameter_groups(self.network, options.weight_decay)
        self.optimizer = torch.optim.AdamW(groups)
        self.noise = torch.Generator(captioner.device).manual_seed(options.seed)
        self.crops = np.random.default_rng(options.seed)
        self.choice = EpochChoice(options.patience)
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []  # of the epoch so far
        self.step = 0
        self._plan: Iterator[np.ndarray] | None = None

    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.step >= self.options.total_steps or self.choice.is_over(len(self.history))

    def next_stop(self) -> int:
        """The step at which to validate or to save next."""
        options = self.options
        stops = [
            (self.step // every + 1) * every
            for every in (options.steps_per_epoch, options.checkpointing_steps)
        ]
        return min(*stops, options.total_steps)

    def train_to(self, stop: int) -> None:
        """Steps up to this one."""
        if self._plan is None:
            order = torch.Generator().manual_seed(self.options.seed)
            batches = endless_batches(len(self.train), self.options.batch_size, order)
            self._plan = islice(batches, self.step, None)
        self.network.train()
        losses = []
        plan = islice(self._plan, stop - self.step)
        for places, gray in self.train.images.batches(plan, rng=self.crops):
            losses.append(self._descend(places, gray).detach())
            self.step += 1
            if self.options.ema_decay:
                update_average(
                    self.average, self.network, decay=self.options.ema_decay, step=self.step
                )
        self.losses += torch.stack(losses).tolist()
        if not all(map(math.isfinite, self.losses)):
            bad = [math.isfinite(loss) for loss in self.losses].index(False)
            step = self.step - len(self.losses) + bad + 1
            raise UserError(
                f"the loss is not finite at step {step}: lower --learning_rate, or use "
                "--mixed_precision bf16 or no"
            )

    def _descend(self, places: np.ndarray, gray: torch.Tensor) -> torch.Tensor:
        """One step; its loss."""
        images = to_unit(gray.to(self.captioner.device))
        if self.options.augment == "standard":
            images = augment(images, self.noise)
        ids, mask = self.tokens.batch(places)
        rate = learning_rate_at(
            self.step, total_steps=self.options.total_steps, peak=self.options.learning_rate
        )
        chance = step_randomness(self.options.seed, self.step, self.captioner.device)
        with self.captioner.precision.autocast(), chance:
            loss = report_loss(
                self.network,
                self.captioner.normalise(images),
                ids,
                mask,
                label_smoothing=self.options.label_smoothing,
            )
        self.captioner.precision.descend(loss, self.optimizer, self.network, rate=rate)
        return loss

    def end_epoch(self) -> None:
        """Judge the averaged weights by the validation pairs, and keep them if they are best."""
        row = {
            "epoch": len(self.history) + 1,
            "step": self.step,
            "train_loss": float(np.mean(self.losses)),
            **self._validate(),
        }
        self.losses = []
        self.history.append(row)
        if self.choice.keeps(row["epoch"], loss=row["val_loss"], error=row["val_loss_error"]):
            self.best.load_state_dict(self.average.state_dict())

    @torch.inference_mode()
    def _validate(self) -> dict[str, float]:
        """Mean over the validation reports of the mean loss of a token, and its error.

        Tokens of two tokenizers are not alike: models are compared by the loss per character.
        """
        network = self.average.eval()
        means, per_character = [], []
        plan = [
            np.arange(start, min(start + CPU_BATCH, len(self.val)))
            for start in range(0, len(self.val), CPU_BATCH)
        ]
        for places, gray in self.val.images.batches(plan, rng=None):
            ids, mask = self.val_tokens.batch(places)
            with self.captioner.precision.autocast():
                losses = token_losses(network, self.captioner.pixel_values(gray), ids, mask)
            sums = losses.double().sum(dim=1)
            means += (sums / mask[:, 1:].sum(dim=1)).tolist()
            lengths = [max(1, len(self.val.texts[place])) for place in places]
            per_character += (sums.cpu() / torch.tensor(lengths)).tolist()
        error = float(np.std(means, ddof=1) / math.sqrt(len(means))) if len(means) > 1 else 0.0
        return {
            "val_loss": float(np.mean(means)),
            "val_loss_error": error,
            "val_loss_per_character": float(np.mean(per_character)),
        }

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on, atomically."""
        facts = {
            "step": self.step,
            "losses": self.losses,
            "history": self.history,
            "choice": asdict(self.choice),
            "crops": self.crops.bit_generator.state,
            "scaler": self.captioner.precision.scaler.state_dict(),
        }
        networks = {name: getattr(self, name).state_dict() for name in _NETWORKS}
        save_state(path, networks, self.optimizer, noise=self.noise, facts=facts)

    def load(self, path: Path) -> None:
        """Go on where ``save`` was called."""
        networks = {name: getattr(self, name) for name in _NETWORKS}
        facts = load_state(path, networks, self.optimizer, noise=self.noise)
        self.step, self.losses = facts["step"], facts["losses"]
        self.history, self.choice = facts["history"], EpochChoice(**facts["choice"])
        self.crops.bit_generator.state = facts["crops"]
        self.captioner.precision.scaler.load_state_dict(facts["scaler"])
