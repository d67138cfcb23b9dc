"""Mode unlabeled: real scans without texts join the training."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.captioned_set import MANIFEST
from utils.captioner import Captioner, Written
from utils.classifier import Classifier
from utils.cli import UserError
from utils.dataset import Record
from utils.finding_labeler import load_labeler
from utils.improvement import Improvement
from utils.pair_agreement import (
    agrees_with_label,
    confidence_threshold,
    findings_by_label,
    write_reports,
)
from utils.round_material import Material
from utils.run_folder import get_logger
from utils.training_mix import Part, limit_share

_logger = get_logger("improve")


def gather(work: Improvement, number: int, model: str) -> Material:
    """Pseudo-reports where they can be believed, no text elsewhere; the same in every round.

    A report is believed where the report model is sure, and, with ``--classifier``, where what it
    names goes with what the classifier sees. It weighs as much as its words are likely, exp(mean
    log-probability). A scan without text weighs 1, but all of them no more than
    ``--max_no_text_share`` of all weight: they train what guidance leads away from, and say
    nothing about words.

    Args:
        work: The loop.
        number: Of the round.
        model: That it starts from.

    Raises:
        UserError: If a scan has no row in what the report model wrote.
    """
    args, scans = work.args, work.data.unlabeled
    captioned = work.stages.caption("captioned", source=args.unlabeled_dir)
    written = read_reports(captioned / MANIFEST)
    if lost := [record.file_name for record in scans if record.file_name not in written]:
        raise UserError(f"{captioned / MANIFEST}: {lost[0]} is missing")
    reports = [written[record.file_name] for record in scans]
    threshold = args.min_confidence
    if threshold is None:
        threshold = _threshold(work)
    believed = _agreeing(work, scans, reports)
    found = {"min_confidence": threshold, "agree_with_classifier": int(believed.sum())}
    sure, unsure = [], []
    for record, report, agrees in zip(scans, reports, believed):
        is_sure = threshold is not None and report.text and report.confidence >= threshold
        (sure if is_sure and agrees else unsure).append((record, report))
    if not sure:
        _logger.warning("no pseudo-report can be believed: all scans train without a text")
    parts = [_sure_part(sure), _unsure_part(unsure)]
    others = parts[0].total + (0 if args.without_real else len(work.data.train))
    parts[1] = limit_share(parts[1], others, max_share=args.max_no_text_share)
    return Material(parts, found | {"pseudo_reports": len(sure), "without_text": len(unsure)})


def _agreeing(
    work: Improvement, records: Sequence[Record], reports: Sequence[Written]
) -> np.ndarray:
    """(N,) bool: what the report names goes with what the classifier sees; all without one."""
    args = work.args
    if args.classifier is None:
        return np.ones(len(records), bool)
    labeler = load_labeler(args.finding_rules)
    return agrees_with_label(
        records,
        reports,
        classifier=Classifier.load(args.classifier, device=work.device),
        known=findings_by_label(work.data.train.records, labeler),
        labeler=labeler,
    )


def read_reports(path: Path) -> dict[str, Written]:
    """Name of a scan in its source -> what was written of it, and how sure the model was."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return {
            row["source_file_name"]: Written(row["text"], float(row["confidence"])) for row in rows
        }


def _threshold(work: Improvement) -> float | None:
    """The confidence that is enough, from reports of val scans with a doctor's report."""
    args, val = work.args, work.data.val.records
    captioner = Captioner.load(args.captioner, device=work.device, offline=args.offline)
    reports = write_reports(val, captioner)
    places = np.flatnonzero(_agreeing(work, val, reports)).tolist()
    return confidence_threshold(
        [reports[place] for place in places],
        [val[place].text for place in places],
        load_labeler(args.finding_rules),
        precision=args.pseudo_precision,
    )


def _sure_part(sure: Sequence[tuple[Record, Written]]) -> Part:
    records, reports = zip(*sure) if sure else ((), ())
    weights = np.exp([report.confidence for report in reports], dtype=np.float64)
    return Part("pseudo_report", records, [report.text for report in reports], weights)


def _unsure_part(unsure: Sequence[tuple[Record, Written]]) -> Part:
    records = [record for record, _ in unsure]
    return Part("no_report", records, [""] * len(records), np.ones(len(records)))
