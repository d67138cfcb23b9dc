r"""What noise offset and a zero-terminal-SNR schedule do to the brightness of dark scans.

    python benchmarks/dark_images.py --output_dir runs/dark
    python benchmarks/dark_images.py --output_dir runs/try --max_train_steps 4 --num_images 8

Stable Diffusion's schedule never reaches pure noise (Lin et al. 2023,
https://arxiv.org/abs/2305.08891): in training the mean brightness can be read off the noisiest
input, in sampling the start has none, and images drift to a middle gray. Here demo/base first
becomes a model like SD 1.x (epsilon prediction, its schedule) on simulated scans of usual
brightness; then it is fine-tuned on darkened ones in three ways with the same number of steps:

  plain         as it is
  noise_offset  --noise_offset, noise that is the same all over a channel (Guttenberg 2023,
                https://www.crosslabs.org/blog/diffusion-with-offset-noise)
  zero_snr      --rescale_betas_zero_snr --prediction_type v_prediction

Prints, for each, how far the synthetic scans are from the darkened test scans: 1-Wasserstein
distances (gray levels, 0 to 255) of the pixels' histograms and of the images' mean brightness. The
same between two halves of the real scans is the floor. A stage that has ended is not run again.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402
from utils.run_folder import get_logger, print_result, write_json, write_options  # noqa: E402

BASE = ROOT / "demo" / "base"

logger = get_logger("dark")


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = cli.make_parser(__doc__)
    cli.add_runtime_flags(parser, "output_dir", "seed")
    add = parser.add_argument
    add("--num_scans", type=cli.positive_int, default=600, help="simulated (default: %(default)s)")
    add(
        "--gain",
        type=cli.probability,
        default=0.4,
        help="gray levels are multiplied by it (default: %(default)s)",
    )
    add(
        "--max_train_steps",
        type=cli.positive_int,
        default=400,
        help="of each training, 16 scans each (default: %(default)s)",
    )
    add("--noise_offset", type=cli.positive_float, default=0.1, help="(default: %(default)s)")
    add("--num_images", type=cli.positive_int, default=120, help="drawn (default: %(default)s)")
    add("--sampler", default="ddim", help="of all three models (default: %(default)s)")
    return parser


def run(command: Sequence[object], ends_with: Path) -> None:
    """Run one of the toolkit's scripts, unless the file it writes last is there."""
    if ends_with.exists():
        logger.info("%s is there", ends_with)
        return
    logger.info(" ".join(map(str, command)))
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=sys.stderr)


def make_data(args: argparse.Namespace) -> tuple[Path, Path]:
    """The scans as simulated, and darkened; both split alike."""
    bright, dark = args.output_dir / "bright", args.output_dir / "dark"
    script = "prepare_dataset.py"
    simulate = ["simulate", "--output_dir", bright, "--num_images", args.num_scans]
    run([script, *simulate, "--seed", args.seed], bright / "metadata.csv")
    run([script, "split", "--data_dir", bright, "--overwrite"], bright / "split_done")
    (bright / "split_done").touch()
    if not (dark / "metadata.csv").exists():
        darken(bright, dark, args.gain)
    return bright, dark


def darken(bright: Path, dark: Path, gain: float) -> None:
    """Copy a dataset folder with all gray levels multiplied by ``gain``."""
    from PIL import Image

    for path in bright.rglob("*.png"):
        target = dark / path.relative_to(bright)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("L").point(lambda level: round(level * gain)).save(target)
    shutil.copy(bright / "metadata.csv", dark)


def train(args: argparse.Namespace, model: Path, data: Path, name: str, *flags: object) -> Path:
    """Fine-tune a pipeline; returns the new one's folder."""
    output_dir = args.output_dir / name
    settings = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": data,
        "output_dir": output_dir,
        "max_train_steps": args.max_train_steps,
        "resolution": 128,
        "train_batch_size": 16,
        "learning_rate": 2e-4,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": min(20, args.max_train_steps),
        "report_to": "none",
        "seed": args.seed,
    }
    command = [f"--{key}={value}" for key, value in settings.items()]
    extra = ["--center_crop", "--use_ema", "--offline", *flags]
    run(["train_text_to_image.py", *command, *extra], output_dir / "model_card.md")
    return output_dir


def draw(args: argparse.Namespace, model: Path, data: Path) -> Path:
    """Draw scans with the captions of the training scans; returns their folder."""
    output_dir = args.output_dir / f"{model.name}_drawn"
    flags = ["--model", model, "--prompts_from", data, "--num_images", args.num_images]
    flags += ["--class_balanced", "--offline", "--batch_size", 24, "--seed", args.seed]
    flags += ["--guidance_scale", 3, "--sampler", args.sampler, "--output_dir", output_dir]
    run(["generate_synthetic_dataset.py", *flags], output_dir / "dataset_card.md")
    return output_dir


def gray_levels(folder: Path, split: str | None):
    """Pixels of a data set's images, (N, H * W) float64 in 0 .. 255."""
    import numpy as np

    from utils.dataset import load_dataset
    from utils.images import resize

    images = [record.image() for record in load_dataset(folder, split=split, check_pixels=False)]
    squares = (resize(image.convert("L"), 128, "center_crop") for image in images)
    return np.stack([np.asarray(square, dtype=np.float64).ravel() for square in squares])


def distances(real, other) -> dict[str, float]:
    """1-Wasserstein distances in gray levels: of all pixels, and of the images' means."""
    from scipy.stats import wasserstein_distance

    return {
        "histogram_distance": wasserstein_distance(real.ravel(), other.ravel()),
        "mean_brightness_distance": wasserstein_distance(real.mean(axis=1), other.mean(axis=1)),
        "mean_brightness": float(other.mean()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, train, draw, compare."""
    args = build_parser().parse_args(argv)

    from benchmarks.sd14 import new_scheduler

    args.output_dir = args.output_dir.resolve()
    write_options(args.output_dir, args)
    bright, dark = make_data(args)
    like_sd = args.output_dir / "base_like_sd"
    if not like_sd.exists():
        shutil.copytree(BASE, like_sd)
        new_scheduler().save_pretrained(like_sd / "scheduler")
        index = like_sd / "model_index.json"
        parts = json.loads(index.read_text()) | {"scheduler": ["diffusers", "PNDMScheduler"]}
        write_json(index, parts)
    start = train(args, like_sd, bright, "epsilon")
    arms = {
        "plain": (),
        "noise_offset": (f"--noise_offset={args.noise_offset}",),
        "zero_snr": ("--rescale_betas_zero_snr", "--prediction_type=v_prediction"),
    }
    real = gray_levels(dark, "test")
    result = {"real_halves": distances(real[::2], real[1::2])}
    for name, flags in arms.items():
        model = train(args, start, dark, name, *flags)
        result[name] = distances(real, gray_levels(draw(args, model, dark), None))
    write_json(args.output_dir / "result.json", result)
    print_result(result)
    return 0


if __name__ == "__main__":
    cli.main_guard(main)
