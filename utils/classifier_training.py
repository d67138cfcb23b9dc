"""Training of a diagnosis classifier: augmented batches, balanced loss, EMA, early stopping.

Shapes: N images, B images of a batch, L labels, H = W pixels. On the CPU the same seed gives the
same bytes: order, augmentation and initial weights each have their own seeded generator.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F

from utils.augmentation import augment, mirror
from utils.backbones import Network
from utils.classification_metrics import auroc, nan_mean, predicted_labels
from utils.classifier import batched, probabilities, to_unit
from utils.classifier_optim import Precision, learning_rate_at, parameter_groups, update_average
from utils.cli import UserError
from utils.gray_images import GrayImages

CLASS_BALANCES = ("none", "loss")
MIN_IMPROVEMENT = 0.002  # of the validation loss; less does not keep the training going
MAX_CLASS_WEIGHT = 10.0  # a class of three images must not rule the loss


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        max_epochs: Passes over the training images, at most.
        max_train_steps: Steps, at most; None leaves it to ``max_epochs``.
        batch_size: Images a step.
        learning_rate: Peak of the schedule (warm-up over a tenth, then cosine to a hundredth).
        weight_decay: Of AdamW.
        label_smoothing: Share of the target spread over all labels (multi-class only).
        class_balance: ``loss`` weighs a class by its rarity, ``none`` does not.
        augment: ``standard`` or ``none``, see ``utils.augmentation``.
        flip: Whether to mirror left-right at random.
        ema_decay: Of the exponential moving average of the weights; 0 switches it off.
        patience: Epochs after which training stops unless the validation loss has fallen by
            ``MIN_IMPROVEMENT``; 0: never.
        seed: Of everything random.
        mixed_precision: ``no``, ``bf16`` or ``fp16`` (CUDA only).
    """

    max_epochs: int = 40
    max_train_steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    class_balance: str = "loss"
    augment: str = "standard"
    flip: bool = False
    ema_decay: float = 0.99
    patience: int = 10
    seed: int = 0
    mixed_precision: str = "no"


@dataclass(frozen=True)
class Examples:
    """Images with their targets: ``targets`` (N, L) bool, in the order of ``images``."""

    images: GrayImages
    targets: np.ndarray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)


@dataclass(frozen=True)
class TrainingResult:
    """The trained network and how it got there; one row of ``history`` an epoch."""

    network: Network
    history: list[dict[str, float]]
    best_epoch: int
    steps: int
    stopped_early: bool


def class_weights(targets: np.ndarray, *, multi_label: bool) -> torch.Tensor:
    """Weights (L,) that give every class the same say, at most ``MAX_CLASS_WEIGHT``.

    Multi-class: ``N / (L n_k)`` for cross-entropy. Multi-label: negatives per positive, for the
    positive term of the binary cross-entropy. King and Zeng 2001 (the prior correction by weights).

    Args:
        targets: (N, L) bool, every column with at least one True.
        multi_label: Whether labels may occur together.
    """
    positives = np.asarray(targets).sum(axis=0).astype(np.float64)
    count, num_labels = targets.shape
    ratio = (count - positives) / positives if multi_label else count / (num_labels * positives)
    return torch.tensor(np.clip(ratio, 1 / MAX_CLASS_WEIGHT, MAX_CLASS_WEIGHT), dtype=torch.float32)


def make_loss(
    targets: np.ndarray, *, multi_label: bool, options: TrainingOptions, device: str
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Cross-entropy, or binary per label, of logits (B, L) against targets (B, L) float."""
    weights = None
    if options.class_balance == "loss":
        weights = class_weights(targets, multi_label=multi_label).to(device)

    def loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if multi_label:
            return F.binary_cross_entropy_with_logits(logits.float(), wanted, pos_weight=weights)
        return F.cross_entropy(
            logits.float(),
            wanted.argmax(dim=1),
            weight=weights,
            label_smoothing=options.label_smoothing,
        )

    return loss


def epoch_batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    """Indices of one epoch in random order; a remainder waits for the next epoch's order."""
    order = torch.randperm(count, generator=generator).numpy()
    size = min(batch_size, count)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]


