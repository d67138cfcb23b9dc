"""Training of the small image-text encoder: augmented pairs, InfoNCE, EMA, early stopping."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from tqdm import tqdm

from utils.augmentation import augment
from utils.classifier import to_unit
from utils.classifier_optim import Precision, learning_rate_at, parameter_groups, update_average
from utils.contrastive_encoder import ContrastiveEncoder, Towers, learn_grams
from utils.dataset import Record
from utils.dataset_split import assign_splits
from utils.gray_images import GrayImages
from utils.image_text import text_of
from utils.retrieval import relevance_groups
from utils.shuffled_batches import epoch_batches

MAX_INPUT_PX = 128  # more changes little and costs its square
VAL_SHARE = 0.15
MIN_PAIRS = 20  # of fewer, next to nothing is left to validate on
BATCH_SIZE = 64
MAX_EPOCHS = 40
MAX_STEPS = 2000  # some minutes on a CPU
PATIENCE = 8  # epochs without a lower validation loss
LEARNING_RATE, WEIGHT_DECAY, EMA_DECAY = 2e-3, 0.05, 0.99


class Pairs:
    """Images with texts: ``images`` in memory or read, ``texts`` (N,), ``groups`` (N,)."""

    def __init__(self, records: Sequence[Record], *, relevance: str, **reading: object):
        """Read the images; ``reading`` goes to ``GrayImages``."""
        self.images = GrayImages(records, **reading)
        self.texts = [text_of(record) for record in records]
        labels = [record.labels for record in records]
        self.groups = [
            {*own, text}
            for own, text in zip(relevance_groups(self.texts, labels, relevance), self.texts)
        ]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.texts)

    def of(self, indices: np.ndarray) -> tuple[list[str], torch.Tensor]:
        """Texts (B,) and which pairs are related (B, B)."""
        groups = [self.groups[i] for i in indices]
        related = [[not one.isdisjoint(other) for other in groups] for one in groups]
        return [self.texts[i] for i in indices], torch.tensor(related)


def train_encoder(
    records: Sequence[Record],
    *,
    relevance: str,
    resolution: int,
    resize_mode: str,
    num_workers: int = 0,
    device: str = "cpu",
    seed: int = 0,
    max_epochs: int = MAX_EPOCHS,
) -> ContrastiveEncoder:
    """Train on real pairs; the epoch with the lowest validation loss is kept.

    Args:
        records: At least ``MIN_PAIRS`` with a text; a share of their patients validates.
        relevance: ``label`` or ``text``: pairs with a common label, or only those with the same
            text, are no negatives of each other.
        resolution: Of the evaluation, in pixels; the encoder takes at most 128.
        resize_mode: See ``utils.images.resize``.
        num_workers: Threads that read.
        device: Where to train.
        seed: Of weights, order, augmentation and validation patients.
        max_epochs: Passes over the pairs, at most.

    Raises:
        ValueError: If there are fewer than ``MIN_PAIRS`` pairs.
    """
    pairs = [record for record in records if text_of(record)]
    if len(pairs) < MIN_PAIRS:
        raise ValueError(f"{len(pairs)} pairs of image and text: {MIN_PAIRS} are needed")
    splits = assign_splits(pairs, val_share=VAL_SHARE, test_share=0.0, seed=seed, by_image=True)
    input_px = min(resolution, MAX_INPUT_PX)
    options = {"resolution": input_px, "resize_mode": resize_mode, "num_workers": num_workers}
    train, val = (
        Pairs([r for r, s in zip(pairs, splits) if s == name], relevance=relevance, **options)
        for name in ("train", "val")
    )
    grams = learn_grams(train.texts)
    gray = train.images.gray_statistics()
    towers = Towers(grams, input_px=input_px, gray=gray, seed=seed).to(device)
    best = _Training(towers, train, max_epochs=max_epochs, device=device, seed=seed).run(val)
    return ContrastiveEncoder(best, input_px=input_px, device=device)


class _Training:
    """What one training carries from step to step."""

    def __init__(self, towers: Towers, train: Pairs, *, max_epochs: int, device: str, seed: int):
        self.towers, self.average = towers, copy.deepcopy(towers)
        self.train, self.device = train, device
        self.optimizer = torch.optim.AdamW(parameter_groups(towers, WEIGHT_DECAY))
        self.order = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator(device).manual_seed(seed)
        self.crops = np.random.default_rng(seed)
        self.precision = Precision(device, "no")
        self.batch_size = max(2, min(BATCH_SIZE, len(train) // 2))
        self.total_steps = min(MAX_STEPS, max_epochs * (len(train) // self.batch_size))
        self.step = 0

    def run(self, val: Pairs) -> Towers:
        """All epochs; the averaged towers of the best one."""
        best, lowest, waited, epoch = self.average, math.inf, 0, 0
        with tqdm(total=self.total_steps, desc="retrieval encoder", unit="step") as bar:
            while self.step < self.total_steps and waited < PATIENCE:
                self._train_epoch(bar)
                epoch += 1
                loss = self._validate(val)
                bar.set_postfix(epoch=epoch, val_loss=f"{loss:.3f}")
                waited += 1
                if loss < lowest:
                    best, lowest, waited = copy.deepcopy(self.average), loss, 0
        return best

    def _train_epoch(self, bar: tqdm) -> None:
        self.towers.train()
        plan = epoch_batches(len(self.train), self.batch_size, self.order)
        plan = islice(plan, self.total_steps - self.step)
        for indices, gray in self.train.images.batches(plan, rng=self.crops):
            images = augment(to_unit(gray.to(self.device)), self.noise)
            texts, related = self.train.of(indices)
            loss = self.towers.loss(images, texts, related.to(self.device))
            rate = learning_rate_at(self.step, total_steps=self.total_steps, peak=LEARNING_RATE)
            self.precision.descend(loss, self.optimizer, self.towers, rate=rate)
            self.step += 1
            update_average(self.average, self.towers, decay=EMA_DECAY, step=self.step)
            bar.update()

    @torch.inference_mode()
    def _validate(self, val: Pairs) -> float:
        """Mean loss over batches of the un-augmented validation pairs, in a fixed order."""
        self.average.eval()
        batches = np.array_split(np.arange(len(val)), math.ceil(len(val) / BATCH_SIZE))
        losses = []
        for indices, gray in val.images.batches(batches, rng=np.random.default_rng(0)):
            texts, related = val.of(indices)
            images = to_unit(gray.to(self.device))
            losses.append(float(self.average.loss(images, texts, related.to(self.device))))
        return float(np.mean(losses))
