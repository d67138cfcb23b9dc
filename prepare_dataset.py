r"""Make, check and describe the dataset folder that every other script reads.

    python prepare_dataset.py simulate --output_dir data/clinic --num_images 600
    python prepare_dataset.py import --source scans/ --output_dir data/oct \
        --caption "retinal OCT B-scan, {label}"
    python prepare_dataset.py split --data_dir data/oct --val_share 0.1 --test_share 0.2
    python prepare_dataset.py validate --data_dir data/oct
    python prepare_dataset.py stats --data_dir data/oct --output_dir runs/stats
    python prepare_dataset.py privacy --data_dir data/oct --output_dir runs/privacy \
        --deidentify data/oct-clean

A dataset folder is images and a metadata.csv with the columns file_name, text, label,
patient_id, split, source, modality (docs/data.md). Each command has its own --help.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from utils import cli, run_folder
from utils.commands import add_commands
from utils.import_flags import add_import_flags, check_import
from utils.privacy_flags import PRIVACY_HELP, add_privacy_flags, check_privacy
from utils.source_flags import add_source_flags, columns_of

DEFAULT_TOKENIZER_DIR = Path(__file__).parent / "demo" / "base" / "tokenizer"

_SOURCES = """\
A source is a dataset folder, class folders (also below train, val and test), a flat folder of
images, a CSV, WebDataset shards (*.tar, shard-{000..012}.tar), a folder of datasets'
save_to_disk, or a data set's name on the Hugging Face hub."""

SIMULATE_HELP = """\
Draw OCT B-scans or chest radiographs of a simulated clinic, with findings, reports and patients.

    python prepare_dataset.py simulate --output_dir data/clinic --num_images 600
    python prepare_dataset.py simulate --output_dir data/amd --num_images 200 \\
        --findings normal drusen --looks portable --seed 7
    python prepare_dataset.py simulate --modality CXR --output_dir data/chests --num_images 400
"""

IMPORT_HELP = f"""\
Copy images from any source into a dataset folder.

    python prepare_dataset.py import --source OCT2017/ --output_dir data/oct \\
        --caption "retinal OCT B-scan, {{label}}" --patient_pattern "[A-Z]+-([0-9]+)-"
    python prepare_dataset.py import --source export.csv --output_dir data/oct \\
        --image_column File --caption_column Report --label_column Diagnosis --link
    python prepare_dataset.py import --source tiff16/ --output_dir data/oct \\
        --image_format png --window 0 4095
    python prepare_dataset.py import --source mimic-cxr-jpg/ --layout mimic-cxr-jpg \\
        --output_dir data/cxr --image_format png --max_side 1024

{_SOURCES}
With --layout it is the folder of a published data set, of DICOM or device files (docs/data.md);
an import that was stopped goes on with the same command.
"""

SPLIT_HELP = """\
Assign patients to train, val and test: the column split of metadata.csv is written.

    python prepare_dataset.py split --data_dir data/oct --val_share 0.1 --test_share 0.2 --seed 0

No patient is in two splits; every label is shared out as evenly as its patients allow. Same
table and seed, same split.
"""

VALIDATE_HELP = f"""\
Report every problem of a data set at once, with file and line; exit status 1 if there is one.

    python prepare_dataset.py validate --data_dir data/oct
    python prepare_dataset.py validate --data_dir data/oct --require text label patient_id split
    python prepare_dataset.py validate --data_dir export.csv --image_column File --skip_pixels

{_SOURCES}
"""

STATS_HELP = f"""\
Count labels, splits, patients, sizes, bit depths and caption tokens; draw a contact sheet.

    python prepare_dataset.py stats --data_dir data/oct --output_dir runs/stats
    python prepare_dataset.py stats --data_dir data/oct --output_dir runs/stats \\
        --tokenizer stable-diffusion-v1-4/tokenizer

Writes stats.json and contact_sheet.png.

{_SOURCES}
"""


