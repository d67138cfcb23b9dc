#!/usr/bin/env python
r"""Draw a labelled data set from a fine-tuned Stable Diffusion pipeline.

Image i depends on the model, its prompt, the sampler's settings and (--seed, i) alone: batch size,
interruptions and the order of the work change no byte (on a GPU a grey level here and there). The
same command started again goes on where it stopped. Every PNG says that it is synthetic.

Examples:
  # ten images of one finding
  python generate_synthetic_dataset.py --model runs/oct --prompt "macular edema with cysts" \
      --label "macular edema" --num_images 10 --output_dir runs/edema

  # as many images as captions, the findings as frequent as in the training split
  python generate_synthetic_dataset.py --model runs/oct --prompts_from data/oct \
      --output_dir runs/synthetic

  # 6,000 images, every label equally often, four images a prompt
  python generate_synthetic_dataset.py --model runs/oct --prompts_from data/oct --class_balanced \
      --num_images 6000 --num_images_per_prompt 4 --batch_size 32 --output_dir runs/balanced

  # prompts of a table with the columns text and label; nothing is downloaded
  python generate_synthetic_dataset.py --model runs/oct --prompts_file prompts.csv \
      --num_images_per_prompt 8 --offline --output_dir runs/table

Writes images/000000.png and so on, metadata.csv (a dataset folder), manifest.csv (every attempt),
dataset_card.md and options.json. The result is printed as JSON.
"""

import argparse
import errno
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli
from utils.cli import UserError
from utils.run_folder import (
    get_logger,
    print_result,
    sha256_file,
    write_text,
)

if TYPE_CHECKING:
    from torch import Tensor

    from utils.image_sampler import ImageSampler, PromptEncoder
    from utils.prompts import Prompt

SAMPLERS = ("dpmsolver++", "ddim", "pndm", "unipc", "euler")  # those of utils.sampling
GRAY_MODES = ("auto", "always", "never")
MAX_PROMPTS_NAMED = 5

# Flags that may differ between a run and its continuation: they change no image.
FREE_FLAGS = ("output_dir", "batch_size", "device", "offline", "overwrite")
OUTPUTS = ("images/[0-9]*.png", "manifest.csv", "metadata.csv", "dataset_card.md")

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

logger = get_logger("generate")


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR|NAME", help="pipeline folder, or its name on the hub"
    )
    cli.add_runtime_flags(parser, "output_dir")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete what an earlier run wrote to --output_dir (default: continue it)",
    )
    add_prompt_flags(parser)
    add_sampling_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--gray",
        choices=GRAY_MODES,
        default="auto",
        help="write 8-bit gray PNG: auto where the colour is weak (8 grey levels between the "
        "channels, in the mean), always, or never (default: %(default)s)",
    )
    group.add_argument(
        "--embed_prompt",
        action="store_true",
        help="put the prompt into the PNG's metadata (default: its hash only; a prompt may come "
        "from a patient's report)",
    )
    group = parser.add_argument_group("runtime")
    cli.add_runtime_flags(group, "seed", "batch_size", "device", "offline")
    group.add_argument(
        "--mixed_precision",
        choices=("no", "fp16", "bf16"),
        default="no",
        help="precision of U-Net and text encoder; the decoder stays in float32 "
        "(default: %(default)s)",
    )
    return parser


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """What to draw, and how much of it."""
    group = parser.add_argument_group("prompts (exactly one source)")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a prompt; repeat for several"
    )
    source.add_argument(
        "--prompts_file",
        type=cli.existing_file,
        metavar="FILE",
        help=".txt with one prompt a line, or .csv with the column text, and label if known",
    )
    source.add_argument(
        "--prompts_from",
        metavar="DATASET",
        help="the captions and labels of a data set (folder, CSV, shards or hub name)",
    )
    group.add_argument(
        "--label",
        action="append",
        metavar="NAME",
        help="label of a --prompt, in the same order; several diagnoses joined by ;",
    )
    group.add_argument("--modality", default="", help="modality of prompts without, e.g. OCT")
    group.add_argument(
        "--prompts_split",
        choices=("train", "val", "test"),
        help="split of --prompts_from to take, if it has splits (default: train)",
    )
    add_number_flags(parser)


def add_number_flags(parser: argparse.ArgumentParser) -> None:
    """How many images, of which prompts."""
    group = parser.add_argument_group("number of images")
    group.add_argument(
        "--class_balanced",
        action="store_true",
        help="the same number of images for every label; needs --num_images (default: labels as "
        "frequent as in the prompts)",
    )
    group.add_argument(
        "--num_images",
        type=cli.positive_int,
        metavar="N",
        help="images in all, spread evenly over the prompts; where they cannot all be used, drawn "
        "from a data set by --seed, else the first (default: what the prompts give)",
    )
    group.add_argument(
        "--num_images_per_prompt",
        type=cli.positive_int,
        metavar="K",
        help="images of each prompt that is used (default: 1, or what --num_images gives)",
    )


