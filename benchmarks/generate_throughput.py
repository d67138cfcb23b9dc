r"""Time the project's sampler against a plain StableDiffusionPipeline, side by side.

    # the demo's base pipeline on a CPU, in some minutes
    python benchmarks/generate_throughput.py --model demo

    # Stable Diffusion 1.4's size with random weights, 512 px; needs a GPU
    python benchmarks/generate_throughput.py --model sd14 --num_images 64 --markdown

    # a fine-tuned pipeline, with the U-Net compiled
    python benchmarks/generate_throughput.py --model runs/oct --compile whole

In one process, blocks of images alternate: a plain pipeline a prompt at a time with its defaults
(float32, 50 steps of the folder's sampler, guidance 7.5); a plain pipeline in batches with this
project's sampler, steps and guidance, in float32 and in --precision; the project's sampler in both.
Each encodes the same prompts and writes its PNGs. Printed as JSON: images/s and processor time of
each side, the ratios to the project's in --precision (median of the pairs, least and most), and the
Frechet distance of each side's images to simulated scans, in the features of a diagnosis classifier
that is trained on others of them now, with its 95 % interval. A table goes to stderr.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # when started by its path, Python looks in benchmarks/ only

from benchmarks.drawing_table import OURS, markdown, table  # noqa: E402
from benchmarks.pipelines import device_name, model_flag, pipeline_folder  # noqa: E402
from utils import cli  # noqa: E402
from utils.run_folder import get_logger, print_result, versions  # noqa: E402

if TYPE_CHECKING:
    import torch

    from benchmarks.drawing_sides import Draw

SEED = 0  # of the images
MIN_COMPARED = 32  # images of a side, for a distance that says anything

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
    add(
        "--precision",
        choices=("no", "bf16", "fp16"),
        help="of both (default: bf16 where the device computes in it, else no)",
    )
    add(
        "--batch_size",
        type=cli.positive_int,
        help="images at once, of all but the loop (default: what fills the device)",
    )
    add(
        "--num_images",
        type=cli.positive_int,
        default=16,
        help="images of a block (default: %(default)s)",
    )
    add("--pairs", type=cli.positive_int, default=5, help="rounds of blocks (default: %(default)s)")
    add("--num_inference_steps", type=cli.positive_int, default=25, help="default: %(default)s")
    add(
        "--compile",
        choices=("no", "regional", "whole"),
        default="no",
        help="torch.compile of the project's U-Net (default: %(default)s)",
    )
    add(
        "--guidance_interval",
        type=cli.probability,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("FIRST", "LAST"),
        help="shares of the steps between which the project's side guides; the plain pipeline "
        "cannot (default: 0 1, all)",
    )
    add(
        "--num_real",
        type=cli.positive_int,
        default=1000,
        help="simulated scans to measure the distance to (default: %(default)s)",
    )
    add(
        "--classifier",
        type=cli.existing_dir,
        metavar="DIR",
        help="whose features the distance is in (default: one that is trained now)",
    )
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    add("--markdown", action="store_true", help="also print rows for docs/benchmarks.md, on stderr")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse; anything wrong ends here, with exit status 2."""
    return build_parser().parse_args(argv)


# Load


def load_sides(
    args: argparse.Namespace, model: Path, device: "torch.device"
) -> tuple[dict[str, "Draw"], int]:
    """The sides by name, and the size of their batches."""
    from benchmarks import drawing_sides as sides
    from utils.sampling import Settings

    settings = Settings(
        num_steps=args.num_inference_steps, guidance_interval=tuple(args.guidance_interval)
    )
    options = {"device": device, "settings": settings}
    own = {"compile_mode": args.compile, **options}
    sampler = sides.new_sampler(model, precision=args.precision, **own)
    size = args.batch_size or sides.own_batch_size(sampler)
    loaded = {OURS: sides.streamed(sampler, batch_size=size)}
    if args.precision != "no":
        other = sides.new_sampler(model, precision="no", **own)
        loaded["ours_float32"] = sides.streamed(other, batch_size=size)
        loaded["plain"] = sides.plain_batches(
            model, precision=args.precision, batch_size=size, **options
        )
    loaded["plain_float32"] = sides.plain_batches(model, precision="no", batch_size=size, **options)
    loaded["default_loop"] = sides.one_at_a_time(model, device=device)
    return loaded, size


# Measure


