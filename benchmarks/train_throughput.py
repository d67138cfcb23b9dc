r"""Time train_text_to_image.py against the training loop that diffusers documents, side by side.

    # the demo's base pipeline on simulated scans, on a CPU, in a minute
    python benchmarks/train_throughput.py --model demo --batch_size 16

    # the same in bf16, with other settings of the script after --
    python benchmarks/train_throughput.py --model demo --precision bf16 -- --compile regional

    # Stable Diffusion 1.4's size with random weights, 512 px; needs a GPU
    python benchmarks/train_throughput.py --model sd14 --precision bf16 --batch_size 8 16 32 64

In one process, blocks of steps alternate: the documented loop (VAE and text encoder every step,
contiguous layout, default AdamW, two looks at the loss a step), then the script's own loop, with
its data loading and its log; the same model, images, batch size and precision. The result is
printed as JSON: per batch size the ratio (median of the pairs, least and most), images/s and peak
memory of both, and the share of the device's bf16 matrix rate, measured in the same run. A table
goes to stderr. Ends with status 1 if a loss is not finite, or the two loops do not learn alike.
"""

import argparse
import gc
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # when started by its path, Python looks in benchmarks/ only

from benchmarks.pipelines import device_name, model_flag, pipeline_folder  # noqa: E402
from utils import cli  # noqa: E402
from utils.run_folder import get_logger, print_result, versions  # noqa: E402

if TYPE_CHECKING:
    import torch

    from benchmarks.blocks import Block
    from benchmarks.reference_loop import ReferenceOptions

BATCH_SIZES = {"sd14": [8, 16, 32, 64]}  # others: 16
CLINIC_PX = 512
LEARNING_RATE = 1e-5  # small: what is measured must not learn the few images by heart
SEED = 0
ALIKE = 2.0  # mean losses may differ by this factor; both loops draw their own noise

logger = get_logger("throughput")


# Parse


def build_parser() -> argparse.ArgumentParser:
    """Flags of this script."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add(
        "--model",
        type=model_flag,
        default="demo",
        help="demo (demo/base), sd14 (random weights), or a pipeline folder (default: demo)",
    )
    add("--batch_size", type=cli.positive_int, nargs="+", help="default: 16; sd14: 8 16 32 64")
    add("--resolution", type=cli.resolution, help="image side in pixels (default: the model's)")
    add("--precision", choices=("no", "bf16"), default="no", help="of both (default: no, float32)")
    add(
        "--data_dir",
        type=cli.existing_dir,
        help="dataset folder of both (default: scans that demo/simulate.py draws now)",
    )
    add(
        "--num_images",
        type=cli.positive_int,
        default=256,
        help="scans to draw (default: %(default)s)",
    )
    add(
        "--scan_px",
        type=cli.resolution,
        help="side of the drawn scans' files; a clinic's have 500 to 1000 px, and the documented "
        "loop reads and shrinks them every time (default: 512 or, if that is more, --resolution)",
    )
    add("--pairs", type=cli.positive_int, default=5, help="pairs of blocks (default: %(default)s)")
    add(
        "--block_steps",
        type=cli.positive_int,
        default=10,
        help="timed steps of a block (default: %(default)s)",
    )
    add(
        "--untimed_steps",
        type=cli.positive_int,
        default=2,
        help="steps before them in every block (default: %(default)s)",
    )
    add(
        "--reference_num_workers",
        type=cli.non_negative_int,
        default=0,
        help="data loader processes of the documented loop (default: 0, as there)",
    )
    add("--markdown", action="store_true", help="also print rows for docs/benchmarks.md, on stderr")
    add("train_flags", nargs="*", metavar="FLAG", help="after --: for train_text_to_image.py")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.batch_size is None:
        args.batch_size = BATCH_SIZES.get(args.model, [16])
    if args.data_dir is None and args.num_images < max(args.batch_size):
        parser.error("--num_images: fewer than the largest --batch_size")
    return args


# Load


def make_inputs(
    args: argparse.Namespace, work_dir: Path, device: "torch.device"
) -> tuple[Path, Path, int]:
    """Pipeline folder, dataset folder and resolution."""
    from diffusers import UNet2DConditionModel

    from demo.simulate import write_scans
    from utils.run_folder import write_csv

    model = pipeline_folder(args.model, work_dir, device)
    resolution = args.resolution
    if resolution is None:
        resolution = 8 * UNet2DConditionModel.load_config(model / "unet")["sample_size"]
    if args.data_dir is not None:
        return model, args.data_dir, resolution
    data_dir = work_dir / "scans"
    data_dir.mkdir()
    rows = write_scans(
        data_dir,
        num_images=args.num_images,
        seed=SEED,
        resolution=scan_px(args, resolution),
        num_workers=cli.available_cores(),
    )
    write_csv(data_dir / "metadata.csv", rows, list(rows[0]))
    return model, data_dir, resolution


def scan_px(args: argparse.Namespace, resolution: int) -> int:
    """Side of the drawn scans' files in pixels."""
    return args.scan_px or max(CLINIC_PX, resolution)


