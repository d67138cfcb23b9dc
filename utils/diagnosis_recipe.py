"""One way to train and test a diagnosis classifier, to compare what different images teach it.

Shapes: N images, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tqdm import tqdm

from utils.backbone_names import SMALL
from utils.backbones import build_network
from utils.classification_scores import Score, score_classification
from utils.classifier import Classifier, ClassifierConfig
from utils.classifier_training import Examples, TrainingOptions, train_classifier
from utils.cli import UserError
from utils.dataset import Record
from utils.dataset_split import assign_splits
from utils.diagnosis_data import targets_of
from utils.gray_images import GrayImages
from utils.patient_division import VAL_SHARE, patients_of

BATCH_SIZE = 32
# As many steps as the default passes take, within a range: of a small set, fewer leave the result
# to luck (two draws of one population differed by 0.3), of a large one, more take hours on a CPU.
MIN_STEPS, MAX_STEPS = 600, 2000
PATIENCE_SHARE = 0.25  # of the steps, without a lower validation loss

Scores = dict[tuple[str, str], Score]


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained and tested, whatever it is trained on.

    Attributes:
        test: Real images to test on.
        labels: L labels that both sets have.
        multi_label: Whether labels may occur together.
        resolution: Of the classifier's input in pixels.
        resize_mode: See ``utils.images.resize``.
        num_workers: Threads that read.
        device: Where to train.
        seed: Of weights, order, augmentation, validation images and intervals.
        num_steps: Training steps, at most; None takes what the number of images asks for.
    """

    test: Sequence[Record]
    labels: tuple[str, ...]
    multi_label: bool
    resolution: int
    resize_mode: str
    num_workers: int = 0
    device: str = "cpu"
    seed: int = 0
    num_steps: int | None = None

    @cached_property
    def test_examples(self) -> Examples:
        """Pixels and targets of the images to test on."""
        return self.examples(self.test)

    def examples(self, records: Sequence[Record]) -> Examples:
        """Pixels and targets."""
        options = {"resolution": self.resolution, "resize_mode": self.resize_mode}
        images = GrayImages(records, **options, num_workers=self.num_workers)
        return Examples(images, targets_of(records, self.labels))

    def score(self, records: Sequence[Record], *, name: str) -> Scores:
        """Train on records, test on the real images; arguments and errors as for ``train``.

        Returns:
            (label or ``macro``, metric) -> score.
        """
        classifier = self.train(records, name=name)
        probs, _ = classifier.predict_gray(self.test_examples.images)
        options = {"multi_label": self.multi_label, "seed": self.seed}
        patients = patients_of(self.test)
        found = score_classification(
            probs, self.test_examples.targets, self.labels, patients=patients, **options
        )
        return {(score.target, score.metric): score for score in found}

    def train(self, records: Sequence[Record], *, name: str) -> Classifier:
        """A classifier trained on records.

        Args:
            records: N images with labels; a share of them validates.
            name: For the progress bar.

        Raises:
            UserError: If a label is left without a training image.
        """
        splits = assign_splits(
            records, val_share=VAL_SHARE, test_share=0.0, seed=self.seed, by_image=True
        )
        train, val = (
            self.examples([r for r, s in zip(records, splits) if s == part])
            for part in ("train", "val")
        )
        missing = [k for k, found in zip(self.labels, train.targets.any(axis=0)) if not found]
        if missing:
            raise UserError(f"no image is left to train on for {', '.join(missing)}")
        return self._train(train, val, name)

    def training_options(self, num_images: int) -> TrainingOptions:
        """Those of semi_supervised.py, for this many training images."""
        batch_size = max(2, min(BATCH_SIZE, num_images // 2))
        per_epoch = max(1, num_images // batch_size)
        usual = TrainingOptions.max_epochs * per_epoch
        steps = self.num_steps or min(MAX_STEPS, max(MIN_STEPS, usual))
        return TrainingOptions(
            max_epochs=math.ceil(steps / per_epoch),
            max_train_steps=steps,
            batch_size=batch_size,
            patience=math.ceil(PATIENCE_SHARE * steps / per_epoch),
            seed=self.seed,
        )

    def _train(self, train: Examples, val: Examples, name: str) -> Classifier:
        """The classifier of semi_supervised.py with its defaults, from random weights."""
        mean, std = train.images.gray_statistics()
        config = ClassifierConfig(
            backbone=SMALL,
            labels=self.labels,
            multi_label=self.multi_label,
            resolution=self.resolution,
            resize_mode=self.resize_mode,
            mean=mean,
            std=std,
            data_hash="",
        )
        size = {"num_labels": len(self.labels), "resolution": self.resolution, "seed": self.seed}
        options = self.training_options(len(train))
        epochs = options.max_epochs
        with tqdm(total=epochs, desc=f"classifier on {name} images", unit="epoch") as bar:
            result = train_classifier(
                build_network(SMALL, **size, mean=mean, std=std),
                train,
                val,
                multi_label=self.multi_label,
                options=options,
                device=self.device,
                progress=lambda row: bar.update(),
            )
        return Classifier(config, result.network, device=self.device)
