"""The folder of a set that is being drawn: what is whole, what ends a round, the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from utils import manifest as records
from utils.prompts import Prompt
from utils.run_folder import write_csv
from utils.shard_writer import pack_shards, packed_names
from utils.work_plan import STATES, WorkPlan, settle

PLAN_NAME = "plan.csv"
GATES_NAME = "gates.json"
IMAGES_PER_SHARD = 1000
PLAN_FIELDS = ("index", "status", "attempts", "label", "prompt_sha256")


def image_name(index: int) -> str:
    """Where the accepted picture of an image lies in the folder."""
    return f"images/{index:06d}.png"


def rejected_name(index: int, attempt: int) -> str:
    """Where a rejected picture lies, if it is kept."""
    return f"rejected/{index:06d}-{attempt}.png"


def _is_whole(row: Mapping[str, str], folder: Path, packed: Mapping[str, int]) -> bool:
    """Whether the picture of an attempt, if it has one, is there in its length.

    A PNG gets its name when all of it is on the disk, so the length tells enough.
    """
    name = row["file_name"]
    if not name:
        return True
    try:
        size = (folder / name).stat().st_size
    except FileNotFoundError:
        size = packed.get(name)
    return str(size) == row["png_bytes"]


def record_round(
    folder: Path,
    prompts: Sequence[Prompt],
    *,
    max_attempts: int,
    unique: bool,
    keep_rejected: bool,
    check: bool,
) -> WorkPlan:
    """Put together what all processes have recorded, and say what is left to draw.

    Args:
        folder: Of the set; nobody writes to it meanwhile.
        prompts: Of the images asked for.
        max_attempts: At each.
        unique: Whether images that resemble another of the set are rejected.
        keep_rejected: Whether their pictures are kept.
        check: Whether to look for the pictures: attempts whose picture is lost do not count.
    """
    is_whole = partial(_is_whole, folder=folder, packed=packed_names(folder)) if check else None
    manifest = records.Manifest(folder, keep=is_whole)
    plan = settle(manifest.rows, num_images=len(prompts), max_attempts=max_attempts, unique=unique)

    def resolve(row: records.Row) -> records.Row:
        index, attempt = int(row["index"]), int(row["attempt"])
        if (index, attempt) not in plan.duplicates:
            return row
        is_last = attempt + 1 == max_attempts
        status = records.FAILED if is_last else records.REJECTED
        changes = {"status": status, "accepted": "false", "reason": records.DUPLICATE}
        return row | changes | {"file_name": _put_away(folder, index, attempt, keep_rejected)}

    manifest.merge(resolve)
    write_plan(folder, prompts, plan)
    return plan


def _put_away(folder: Path, index: int, attempt: int, keep: bool) -> str:
    """Move a picture to the rejected ones, or delete it; returns its new name, empty if none."""
    path = folder / image_name(index)
    if not keep:
        path.unlink()
        return ""
    name = rejected_name(index, attempt)
    (folder / name).parent.mkdir(exist_ok=True)
    path.replace(folder / name)
    return name


def write_plan(folder: Path, prompts: Sequence[Prompt], plan: WorkPlan) -> None:
    """Write `plan.csv`: the state of every image asked for."""
    rows = (
        (index, STATES[state], int(plan.attempts[index]), prompt.label, prompt.sha256)
        for index, (state, prompt) in enumerate(zip(plan.states, prompts))
    )
    write_csv(folder / PLAN_NAME, (dict(zip(PLAN_FIELDS, row)) for row in rows), PLAN_FIELDS)


def accepted_rows(manifest: records.Manifest) -> Iterator[records.Row]:
    """Lines of the images that the set consists of, in their order."""
    return (row for row in manifest.read() if row["status"] == records.ACCEPTED)


def remove_strays(folder: Path, manifest: records.Manifest) -> None:
    """Delete pictures that belong to no accepted image, such as a killed process may leave."""
    accepted = {Path(row["file_name"]).name for row in accepted_rows(manifest)}
    for path in (folder / "images").glob("*.png"):
        if path.name not in accepted:
            path.unlink()


def publish(folder: Path, manifest: records.Manifest, *, kind: str, num_images: int) -> None:
    """Write last what makes the folder a data set: metadata.csv, or the shards.

    Args:
        folder: Of the set.
        manifest: Its own.
        kind: ``folder`` or ``webdataset``.
        num_images: That were accepted.
    """
    rows = accepted_rows(manifest)
    if kind == "webdataset":
        pack_shards(folder, rows, per_shard=IMAGES_PER_SHARD, num_images=num_images)
        return
    data = ({name: row[name] for name in records.DATASET_FIELDS} for row in rows)
    write_csv(folder / "metadata.csv", data, records.DATASET_FIELDS)
