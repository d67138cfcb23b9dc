"""What a pre-trained encoder is worth: the same transformer from scratch, probed and fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils import mae_flags
from utils.arm_data import Pools
from utils.arm_training import ArmTrainer
from utils.classifier import Classifier, ClassifierConfig
from utils.classifier_training import TrainingOptions
from utils.gray_images import GrayImages
from utils.probe_training import ProbeTrainer
from utils.sweep_plan import RunKey
from utils.sweep_trainer import Progress, Trained, Trainer
from utils.untrained_classifier import UntrainedClassifier


@dataclass(frozen=True)
class EncoderArms:
    """Trains each arm in its own way; see ``utils.sweep_trainer.Trainer``.

    Attributes:
        trainers: Arm -> its trainer.
    """

    trainers: Mapping[str, Trainer]

    def prepare(self, key: RunKey, test: GrayImages) -> None:
        """Do what the runs of each arm need once."""
        for trainer in self.trainers.values():
            trainer.prepare(key, test)

    def __call__(
        self, key: RunKey, *, pretrained: Path | None, progress: Progress | None = None
    ) -> Trained:
        """Train."""
        return self.trainers[key.arm](key, pretrained=pretrained, progress=progress)

    def predict(self, key: RunKey, classifier: Classifier, test: GrayImages) -> np.ndarray:
        """Probabilities (N, L) float32 of the images to test on."""
        return self.trainers[key.arm].predict(key, classifier, test)

    def num_steps(self, key: RunKey) -> int:
        """Steps of a run, at most."""
        return self.trainers[key.arm].num_steps(key)

    def cost(self, key: RunKey) -> float:
        """Images that pass through the network forwards and backwards, at most."""
        return self.trainers[key.arm].cost(key)


def encoder_arms(
    arms: Mapping[str, float],
    pools: Pools,
    config: ClassifierConfig,
    *,
    encoder: Path,
    options: TrainingOptions,
    cache_dir: Path,
    device: str,
    state,
) -> EncoderArms:
    """The trainers of the arms.

    Args:
        arms: Arm of ``mae_flags.ARMS`` -> its peak learning rate (a probe has none).
        pools: Where images are drawn from.
        config: Of all classifiers.
        encoder: The pre-trained weights.
        options: How to train. From scratch all layers learn at one rate: a rate that falls
            towards the first layers is meant to keep what they have learned before.
        cache_dir: Of the frozen features.
        device: Where to train.
        state: ``PartialState`` of this process.
    """
    offline = {"offline": True}  # both sources are here
    pretrained = UntrainedClassifier(config, weights=str(encoder), **offline)
    trainers: dict[str, Trainer] = {}
    for arm, rate in arms.items():
        if arm == mae_flags.PROBE:
            trainers[arm] = ProbeTrainer(
                pools,
                start=pretrained,
                class_balance=options.class_balance,
                cache_dir=cache_dir,
                device=device,
                state=state,
            )
            continue
        from_scratch = arm == mae_flags.SCRATCH
        trainers[arm] = ArmTrainer(
            pools,
            start=UntrainedClassifier(config, weights="none", **offline)
            if from_scratch
            else pretrained,
            options=replace(
                options,
                learning_rate=rate,
                layer_decay=1.0 if from_scratch else options.layer_decay,
            ),
            fine_tuning_rate=rate,
            device=device,
        )
    return EncoderArms(trainers)