def _add_simulate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num_images", type=cli.positive_int, required=True, help="scans to draw, two per patient"
    )
    parser.add_argument(
        "--modality",
        choices=("OCT", "CXR"),
        default="OCT",
        help="retinal B-scans or chest radiographs (default: %(default)s)",
    )
    parser.add_argument(
        "--resolution",
        type=cli.resolution,
        default=128,
        help="side of the square scans in pixels, a multiple of 8 (default: %(default)s)",
    )
    parser.add_argument(
        "--looks", nargs="+", metavar="NAME", help="devices to imitate (default: all, by patient)"
    )
    parser.add_argument(
        "--findings", nargs="+", metavar="NAME", help="findings to draw in turn (default: all)"
    )
    parser.add_argument(
        "--combination_prob",
        type=cli.probability,
        default=0.0,
        help="share of the patients with a lesion who have a second one (default: %(default)s)",
    )
    cli.add_runtime_flags(parser, "output_dir", "seed", "num_workers")


def _add_split_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data_dir",
        type=cli.existing_dir,
        required=True,
        metavar="DIR",
        help="dataset folder, or class folders, which get a metadata.csv",
    )
    for name, share in (("val", 0.1), ("test", 0.2)):
        parser.add_argument(
            f"--{name}_share",
            type=cli.probability,
            default=share,
            help=f"share of the images for {name}, in [0, 1] (default: %(default)s)",
        )
    parser.add_argument(
        "--by_image", action="store_true", help="take an image without patient_id as a patient"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the split that the table has"
    )
    cli.add_runtime_flags(parser, "seed")


def _add_validate_flags(parser: argparse.ArgumentParser) -> None:
    add_source_flags(parser, "--data_dir")
    parser.add_argument(
        "--require",
        nargs="*",
        choices=("text", "label", "patient_id", "split"),
        help="columns that must be there and have no empty cell (default: text, if it is there)",
    )
    parser.add_argument(
        "--skip_pixels", action="store_true", help="check the table only; decode no image"
    )
    cli.add_runtime_flags(parser, "output_dir", output_dir=None)


def _add_stats_flags(parser: argparse.ArgumentParser) -> None:
    add_source_flags(parser, "--data_dir")
    cli.add_runtime_flags(parser, "output_dir", "seed")
    parser.add_argument(
        "--tokenizer",
        type=cli.existing_dir,
        metavar="DIR",
        help="folder of the tokenizer that counts (default: demo/base/tokenizer, if it is there)",
    )
    parser.add_argument(
        "--sheet_columns",
        type=cli.positive_int,
        default=8,
        help="images per label on the contact sheet (default: %(default)s)",
    )
    parser.add_argument(
        "--tile_px",
        type=cli.positive_int,
        default=128,
        help="side of an image on the contact sheet in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--skip_invalid", action="store_true", help="leave rows with a problem out, and count them"
    )


def _add_privacy_flags(parser: argparse.ArgumentParser) -> None:
    add_source_flags(parser, "--data_dir")
    add_privacy_flags(parser)


def build_parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    parser = cli.make_parser(__doc__)
    commands = (
        ("simulate", _add_simulate_flags, simulate, SIMULATE_HELP),
        ("import", add_import_flags, import_images, IMPORT_HELP),
        ("split", _add_split_flags, split, SPLIT_HELP),
        ("validate", _add_validate_flags, validate, VALIDATE_HELP),
        ("stats", _add_stats_flags, stats, STATS_HELP),
        ("privacy", _add_privacy_flags, privacy, PRIVACY_HELP),
    )
    add_commands(parser, commands)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    args = build_parser().parse_args(argv)
    if args.command == "simulate":
        _check_simulate(args)
    if args.command == "import":
        check_import(args)
    if args.command == "split" and args.val_share + args.test_share >= 1:
        args.error("--val_share and --test_share leave nothing for train")
    if args.command == "privacy":
        check_privacy(args)
    _check_output_dir(args)
    return args


def _check_output_dir(args: argparse.Namespace) -> None:
    output_dir = getattr(args, "output_dir", None)
    if output_dir is None:
        return
    makes_it = args.command in ("import", "simulate")
    if makes_it and output_dir.exists() and not (output_dir.is_dir() and _is_empty(output_dir)):
        args.error(f"--output_dir {output_dir} exists and is not an empty folder")
    if not makes_it and output_dir.resolve() == Path(args.data_dir).resolve():
        args.error("--output_dir and --data_dir are the same folder")


