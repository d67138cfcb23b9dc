"""Reports for unlabeled scans: batches shared out to processes, recorded, continued, published.

A batch is a run of scans by their position, so that it holds the same scans whoever writes it: the
number of processes and interruptions change nothing. Images of a few batches are in memory at a
time; the next ones are read while the reports of one are written.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from utils import caption_journal as journal
from utils.caption_job import DECODING_FLAGS, CaptionJob, load_job, load_scans
from utils.captioned_page import captioned_page
from utils.captioned_set import OUTPUTS, is_accepted, is_usable, publish, read_manifest
from utils.captioner import Written
from utils.cli import UserError
from utils.dataset import Dataset, Record
from utils.gray_images import GrayImages
from utils.lazy_records import take
from utils.process_group import from_main, leave, wait_for_all
from utils.resumable_run import only_writer, open_run
from utils.run_folder import write_json
from utils.work_plan import in_groups

# Flags that may differ between a run and its continuation: they change no report.
FREE_FLAGS = (
    *("min_confidence", "show_reports", "batch_size"),
    *("output_dir", "device", "num_workers", "offline", "overwrite"),
)
CONFIDENCE_DECIMALS = 3  # on a GPU batches of other sizes differ a little

_QUEUED_BATCHES = 2  # read ahead while a batch's reports are written


def run(args: argparse.Namespace, state: PartialState) -> dict[str, object]:
    """Write a report for every scan of ``--caption_dir``; the result on the main process.

    Args:
        args: The parsed flags: ``caption_dir, model, output_dir, min_confidence`` (a mean
            log-probability <= 0, or None), those of `Decoding`, ``batch_size, mixed_precision,
            device, num_workers, offline, overwrite, skip_invalid, image_column, patient_column,
            show_reports``.
        state: Of the processes, which end their connection here.

    Raises:
        UserError: If a scan has a text already, if folders lie in each other, if --output_dir
            holds something else, or if no report is accepted.
    """
    is_main = state.is_main_process
    scans = load_scans(args, state)
    job = load_job(args, scans, state)
    if is_main:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    with only_writer(args.output_dir) if is_main else nullcontext():
        began = time.monotonic()
        num_written = write_reports(args, scans, job, state)
        wait_for_all(state)
        result = finish(args, scans, job) if is_main else {}
    if is_main:
        elapsed = time.monotonic() - began
        result |= {"num_written_now": num_written, "scans_per_second": num_written / elapsed}
    leave(state)
    return result


def write_reports(
    args: argparse.Namespace, scans: Dataset, job: CaptionJob, state: PartialState
) -> int:
    """Write what no earlier start has recorded, this process its share.

    Returns:
        Scans that all processes had left to write.
    """
    plan = None
    if state.is_main_process:
        open_run(
            args.output_dir,
            args,
            identity=job.identity,
            free_flags=FREE_FLAGS,
            outputs=OUTPUTS,
            anew=args.overwrite,
        )
        done = recorded(args.output_dir, len(scans))
        batches = in_groups(range(len(scans)), job.batch_size)
        todo = [batch for batch in batches if any(index not in done for index in batch)]
        plan = todo, journal.next_start(args.output_dir)
    todo, start = from_main(plan)
    num_todo = sum(map(len, todo))
    if not todo:
        return 0
    mine = todo[state.process_index :: state.num_processes]
    part = journal.part_path(args.output_dir, start=start, process=state.process_index)
    progress = journal.JournalProgress(
        args.output_dir,
        start,
        total=len(scans),
        num_todo=num_todo,
        shown=state.is_main_process,
    )
    with progress:
        write_share(args, scans, job, batches=mine, part=part, progress=progress)
    return num_todo


def recorded(folder: Path, num_scans: int) -> dict[int, Written]:
    """The reports that earlier starts recorded, by the scan's index."""
    return journal.read_journal(folder) | read_manifest(folder, num_scans)