def train_classifier(
    network: Network,
    train: Examples,
    val: Examples,
    *,
    multi_label: bool,
    options: TrainingOptions,
    device: str,
    progress: Callable[[dict[str, float]], object] | None = None,
) -> TrainingResult:
    """Train until the schedule ends or the validation loss has not improved for long.

    Args:
        network: Trained in place; the result holds the best epoch's (averaged) copy.
        train: Training images.
        val: Validation images of other patients.
        multi_label: Whether labels may occur together.
        options: How to train.
        device: Where to train.
        progress: Called with each row of the history.

    Returns:
        The network of the epoch with the lowest validation loss, and the history.

    Raises:
        UserError: If the loss is no longer finite.
    """
    run = _Run(network.to(device), train, multi_label=multi_label, options=options, device=device)
    best, best_epoch, lowest = run.average, 0, math.inf
    mark, marked = math.inf, 0  # the loss that patience measures against, and its epoch
    history: list[dict[str, float]] = []
    while run.step < run.total_steps:
        row = {"epoch": len(history) + 1, **run.train_epoch(train)}
        row |= validate(
            run.average, val, run.loss, multi_label=multi_label, precision=run.precision
        )
        history.append(row)
        if progress is not None:
            progress(row)
        if row["val_loss"] < lowest:
            best, best_epoch, lowest = copy.deepcopy(run.average), row["epoch"], row["val_loss"]
        if row["val_loss"] < mark - MIN_IMPROVEMENT:
            mark, marked = row["val_loss"], row["epoch"]
        if options.patience and row["epoch"] - marked >= options.patience:
            break
    stopped_early = run.step < run.total_steps
    return TrainingResult(best.eval(), history, best_epoch, run.step, stopped_early)


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
    ):
        self.network, self.options, self.device = network, options, device
        self.average = copy.deepcopy(network) if options.ema_decay else network
        self.loss = make_loss(
            train.targets, multi_label=multi_label, options=options, device=device
        )
        self.optimizer = torch.optim.AdamW(parameter_groups(network, options.weight_decay))
        self.order = torch.Generator().manual_seed(options.seed)
        self.noise = torch.Generator(device).manual_seed(options.seed)
        self.crops = np.random.default_rng(options.seed)
        self.precision = Precision(device, options.mixed_precision)
        steps = options.max_epochs * max(1, len(train) // options.batch_size)
        self.total_steps = min(steps, options.max_train_steps or steps)
        self.step = 0

    def train_epoch(self, train: Examples) -> dict[str, float]:
        """One pass over the images in a new order; stops inside it at the last step."""
        self.network.train()
        plan = epoch_batches(len(train), self.options.batch_size, self.order)
        plan = islice(plan, self.total_steps - self.step)
        losses = []
        for indices, gray in train.images.batches(plan, rng=self.crops):
            images = self._augmented(to_unit(gray.to(self.device)))
            wanted = torch.from_numpy(train.targets[indices]).float().to(self.device)
            rate = learning_rate_at(
                self.step, total_steps=self.total_steps, peak=self.options.learning_rate
            )
            with self.precision.autocast():
                loss = self.loss(self.network(images), wanted)
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
        return {"step": self.step, "learning_rate": rate, "train_loss": mean_loss}

    def _augmented(self, images: torch.Tensor) -> torch.Tensor:
        if self.options.augment == "standard":
            return augment(images, self.noise, flip=self.options.flip)
        return mirror(images, self.noise) if self.options.flip else images


@torch.inference_mode()
def validate(
    network: Network,
    examples: Examples,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    multi_label: bool,
    precision: Precision,
    batch_size: int = 64,
) -> dict[str, float]:
    """Loss, macro AUROC and share of right images of the un-augmented validation images."""
    network.eval()
    device = network.mean.device
    logits = []
    for batch in batched(examples.images, batch_size):
        gray = torch.from_numpy(np.stack(batch)).to(device)
        with precision.autocast():
            logits.append(network(to_unit(gray)).float())
    logits = torch.cat(logits)
    wanted = torch.from_numpy(examples.targets).float().to(device)
    probs = probabilities(logits, multi_label=multi_label).cpu().numpy()
    right = (predicted_labels(probs, multi_label=multi_label) == examples.targets).all(axis=1)
    areas = [auroc(probs[:, k], examples.targets[:, k]) for k in range(probs.shape[1])]
    return {
        "val_loss": float(loss_of(logits, wanted)),
        "val_accuracy": float(right.mean()),
        "val_auroc": float(nan_mean(np.array(areas))),
    }
