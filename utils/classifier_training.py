"""Training of a diagnosis classifier: augmented batches, balanced loss, EMA, early stopping.

Shapes: N images, B images of a batch, L labels, H = W pixels. On the CPU the same seed gives the
same bytes: order, augmentation and initial weights each have their own seeded generator.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from utils.augmentation import augment, mirror
from utils.backbones import Network
from utils.classifier import to_unit
from utils.classifier_loss import make_loss
from utils.classifier_optim import (
    Precision,
    learning_rate_at,
    parameter_groups,
    step_randomness,
    update_average,
)
from utils.classifier_validation import validate
from utils.cli import UserError
from utils.epoch_choice import EpochChoice
from utils.fixmatch import Unlabeled, UnlabeledStream
from utils.gray_images import GrayImages
from utils.shuffled_batches import endless_batches
from utils.vit import set_drop_path


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        max_epochs: Passes over the training images, at most.
        steps_per_epoch: Steps of an epoch; None is one pass. Runs on more or fewer images are
            comparable if their epochs are equally long.
        max_train_steps: Steps, at most; None leaves it to ``max_epochs``.
        batch_size: Images a step.
        learning_rate: Peak of the schedule (warm-up over a tenth, then cosine to a hundredth).
        weight_decay: Of AdamW.
        layer_decay: Of the learning rate from a vision transformer's layer to the one below; 1: no.
        drop_path: Rate at which a vision transformer's last block is skipped; 0: never.
        label_smoothing: Share of the target spread over all labels (multi-class only).
        class_balance: ``loss`` weighs a class by its rarity, ``none`` does not.
        augment: ``standard`` or ``none``, see ``utils.augmentation``.
        flip: Whether to mirror left-right at random.
        ema_decay: Of the exponential moving average of the weights; 0 switches it off.
        patience: See ``utils.epoch_choice``.
        seed: Of everything random.
        mixed_precision: ``no``, ``bf16`` or ``fp16`` (CUDA only).
    """

    max_epochs: int = 40
    steps_per_epoch: int | None = None
    max_train_steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    drop_path: float = 0.0
    label_smoothing: float = 0.0
    class_balance: str = "loss"
    augment: str = "standard"
    flip: bool = False
    ema_decay: float = 0.99
    patience: int = 10
    seed: int = 0
    mixed_precision: str = "no"

    @classmethod
    def of_flags(cls, args: argparse.Namespace, *, learning_rate: float) -> TrainingOptions:
        """What the flags of ``utils.diagnosis_flags`` ask for."""
        return cls(
            max_epochs=args.max_epochs,
            max_train_steps=args.max_train_steps,
            batch_size=args.batch_size,
            learning_rate=learning_rate,
            weight_decay=args.weight_decay,
            label_smoothing=args.label_smoothing,
            class_balance=args.class_balance,
            augment=args.augment,
            flip=args.random_flip,
            layer_decay=args.layer_decay,
            drop_path=args.drop_path,
            ema_decay=args.ema_decay,
            patience=args.early_stopping_patience,
            mixed_precision=args.mixed_precision,
        )


@dataclass(frozen=True)
class Examples:
    """Images with their targets: ``targets`` (N, L) bool, in the order of ``images``."""

    images: GrayImages
    targets: np.ndarray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def take(self, indices: Sequence[int]) -> Examples:
        """Those at these places."""
        return Examples(self.images.take(indices), self.targets[np.asarray(indices, np.int64)])

    def joined(self, other: Examples) -> Examples:
        """These and then another's."""
        targets = np.concatenate([self.targets, other.targets])
        return Examples(self.images.joined(other.images), targets)


@dataclass(frozen=True)
class TrainingResult:
    """The trained network and how it got there; one row of ``history`` an epoch."""

    network: Network
    history: list[dict[str, float]]
    best_epoch: int
    steps: int
    stopped_early: bool


def train_classifier(
    network: Network,
    train: Examples,
    val: Examples,
    *,
    multi_label: bool,
    options: TrainingOptions,
    device: str,
    unlabeled: Unlabeled | None = None,
    progress: Callable[[dict[str, float]], object] | None = None,
) -> TrainingResult:
    """Train until the schedule ends or the validation loss has not improved for long.

    Which epoch is kept tells ``utils.epoch_choice``; losses are compared after calibration (see
    ``validate``).

    Args:
        network: Trained in place; the result holds the best epoch's (averaged) copy.
        train: Training images.
        val: Validation images of other patients.
        multi_label: Whether labels may occur together.
        options: How to train.
        device: Where to train.
        unlabeled: Images to learn from beside ``train``, whose order and augmentation they leave
            as they are.
        progress: Called with each row of the history.

    Returns:
        The network of the epoch that is kept, and the history.

    Raises:
        UserError: If the loss is no longer finite.
    """
    run = _Run(
        network.to(device),
        train,
        multi_label=multi_label,
        options=options,
        device=device,
        unlabeled=unlabeled,
    )
    best, choice = run.average, EpochChoice(options.patience)
    history: list[dict[str, float]] = []
    while run.step < run.total_steps:
        row = {"epoch": len(history) + 1, **run.train_epoch(train)}
        row |= validate(
            run.average, val, run.loss, multi_label=multi_label, precision=run.precision
        )
        history.append(row)
        if progress is not None:
            progress(row)
        judged = {"loss": row["val_calibrated_loss"], "error": row["val_loss_error"]}
        if choice.keeps(row["epoch"], **judged):
            best = copy.deepcopy(run.average)
        if choice.is_over(row["epoch"]):
            break
    stopped_early = run.step < run.total_steps
    return TrainingResult(best.eval(), history, choice.best_epoch, run.step, stopped_early)


