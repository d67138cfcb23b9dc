"""Write the page of quickstart.sh from what its stages left on disk.

Example:
  python -m demo.quickstart_report --run_dir runs/quickstart
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from demo import quickstart_doctors, quickstart_transfer
from demo.quickstart_parts import first_pictures, format_entry
from utils import cli, run_folder
from utils.json_file import read_json

if TYPE_CHECKING:
    from utils.dataset import Record
    from utils.finding_labeler import FindingLabeler
    from utils.html_cards import Card
    from utils.html_report import Page

STAGES = {
    "clinic": "simulate the clinic",
    "split": "split by patient",
    "diagnosis": "train the classifier on real scans",
    "pipeline": "fine-tune the generator",
    "synthetic_before": "draw scans before fine-tuning",
    "synthetic": "draw scans after fine-tuning",
    "evaluation_before": "evaluate before",
    "evaluation": "evaluate after",
    "few_labels": "diagnosis from few labels",
    "self_supervised": "pre-train without labels, diagnosis from few labels",
    "reports": "train report models",
    **quickstart_doctors.STAGES,
    **quickstart_transfer.STAGES,
}
# Stages with a page of their own.
PAGES = (
    *("evaluation", "evaluation_before", "diagnosis"),
    *("few_labels", "self_supervised", "reports"),
    *quickstart_doctors.PAGES,
    *quickstart_transfer.PAGES,
)
MAX_CARDS = 12
# Of report models: heading -> target and metric.
REPORT_SCORES = {
    "finding F1": ("all", "finding_f1"),
    "right side": ("all", "attribute_side"),
    "BLEU-4": ("all", "bleu_4"),
    "CIDEr": ("all", "cider"),
}
# Stage, title, picture and its caption; a classifier without errors has no picture of them.
FEW_LABELS = (
    (
        "few_labels",
        "Diagnosis from few labels",
        "errors.png",
        "Most confident errors of the classifier that is kept.",
    ),
    (
        "self_supervised",
        "Pre-training without labels",
        "reconstructions.png",
        "Scans of unseen patients: as they are, what the encoder sees, what is reconstructed.",
    ),
)


def build_parser() -> argparse.ArgumentParser:
    """Flags of this script."""
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--run_dir", type=cli.existing_dir, required=True, help="OUTPUT_DIR of quickstart.sh"
    )
    return parser


def add_result(page: Page, *, before: dict, after: dict, diagnosis: dict) -> None:
    """What came out, in words and as the table of scores."""
    agreement = {"before": before, "after": after}
    shares = {k: v["overall"]["agreement"]["value"] for k, v in agreement.items()}
    page.paragraph(
        f"A classifier trained on the clinic's real scans finds the finding that was asked for in "
        f"{shares['before']:.0%} of the synthetic scans before fine-tuning and in "
        f"{shares['after']:.0%} after it (mean over the findings)."
    )
    rows = [
        {
            "score": name,
            "better": entry.get("direction"),
            "before": format_entry(before["overall"].get(name)),
            "after": format_entry(entry),
            "real halves": entry.get("floor"),
            "real": entry.get("real"),
        }
        for name, entry in after["overall"].items()
    ]
    sizes = after["overall"]["fid"]
    page.table(
        rows,
        caption=f"{sizes['n_real']} real test scans, {sizes['n_synthetic']} synthetic ones. "
        "Brackets are 95 % intervals. real halves: the same distance between two halves of the "
        "real set; of copies, the share of the unseen real scans themselves. real: the real "
        "set's own value. fid is the Fréchet distance on the clinic "
        "classifier's features: comparable within this page only.",
    )
    groups = {
        label: {
            "before": before["per_label"][label]["agreement"]["value"],
            "after": scores["agreement"]["value"],
        }
        for label, scores in after["per_label"].items()
    }
    page.bars(groups, title="Asked finding recognised, by finding", x_label="share of images")
    page.table(diagnosis["table"], caption="The classifier on the clinic's real test scans.")


def add_few_labels(page: Page, run_dir: Path) -> None:
    """What synthetic and unlabeled scans, and pre-training, add to few labels."""
    from PIL import Image

    for name, title, picture, caption in FEW_LABELS:
        found = read_json(run_dir / name / "results.json")
        page.heading(title)
        page.bullets(found["verdict"])
        page.table(
            [
                {
                    "trained on": arm.replace("->", ", then "),
                    "labels, percent": f"{cell['label_share']:g}",
                    "macro AUROC": format_entry(cell["scores"]["macro"]["auroc"]),
                    "accuracy": format_entry(cell["scores"]["macro"]["accuracy"]),
                }
                for arm, cells in found["arms"].items()
                for cell in cells
            ],
            caption="Means over three seeds on the clinic's test scans; brackets are "
            "95 % intervals over patients and seeds, wide with so few.",
        )
        if (run_dir / name / picture).is_file():
            page.image(Image.open(run_dir / name / picture), caption, longest_px=900)


def add_reports(page: Page, run_dir: Path) -> None:
    """What report models say, how well, and what synthetic pairs add."""
    from utils.finding_labeler import load_labeler

    found = read_json(run_dir / "reports" / "results.json")
    page.heading("Reports from few pairs")
    page.bullets(found["verdict"])
    rows = []
    for arm, cells in found["arms"].items():
        scores = cells[0]["scores"]
        row = {"trained on": arm.replace("->", ", then "), "pairs, percent": "–"}
        if cells[0]["label_share"]:
            row["pairs, percent"] = f"{cells[0]['label_share']:g}"
        row |= {
            name: format_entry(scores[target].get(metric))
            for name, (target, metric) in REPORT_SCORES.items()
        }
        rows.append(row)
    page.table(
        rows,
        dense=True,
        caption="One training each, on the clinic's test scans; brackets are 95 % intervals over "
        "patients. The last two rows are what is reached without a model.",
    )
    page.paragraph(
        "The first test scan of each finding, and what the captioner that is kept "
        f"({found['captioner']['run'].split('_')[0]}) writes of it."
    )
    labeler = load_labeler("oct")
    page.cards(
        [_card(record, row, labeler) for record, row in _first_of_each_finding(run_dir)],
        meanings={
            "right": "named in both reports",
            "invented": "in the written one only",
            "missed": "in the true one only",
        },
        num_open=MAX_CARDS,
    )


def _card(record: Record, row: dict[str, str], labeler: FindingLabeler) -> Card:
    """A scan with its true report and the one that was written, findings marked."""
    from utils.finding_scores import names_in
    from utils.html_cards import Card, CardText
    from utils.html_report import png_data_uri
    from utils.report_examples import mark_true, mark_written

    true = mark_true(row["reference"], {"captioner": row["report"]}, labeler)
    written = mark_written(row["report"], names_in(labeler, row["reference"]), labeler)
    texts = [CardText("true report", true.text, true.marks)]
    texts.append(CardText("written", written.text, written.marks))
    return Card(";".join(record.labels), record.file_name, png_data_uri(record.image()), texts)


def _first_of_each_finding(run_dir: Path) -> list[tuple[Record, dict[str, str]]]:
    """A test scan of each finding, and its row of predictions.csv."""
    from utils.dataset import load_dataset

    with (run_dir / "reports" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        written = {row["file_name"]: row for row in csv.DictReader(file)}
    first = {}
    for record in load_dataset(run_dir / "clinic", split="test", check_pixels=False):
        first.setdefault(record.labels, record)
    return [(record, written[record.file_name]) for record in first.values()]


def add_training(page: Page, run_dir: Path) -> None:
    """Loss curve and time per stage."""
    with (run_dir / "pipeline" / "train_log.csv").open(encoding="utf-8") as file:
        points = [(float(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    page.heading("Training")
    page.curve({"loss": points}, title="Training loss", x_label="step", y_label="loss", smooth=0.9)
    rows = [
        {"stage": text, "seconds": int((run_dir / "logs" / f"{name}.seconds").read_text())}
        for name, text in STAGES.items()
    ]
    rows.append({"stage": "all", "seconds": sum(row["seconds"] for row in rows)})
    page.table(rows, caption="Time per stage, as run on this machine.")


def write_page(run_dir: Path) -> Path:
    """Build report.html in `run_dir`; returns its path."""
    from utils.html_report import Page

    before = read_json(run_dir / "evaluation_before" / "metrics.json")
    after = read_json(run_dir / "evaluation" / "metrics.json")
    page = Page(
        "OCT-SD quickstart",
        lead="Fine-tuning, sampling and evaluation on a simulated clinic, from end to end.",
    )
    page.notice("These scans are simulated. Research use only, not for diagnosis.")
    page.heading("Result")
    add_result(
        page,
        before=before,
        after=after,
        diagnosis=read_json(run_dir / "diagnosis" / "results.json"),
    )
    page.heading("Real against synthetic")
    before_dir = run_dir / "synthetic_before"
    for label in after["per_label"]:
        page.heading(label, level=3)
        page.gallery(
            {
                "real": first_pictures(run_dir / "clinic", label, split="test"),
                "synthetic, before": first_pictures(before_dir, label, split=None),
                "synthetic, after": first_pictures(run_dir / "synthetic", label, split=None),
            }
        )
    add_few_labels(page, run_dir)
    add_reports(page, run_dir)
    quickstart_doctors.add_doctors(page, run_dir)
    quickstart_transfer.add_transfer(page, run_dir)
    add_training(page, run_dir)
    page.heading("More")
    for name in PAGES:
        page.link(f"{name}: the whole report", f"{name}/report.html")
    path = run_dir / "report.html"
    page.write(path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and say where it is."""
    args = build_parser().parse_args(argv)
    run_folder.print_result({"report": str(write_page(args.run_dir))})
    return 0


if __name__ == "__main__":
    cli.main_guard(main)
