r"""Make of a divided clinic one that has few reports: a data set of them, and scans without any.

Of the training patients of every finding a share keeps its reports; the scans of the others lose
text, label and split. Validation and test patients stay.

Example:
  python -m demo.hide_labels --data_dir runs/clinic --share 0.05 --output_dir runs/few
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli, run_folder

if TYPE_CHECKING:
    from utils.dataset import Record

LABELED, UNLABELED = "labeled", "unlabeled"
_LOST = ("text", "label", "split")


def build_parser() -> argparse.ArgumentParser:
    """Flags of this script."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--data_dir", type=cli.existing_dir, required=True, help="clinic with column split")
    add("--share", type=cli.probability, required=True, help="of the patients, that keeps reports")
    cli.add_runtime_flags(parser, "output_dir", "seed")
    return parser


def keep_patients(records: Sequence[Record], *, share: float, seed: int) -> set[str]:
    """Patients that keep their reports: of each finding the share, at least one."""
    import numpy as np

    by_label: dict[tuple[str, ...], set[str]] = {}
    for record in records:
        by_label.setdefault(record.labels, set()).add(record.patient_id)
    rng = np.random.default_rng(seed)
    kept: set[str] = set()
    for _, patients in sorted(by_label.items()):
        count = max(1, round(share * len(patients)))
        kept |= set(rng.permutation(sorted(patients))[:count].tolist())
    return kept


def write_part(folder: Path, records: Sequence[Record], *, without: Sequence[str] = ()) -> None:
    """A dataset folder of these scans, with links to their files."""
    from utils.dataset import write_dataset
    from utils.training_mix import bring_images

    names = [record.file_name for record in records]
    with run_folder.atomic_folder(folder) as temporary:
        bring_images(records, names, temporary)
        rows = [
            {name: value for name, value in record.row.items() if name not in without}
            for record in records
        ]
        write_dataset(temporary, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Divide, write both parts, say how many scans each has."""
    args = build_parser().parse_args(argv)
    from utils.dataset import load_dataset

    records = list(load_dataset(args.data_dir, check_pixels=False))
    train = [record for record in records if record.split == "train"]
    if not train or not all(record.patient_id for record in train):
        raise cli.UserError(
            f"--data_dir {args.data_dir}: needs patients and a split train: divide it with "
            "prepare_dataset.py split"
        )
    kept = keep_patients(train, share=args.share, seed=args.seed)
    hidden = [record for record in train if record.patient_id not in kept]
    rest = [record for record in records if record.split != "train" or record.patient_id in kept]
    write_part(args.output_dir / LABELED, rest)
    write_part(args.output_dir / UNLABELED, hidden, without=_LOST)
    run_folder.print_result(
        {"labeled_for_training": len(train) - len(hidden), "unlabeled": len(hidden)}
    )


if __name__ == "__main__":
    cli.main_guard(main)
