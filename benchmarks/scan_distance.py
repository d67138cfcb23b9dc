"""How far images are from simulated scans, in the features of a diagnosis classifier of scans."""

import contextlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from demo.simulate import SCANS_PER_PATIENT, Scan, simulate, write_scans
from utils import metrics
from utils.classifier import Classifier
from utils.cli import available_cores
from utils.run_folder import write_csv

PROMPTS_SEED, REAL_SEED, CLASSIFIER_SEED = 0, 1, 2  # populations of simulated patients
SPLITS = ("train", "train", "train", "val", "test")
NUM_FINDINGS = 6  # patients take turns in them
NUM_CLASSIFIER_SCANS = 1200
NUM_RESAMPLES = 200


def scans(indices: Iterable[int], *, seed: int) -> Iterator[Scan]:
    """A scan of each patient of a population."""
    return (simulate(SCANS_PER_PATIENT * index, seed=seed) for index in indices)


def train_classifier(work_dir: Path) -> Path:
    """A small diagnosis classifier of simulated scans; half a minute on two cores."""
    import semi_supervised

    data_dir = work_dir / "scans"
    data_dir.mkdir()
    options = {"seed": CLASSIFIER_SEED, "num_workers": available_cores()}
    rows = write_scans(data_dir, num_images=NUM_CLASSIFIER_SCANS, **options)
    for index, row in enumerate(rows):
        row["split"] = SPLITS[index // SCANS_PER_PATIENT // NUM_FINDINGS % len(SPLITS)]
    write_csv(data_dir / "metadata.csv", rows, list(rows[0]))
    flags = ["--arms=real", "--backbone=small", "--resolution=128", "--max_epochs=8"]
    flags += [f"--real_dir={data_dir}", f"--output_dir={work_dir / 'diagnosis'}"]
    with contextlib.redirect_stdout(io.StringIO()):
        semi_supervised.main(flags)
    return work_dir / "diagnosis" / "classifier"


class ScanDistance:
    """Fréchet distance to simulated scans, with its 95 % interval.

    Args:
        classifier: Folder of the classifier; None trains one.
        num_real: Scans to measure it to.
        work_dir: For the training.
    """

    def __init__(self, classifier: Path | None, *, num_real: int, work_dir: Path) -> None:
        self._classifier = Classifier.load(classifier or train_classifier(work_dir))
        self._real = self._features(scan.image for scan in scans(range(num_real), seed=REAL_SEED))

    def of_files(self, paths: Iterable[Path]) -> dict[str, object]:
        """Distance of image files: ``value, ci95, n_real, n_synthetic``."""
        return self._distance(self._features(map(Image.open, sorted(paths))))

    def of_scans(self, num_images: int) -> dict[str, object]:
        """Distance of the scans whose texts are the prompts, which no generator can beat."""
        others = scans(range(num_images), seed=PROMPTS_SEED)
        return self._distance(self._features(scan.image for scan in others))

    def _features(self, images: Iterable[Image.Image]) -> np.ndarray:
        return self._classifier.features(images)

    def _distance(self, features: np.ndarray) -> dict[str, object]:
        sets = {"real": self._real, "synthetic": features}
        interval = metrics.frechet_interval(**sets, num_resamples=NUM_RESAMPLES, seed=0)
        counts = {"n_real": len(self._real), "n_synthetic": len(features)}
        return {"value": metrics.frechet_distance(**sets), "ci95": interval, **counts}
