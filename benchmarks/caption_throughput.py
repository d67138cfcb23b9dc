#!/usr/bin/env python
r"""Measure how much faster reports are written batch by batch than scan by scan.

    python benchmarks/caption_throughput.py --model runs/reports/captioner
    python benchmarks/caption_throughput.py --model runs/reports/captioner --num_beams 1
    python benchmarks/caption_throughput.py --num_images 100   # a small network, random weights

Three sides caption the same simulated scans with the same network, search and thread, from files to
recorded texts, in alternating blocks of one process:

- batched: what report_generation.py --caption_dir does;
- one_at_a_time: the same with batches of one scan;
- plain: a loop over transformers as users write it, `generate` for one image after the other,
  which has no confidence and records nothing.

A network of random weights never ends a report: it writes --max_new_tokens, all sides alike.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # when started by its path, Python looks in benchmarks/ only

from utils import cli  # noqa: E402
from utils.run_folder import get_logger, print_result, versions  # noqa: E402

if TYPE_CHECKING:
    from utils.caption_job import CaptionJob
    from utils.dataset import Dataset

RESOLUTION = 128
RANDOM_TOKENS = 24  # of a report of random weights: about the mean of the demo's reports
WARM_UP = 16  # scans of each side that are not timed
OURS = "batched"

Caption = Callable[[Sequence[int], Path], list[str]]

logger = get_logger("throughput")


# Parse


def build_parser() -> argparse.ArgumentParser:
    """Flags of this script."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add(
        "--model",
        type=cli.existing_dir,
        metavar="DIR",
        help="captioner folder (default: a small network of random weights)",
    )
    add(
        "--num_images",
        type=cli.positive_int,
        default=1000,
        help="scans that each side captions (default: %(default)s)",
    )
    add("--pairs", type=cli.positive_int, default=5, help="blocks of each side (default: 5)")
    add("--num_beams", type=cli.positive_int, default=3, help="default: %(default)s")
    add(
        "--max_new_tokens",
        type=cli.positive_int,
        help=f"longest report (default: 128; of random weights {RANDOM_TOKENS})",
    )
    add(
        "--mixed_precision",
        choices=("no", "bf16"),
        default="no",
        help="of all sides (default: %(default)s)",
    )
    cli.add_runtime_flags(parser, "num_workers", num_workers=1)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.num_images < args.pairs:
        parser.error("--num_images is less than --pairs: a block needs a scan")
    if args.max_new_tokens is None:
        args.max_new_tokens = 128 if args.model else RANDOM_TOKENS
    return args


# Load


def draw_scans(folder: Path, num_images: int) -> tuple["Dataset", list[str]]:
    """Simulated scans without texts; and their texts."""
    from demo.simulate import write_scans
    from utils.dataset import load_dataset, write_dataset

    rows = write_scans(folder, num_images=num_images, seed=0, resolution=RESOLUTION)
    write_dataset(folder, [{"file_name": row["file_name"]} for row in rows])
    return load_dataset(folder, check_pixels=False), [row["text"] for row in rows]


def save_random(folder: Path, texts: Sequence[str]) -> Path:
    """A small network of random weights that never ends a report."""
    from utils.captioner import Captioner
    from utils.captioner_networks import CaptionerSpec, build_network

    spec = CaptionerSpec(resolution=RESOLUTION, max_tokens=128)
    network, tokenizer, settings = build_network(spec, texts, seed=0)
    network.generation_config.suppress_tokens = [tokenizer.eos_token_id]
    Captioner(network, tokenizer, settings, resize_mode="center_crop").save(folder)
    return folder


def load_sides(args: argparse.Namespace, model: Path, scans: "Dataset") -> dict[str, Caption]:
    """The sides by name: each captions the scans at some indices into a new folder."""
    from utils.caption_job import CaptionJob
    from utils.captioner import Captioner, Decoding
    from utils.classifier import CPU_BATCH

    captioner = Captioner.load(model, mixed_precision=args.mixed_precision)
    decoding = Decoding(num_beams=args.num_beams, max_new_tokens=args.max_new_tokens)

    def in_batches(size: int) -> Caption:
        return ours(args, scans, CaptionJob(captioner, decoding, size, {}))

    return {
        OURS: in_batches(CPU_BATCH),
        "one_at_a_time": in_batches(1),
        "plain": plain(args, model, scans),
    }


