"""Import a generated tree of many rows, laid out as MIMIC-CXR-JPG: seconds and peak memory.

    python -m benchmarks.import_rows --rows 100000 --output_dir runs/import_rows

Makes tables (metadata, split, labels; CSV.GZ), one report per study and one tiny JPEG per row, no
two alike, and imports them by ``prepare_dataset.py import --layout mimic-cxr-jpg`` in a process of
its own; then the same with a tenth of the rows. Prints JSON: the seconds for tables and for images,
and the peak memory (resident set) of the largest process. Memory is flat if it is the same for
both. Exit status 1 if the tables took longer than --limit_s.
"""

import argparse
import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from utils import cli
from utils.importers.chexpert_labels import OBSERVATIONS
from utils.run_folder import get_logger, print_result, write_json, write_options

ROOT = Path(__file__).parents[1]
SIDE_PX = 16
IMAGES_PER_STUDY = 2
STUDIES_PER_PATIENT = 4
REPORT = """\
                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  {study} cough.

 FINDINGS:

 Heart size is normal. Study {study} shows no effusion on the left; lungs are clear of focal
 consolidation. There is no pneumothorax.

 IMPRESSION:

 No acute cardiopulmonary process.
"""

logger = get_logger("import_rows")


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--rows", type=cli.positive_int, default=100_000, help="images (default: %(default)s)"
    )
    parser.add_argument(
        "--limit_s",
        type=cli.positive_float,
        default=120.0,
        help="most seconds that the tables may take (default: %(default)s)",
    )
    cli.add_runtime_flags(parser, "output_dir", "num_workers")
    return parser


@contextmanager
def _table(path: Path, columns: Sequence[str]) -> Iterator:
    with gzip.open(path, "wt", encoding="utf-8", newline="", compresslevel=1) as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        yield writer


def make_tree(root: Path, num_rows: int) -> None:
    """Write a tree of that many images, all frontal, in the layout of MIMIC-CXR-JPG."""
    root.mkdir(parents=True)
    tables = {
        "metadata": ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns"),
        "split": ("dicom_id", "study_id", "subject_id", "split"),
        "chexpert": ("subject_id", "study_id", *OBSERVATIONS),
    }
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(_table(root / f"mimic-cxr-2.0.0-{name}.csv.gz", columns))
            for name, columns in tables.items()
        }
        for number in range(num_rows):
            _add_image(root, number, writers)


def _add_image(root: Path, number: int, writers: dict) -> None:
    study = 50_000_000 + number // IMAGES_PER_STUDY
    subject = 10_000_000 + number // (IMAGES_PER_STUDY * STUDIES_PER_PATIENT)
    image = f"{number:08x}-0000-0000"
    folder = root / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}"
    if number % IMAGES_PER_STUDY == 0:
        folder.mkdir(parents=True)
        folder.with_suffix(".txt").write_text(REPORT.format(study=study), encoding="utf-8")
        stated = ("1.0", "", "0.0", "-1.0")
        labels = [stated[(study + place) % 4] for place in range(len(OBSERVATIONS))]
        writers["chexpert"].writerow((subject, study, *labels))
    writers["metadata"].writerow((image, subject, study, ("PA", "AP")[number % 2], 2544, 3056))
    split = ("train", "train", "train", "validate", "test")[subject % 5]
    writers["split"].writerow((image, study, subject, split))
    bits = (number >> np.arange((SIDE_PX // 2) ** 2)) & 1
    blocks = (bits.reshape(SIDE_PX // 2, SIDE_PX // 2) * 255).astype(np.uint8)
    Image.fromarray(blocks.repeat(2, axis=0).repeat(2, axis=1)).save(folder / f"{image}.jpg")


def run_import(source: Path, output_dir: Path, num_workers: int) -> dict:
    """Import a tree by the command line.

    Returns:
        ``rows``, ``tables_s``, ``images_s``, ``total_s`` and ``peak_mib`` of the largest process.
    """
    command = [
        *(sys.executable, str(ROOT / "prepare_dataset.py"), "import", "--source", str(source)),
        *("--layout", "mimic-cxr-jpg", "--output_dir", str(output_dir)),
        *("--num_workers", str(num_workers)),
    ]
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        printed = process.stdout.read()
        # Not process.wait(): the peak memory is told to whoever collects the process.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise cli.UserError(f"the import ended with status {process.returncode}: {command}")
    result = json.loads(printed)
    return {
        "rows": result["rows"],
        "tables_s": result["seconds"]["tables"],
        "images_s": result["seconds"]["images"],
        "total_s": round(time.monotonic() - begun, 1),
        "peak_mib": round(used.ru_maxrss / 1024, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Make both trees and import them; returns the exit status."""
    args = build_parser().parse_args(argv)
    write_options(args.output_dir, args)
    figures = {}
    for name, num_rows in (("tenth", max(1, args.rows // 10)), ("all", args.rows)):
        place = args.output_dir / name
        begun = time.monotonic()
        make_tree(place / "mimic-cxr-jpg", num_rows)
        logger.info("%d rows made in %.0f s", num_rows, time.monotonic() - begun)
        figures[name] = run_import(place / "mimic-cxr-jpg", place / "data", args.num_workers)
        logger.info("%s", json.dumps(figures[name]))
    growth = figures["all"]["peak_mib"] / figures["tenth"]["peak_mib"]
    result = {**figures, "memory_ratio": round(growth, 3), "cores": cli.available_cores()}
    write_json(args.output_dir / "import_rows.json", result)
    print_result(result)
    for name in figures:
        shutil.rmtree(args.output_dir / name)  # takes minutes on a busy disk
    return 0 if figures["all"]["tables_s"] <= args.limit_s else 1


if __name__ == "__main__":
    cli.main_guard(main)
