"""The page of a loop of self-improvement: what came of it, in words, figures and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.dataset import load_dataset
from utils.html_report import Page
from utils.html_text import format_change
from utils.improvement import HELD_OUT, Improvement, sheet_records
from utils.reward_page import add_reward_section
from utils.round_record import RoundRecord, round_dir
from utils.round_scores import DIRECTIONS
from utils.round_watch import Verdict

NAMES = {
    "agreement": "right finding seen by the judge",
    "fid": "Fréchet distance on the judge's features",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
    "ms_ssim": "MS-SSIM within a prompt",
    "held_out_reward": "reward of held-out raters",
    "reward": "reward that training used",
    "denoising_loss": "denoising loss on real scans",
    "distance_to_first": "distance from the first model",
}
_BETTER = {True: "higher", False: "lower", None: "near the real scans'"}
_MODES = {
    "plain": "the real pairs alone",
    "unlabeled": "unlabeled real scans beside the real pairs",
    "synthetic_pairs": "own images whose text, label and image agree beside the real pairs",
    "rlhf": "what doctors rated well beside the real pairs",
}


def build_page(
    work: Improvement, records: Sequence[RoundRecord], verdict: Verdict, result: Mapping
) -> Page:
    """The whole page.

    Args:
        work: The loop.
        records: Of all rounds, the first model's first.
        verdict: Which is the best, and why it stopped.
        result: As results.json has it.
    """
    page = Page(
        "Self-improvement",
        lead=f"{len(records) - 1} rounds of training on {_MODES[work.args.mode]}.",
    )
    page.notice("Synthetic scans show no patient. Research use only, not for diagnosis.")
    page.heading("Result")
    page.bullets(sentences(records, verdict, result))
    if result["test"]:
        _add_test(page, result["test"])
    page.heading("Round by round")
    _add_rounds(page, records, verdict)
    _add_curves(page, records, work.args.select_by)
    page.heading("What was learned from")
    page.table(_material_rows(records), dense=True)
    if work.judge.rewards:
        _add_rewards(page, work)
    page.heading("The same noise in every round")
    _add_pictures(page, work, records)
    page.heading("How it was run")
    page.bullets(work.data.notes)
    page.table(
        [{"stage": name, "seconds": seconds} for name, seconds in result["seconds"].items()],
        caption="Time of each stage, as run on this machine; stages that were made before a stop "
        "keep the time they took.",
    )
    return page


def sentences(records: Sequence[RoundRecord], verdict: Verdict, result: Mapping) -> list[str]:
    """What came of it."""
    found = [f"Stopped: {verdict.stop}."]
    if not verdict.best:
        return [*found, "No round was better than the first model, which is the output unchanged."]
    found.append(f"The output is round {verdict.best}, chosen by {NAMES[result['select_by']]}.")
    test = result["test"]
    for is_better, told in ((True, "Better"), (False, "Worse")):
        shown = [
            f"{NAMES[name]} {_number(test['first'][name])} before, {_number(test['best'][name])} "
            f"after, {format_change(change)}"
            for name, change in test["compared"].items()
            if change["better"] is is_better
        ]
        if shown:
            found.append(f"{told} on test patients: {'; '.join(shown)}.")
        elif is_better:
            found.append("On test patients no score is better with an interval that leaves out 0.")
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _add_test(page: Page, test: Mapping) -> None:
    """The one look at test patients."""
    page.table(
        [
            {
                "score": NAMES[name],
                "better": _BETTER[DIRECTIONS[name]],
                "first model": _number(test["first"][name]),
                "output": _number(test["best"][name]),
                "change": format_change(change),
                "real scans": _number(test["real"].get(name)),
            }
            for name, change in test["compared"].items()
        ],
        caption="Texts and scans of test patients, with seeds that no round drew with; looked at "
        "once. Brackets: 95 % intervals of the change, over prompts, of recall and coverage over "
        "real patients; training luck is not in them.",
    )


def _add_rounds(page: Page, records: Sequence[RoundRecord], verdict: Verdict) -> None:
    """Scores on val prompts, a column per round."""
    names = [name for name in NAMES if name in records[0].scores]
    rows = []
    for name in names:
        row: dict[str, object] = {"score": NAMES[name]}
        for record in records:
            text = _number(record.scores[name])
            if name in record.compared:
                text += f" ({format_change(record.compared[name])})"
            star = " (output)" if record.number == verdict.best else ""
            row[f"round {record.number}{star}"] = text
        row["real scans"] = _number(records[-1].yardsticks.get(name))
        rows.append(row)
    page.table(
        rows,
        dense=True,
        caption="The same texts of val patients and the same seeds in every round; round 0 is the "
        "first model. In brackets the change from it with its 95 % interval. The best round is "
        "chosen by these, so they flatter it a little; the table above does not.",
    )
    for record in records:
        if record.alarms:
            page.notice(record.alarms, kind="warning", title=f"Round {record.number}")


def _add_curves(page: Page, records: Sequence[RoundRecord], select_by: str) -> None:
    """What decides, and what guards, over the rounds."""
    shown = dict.fromkeys([select_by, "agreement", "fid", "recall", "reward", "held_out_reward"])
    for name in shown:
        if name not in records[0].scores:
            continue
        start = records[0].scores[name]
        points = [(float(record.number), record.scores[name]) for record in records]
        intervals = {
            float(record.number): tuple(start + edge for edge in record.compared[name]["ci95"])
            for record in records
            if name in record.compared and record.compared[name]["ci95"]
        }
        page.curve(
            {NAMES[name]: points},
            title=NAMES[name],
            x_label="round",
            y_label=NAMES[name],
            intervals={NAMES[name]: intervals},
        )


def _material_rows(records: Sequence[RoundRecord]) -> list[dict[str, object]]:
    rows = []
    for record in records[1:]:
        row: dict[str, object] = {"round": record.number}
        for origin, part in record.material["mix"].items():
            name = origin.replace("_", " ")
            row[f"{name}, images"] = part["images"]
            row[f"{name}, share of weight"] = f"{part['share']:.0%}"
        row |= {
            name.replace("_", " "): value
            for name, value in record.material.items()
            if name != "mix"
        }
        rows.append(row)
    return rows


def _add_rewards(page: Page, work: Improvement) -> None:
    """What the reward models are worth on raters and images that they did not learn from."""
    for name, reward in work.judge.rewards.items():
        page.heading(f"The {NAMES[name]}")
        images = reward.rated.dataset
        add_reward_section(page, reward.report, images, show_images=False, level=3)


def _add_pictures(page: Page, work: Improvement, records: Sequence[RoundRecord]) -> None:
    """The images of the sheets, rounds side by side."""
    sides, captions = {}, {}
    for record in records:
        folder = round_dir(work.folder, record.number) / HELD_OUT
        drawn = load_dataset(folder, check_pixels=False)
        chosen = [drawn[index] for index in sheet_records(drawn)]
        name = f"round {record.number}"
        sides[name] = [one.image() for one in chosen]
        captions[name] = [";".join(one.labels) for one in chosen]
    page.gallery(
        sides,
        captions=captions,
        caption="Image by image the same text and the same noise: what differs is the model.",
    )
