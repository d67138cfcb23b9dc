"""Ratings drawn from a known reward, and the same as an export folder."""

import numpy as np
from PIL import Image

from utils.dataset import write_dataset
from utils.rating_table import Answer, write_answers
from utils.reward_features import Inputs
from utils.reward_ratings import QUESTIONS, Ratings

THRESHOLDS = np.array([-2.0, -0.7, 0.7, 2.0])


def planted(
    *,
    num_images=60,
    num_raters=3,
    dim=4,
    num_pairs=60,
    questions=QUESTIONS,
    spread=2.0,
    leniency_std=1.0,
    seed=0,
):
    """Inputs, ratings, the reward r = w x that they come from, and the raters' leniencies."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_images, dim))
    weight = rng.normal(size=dim)
    reward = x @ weight * spread / np.linalg.norm(weight)
    leniency = rng.normal(0, leniency_std, (num_raters, len(questions)))
    sizes = (num_images, num_raters, len(questions))
    image, rater, question = (one.ravel() for one in np.indices(sizes))
    latent = reward[image] + leniency[rater, question] + rng.logistic(size=len(image))
    level = (latent[:, None] > THRESHOLDS).sum(axis=1)
    pair = np.stack([rng.permutation(num_images)[:2] for _ in range(num_pairs)] or [[0, 0]])
    pair = pair[:num_pairs]
    win = (np.subtract(*reward[pair].T) + rng.logistic(size=num_pairs) > 0).astype(float)
    names = tuple(f"Dr {letter}" for letter in "ABCDEFG"[:num_raters])
    by = rng.integers(0, num_raters, num_pairs)
    told = Ratings(names, questions, num_images, image, rater, question, level, pair, by, win)
    return inputs_of(x), told, reward, leniency


def inputs_of(x, findings=None):
    """Inputs of image features alone, or with findings of the texts."""
    none = np.empty((len(x), 0))
    return Inputs(x, none if findings is None else findings, none)


def export_of(folder, *, num_images=24, seed=0, raters=("Dr A", "Dr B"), repeats=2):
    """An export folder: gray squares, brighter ones of better quality, with two texts."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows, answers = [], []
    for n in range(num_images):
        name, label = f"images/{n:06d}.png", ("normal", "drusen")[n % 2]
        bright = int(rng.integers(30, 220))
        pixels = np.clip(bright + rng.normal(0, 8, (32, 32)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
        text = {"normal": "Normal macula.", "drusen": "Several drusen."}[label]
        rows.append({"file_name": name, "text": text, "label": label, "source": "gan"})
        for rater in raters:
            rating = int(np.clip(round(1 + bright / 55 + rng.normal(0, 0.5)), 1, 5))
            values = {"quality": str(rating), "agreement": str(rating), "turing": "real"}
            for repeat in range(1 + (n < repeats)):
                answers += [
                    answer(rater, n, question, value, text, label, is_repeat=bool(repeat))
                    for question, value in values.items()
                ]
    write_dataset(folder, rows)
    write_answers(folder / "answers.csv", answers)
    return folder, answers


def answer(rater, item, question, value, text="", label="", *, is_repeat=False, other=""):
    """One answer about the image of this number."""
    return Answer(
        rater=rater,
        item=item,
        is_repeat=is_repeat,
        position=item,
        question=question,
        value=value,
        image=f"images/{item:06d}.png",
        arm="gan",
        label=label,
        text=text,
        other_image=other,
        other_arm="gan" if other else "",
        seconds=2.0,
        answered_at="2026-01-01T00:00:00.000+00:00",
    )