def guidance_scale(text: str) -> float:
    """Flag type: a finite number of 1 or more."""
    value = cli.positive_float(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number >= 1 (1: no guidance)")
    return value


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """How to draw."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--sampler", choices=SAMPLERS, default="dpmsolver++", help="(default: %(default)s)"
    )
    group.add_argument(
        "--num_inference_steps",
        type=cli.positive_int,
        default=25,
        metavar="N",
        help="denoising steps (default: %(default)s)",
    )
    group.add_argument(
        "--eta",
        type=cli.probability,
        default=0.0,
        metavar="P",
        help="share of fresh noise in each step of --sampler ddim, 0 to 1 (default: %(default)s)",
    )
    group.add_argument(
        "--resolution",
        type=cli.resolution,
        metavar="PX",
        help="side of the images (default: the model's own)",
    )
    add_guidance_flags(parser)


def add_guidance_flags(parser: argparse.ArgumentParser) -> None:
    """How much the prompt weighs."""
    group = parser.add_argument_group("guidance")
    group.add_argument(
        "--guidance_scale",
        type=guidance_scale,
        default=4.0,
        metavar="W",
        help="weight of the prompt: more of it draws findings clearer and all images more alike; "
        "1 switches guidance off and halves the work (default: %(default)g)",
    )
    group.add_argument(
        "--guidance_rescale",
        type=cli.probability,
        default=0.0,
        metavar="P",
        help="undo this share of the contrast that guidance adds, 0 to 1; about 0.7 helps "
        "zero-terminal-SNR models (default: %(default)s)",
    )
    group.add_argument(
        "--negative_prompt", default="", metavar="TEXT", help="what guidance leads away from"
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.label and not args.prompt:
        parser.error("--label goes with --prompt; a file or data set brings its own labels")
    if args.label and len(args.label) != len(args.prompt):
        parser.error(f"{len(args.label)} --label for {len(args.prompt)} --prompt: one for each")
    if args.prompt and not all(text.strip() for text in args.prompt):
        parser.error("--prompt: empty text")
    if args.prompts_split and not args.prompts_from:
        parser.error("--prompts_split goes with --prompts_from")
    if args.class_balanced and (args.prompt or args.num_images is None):
        parser.error("--class_balanced needs --num_images, and --prompts_from or --prompts_file")
    if args.eta and args.sampler != "ddim":
        parser.error(f"--eta goes with --sampler ddim, not {args.sampler}")
    if args.guidance_scale == 1 and (args.negative_prompt or args.guidance_rescale):
        parser.error("--negative_prompt and --guidance_rescale do nothing at --guidance_scale 1")
    if args.model.startswith((".", "/", "~")) and not Path(args.model).expanduser().is_dir():
        parser.error(f"--model: no such folder: {args.model}")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        parser.error(f"--output_dir: not a folder: {args.output_dir}")
    if args.prompts_from and not args.prompts_split:
        args.prompts_split = "train"
    return args


def make_plan(args: argparse.Namespace) -> list["Prompt"]:
    """Read the prompts and give each image its own."""
    from utils import prompts as prompt_sources

    if args.prompt:
        prompts = prompt_sources.prompts_from_flags(args.prompt, args.label)
    elif args.prompts_file:
        prompts = prompt_sources.read_prompts_file(args.prompts_file)
    else:
        prompts = prompt_sources.prompts_from_dataset(
            args.prompts_from, split=args.prompts_split, offline=args.offline
        )
    plan = prompt_sources.plan_images(
        prompts,
        num_images=args.num_images,
        images_per_prompt=args.num_images_per_prompt,
        class_balanced=args.class_balanced,
        shuffle_seed=args.seed if args.prompts_from else None,
    )
    num_used = len({prompt.where for prompt in plan})
    logger.info("%d images of %d of %d prompts", len(plan), num_used, len(prompts))
    return plan


def find_model(model: str, *, offline: bool) -> Path:
    """Folder of the pipeline; one from the hub is downloaded first.

    Raises:
        UserError: If there is no such folder, and no such model on the hub or in its cache.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        from diffusers import DiffusionPipeline

        from utils.diffusion import silence_libraries

        silence_libraries()
        try:
            without = {"safety_checker": None, "feature_extractor": None}
            path = DiffusionPipeline.download(model, local_files_only=offline, **without)
            folder = Path(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--model {model}: no folder of this name, and not to be had from the hub"
                f"{' cache (--offline)' if offline else ''}: {error}"
            ) from error
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"--model {model}: no pipeline folder, it has no model_index.json "
            "(a checkpoint of a training run is none; take the run's folder)"
        )
    return folder


