"""Runs that train the last layer alone, on features that are made once for the whole sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from utils.arm_data import Pools, Selection, select
from utils.arm_training import calibrate, head_logits, selection_facts
from utils.classification_metrics import auroc, nan_mean
from utils.classifier import Classifier, probabilities
from utils.frozen_features import frozen_features
from utils.gray_images import GrayImages
from utils.linear_probe import fit_linear_probe
from utils.sweep_plan import RunKey
from utils.sweep_trainer import Progress, Trained

PASSES = 20  # for the progress bar: a probe is quick beside a training


class ProbeTrainer:
    """Trains linear probes on a backbone that stays as it is; a ``sweep_trainer.Trainer``."""

    def __init__(
        self,
        pools: Pools,
        *,
        start: Callable[[RunKey], Classifier],
        class_balance: str,
        cache_dir: Path,
        device: str,
        state,
    ):
        """Take over what all runs have in common; all processes call this together.

        Args:
            pools: Where images are drawn from.
            start: The classifier of a run, its backbone the same for all.
            class_balance: See ``utils.classifier_training.TrainingOptions``.
            cache_dir: Of the features.
            device: Where the backbone runs.
            state: ``PartialState`` of this process.
        """
        self.pools, self.start, self.device = pools, start, device
        self.class_balance, self.cache_dir, self.state = class_balance, cache_dir, state
        self.features: dict[str, np.ndarray] = {}

    def prepare(self, key: RunKey, test: GrayImages) -> None:
        """Make the features of all images; see ``Trainer``."""
        classifier = self._classifier(key)
        pools = {
            "train": self.pools.train,
            "val": self.pools.val,
            "synthetic": self.pools.synthetic,
        }
        images = {name: pool.images for name, pool in pools.items() if pool is not None}
        for name, own in (images | {"test": test}).items():
            self.features[name] = frozen_features(
                classifier, own, folder=self.cache_dir, name=name, state=self.state
            )

    def predict(self, key: RunKey, classifier: Classifier, test: GrayImages) -> np.ndarray:
        """Probabilities; see ``Trainer``."""
        logits = torch.from_numpy(head_logits(classifier, self.features["test"]))
        return probabilities(logits, multi_label=classifier.multi_label).float().numpy()

    def num_steps(self, key: RunKey) -> int:
        """One: a probe is fitted at once."""
        return 1

    def cost(self, key: RunKey) -> float:
        """Little, beside a training."""
        return PASSES * len(self.pools.val)

    def __call__(
        self, key: RunKey, *, pretrained: Path | None, progress: Progress | None = None
    ) -> Trained:
        """Fit; see ``Trainer``."""
        assert pretrained is None, "a probe starts from no other run"
        classifier = self._classifier(key)
        chosen = select(key, self.pools)
        (train, targets), (val, val_targets) = self._parts(chosen)
        probe = fit_linear_probe(
            train,
            targets,
            val,
            val_targets,
            multi_label=classifier.multi_label,
            class_balance=self.class_balance,
        )
        probe.fill(classifier.network)
        logits = head_logits(classifier, val)
        areas = [auroc(logits[:, k], val_targets[:, k]) for k in range(logits.shape[1])]
        row = {"epoch": 1, "step": 1, "val_loss": probe.val_loss}
        row["val_auroc"] = float(nan_mean(np.array(areas)))
        facts = selection_facts(chosen, self.pools) | {
            "num_unlabeled": 0,
            "steps": 1,
            "l2": probe.l2,
            "val_loss": probe.val_loss,
            "val_auroc": row["val_auroc"],
            "temperature": calibrate(classifier, val, val_targets),
        }
        return Trained(classifier, facts, [row])

    def _classifier(self, key: RunKey) -> Classifier:
        started = self.start(key)
        return Classifier(started.config, started.network, device=self.device)

    def _parts(self, chosen: Selection) -> list[tuple[np.ndarray, np.ndarray]]:
        """Features and targets to train on, and to validate on."""

        def rows(name: str, places: list[int]) -> tuple[np.ndarray, np.ndarray]:
            examples = getattr(self.pools, name)
            if examples is None:
                dim = self.features["train"].shape[1]
                return np.empty((0, dim), np.float32), np.empty((0, len(self.pools.labels)), bool)
            index = np.array(places, np.int64)
            return self.features[name][index], examples.targets[index]

        train = rows("train", chosen.real), rows("synthetic", chosen.synthetic)
        val = rows("val", chosen.val), rows("synthetic", chosen.synthetic_val)
        return [tuple(map(np.concatenate, zip(*parts))) for parts in (train, val)]
