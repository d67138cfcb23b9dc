"""Mode unlabeled: real scans without texts join the training."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from utils.captioned_set import MANIFEST
from utils.captioner import Captioner
from utils.cli import UserError
from utils.dataset import Record
from utils.finding_labeler import load_labeler
from utils.improvement import Improvement
from utils.pair_agreement import confidence_threshold, write_reports
from utils.round_material import Material
from utils.run_folder import get_logger
from utils.training_mix import Part, limit_share

_logger = get_logger("improve")


def gather(work: Improvement, number: int, model: str) -> Material:
    """Pseudo-reports where the report model is sure, no text elsewhere; the same in every round.

    A sure report weighs as much as its words are likely, exp(mean log-probability). A scan without
    text weighs 1, but all of them no more than ``--max_no_text_share`` of all weight: they train
    what guidance leads away from, and say nothing about words.

    Args:
        work: The loop.
        number: Of the round.
        model: That it starts from.

    Raises:
        UserError: If a scan has no row in what the report model wrote.
    """
    args = work.args
    captioned = work.stages.caption("captioned", source=args.unlabeled_dir)
    written = read_reports(captioned / MANIFEST)
    threshold = args.min_confidence
    if threshold is None:
        threshold = _threshold(work)
    sure, unsure = [], []
    for record in work.data.unlabeled:
        if record.file_name not in written:
            raise UserError(f"{captioned / MANIFEST}: {record.file_name} is missing")
        text, confidence = written[record.file_name]
        if threshold is not None and text and confidence >= threshold:
            sure.append((record, text, float(np.exp(confidence))))
        else:
            unsure.append(record)
    if not sure:
        _logger.warning("no pseudo-report is sure enough: all scans train without a text")
    parts = [_sure_part(sure), _unsure_part(unsure)]
    others = parts[0].total + (0 if args.without_real else len(work.data.train))
    parts[1] = limit_share(parts[1], others, max_share=args.max_no_text_share)
    found = {
        "min_confidence": threshold,
        "pseudo_reports": len(sure),
        "without_text": len(unsure),
    }
    return Material(parts, found)


def read_reports(path: Path) -> dict[str, tuple[str, float]]:
    """Name of a scan in its source -> what was written of it, and how sure the model was."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return {row["source_file_name"]: (row["text"], float(row["confidence"])) for row in rows}


def _threshold(work: Improvement) -> float | None:
    """The confidence that is enough, from reports of val scans with a doctor's report."""
    args, val = work.args, work.data.val.records
    captioner = Captioner.load(args.captioner, device=work.device, offline=args.offline)
    reports = write_reports(val, captioner)
    labeler = load_labeler(args.finding_rules)
    truths = [record.text for record in val]
    return confidence_threshold(reports, truths, labeler, precision=args.pseudo_precision)


def _sure_part(sure: list[tuple[Record, str, float]]) -> Part:
    records, texts, weights = zip(*sure) if sure else ((), (), ())
    return Part("pseudo_report", records, texts, np.array(weights, np.float64))


def _unsure_part(records: list[Record]) -> Part:
    return Part("no_report", records, [""] * len(records), np.ones(len(records)))