def identity_of_run(
    args: argparse.Namespace, plan: Sequence["Prompt"], model_dir: Path
) -> dict[str, object]:
    """What decides over the images beside the flags; a continued run must agree in all of it."""
    from utils.provenance import hash_pipeline

    content = [(prompt.text, prompt.label, prompt.modality) for prompt in plan]
    return {
        "num_images": len(plan),
        "plan_sha256": sha256(json.dumps(content).encode()).hexdigest(),
        "model_hash": hash_pipeline(model_dir),
        "device_type": cli.resolve_device(args.device).partition(":")[0],
    }


def load_sampler(
    args: argparse.Namespace, model_dir: Path
) -> tuple["ImageSampler", "PromptEncoder"]:
    """Load the pipeline's parts, never its safety checker, and put them on the device."""
    import torch

    from utils.diffusion import load_pipeline
    from utils.image_sampler import ImageSampler, PromptEncoder
    from utils.sampling import Settings, vae_factor

    device = cli.resolve_device(args.device)
    if device == "cpu" and args.mixed_precision == "fp16":
        raise UserError("--mixed_precision fp16 is for GPUs; on a CPU use bf16 or no")
    pipeline = load_pipeline(model_dir, offline=True)
    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    for part in (pipeline.unet, pipeline.text_encoder):
        part.to(device, dtype[args.mixed_precision])
    encoder = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder)
    sampler = ImageSampler(
        unet=pipeline.unet,
        vae=pipeline.vae.to(device),
        encoder=encoder,
        scheduler_config=pipeline.scheduler.config,
        settings=Settings(
            sampler=args.sampler,
            num_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            guidance_rescale=args.guidance_rescale,
            negative_prompt=args.negative_prompt,
            eta=args.eta,
        ),
        resolution=args.resolution or pipeline.unet.config.sample_size * vae_factor(pipeline.vae),
    )
    return sampler, encoder


def tell_cut_prompts(encoder: "PromptEncoder", plan: Sequence["Prompt"]) -> None:
    """Warn of prompts whose end the model does not see."""
    places = {prompt.text: prompt.where for prompt in plan}
    lengths = {where: encoder.num_tokens(text) for text, where in places.items()}
    cut = [where for where, length in lengths.items() if length > encoder.max_tokens]
    if cut:
        logger.warning(
            "%d prompt(s) are longer than the %d tokens the model reads, what is beyond has no "
            "effect: %s%s",
            len(cut),
            encoder.max_tokens,
            ", ".join(f"{where} ({lengths[where]} tokens)" for where in cut[:MAX_PROMPTS_NAMED]),
            ", ..." if len(cut) > MAX_PROMPTS_NAMED else "",
        )


def batches(num_images: int, size: int) -> Iterator[range]:
    """Indices in batches that are the same whether or not a run was interrupted."""
    for start in range(0, num_images, size):
        yield range(start, min(start + size, num_images))