def script_flags(
    model: Path, data_dir: Path, output_dir: Path, options: "ReferenceOptions", num_steps: int
) -> list[str]:
    """The command line of train_text_to_image.py that trains what the reference trains."""
    return [
        f"--pretrained_model_name_or_path={model}",
        f"--train_data_dir={data_dir}",
        f"--output_dir={output_dir}",
        f"--resolution={options.resolution}",
        f"--train_batch_size={options.batch_size}",
        f"--learning_rate={options.learning_rate}",
        f"--mixed_precision={options.precision}",
        f"--max_train_steps={num_steps}",
        f"--checkpointing_steps={num_steps + 1}",
        f"--seed={options.seed}",
        *("--center_crop", "--use_ema", "--lr_warmup_steps=0", "--caption_dropout_prob=0"),
        *("--train_split=all", "--report_to=none", "--offline"),
    ]


# Measure


def measure(
    args: argparse.Namespace, options: "ReferenceOptions", inputs: tuple[Path, Path], work_dir: Path
) -> dict:
    """Alternate blocks of both loops at one batch size; returns their figures."""
    import torch

    from benchmarks.arithmetic import PASSES_PER_STEP, unet_flops
    from benchmarks.blocks import paired_ratio
    from benchmarks.reference_loop import ReferenceLoop
    from benchmarks.script_loop import ScriptLoop

    num_steps = args.untimed_steps + args.block_steps
    reference = ReferenceLoop(*inputs, options)
    device = reference.accelerator.device
    alone = reference.run_block(num_steps, untimed_steps=args.untimed_steps)
    # Both stay loaded: what the reference keeps between blocks is no memory of the script's loop.
    kept = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    output_dir = work_dir / f"batch-{options.batch_size}"
    flags = script_flags(*inputs, output_dir, options, num_steps * (args.pairs + 1))
    ours = ScriptLoop([*flags, *args.train_flags])
    ours.run_block(num_steps, untimed_steps=args.untimed_steps)  # compiles, where that is asked for
    pairs = []
    for _ in range(args.pairs):
        pairs.append(
            tuple(
                loop.run_block(num_steps, untimed_steps=args.untimed_steps)
                for loop in (reference, ours)
            )
        )
    theirs, own = zip(*pairs)
    wall = paired_ratio([block.seconds for block in theirs], [block.seconds for block in own])
    cpu = paired_ratio(
        [block.cpu_seconds for block in theirs], [block.cpu_seconds for block in own]
    )
    unet = reference.accelerator.unwrap_model(reference.unet)
    text_length = reference.parts.tokenizer.model_max_length
    return {
        "batch_size": options.batch_size,
        "ratio": wall.median,
        "ratio_least": wall.least,
        "ratio_most": wall.most,
        "cpu_time_ratio": cpu.median,
        "gflop_per_image": PASSES_PER_STEP * unet_flops(unet, text_length=text_length) / 1e9,
        "ours": summary(own, peak=max(block.peak_bytes for block in own) - kept, device=device),
        "reference": summary(theirs, peak=alone.peak_bytes, device=device),
    }