class _Run:
    """What one training carries from step to step."""

    def __init__(
        self,
        network: Network,
        train: Examples,
        *,
        multi_label: bool,
        options: TrainingOptions,
        device: str,
        unlabeled: Unlabeled | None,
    ):
        self.network, self.options, self.device = network, options, device
        set_drop_path(network, options.drop_path)
        self.average = copy.deepcopy(network) if options.ema_decay else network
        self.loss = make_loss(
            train.targets,
            multi_label=multi_label,
            class_balance=options.class_balance,
            label_smoothing=options.label_smoothing,
            device=device,
        )
        self.optimizer = torch.optim.AdamW(
            parameter_groups(network, options.weight_decay, layer_decay=options.layer_decay)
        )
        self.order = torch.Generator().manual_seed(options.seed)
        self.noise = torch.Generator(device).manual_seed(options.seed)
        self.crops = np.random.default_rng(options.seed)
        self.precision = Precision(device, options.mixed_precision)
        self.epoch_steps = options.steps_per_epoch or max(1, len(train) // options.batch_size)
        steps = options.max_epochs * self.epoch_steps
        self.total_steps = min(steps, options.max_train_steps or steps)
        self.plan = endless_batches(len(train), options.batch_size, self.order)
        self.stream = unlabeled and UnlabeledStream(
            unlabeled, multi_label=multi_label, options=options, device=device
        )
        self.step = 0

    def train_epoch(self, train: Examples) -> dict[str, float]:
        """The steps of an epoch; stops inside it at the last step."""
        self.network.train()
        plan = islice(self.plan, min(self.epoch_steps, self.total_steps - self.step))
        losses = []
        for indices, gray in train.images.batches(plan, rng=self.crops):
            images = self._augmented(to_unit(gray.to(self.device)))
            wanted = torch.from_numpy(train.targets[indices]).float().to(self.device)
            rate = learning_rate_at(
                self.step, total_steps=self.total_steps, peak=self.options.learning_rate
            )
            loss = self._loss(images, wanted)
            losses.append(loss.detach())
            self.precision.descend(loss, self.optimizer, self.network, rate=rate)
            self.step += 1
            if self.options.ema_decay:
                update_average(
                    self.average, self.network, decay=self.options.ema_decay, step=self.step
                )
        mean_loss = float(torch.stack(losses).mean())
        if not math.isfinite(mean_loss):
            bad = [bool(loss.isfinite()) for loss in losses].index(False)
            raise UserError(
                f"the loss is not finite at step {self.step - len(losses) + bad + 1}: lower "
                f"--learning_rate, or use --mixed_precision bf16 or no"
            )
        row = {"step": self.step, "learning_rate": rate, "train_loss": mean_loss}
        return row | (self.stream.epoch_facts() if self.stream else {})

    def _loss(self, images: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Of the labelled images, and of unlabeled ones where there are any.

        Strong views and labelled images go through the network at once, so that batch
        normalisation takes its mean and variance from both: those of a dozen labelled images
        alone are noise. The weak views are judged by the same network in the same mode, but
        apart, because they need no gradient; FixMatch's own code sends all three through at once.
        """
        views = self.stream and self.stream.views()  # drawn in full precision
        chance = step_randomness(self.options.seed, self.step, self.device)
        with self.precision.autocast(), chance:
            if views is None:
                return self.loss(self.network(images), wanted)
            weak, strong = views
            with torch.no_grad():
                weak_logits = self.network(weak)
            logits = self.network(torch.cat([images, strong]))
            done = self.step / self.total_steps
            unlabeled = self.stream.loss(weak=weak_logits, strong=logits[len(images) :], done=done)
            return self.loss(logits[: len(images)], wanted) + unlabeled

    def _augmented(self, images: torch.Tensor) -> torch.Tensor:
        if self.options.augment == "standard":
            return augment(images, self.noise, flip=self.options.flip)
        return mirror(images, self.noise) if self.options.flip else images
