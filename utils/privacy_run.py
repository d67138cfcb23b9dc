"""``prepare_dataset.py privacy``: check, tell, and write a clean copy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils import run_folder
from utils.caption_privacy import TextSearch
from utils.clean_copy import Margins, clean_rows, write_clean_images
from utils.cli import UserError
from utils.dataset import Dataset, accept, examine_dataset, load_dataset, write_dataset
from utils.dataset_records import Columns
from utils.privacy_check import (
    Cell,
    Found,
    PictureReport,
    cell_findings,
    picture_found,
    picture_reports,
    summary,
    table_found,
)
from utils.privacy_page import PrivacyResult, build_page
from utils.privacy_rules import read_privacy_rules

_COLUMNS = ("file", "line", "column", "kind", "rule", "start", "end", "box")


class _Check:
    """What was found in a data set, and by what."""

    def __init__(self, dataset: Dataset, search: TextSearch, args: argparse.Namespace) -> None:
        self.reports: list[PictureReport] = []
        if not args.skip_pixels:
            dataset, self.reports = picture_reports(
                dataset, skip_invalid=args.skip_invalid, num_workers=args.num_workers
            )
        self.dataset = dataset
        self.by_cell: dict[Cell, list] = cell_findings(
            dataset.records,
            search,
            skip_columns=args.skip_columns,
            num_workers=args.num_workers,
        )
        self.found: list[Found] = sorted(
            table_found(dataset.records, self.by_cell) + picture_found(self.reports),
            key=lambda item: item.index,
        )
        self.counts = {**summary(self.found, len(dataset)), "images": len(self.reports)}


def run_privacy(args: argparse.Namespace, columns: Columns) -> int:
    """Run the command; returns the exit status."""
    search = TextSearch(read_privacy_rules(args.rules), _names(args.names))
    key = None if args.pseudonym_key is None else args.pseudonym_key.read_bytes()
    examination = examine_dataset(
        args.data_dir,
        columns=columns,
        with_pixels=False,
        num_workers=args.num_workers,
        offline=args.offline,
    )
    dataset = accept(examination, args.data_dir, skip_invalid=args.skip_invalid)
    _refuse_unknown_columns(args.skip_columns, dataset)
    run_folder.write_options(args.output_dir, args)
    check = _Check(dataset, search, args)
    clean = None
    if args.deidentify is not None:
        clean = {"folder": args.deidentify, "remaining": _deidentify(check, search, args, key)}
    result = {
        "data_dir": args.data_dir,
        "rules": args.rules,
        "names": len(search.names),
        "skipped": len(check.dataset.skipped),
        "skipped_columns": args.skip_columns,
        **check.counts,
        "clean_copy": clean,
    }
    _write(args, check, result)
    run_folder.print_result(result)
    left = check.counts if clean is None else clean["remaining"]
    return 1 if left["identities"] else 0


def _names(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--names {path}: not UTF-8 ({error}): save it as UTF-8") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"--names {path}: holds no name; write one a line")
    return names


def _refuse_unknown_columns(names: Sequence[str], dataset: Dataset) -> None:
    known = dict.fromkeys(column for record in dataset for column in record.row)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"--skip_columns: {', '.join(unknown)} is no column (columns: {', '.join(known)})"
        )


def _deidentify(
    check: _Check, search: TextSearch, args: argparse.Namespace, key: bytes | None
) -> dict:
    """Write the clean copy, whole or not at all; returns the counts of what is still in it."""
    records = check.dataset.records
    rows = clean_rows(records, check.by_cell, key=key, rename=args.rename_images)
    sizes = args.mask_margins
    fixed = None if sizes is None or sizes == ["auto"] else tuple(map(int, sizes))
    margins = Margins(fixed, crop=args.margins_as == "crop")
    if fixed is not None and margins.crop:
        _refuse_empty_images(check.dataset, fixed)
    with run_folder.atomic_folder(args.deidentify) as folder:
        write_clean_images(
            folder,
            records,
            [row["file_name"] for row in rows],
            check.reports,
            margins=margins,
            num_workers=args.num_workers,
        )
        write_dataset(folder, rows)
        again = load_dataset(folder, check_pixels=False)
        return _Check(again, search, args).counts


def _refuse_empty_images(dataset: Dataset, sizes: tuple[int, int, int, int]) -> None:
    from utils.image_files import inspect_image

    top, right, bottom, left = sizes
    for record in dataset:
        info = inspect_image(record.image_source)
        if left + right >= info.width or top + bottom >= info.height:
            raise UserError(
                f"--mask_margins {' '.join(map(str, sizes))}: nothing is left of {record.where} "
                f"({info.width} x {info.height} px)"
            )


def _write(args: argparse.Namespace, check: _Check, result: dict) -> None:
    rows = []
    for item in check.found:
        record = check.dataset[item.index]
        row = {
            "file": record.file_name,
            "line": record.where,
            "column": item.column,
            "kind": item.kind,
            "rule": item.rule,
            "start": item.start,
            "end": item.end,
            "box": "" if item.box is None else " ".join(map(str, item.box[:4])),
        }
        rows.append({**row, "found": item.matched} if args.show_findings else row)
    columns = (*_COLUMNS, "found") if args.show_findings else _COLUMNS
    run_folder.write_csv(args.output_dir / "privacy.csv", rows, columns)
    run_folder.write_json(args.output_dir / "privacy.json", result)
    told = PrivacyResult(check.dataset.records, check.found, check.counts, result["clean_copy"])
    page = build_page(told, show_findings=args.show_findings)
    page.write(args.output_dir / "report.html")