def ours(args: argparse.Namespace, scans: "Dataset", job: "CaptionJob") -> Caption:
    """What the script does, in batches of ``job.batch_size``."""
    from utils.caption_journal import JournalProgress, part_path, read_journal
    from utils.captioning import write_share
    from utils.work_plan import in_groups

    def caption(indices: Sequence[int], folder: Path) -> list[str]:
        quiet = JournalProgress(folder, 0, total=len(indices), num_todo=len(indices), shown=False)
        part = part_path(folder, start=0, process=0)
        batches = in_groups(indices, job.batch_size)
        write_share(args, scans, job, batches=batches, part=part, progress=quiet)
        return [report.text for _, report in sorted(read_journal(folder).items())]

    return caption


def plain(args: argparse.Namespace, model: Path, scans: "Dataset") -> Caption:
    """A loop as users write it: open, process, generate, decode."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

    network = VisionEncoderDecoderModel.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    processor = AutoImageProcessor.from_pretrained(model)
    is_bf16 = args.mixed_precision == "bf16"
    search = {"num_beams": args.num_beams, "max_new_tokens": args.max_new_tokens}

    def caption(indices: Sequence[int], folder: Path) -> list[str]:
        texts = []
        for index in indices:
            image = Image.open(scans[index].path).convert("RGB")
            pixels = processor(images=image, return_tensors="pt").pixel_values
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
                ids = network.generate(pixels, do_sample=False, **search)
            texts.append(tokenizer.decode(ids[0], skip_special_tokens=True).strip())
        return texts

    return caption


# Measure


def measure(
    args: argparse.Namespace, sides: Mapping[str, Caption], work_dir: Path
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, list[str]]]:
    """Alternate blocks of all sides; wall and processor seconds of each, and texts, by side."""
    size = args.num_images // args.pairs
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    texts: dict[str, list[str]] = {name: [] for name in sides}
    for block in range(-1, args.pairs):  # the first is not timed: memory is found
        indices = range(max(block, 0) * size, (max(block, 0) + 1) * size)
        indices = indices[:WARM_UP] if block < 0 else indices
        for name, caption in sides.items():
            folder = work_dir / f"{name}-{block}"
            folder.mkdir()
            before = time.perf_counter(), time.process_time()
            written = caption(indices, folder)
            now = time.perf_counter(), time.process_time()
            if block >= 0:
                seconds[name].append(tuple(end - start for end, start in zip(now, before)))
                texts[name] += written
        logger.info("block %d of %d", block + 1, args.pairs)
    return seconds, texts


def summary(
    seconds: Mapping[str, list[tuple[float, float]]],
    texts: Mapping[str, list[str]],
    block_size: int,
) -> dict[str, dict[str, object]]:
    """Speed of each side, how many times faster ours is, block by block, and equal reports."""
    from benchmarks.blocks import paired_ratio

    walls = {name: [wall for wall, _ in blocks] for name, blocks in seconds.items()}
    cpus = {name: [cpu for _, cpu in blocks] for name, blocks in seconds.items()}
    found = {}
    for name in seconds:
        ratio = paired_ratio(walls[name], walls[OURS])
        same = sum(one == other for one, other in zip(texts[name], texts[OURS], strict=True))
        found[name] = {
            "scans_per_s": block_size / statistics.median(walls[name]),
            "cpu_seconds_per_scan": statistics.median(cpus[name]) / block_size,
            "ours_is_faster": {"median": ratio.median, "least": ratio.least, "most": ratio.most},
            "ours_takes_less_cpu": paired_ratio(cpus[name], cpus[OURS]).median,
            "same_reports": same / len(texts[OURS]),
        }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, measure, tell."""
    args = parse_args(argv)
    cli.go_offline()
    import torch

    torch.set_num_threads(1)  # as the script does on a CPU
    with tempfile.TemporaryDirectory(prefix="captions-") as folder:
        work_dir = Path(folder)
        (work_dir / "scans").mkdir()
        scans, texts = draw_scans(work_dir / "scans", args.num_images)
        model = args.model or save_random(work_dir / "captioner", texts)
        sides = load_sides(args, model, scans)
        seconds, written = measure(args, sides, work_dir)
    result = {
        "model": args.model or "random weights",
        "num_images": args.num_images,
        "pairs": args.pairs,
        "num_beams": args.num_beams,
        "max_new_tokens": args.max_new_tokens,
        "mixed_precision": args.mixed_precision,
        "different_reports": len(set(written[OURS])),
        "versions": versions(),
        "sides": summary(seconds, written, args.num_images // args.pairs),
    }
    print_result(result)


if __name__ == "__main__":
    cli.main_guard(main)
