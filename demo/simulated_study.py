"""A rating study, answered by simulated raters through its store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from demo.simulated_answers import Errors, compare, draw_errors, find_noise, judge_image, mean_kappa
from demo.simulated_truth import Opinion, Truth, strangeness
from utils.classifier import Classifier
from utils.cli import UserError
from utils.finding_labeler import FindingLabeler
from utils.rating_shown import Presentation, Rater, StudyImage
from utils.rating_store import IMAGES_DIR, Store
from utils.rating_table import REAL_ARM, UNSURE
from utils.reward_features import log_odds

NAME = "simulated {}"
KAPPA_ON = ("agreement", "quality")  # the first that the study asks


class SimulatedStudy:
    """An open study and what the oracle says of its images."""

    def __init__(
        self, store: Store, oracle: Classifier, labeler: FindingLabeler, *, seed: int
    ) -> None:
        """Look at all images.

        Args:
            store: Of the study.
            oracle: What is taken for the truth.
            labeler: Reads what a text asks for.
            seed: Of the raters' leniencies and errors.

        Raises:
            UserError: If the study has too few real images.
        """
        self.store, self.seed = store, seed
        images = store.images()
        self.row = {image.id: row for row, image in enumerate(images)}
        files = (Image.open(store.folder / IMAGES_DIR / image.file) for image in images)
        with tqdm(total=len(images), desc="oracle", unit="img") as bar:
            chances, features = oracle.predict_and_features(files, progress=bar.update)
        strange = strangeness(features, [image.arm == REAL_ARM for image in images])
        self.truth = Truth(tuple(oracle.labels), log_odds(chances), strange, labeler)

    def join(self, num_raters: int) -> list[Rater]:
        """The simulated raters, who join the study unless an earlier run let them in."""
        names = [NAME.format(number + 1) for number in range(num_raters)]
        known = {rater.name for rater in self.store.raters()}
        for name in names:
            if name not in known:
                self.store.add_rater(name)
        found = {rater.name: rater for rater in self.store.raters()}
        return [found[name] for name in names]

    def find_noise(self, raters: Sequence[Rater], *, kappa: float) -> float:
        """See `simulated_answers.find_noise`.

        Raises:
            UserError: If the study asks for no rating of the scale.
        """
        asked = [name for name in KAPPA_ON if name in self.store.facts["questions"]]
        if not asked:
            raise UserError(
                f"{self.store.folder}: asks for neither {' nor '.join(KAPPA_ON)}; how far raters "
                "agree is set by one of them"
            )
        return find_noise(*self._rated(raters, asked[0]), kappa=kappa)

    def kappas(self, raters: Sequence[Rater], noise: float) -> dict[str, float]:
        """Mean kappa of each question of the scale that the study asks."""
        asked = [name for name in KAPPA_ON if name in self.store.facts["questions"]]
        return {name: mean_kappa(*self._rated(raters, name), noise) for name in asked}

    def answer(self, rater: Rater, noise: float) -> None:
        """Give the answers of one rater that are not given yet."""
        left = self.store.presentations(rater)[self.store.num_done(rater) :]
        for shown in tqdm(left, desc=rater.name, unit="item"):
            errors = self._errors(rater, shown)
            opinions = [self._opinion(shown, image) for image in shown.images]
            if shown.is_pair:
                answers = {"preference": _side(shown, opinions, errors, noise)}
            else:
                answers = judge_image(opinions[0], errors, noise)
                if answers["diagnosis"] not in self.store.facts["diagnoses"]:
                    answers["diagnosis"] = UNSURE
                answers = {name: answers[name] for name in shown.questions}
            self.store.record(rater, shown.position, answers)

    def _opinion(self, shown: Presentation, image: StudyImage) -> Opinion:
        return self.truth.opinion(self.row[image.id], shown.text or image.text, image.label)

    def _errors(self, rater: Rater, shown: Presentation) -> Errors:
        number = int(rater.name.rsplit(" ", 1)[1]) - 1
        return draw_errors(
            seed=self.seed,
            rater=number,
            item=shown.item,
            is_repeat=shown.is_repeat,
            num_diagnoses=len(self.truth.diagnoses),
        )

    def _rated(self, raters: Sequence[Rater], question: str) -> tuple[np.ndarray, np.ndarray]:
        """Points (N,) of the items that ask this, and the raters' errors (R, N), no repeats."""
        points: dict[int, float] = {}
        errors: list[dict[int, float]] = []
        for rater in raters:
            own = {}
            for shown in self.store.presentations(rater):
                if question in shown.questions and not shown.is_repeat:
                    own[shown.item] = self._errors(rater, shown).scales[question]
                    opinion = self._opinion(shown, shown.images[0])
                    points[shown.item] = getattr(opinion, question)
            errors.append(own)
        items = sorted(points)
        table = np.array([[own[item] for item in items] for own in errors])
        return np.array([points[item] for item in items]), table


def _side(shown: Presentation, opinions: Sequence[Opinion], errors: Errors, noise: float) -> str:
    """Left, right or tie; errors belong to the item's first and second image, not to sides."""
    first, second = reversed(opinions) if shown.swapped else opinions
    better = compare(first, second, errors, noise)
    if better == "tie":
        return better
    return "left" if (better == "first") != shown.swapped else "right"