def write_share(
    args: argparse.Namespace,
    scans: Dataset,
    job: CaptionJob,
    *,
    batches: Sequence[Sequence[int]],
    part: Path,
    progress: journal.JournalProgress,
) -> None:
    """Write and record this process's batches; the next images are read meanwhile."""
    captioner = job.captioner
    options = {"resolution": captioner.resolution, "resize_mode": captioner.resize_mode}

    def read(batch: Sequence[int]) -> torch.Tensor:
        records = take(scans.records, batch)
        images = GrayImages(records, num_workers=args.num_workers, **options)
        return torch.from_numpy(np.stack(list(images)))  # B x H x W

    with journal.JournalWriter(part) as writer, closing(read_ahead(batches, read)) as images:
        for batch, pixels in zip(batches, images):
            reports = captioner.write_batch(pixels, job.decoding)
            check_finite(reports, take(scans.records, batch))
            writer.append(batch, map(rounded, reports))
            progress.update()


def read_ahead(
    batches: Iterable[Sequence[int]], read: Callable[[Sequence[int]], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """The images of each batch, a few batches ahead of their use, by one thread."""
    with ThreadPoolExecutor(1) as reader:
        waiting: deque = deque()
        for batch in batches:
            waiting.append(reader.submit(read, batch))
            if len(waiting) > _QUEUED_BATCHES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def check_finite(reports: Sequence[Written], records: Sequence[Record]) -> None:
    """Refuse a confidence that is no number, before it is recorded.

    Raises:
        UserError: With the scan.
    """
    for report, record in zip(reports, records):
        if not math.isfinite(report.confidence):
            raise UserError(
                f"{record.where}: the model's confidence is {report.confidence}: its numbers "
                "overflow; try --mixed_precision no"
            )


def rounded(report: Written) -> Written:
    """The report with the confidence that is recorded, compared and told."""
    return replace(report, confidence=round(report.confidence, CONFIDENCE_DECIMALS) + 0.0)


def finish(args: argparse.Namespace, scans: Dataset, job: CaptionJob) -> dict[str, object]:
    """Publish the set, its page and its numbers; returns these.

    Raises:
        UserError: If a process recorded elsewhere, or no report is accepted.
    """
    folder = args.output_dir
    (folder / "results.json").unlink(missing_ok=True)
    done = recorded(folder, len(scans))
    if missing := len(scans) - len(done):
        raise UserError(
            f"--output_dir {folder}: {missing} reports are not there; all machines need the same "
            "folder, on a disk that they share"
        )
    reports = [done[index] for index in range(len(scans))]
    publish(
        folder,
        scans.records,
        reports,
        min_confidence=args.min_confidence,
        provenance={"model": str(args.model), "model_hash": job.captioner.sha256},
        num_workers=args.num_workers,
    )
    summary = summarise(args, scans, job, reports)
    captioned_page(summary, reports, show_reports=args.show_reports).write(folder / "report.html")
    if not summary["num_accepted"]:
        raise UserError(
            f"--min_confidence {args.min_confidence}: no report of {len(reports)} is accepted; "
            f"{folder / 'report.html'} shows what other thresholds keep"
        )
    journal.remove_journal(folder)  # the manifest has it all
    write_json(folder / "results.json", summary)
    return {"output_dir": folder, **summary}


def summarise(
    args: argparse.Namespace, scans: Dataset, job: CaptionJob, reports: Sequence[Written]
) -> dict[str, object]:
    """The set in numbers, with what decides over it."""
    confidences = [report.confidence for report in reports]
    low, median, high = np.percentile(confidences, (5, 50, 95)).round(CONFIDENCE_DECIMALS).tolist()
    return {
        "source": str(args.caption_dir),
        "num_scans": len(reports),
        "num_skipped": len(scans.skipped),
        "num_accepted": sum(is_accepted(report, args.min_confidence) for report in reports),
        "num_unusable": sum(not is_usable(report.text) for report in reports),
        "num_different": len({report.text for report in reports}),
        "min_confidence": args.min_confidence,
        "median_confidence": median,
        "confidence_p5": low,
        "confidence_p95": high,
        "model": str(args.model),
        "model_hash": job.captioner.sha256,
        "mixed_precision": args.mixed_precision,
        **{name: getattr(args, name) for name in DECODING_FLAGS},
        "max_tokens": job.decoding.max_new_tokens + 1,
    }