def _is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def _check_simulate(args: argparse.Namespace) -> None:
    from demo.simulate import MODALITIES

    kind = MODALITIES[args.modality]
    flags = (("looks", args.looks, kind.looks), ("findings", args.findings, kind.findings))
    for flag, given, known in flags:
        unknown = [name for name in given or () if name not in known]
        if unknown:
            args.error(f"--{flag}: {', '.join(unknown)} is none of {', '.join(known)}")


def simulate(args: argparse.Namespace) -> int:
    """Draw a clinic."""
    from demo.simulate import write_scans
    from utils.dataset import write_dataset

    with run_folder.atomic_folder(args.output_dir) as folder:
        run_folder.write_options(folder, args)
        rows = write_scans(
            folder,
            num_images=args.num_images,
            seed=args.seed,
            resolution=args.resolution,
            looks=args.looks,
            findings=args.findings,
            combination_prob=args.combination_prob,
            num_workers=max(1, args.num_workers),
            modality=args.modality,
        )
        write_dataset(folder, rows)
    labels = Counter(row["label"] for row in rows)
    run_folder.print_result(
        {"output_dir": args.output_dir, "rows": len(rows), "labels": dict(sorted(labels.items()))}
    )
    return 0


def import_images(args: argparse.Namespace) -> int:
    """Bring a source into a dataset folder."""
    if args.layout is not None:
        from utils.importers.run import import_layout

        run_folder.print_result(import_layout(args))
        return 0
    from utils.dataset import accept, examine_dataset, write_dataset
    from utils.dataset_import import target_names, transfer_images, transfer_modes

    examination = examine_dataset(
        args.source, columns=columns_of(args), num_workers=args.num_workers, offline=args.offline
    )
    dataset = accept(examination, args.source, skip_invalid=args.skip_invalid)
    modes = transfer_modes(dataset.records, image_format=args.image_format, link=args.link)
    names = target_names(dataset.records, as_png=[mode == "png" for mode in modes])
    rows = _imported_rows(args, dataset.records, names)
    with run_folder.atomic_folder(args.output_dir) as folder:
        skipped = [str(problem) for problem in dataset.skipped]
        run_folder.write_options(folder, args, skipped_rows=skipped, notes=dataset.notes)
        transfer_images(
            dataset.records,
            names,
            folder,
            mode=modes,
            window=args.window and tuple(args.window),
            max_side=args.max_side,
            num_workers=args.num_workers,
        )
        write_dataset(folder, rows)
    run_folder.print_result(
        {
            "output_dir": args.output_dir,
            "rows": len(rows),
            "skipped": len(dataset.skipped),
            "labels": dataset.labels,
            "notes": dataset.notes,
        }
    )
    return 0


def _imported_rows(args: argparse.Namespace, records: Sequence, names: Sequence[str]) -> list[dict]:
    from utils.dataset_import import captions_by_template, patients_by_pattern

    rows = [{**record.row, "file_name": name} for record, name in zip(records, names)]
    if args.caption is not None:
        for row, caption in zip(rows, captions_by_template(records, args.caption)):
            row["text"] = caption
    if args.patient_pattern is not None:
        for row, patient in zip(rows, patients_by_pattern(records, args.patient_pattern)):
            row["patient_id"] = patient
    for column, value in (("source", args.source_name), ("modality", args.modality)):
        if value is not None:
            for row in rows:
                row[column] = row.get(column, "").strip() or value
    return rows


