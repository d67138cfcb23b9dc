"""The classifier that a run starts from."""

from __future__ import annotations

import argparse
from dataclasses import replace

from utils.backbone_weights import load_backbone_weights
from utils.backbones import build_network
from utils.classifier import Classifier, ClassifierConfig
from utils.diagnosis_data import DiagnosisData
from utils.gray_images import GrayImages
from utils.run_folder import get_logger
from utils.sweep_plan import RunKey

logger = get_logger("diagnosis")


def describe_classifier(
    args: argparse.Namespace, data: DiagnosisData, train: GrayImages, *, backbone: str
) -> ClassifierConfig:
    """What all classifiers of a sweep have in common.

    Their normalisation is that of all real training images: it needs no labels.

    Args:
        args: ``--resolution`` and ``--resize_mode``.
        data: Names of the labels.
        train: Real training images.
        backbone: Its full name.
    """
    mean, std = train.gray_statistics()
    return ClassifierConfig(
        backbone=backbone,
        labels=data.labels,
        multi_label=data.multi_label,
        resolution=args.resolution,
        resize_mode=args.resize_mode,
        mean=mean,
        std=std,
        data_hash=data.fingerprint,
    )


class UntrainedClassifier:
    """Makes classifiers with their starting weights, wrapped with what they need to be used."""

    def __init__(self, config: ClassifierConfig, *, weights: str, offline: bool):
        """Take over what all runs have in common.

        Args:
            config: Of the classifiers.
            weights: What their backbones start from, see ``load_backbone_weights``.
            offline: Whether a download is forbidden.
        """
        self.config, self.weights, self.offline = config, weights, offline
        self.told = ""

    def __call__(self, key: RunKey) -> Classifier:
        """The untrained classifier of a run."""
        config = self.config
        network = build_network(
            config.backbone,
            num_labels=len(config.labels),
            resolution=config.resolution,
            seed=key.seed,
            mean=config.mean,
            std=config.std,
        )
        origin = load_backbone_weights(network, config.backbone, self.weights, offline=self.offline)
        if origin != self.told:
            logger.info("%s starts from %s", config.backbone, origin)
            self.told = origin
        return Classifier(replace(config, initial_weights=origin), network)
