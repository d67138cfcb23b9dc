"""What a captioning run writes reports for, and with what: checked before anything is written."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from utils.captioner import Captioner, Decoding
from utils.captioner_decoders import check_length
from utils.classifier import CPU_BATCH
from utils.cli import UserError
from utils.dataset import Dataset, load_dataset
from utils.dataset_records import Columns
from utils.dataset_sources import read_source
from utils.lazy_records import take, texts
from utils.process_group import from_main, main_first, own_device
from utils.run_folder import FEATURE_CACHE

DECODING_FLAGS = ("num_beams", "length_penalty", "no_repeat_ngram_size", "max_tokens")
MAX_NAMED = 10  # rows with a text that an error names


@dataclass(frozen=True)
class CaptionJob:
    """What writes, and how; the same in every process.

    Attributes:
        captioner: On this process's device.
        decoding: How a report is searched.
        batch_size: Scans at once.
        identity: What decides over the reports beside the flags, and ends in options.json.
    """

    captioner: Captioner
    decoding: Decoding
    batch_size: int
    identity: dict[str, object]


def load_scans(args: argparse.Namespace, state: PartialState) -> Dataset:
    """The scans of the source, checked; no row of it has a text.

    Raises:
        UserError: See `run`; `DatasetError` for what is wrong with the source's rows.
    """
    check_folders(args.caption_dir, args.output_dir)
    columns = {"image_column": args.image_column, "patient_column": args.patient_column}
    with main_first(state):
        refuse_texts(args)
        return load_dataset(
            args.caption_dir,
            **columns,
            check_pixels=state.is_main_process or args.skip_invalid,
            skip_invalid=args.skip_invalid,
            num_workers=args.num_workers,
            digest_dir=args.output_dir.parent / FEATURE_CACHE,  # a continuation decodes none again
            offline=args.offline,
        )


def check_folders(source: Path | str, output_dir: Path) -> None:
    """Refuse an output folder that is the source's, lies in it or holds it.

    Raises:
        UserError: If it does.
    """
    path, folder = Path(source).expanduser().resolve(), output_dir.resolve()
    if path.is_dir() and folder.is_relative_to(path):
        raise UserError(
            f"--output_dir {output_dir} is --caption_dir or lies in it, which is never written to: "
            "name a folder elsewhere"
        )
    if path.exists() and path.is_relative_to(folder):
        raise UserError(
            f"--output_dir {output_dir} holds --caption_dir {source}: name a folder elsewhere"
        )


def refuse_texts(args: argparse.Namespace) -> None:
    """Refuse a source with texts before its pixels are looked at.

    Raises:
        UserError: With the first rows that have one, and how many there are.
    """
    columns = Columns(image=args.image_column, patient=args.patient_column)
    records = read_source(args.caption_dir, columns, offline=args.offline).records
    found = [index for index, text in enumerate(texts(records)) if text.strip()]
    if not found:
        return
    named = ", ".join(record.where for record in take(records, found[:MAX_NAMED]))
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    raise UserError(
        f"--caption_dir {args.caption_dir}: {len(found)} of {len(records)} rows have a text "
        f"already: {named}{more}. A model's report never takes the place of a doctor's. Give a "
        "table of the other rows, or, to caption these scans too, one without the column of texts"
    )


def load_job(args: argparse.Namespace, scans: Dataset, state: PartialState) -> CaptionJob:
    """The captioner, and what the run is known by.

    Raises:
        UserError: If this process has other scans or another model than the main process.
    """
    device = own_device(args.device, state)
    kind = torch.device(device).type
    on_cpu = kind == "cpu"
    if on_cpu:
        torch.set_num_threads(1)  # the last bits of a sum depend on it; start more processes
    options = {"device": device, "mixed_precision": args.mixed_precision, "offline": args.offline}
    with main_first(state):
        captioner = Captioner.load(args.model, **options)
    identity = {
        "data_hash": scans.fingerprint,
        "model_hash": captioner.sha256,
        "device_type": kind,
    }
    first = from_main(identity)
    if other := [name for name, value in identity.items() if first[name] != value]:
        raise UserError(
            f"process {state.process_index} has another {', '.join(other)} than process 0: all "
            "machines need the same flags and files"
        )
    network = captioner.network
    longest = args.max_tokens or captioner.max_new_tokens + 1
    check_length(network.config.get_text_config(decoder=True), longest)
    decoding = Decoding(args.num_beams, args.length_penalty, args.no_repeat_ngram_size, longest - 1)
    size = CPU_BATCH if on_cpu else args.batch_size  # there they depend on this too
    return CaptionJob(captioner, decoding, size, identity)
