"""What is known of each round once it is over: ``round-N/scores.json`` and ``rounds.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.json_file import read_json
from utils.round_watch import Verdict
from utils.run_folder import write_csv, write_json

SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class RoundRecord:
    """One round; number 0 is the first model.

    Attributes:
        number: Of the round.
        model: Its pipeline.
        scores: Name -> value on the held-out prompts.
        yardsticks: Name -> the real scans' own value.
        compared: Name -> difference from the first model with interval; empty for itself.
        material: What it learned from: images and share of the weight by origin, and what was
            drawn, kept or scored on the way.
        alarms: What is wrong with it, in sentences.
    """

    number: int
    model: str
    scores: Mapping[str, float]
    yardsticks: Mapping[str, float]
    compared: Mapping[str, Mapping]
    material: Mapping[str, object]
    alarms: Sequence[str]


def round_dir(folder: Path, number: int) -> Path:
    """Folder of a round."""
    return folder / f"round-{number}"


def write_record(folder: Path, record: RoundRecord) -> None:
    """Keep a round, in the folder of the run."""
    write_json(round_dir(folder, record.number) / SCORES_FILE, asdict(record))


def read_records(folder: Path) -> list[RoundRecord]:
    """The rounds that are over, in order."""
    found = []
    while (path := round_dir(folder, len(found)) / SCORES_FILE).is_file():
        found.append(RoundRecord(**read_json(path)))
    return found


def write_table(path: Path, records: Sequence[RoundRecord], verdict: Verdict) -> None:
    """``rounds.csv``: one row per round, scores and differences beside each other."""
    rows = [_row(record, verdict) for record in records]
    columns = dict.fromkeys(name for row in rows for name in row)
    write_csv(path, rows, list(columns))


def _row(record: RoundRecord, verdict: Verdict) -> dict[str, object]:
    row: dict[str, object] = {"round": record.number, "is_best": record.number == verdict.best}
    for origin, part in record.material.get("mix", {}).items():
        row[f"images_{origin}"] = part["images"]
        row[f"share_{origin}"] = round(part["share"], 4)
    for name, value in record.scores.items():
        row[name] = value
        if name in record.compared:
            found = record.compared[name]
            row[f"{name}_change"] = found["difference"]
            row[f"{name}_low"], row[f"{name}_high"] = found["ci95"] or (None, None)
    return row | {"alarms": "; ".join(record.alarms), "model": record.model}
