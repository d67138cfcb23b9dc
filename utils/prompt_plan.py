"""The plan of a synthetic data set: how many images of each prompt, and which prompt each gets."""

import random
from collections.abc import Sequence

from utils.cli import UserError
from utils.prompts import Prompt


def plan_images(
    prompts: Sequence[Prompt],
    *,
    num_images: int | None,
    images_per_prompt: int | None,
    class_balanced: bool = False,
    shuffle_seed: int | None = None,
) -> list[Prompt]:
    """Decide which prompt each image gets; image *i* gets entry *i*.

    Images of one prompt stand together, prompts in their own order. Prompts that say how many
    images they get (`Prompt.num_images`) get so many, and the arguments must say nothing else.

    Args:
        prompts: At least one.
        num_images: Length of the plan. None: what the prompts times ``images_per_prompt`` give.
        images_per_prompt: So many images of each prompt that is used (the last one may get
            fewer). None: one, or as even as ``num_images`` can be spread.
        class_balanced: Give each label (each combination, for several) the same number of
            images, within one; needs ``num_images``. Prompts of rare labels are used again and
            again; with ``images_per_prompt``, the last prompt of a label may get fewer.
        shuffle_seed: Seed that picks prompts where not all are used equally: each as probable as
            any other, and labels as frequent as among all prompts, within one. None: the first.

    Raises:
        UserError: If the prompts do not suffice, balance is asked of prompts without label, or
            the arguments contradict the prompts' own numbers.
    """
    if any(prompt.num_images is not None for prompt in prompts):
        _refuse_other_numbers(num_images, images_per_prompt, class_balanced)
        return _plan_of_own_numbers(prompts)
    if num_images is None:
        return [prompt for prompt in prompts for _ in range(images_per_prompt or 1)]
    if class_balanced:
        counts = _balanced_counts(prompts, num_images, images_per_prompt or 1, shuffle_seed)
    else:
        num_uses = -(-num_images // (images_per_prompt or 1))
        if images_per_prompt is not None and num_uses > len(prompts):
            raise UserError(
                f"--num_images {num_images} needs {num_uses} prompts with "
                f"--num_images_per_prompt {images_per_prompt}, there are {len(prompts)}"
            )
        classes = [_class_of(prompt) for prompt in prompts]
        counts = _spread_uses(num_images, images_per_prompt or 1, classes, shuffle_seed)
    return [prompt for prompt, count in zip(prompts, counts) for _ in range(count)]


def _refuse_other_numbers(
    num_images: int | None, images_per_prompt: int | None, class_balanced: bool
) -> None:
    flags = {
        "--num_images": num_images,
        "--num_images_per_prompt": images_per_prompt,
        "--class_balanced": class_balanced,
    }
    given = [flag for flag, value in flags.items() if value]
    if given:
        raise UserError(
            "the column num_images of --prompts_file says how many images each prompt gets, so "
            f"{' and '.join(given)} cannot say it too: leave out one or the other"
        )


def _plan_of_own_numbers(prompts: Sequence[Prompt]) -> list[Prompt]:
    plan = [prompt for prompt in prompts for _ in range(prompt.num_images or 0)]
    if not plan:
        raise UserError("the column num_images of --prompts_file is 0 in every row: no images")
    return plan


def _class_of(prompt: Prompt) -> str:
    """The set of a prompt's labels: ``y;x`` is ``x;y``."""
    return ";".join(sorted(prompt.labels))


def _spread(total: int, labels: Sequence[str], seed: int | None) -> list[int]:
    """Split ``total`` over places into counts that differ by one at most.

    With a seed, the places that get one more are a systematic sample (Madow and Madow 1944,
    https://doi.org/10.1214/aoms/1177731312) of the places in the order of their labels, in random
    order within each: equally probable, and proportional to the labels within one.

    Args:
        total: What to split.
        labels: Label of each place.
        seed: Of the sample. None: the first places get one more.
    """
    num_places = len(labels)
    base, extra = divmod(total, num_places)
    places = range(num_places)
    if seed is not None:
        rng = random.Random(seed)
        ordered = sorted(places, key=lambda place: (labels[place], rng.random()))
        start = rng.randrange(num_places)
        places = [ordered[(k * num_places + start) // extra] for k in range(extra)]
    counts = [base] * num_places
    for place in places[:extra]:
        counts[place] += 1
    return counts


def _spread_uses(total: int, per_use: int, labels: Sequence[str], seed: int | None) -> list[int]:
    """Split ``total`` images over places, ``per_use`` or a multiple of it each, the last fewer."""
    num_uses = -(-total // per_use)
    counts = [times * per_use for times in _spread(num_uses, labels, seed)]
    last = max(place for place, count in enumerate(counts) if count)
    counts[last] -= num_uses * per_use - total
    return counts


def _balanced_counts(
    prompts: Sequence[Prompt], total: int, per_use: int, seed: int | None
) -> list[int]:
    unlabeled = [prompt.where for prompt in prompts if not prompt.label]
    if unlabeled:
        raise UserError(
            f"--class_balanced needs a label for every prompt; {len(unlabeled)} have none, "
            f"first: {unlabeled[0]}"
        )
    members: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        members.setdefault(_class_of(prompt), []).append(place)
    if total < len(members):
        raise UserError(
            f"--class_balanced: {len(members)} labels need at least as many images, "
            f"--num_images is {total}"
        )
    counts = [0] * len(prompts)
    for label, share in zip(sorted(members), _spread(total, sorted(members), None)):
        places = members[label]
        spread = _spread_uses(share, per_use, [label] * len(places), seed)
        for place, count in zip(places, spread):
            counts[place] = count
    return counts
