"""Count what is in a data set, and show a page of it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.dataset_pixels import PixelReport
from utils.dataset_records import Record
from utils.images import contact_sheet

CLIP_TOKEN_LIMIT = 77  # positions of CLIP's text encoder, begin and end included
MAX_SHEET_LABELS = 24


def _counts(values: Iterable[object]) -> dict[str, int]:
    return {str(key): count for key, count in sorted(Counter(values).items(), key=_by_text)}


def _by_text(item: tuple[object, int]) -> str:
    return str(item[0])


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Smallest, median, 95th percentile and largest value; None if there is none."""
    if not values:
        return None
    low, median, high, most = np.percentile(values, (0, 50, 95, 100))
    return {"min": float(low), "median": float(median), "p95": float(high), "max": float(most)}


def table_stats(records: Sequence[Record]) -> dict[str, object]:
    """Counts of labels, splits, patients, sources and texts."""
    by_split = defaultdict(list)
    for record in records:
        by_split[record.split or "none"] += record.labels or ("none",)
    patients = Counter(record.patient_id for record in records if record.patient_id is not None)
    texts = [record.text for record in records if record.text]
    return {
        "rows": len(records),
        "labels": _counts(label for record in records for label in record.labels or ("none",)),
        "splits": _counts(record.split or "none" for record in records),
        "labels_per_split": {split: _counts(by_split[split]) for split in sorted(by_split)},
        "patients": {
            "count": len(patients),
            "images_each": spread(list(patients.values())),
            "rows_without": sum(record.patient_id is None for record in records),
            "per_split": _patients_per_split(records),
        },
        "sources": _counts(record.row.get("source") or "none" for record in records),
        "modalities": _counts(record.row.get("modality") or "none" for record in records),
        "texts": {
            "rows_with": len(texts),
            "distinct": len(set(texts)),
            "characters": spread([len(text) for text in texts]),
        },
    }


def _patients_per_split(records: Sequence[Record]) -> dict[str, int]:
    pairs = {(r.split or "none", r.patient_id) for r in records if r.patient_id is not None}
    return _counts(split for split, _ in pairs)


def pixel_stats(reports: Iterable[PixelReport]) -> dict[str, object]:
    """Sizes, bit depths, modes and formats of decoded images."""
    infos = [report.info for report in reports]
    return {
        "width_px": spread([info.width for info in infos]),
        "height_px": spread([info.height for info in infos]),
        "width_by_height": spread([info.width / info.height for info in infos]),
        "bit_depths": _counts(info.bit_depth for info in infos),
        "modes": _counts(info.mode for info in infos),
        "formats": _counts(info.format for info in infos),
    }


def token_stats(records: Sequence[Record], tokenizer_dir: Path) -> dict[str, object]:
    """Lengths of the captions in tokens, and which do not fit the text encoder.

    Args:
        records: The images.
        tokenizer_dir: Folder of a tokenizer as transformers saves it.

    Raises:
        ValueError, OSError: If it holds no tokenizer.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_dir), local_files_only=True)
    # Without a limit of its own transformers says 1e30.
    limit = min(tokenizer.model_max_length, CLIP_TOKEN_LIMIT)
    with_text = [record for record in records if record.text]
    lengths = [
        len(ids)
        for start in range(0, len(with_text), 1000)
        for ids in tokenizer([record.text for record in with_text[start : start + 1000]]).input_ids
    ]
    too_long = [record.where for record, length in zip(with_text, lengths) if length > limit]
    return {
        "tokenizer": str(tokenizer_dir),
        "limit": limit,
        "lengths": spread(lengths),
        "over_limit": len(too_long),
        "over_limit_rows": too_long,
    }


def label_sheet(records: Sequence[Record], *, columns: int, seed: int, tile_px: int) -> Image.Image:
    """A page with one row of images per label, drawn at random; without labels, eight rows.

    Args:
        records: The images.
        columns: Images in a row.
        seed: Of the draw.
        tile_px: Side of a tile in pixels.
    """
    rng = np.random.default_rng(seed)
    by_label = defaultdict(list)
    for record in records:
        by_label[";".join(record.labels)].append(record)
    tiles: list[Image.Image] = []
    captions: list[str] = []
    for label in sorted(by_label)[:MAX_SHEET_LABELS]:
        wanted = columns if len(by_label) > 1 else 8 * columns
        drawn = rng.permutation(len(by_label[label]))[:wanted]
        for index in drawn:
            record = by_label[label][index]
            tiles.append(record.image())
            captions.append(label or record.text or record.file_name)
        if len(by_label) > 1:  # the next label starts a row of its own
            missing = columns - len(drawn)
            tiles += [Image.new("L", (tile_px, tile_px))] * missing
            captions += [""] * missing
    return contact_sheet(tiles, columns=columns, captions=captions, tile_px=tile_px)