def measure(
    args: argparse.Namespace, loaded: Mapping[str, "Draw"], work_dir: Path
) -> dict[str, list[tuple[float, float]]]:
    """Alternate blocks of all sides; wall and processor seconds of each, by side."""
    from benchmarks.scan_distance import PROMPTS_SEED, scans
    from utils.sampling import image_seed

    def pairs(block: int) -> list[tuple[str, int]]:
        indices = range(block * args.num_images, (block + 1) * args.num_images)
        prompts = [scan.text for scan in scans(indices, seed=PROMPTS_SEED)]
        return [(prompt, image_seed(SEED, index)) for prompt, index in zip(prompts, indices)]

    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loaded}
    for name, draw in loaded.items():  # memory is found, and what is to be compiled is
        (work_dir / name / "untimed").mkdir(parents=True)
        draw(
            pairs(args.pairs)[: 1 if name == "default_loop" else None], work_dir / name / "untimed"
        )
    for block in range(args.pairs):
        for name, draw in loaded.items():
            folder = work_dir / name / f"block-{block}"
            folder.mkdir()
            before = _now()
            draw(pairs(block), folder)
            times[name].append(tuple(now - then for now, then in zip(_now(), before)))
        logger.info("block %d of %d", block + 1, args.pairs)
    return times


def _now() -> tuple[float, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), usage.ru_utime + usage.ru_stime


def summary(times: Mapping[str, list[tuple[float, float]]], num_images: int) -> dict[str, dict]:
    """Speed of each side, and how many times faster ours is, block by block."""
    from benchmarks.blocks import paired_ratio

    walls = {name: [wall for wall, _ in blocks] for name, blocks in times.items()}
    found = {}
    for name, blocks in times.items():
        ratio = paired_ratio(walls[name], walls[OURS])
        found[name] = {
            "images_per_s": num_images / statistics.median(walls[name]),
            "cpu_seconds_per_image": statistics.median(cpu for _, cpu in blocks) / num_images,
            "ours_is_faster": {"median": ratio.median, "least": ratio.least, "most": ratio.most},
        }
    if "plain" in walls:  # the same arithmetic on both sides
        ratio = paired_ratio(walls["plain_float32"], walls["ours_float32"])
        found["ours_float32"]["faster_than_plain_float32"] = {
            "median": ratio.median,
            "least": ratio.least,
            "most": ratio.most,
        }
    return found


def judge(args: argparse.Namespace, names: Sequence[str], work_dir: Path) -> dict[str, dict]:
    """Fréchet distance of each side's images, and of other simulated scans, to simulated scans."""
    from benchmarks.scan_distance import ScanDistance

    distance = ScanDistance(args.classifier, num_real=args.num_real, work_dir=work_dir)
    found = {name: distance.of_files((work_dir / name).glob("block-*/*.png")) for name in names}
    return found | {"simulated_scans": distance.of_scans(args.pairs * args.num_images)}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, measure, judge, tell."""
    args = parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cli.go_offline()
    import torch

    from utils.diffusion import silence_libraries
    from utils.precision import has_fast_bf16

    silence_libraries()
    device = torch.device(cli.resolve_device(args.device))
    if args.precision is None:
        args.precision = "bf16" if has_fast_bf16(device.type) else "no"
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        work_dir = Path(folder)
        model = pipeline_folder(args.model, work_dir, device)
        loaded, batch_size = load_sides(args, model, device)
        times = measure(args, loaded, work_dir)
        # Random weights draw noise; few images tell nothing.
        judged = args.model != "sd14" and args.pairs * args.num_images >= MIN_COMPARED
        resolution = picture_side(work_dir / OURS)
        result = {
            "model": args.model,
            "resolution": resolution,
            "device": device_name(device),
            "precision": args.precision,
            "steps": args.num_inference_steps,
            "batch_size": batch_size,
            "compile": args.compile,
            "guidance_interval": args.guidance_interval,
            "num_images": args.num_images,
            "pairs": args.pairs,
            "versions": versions(),
            "sides": summary(times, args.num_images),
            "frechet_distance": judge(args, list(loaded), work_dir) if judged else {},
        }
    sys.stderr.write(table(result) + "\n")
    if args.markdown:
        sys.stderr.write(markdown(result) + "\n")
    print_result(result)


def picture_side(folder: Path) -> int:
    """Pixels along a side of the pictures that were drawn into a folder."""
    from PIL import Image

    with Image.open(next(folder.rglob("*.png"))) as image:
        return image.width


if __name__ == "__main__":
    cli.main_guard(main)