def summary(blocks: "Sequence[Block]", *, peak: int, device: "torch.device") -> dict:
    """Speed, loss and peak memory (None on a CPU) of one loop."""
    losses = [loss for block in blocks for loss in block.losses]
    return {
        "images_per_s": statistics.median(block.images_per_s for block in blocks),
        "loss": statistics.fmean(losses),
        "peak_memory_gib": peak / 2**30 if device.type == "cuda" else None,
    }


def check(row: dict) -> None:
    """End the run where a figure would say nothing.

    Raises:
        UserError: If a loss is not finite, or the loops' mean losses are not of one size.
    """
    losses = [row[loop]["loss"] for loop in ("reference", "ours")]
    if not all(map(math.isfinite, losses)):
        raise cli.UserError(f"batch size {row['batch_size']}: a loss is not finite: {losses}")
    if max(losses) > ALIKE * min(losses):
        raise cli.UserError(
            f"batch size {row['batch_size']}: the loops do not learn the same: mean loss "
            f"{losses[0]:.4g} of the documented loop, {losses[1]:.4g} of the script"
        )


# Tell


def table(result: dict) -> str:
    """The figures in columns."""
    lines = [
        "batch  ratio (least-most)    images/s: ours  documented  GiB: ours  documented  share"
    ]
    for row in result["batch_sizes"]:
        ours, theirs = row["ours"], row["reference"]
        memory = [
            "-" if loop["peak_memory_gib"] is None else f"{loop['peak_memory_gib']:.1f}"
            for loop in (ours, theirs)
        ]
        span = f"{row['ratio']:.2f} ({row['ratio_least']:.2f}-{row['ratio_most']:.2f})"
        lines.append(
            f"{row['batch_size']:5d}  {span:22s}  {ours['images_per_s']:14.1f}  "
            f"{theirs['images_per_s']:10.1f}  {memory[0]:>9s}  {memory[1]:>10s}  "
            f"{ours['matmul_share']:5.0%}"
        )
    return "\n".join(lines)


def markdown(result: dict) -> str:
    """One row per batch size for docs/benchmarks.md; the day is to be filled in."""
    what = f"{result['model']}, {result['resolution']} px, {result['precision']}"
    if result["scan_px"] not in (None, result["resolution"]):
        what += f", files of {result['scan_px']} px"
    return "\n".join(
        f"| `train_text_to_image.py` against the documented loop: {what}, batch {row['batch_size']}"
        f" | {row['ratio']:.2f} times ({row['ratio_least']:.2f}-{row['ratio_most']:.2f}): "
        f"{row['ours']['images_per_s']:.1f} against {row['reference']['images_per_s']:.1f} images/s"
        f" | {result['device']}, DAY |"
        for row in result["batch_sizes"]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, measure, tell."""
    args = parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cli.go_offline()
    import torch

    from benchmarks.arithmetic import matmul_rate
    from benchmarks.reference_loop import ReferenceOptions

    device = torch.device(cli.resolve_device("auto"))
    rate = matmul_rate(device)
    rows = []
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        *inputs, resolution = make_inputs(args, Path(folder), device)
        for size in args.batch_size:
            options = ReferenceOptions(
                batch_size=size,
                resolution=resolution,
                precision=args.precision,
                learning_rate=LEARNING_RATE,
                num_workers=args.reference_num_workers,
                seed=SEED,
            )
            row = measure(args, options, tuple(inputs), Path(folder))
            check(row)
            for loop in ("ours", "reference"):
                flops = row["gflop_per_image"] * 1e9 * row[loop]["images_per_s"]
                row[loop]["matmul_share"] = flops / rate
            rows.append(row)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    result = {
        "model": args.model,
        "resolution": resolution,
        "scan_px": None if args.data_dir else scan_px(args, resolution),
        "precision": args.precision,
        "device": device_name(device),
        "matmul_bf16_tflops": rate / 1e12,
        "train_flags": args.train_flags,
        "pairs": args.pairs,
        "block_steps": args.block_steps,
        "versions": versions(),
        "batch_sizes": rows,
    }
    sys.stderr.write(table(result) + "\n")
    if args.markdown:
        sys.stderr.write(markdown(result) + "\n")
    print_result(result)
    return 0


if __name__ == "__main__":
    cli.main_guard(main)
