"""One run of a sweep: the classifier that an arm's images make, calibrated."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from utils import arms as kinds
from utils.arm_data import Pools, Selection, num_patients, select
from utils.calibration import fit_temperature
from utils.classifier import Classifier
from utils.classifier_training import Examples, TrainingOptions, TrainingResult, train_classifier
from utils.fixmatch import Unlabeled
from utils.gray_images import GrayImages
from utils.sweep_plan import RunKey
from utils.sweep_trainer import Progress, Trained


class ArmTrainer:
    """Trains whole networks on the images of an arm.

    Every run takes equally long epochs: as many steps as one pass over all real training images.
    So the arms differ in what they see, not in how long they look.
    """

    def __init__(
        self,
        pools: Pools,
        *,
        start: Callable[[RunKey], Classifier],
        options: TrainingOptions,
        fine_tuning_rate: float,
        device: str,
        unlabeled: Unlabeled | None = None,
        align_labels: bool = False,
    ):
        """Take over what all runs have in common.

        Args:
            pools: Where images are drawn from.
            start: The untrained classifier of a run.
            options: How to train; each run has its own seed.
            fine_tuning_rate: Peak learning rate after pre-training on synthetic images.
            device: Where to train.
            unlabeled: How to learn from ``pools.unlabeled``, where an arm does.
            align_labels: Whether unlabeled images are expected to have their labels in the same
                shares as the labelled real ones of the run.
        """
        steps = max(1, len(pools.train) // options.batch_size)
        self.pools, self.start, self.device = pools, start, device
        self.options = replace(options, steps_per_epoch=steps)
        self.fine_tuning_rate, self.unlabeled = fine_tuning_rate, unlabeled
        self.align_labels = align_labels

    def prepare(self, key: RunKey, test: GrayImages) -> None:
        """Nothing; see ``Trainer``."""

    def shortened(self, num_steps: int) -> ArmTrainer:
        """The same for so many steps only, to measure how long one takes."""
        short = copy.copy(self)
        short.options = replace(self.options, max_epochs=1, steps_per_epoch=num_steps)
        return short

    def num_steps(self, key: RunKey) -> int:
        """Steps of a run, at most."""
        steps = self.options.max_epochs * self.options.steps_per_epoch
        return min(steps, self.options.max_train_steps or steps)

    def cost(self, key: RunKey) -> float:
        """Images of all steps; an unlabeled image is seen in two views, one without gradients."""
        images = self.options.batch_size
        if kinds.uses_unlabeled(key.arm):
            images *= 1 + 4 / 3 * self.unlabeled.ratio
        return self.num_steps(key) * images

    def __call__(
        self, key: RunKey, *, pretrained: Path | None, progress: Progress | None = None
    ) -> Trained:
        """Train; see ``Trainer``."""
        chosen = select(key, self.pools)
        train, val = self._examples(chosen)
        options = replace(self.options, seed=key.seed)
        classifier = self.start(key)
        if pretrained is not None:
            classifier.network.load_state_dict(Classifier.load(pretrained).network.state_dict())
            options = replace(options, learning_rate=self.fine_tuning_rate)
        result = train_classifier(
            classifier.network,
            train,
            val,
            unlabeled=self._unlabeled(chosen) if kinds.uses_unlabeled(key.arm) else None,
            multi_label=classifier.multi_label,
            options=options,
            device=self.device,
            progress=progress,
        )
        trained = Classifier(classifier.config, result.network, device=self.device)
        _, features = trained.predict_gray(val.images)
        facts = self._facts(key, chosen, result)
        facts["temperature"] = calibrate(trained, features, val.targets)
        return Trained(trained, facts, result.history)

    def predict(self, key: RunKey, classifier: Classifier, test: GrayImages) -> np.ndarray:
        """Probabilities; see ``Trainer``."""
        return classifier.predict_gray(test)[0]

    def _unlabeled(self, chosen: Selection) -> Unlabeled:
        """How this run learns from unlabeled images."""
        if not self.align_labels:
            return self.unlabeled
        counts = self.pools.train.targets[chosen.real].sum(axis=0)
        return replace(self.unlabeled, mix=counts / counts.sum())

    def _examples(self, chosen: Selection) -> tuple[Examples, Examples]:
        """Training and validation images."""
        pools = self.pools
        if not chosen.real:
            return pools.synthetic.take(chosen.synthetic), pools.synthetic.take(
                chosen.synthetic_val
            )
        train = pools.train.take(chosen.real)
        if chosen.synthetic:
            train = train.joined(pools.synthetic.take(chosen.synthetic))
        return train, pools.val.take(chosen.val)

    def _facts(self, key: RunKey, chosen: Selection, result: TrainingResult) -> dict[str, object]:
        best = result.history[result.best_epoch - 1]
        unlabeled = self.pools.unlabeled if kinds.uses_unlabeled(key.arm) else ()
        return selection_facts(chosen, self.pools) | {
            "num_unlabeled": len(unlabeled),
            "steps": result.steps,
            "epochs": len(result.history),
            "best_epoch": result.best_epoch,
            "stopped_early": result.stopped_early,
            "val_loss": best["val_calibrated_loss"],
            "val_auroc": best["val_auroc"],
        }


def selection_facts(chosen: Selection, pools: Pools) -> dict[str, object]:
    """How many images and patients a run learns from."""
    return {
        "num_real": len(chosen.real),
        "num_patients": num_patients(pools.train.images.records, chosen.real),
        "num_val": len(chosen.val) or len(chosen.synthetic_val),
        "num_synthetic": len(chosen.synthetic),
    }


def head_logits(classifier: Classifier, features: np.ndarray) -> np.ndarray:
    """Logits (N, L) float64 of features (N, D)."""
    head = classifier.network.head
    weight, bias = (t.detach().double().cpu().numpy() for t in (head.weight, head.bias))
    return features @ weight.T + bias


@torch.no_grad()
def calibrate(classifier: Classifier, features: np.ndarray, targets: np.ndarray) -> float:
    """Divide the logits by the temperature that suits the validation images best.

    Guo et al. 2017 (https://arxiv.org/abs/1706.04599). The temperature becomes part of the last
    layer, so whoever uses the classifier has calibrated probabilities.

    Args:
        classifier: Its last layer is changed.
        features: Of the validation images, (N, D).
        targets: Their labels, (N, L) bool.

    Returns:
        The temperature.
    """
    logits = head_logits(classifier, features)
    temperature = fit_temperature(logits, targets, multi_label=classifier.multi_label)
    classifier.network.head.weight.div_(temperature)
    classifier.network.head.bias.div_(temperature)
    return temperature