def draw_images(
    args: argparse.Namespace,
    plan: Sequence["Prompt"],
    sampler: "ImageSampler",
    model_hash: str,
    done: dict[int, dict[str, str]],
) -> None:
    """The sampling loop: every image that is not in ``done`` is drawn, saved, and put there."""
    from tqdm import tqdm

    from utils.manifest import ManifestWriter
    from utils.pictures import check_image
    from utils.sampling import image_seed

    group = sampler.group_size or 1
    size = -(-args.batch_size // group) * group
    cores = cli.available_cores()
    if sampler.group_size and size < min(cores * group, len(plan)):
        logger.info(
            "%d of %d cores draw; --batch_size %d uses all", size // group, cores, cores * group
        )
    progress = tqdm(total=len(plan), initial=len(done), unit="image", desc="drawing")
    with progress, ManifestWriter(args.output_dir / "manifest.csv") as manifest:
        for batch in batches(len(plan), size):
            missing = [index for index in batch if index not in done]
            if not missing:
                continue
            # In whole, though some may be done: on a GPU rounding depends on the batch.
            seeds = [image_seed(args.seed, index) for index in batch]
            pictures = sampler.sample([plan[index].text for index in batch], seeds)
            for index, pixels in zip(batch, pictures):
                check_image(pixels, index, plan[index])
            rows = [
                save_image(args, index, plan[index], pictures[index - batch.start], model_hash)
                for index in missing
            ]
            manifest.append(rows)
            done.update(zip(missing, rows))
            progress.update(len(missing))


def save_image(
    args: argparse.Namespace, index: int, prompt: "Prompt", pixels: "Tensor", model_hash: str
) -> dict[str, str]:
    """Write one PNG with its mark; returns its line of the manifest."""
    from utils.images import save_png
    from utils.pictures import finish_image
    from utils.provenance import png_text
    from utils.sampling import image_seed

    seed = image_seed(args.seed, index)
    picture, chroma = finish_image(pixels, args.gray)
    name = f"images/{index:06d}.png"
    mark = png_text(
        prompt_sha256=prompt.sha256,
        seed=seed,
        model_hash=model_hash,
        prompt=prompt.text if args.embed_prompt else None,
    )
    save_png(picture, args.output_dir / name, text=mark)
    return {
        "index": str(index),
        "file_name": name,
        "text": prompt.text,
        "label": prompt.label,
        "source": "synthetic",
        "modality": prompt.modality or args.modality,
        "prompt": prompt.text,
        "seed": str(seed),
        "model": args.model,
        "model_hash": model_hash,
        "sampler": args.sampler,
        "steps": str(args.num_inference_steps),
        "guidance": f"{args.guidance_scale:g}",
        "score": "",
        "accepted": "true",
        "attempt": "0",
        "prompt_sha256": prompt.sha256,
        "chroma": f"{chroma:.3f}",
        "png_sha256": sha256_file(args.output_dir / name),
    }


def summarise(args: argparse.Namespace, rows: Sequence[Mapping[str, str]]) -> dict[str, object]:
    """The numbers of the set, for the card and for stdout."""
    from utils.pictures import is_gray

    dropped = [float(row["chroma"]) for row in rows if is_gray(float(row["chroma"]), args.gray)]
    labels = Counter(row["label"] for row in rows)
    return {
        "num_images": len(rows),
        "num_prompts": len({row["prompt_sha256"] for row in rows}),
        "per_label": {label or "(none)": labels[label] for label in sorted(labels)},
        "model": args.model,
        "model_hash": rows[0]["model_hash"],
        "num_gray": len(dropped),
        "chroma_dropped_mean": round(sum(dropped) / len(dropped), 3) if dropped else None,
        "chroma_dropped_max": max(dropped, default=None),
    }


def write_tables(
    args: argparse.Namespace, done: Mapping[int, Mapping[str, str]]
) -> dict[str, object]:
    """Write what makes the folder a data set: manifest in order, metadata.csv, the card."""
    from utils.dataset import write_dataset
    from utils.dataset_card import dataset_card
    from utils.manifest import DATASET_FIELDS, write_manifest

    rows = [done[index] for index in sorted(done)]
    write_manifest(args.output_dir / "manifest.csv", rows)
    summary = summarise(args, rows)
    write_text(args.output_dir / "dataset_card.md", dataset_card(args, summary))
    # Last: whoever finds a metadata.csv finds a complete data set.
    write_dataset(args.output_dir, ({name: row[name] for name in DATASET_FIELDS} for row in rows))
    return summary


def run(
    args: argparse.Namespace, plan: Sequence["Prompt"], model_dir: Path, identity: Mapping
) -> dict[str, object]:
    """Open or continue the folder, draw what is missing, write the tables."""
    from utils import manifest
    from utils.resumable_run import open_run

    open_run(
        args.output_dir,
        args,
        identity=identity,
        free_flags=FREE_FLAGS,
        outputs=OUTPUTS,
        # A run that ended before its first image stands in nobody's way.
        anew=args.overwrite or not any(args.output_dir.glob(OUTPUTS[0])),
    )
    manifest_path = args.output_dir / "manifest.csv"
    done = manifest.whole_images(manifest.read_manifest(manifest_path), args.output_dir)
    if done:
        logger.info("%d of %d images are there already", len(done), len(plan))
    # Anew, so that what follows is appended to whole lines of whole images.
    manifest.write_manifest(manifest_path, (done[index] for index in sorted(done)))
    num_before = len(done)
    start = time.monotonic()
    if num_before < len(plan):
        sampler, encoder = load_sampler(args, model_dir)
        tell_cut_prompts(encoder, plan)
        start = time.monotonic()
        draw_images(args, plan, sampler, identity["model_hash"], done)
    seconds = time.monotonic() - start
    num_drawn = len(done) - num_before
    return {
        "output_dir": args.output_dir,
        **write_tables(args, done),
        "num_drawn_now": num_drawn,
        "images_per_second": round(num_drawn / seconds, 3) if num_drawn else None,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, plan, draw, write."""
    args = parse_args(argv)
    if args.offline:
        cli.go_offline()
    plan = make_plan(args)
    model_dir = find_model(args.model, offline=args.offline)
    identity = identity_of_run(args, plan, model_dir)
    from utils.resumable_run import only_writer

    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        with only_writer(args.output_dir):
            result = run(args, plan, model_dir, identity)
    except OSError as error:
        path = error.filename
        is_output = path is None or Path(path).is_relative_to(args.output_dir)
        if error.errno not in CANNOT_WRITE or not is_output:
            raise
        raise UserError(
            f"--output_dir {args.output_dir} cannot be written: {error}. What is there is whole: "
            "put it right and start the same command again"
        ) from error
    print_result(result)


if __name__ == "__main__":
    cli.main_guard(main)