def split(args: argparse.Namespace) -> int:
    """Write the column split."""
    from utils.dataset import DatasetError, examine_dataset, write_dataset
    from utils.dataset_split import assign_splits

    table, problems, *_ = examine_dataset(args.data_dir, with_pixels=False)
    in_files = all(isinstance(record.source, str) for record in table.records)
    if table.root is None or table.name == "metadata.jsonl" or not in_files:
        raise cli.UserError(f"{args.data_dir}: only a dataset folder is split; import it first")
    if any(record.split for record in table.records) and not args.overwrite:
        raise cli.UserError(f"{args.data_dir}: has a split; --overwrite replaces it")
    replaced = ("unknown split", "patient in two splits")  # what is wrong with the old split
    problems = [problem for _, problem in problems if problem.kind not in replaced]
    if problems:
        raise DatasetError(args.data_dir, problems)
    splits = assign_splits(
        table.records,
        val_share=args.val_share,
        test_share=args.test_share,
        seed=args.seed,
        by_image=args.by_image,
    )
    rows = [{**record.row, "split": name} for record, name in zip(table.records, splits)]
    path = write_dataset(args.data_dir, rows, fieldnames=table.columns)
    per_label: dict[str, Counter] = {}
    for record, name in zip(table.records, splits):
        for label in record.labels or ("none",):
            per_label.setdefault(label, Counter())[name] += 1
    run_folder.print_result(
        {
            "metadata": path,
            "seed": args.seed,
            "splits": Counter(splits),
            "labels": {label: per_label[label] for label in sorted(per_label)},
        }
    )
    return 0


def validate(args: argparse.Namespace) -> int:
    """List every problem."""
    from utils.dataset import examine_dataset

    if args.output_dir is not None:
        run_folder.write_options(args.output_dir, args)
    examination = examine_dataset(
        args.data_dir,
        columns=columns_of(args),
        required=args.require or (),
        filled=("text",) if args.require is None else (),
        with_pixels=not args.skip_pixels,
        num_workers=args.num_workers,
        offline=args.offline,
    )
    problems = [problem for _, problem in examination.problems]
    for line in (*problems, *(f"note: {note}" for note in examination.notes)):
        sys.stderr.write(f"{line}\n")
    result = {
        "data_dir": args.data_dir,
        "valid": not problems,
        "rows": len(examination.table.records),
        "pixels_checked": len(examination.pixels),
        "problem_counts": Counter(problem.kind for problem in problems),
        "problems": [problem._asdict() for problem in problems],
        "notes": examination.notes,
    }
    if args.output_dir is not None:
        rows = [problem._asdict() for problem in problems]
        run_folder.write_csv(args.output_dir / "problems.csv", rows, ("where", "kind", "message"))
        run_folder.write_json(args.output_dir / "validation.json", result)
    run_folder.print_result(result)
    return 1 if problems else 0


def stats(args: argparse.Namespace) -> int:
    """Count, and draw the contact sheet."""
    from utils import dataset_stats
    from utils.dataset import accept, examine_dataset
    from utils.images import save_png

    examination = examine_dataset(
        args.data_dir, columns=columns_of(args), num_workers=args.num_workers, offline=args.offline
    )
    dataset = accept(examination, args.data_dir, skip_invalid=args.skip_invalid)
    run_folder.write_options(args.output_dir, args)
    bad = {index for index, _ in examination.problems}
    reports = [report for index, report in examination.pixels.items() if index not in bad]
    result = {
        "data_dir": args.data_dir,
        "fingerprint": dataset.fingerprint,
        "skipped": len(dataset.skipped),
        **dataset_stats.table_stats(dataset.records),
        "pixels": dataset_stats.pixel_stats(reports),
        "tokens": _token_stats(args, dataset.records),
        "notes": dataset.notes,
    }
    sheet = dataset_stats.label_sheet(
        dataset.records, columns=args.sheet_columns, seed=args.seed, tile_px=args.tile_px
    )
    save_png(sheet, args.output_dir / "contact_sheet.png")
    run_folder.write_json(args.output_dir / "stats.json", result)
    run_folder.print_result(result)
    return 0


def privacy(args: argparse.Namespace) -> int:
    """Look for what gives persons away."""
    from utils.privacy_run import run_privacy

    return run_privacy(args, columns_of(args))


def _token_stats(args: argparse.Namespace, records: Sequence) -> dict | None:
    from utils.dataset_stats import token_stats

    folder = args.tokenizer or DEFAULT_TOKENIZER_DIR
    if not folder.is_dir():
        run_folder.get_logger("stats").info("no tokenizer: tokens are not counted (--tokenizer)")
        return None
    try:
        return token_stats(records, folder)
    except (OSError, ValueError) as error:
        raise cli.UserError(f"--tokenizer {folder}: holds no tokenizer: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)


if __name__ == "__main__":
    cli.main_guard(main)
