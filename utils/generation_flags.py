"""Flags of generate_synthetic_dataset.py, and what does not go together; nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils import cli, gate_flags
from utils.prompt_template_flag import add_prompt_template_flag

SAMPLERS = ("dpmsolver++", "ddim", "pndm", "unipc", "euler")  # those of utils.sampling
GRAY_MODES = ("auto", "always", "never")
FORMATS = ("folder", "webdataset")
PRECISIONS = ("no", "fp16", "bf16")
COMPILE_MODES = ("no", "regional", "whole")  # those of utils.unet_speed


def guidance_scale(text: str) -> float:
    """Flag type: a finite number of 1 or more."""
    value = cli.positive_float(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number >= 1 (1: no guidance)")
    return value


def batch_size(text: str) -> int | None:
    """Flag type: a number of images, or ``auto`` (None)."""
    return None if text == "auto" else cli.positive_int(text)


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """What to draw, and how much of it."""
    group = parser.add_argument_group("prompts (exactly one source)")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompt",
        type=cli.one_line,
        action="append",
        metavar="TEXT",
        help="a prompt; repeat for several",
    )
    source.add_argument(
        "--prompts_file",
        type=cli.existing_file,
        metavar="FILE",
        help=".txt with one prompt a line, or .csv with the column text, and label and num_images "
        "if wanted",
    )
    source.add_argument(
        "--prompts_from",
        type=cli.data_source,
        metavar="DATASET",
        help="the captions and labels of a data set (folder, CSV, shards or hub name)",
    )
    source.add_argument(
        "--template",
        type=cli.existing_file,
        metavar="FILE",
        help='a grammar in JSON, {"template": "{severity} {finding}, {side}", "slots": {...}}: all '
        "its combinations (docs/generation.md)",
    )
    group.add_argument(
        "--label",
        type=cli.one_line,
        action="append",
        metavar="NAME",
        help="label of a --prompt, in the same order; several diagnoses joined by ;",
    )
    group.add_argument(
        "--modality", type=cli.one_line, default="", help="modality of prompts without, e.g. OCT"
    )
    add_prompt_template_flag(group.add_argument)
    group.add_argument(
        "--prompts_split",
        choices=gate_flags.SPLITS,
        help="split of --prompts_from to take, if it has splits (default: train)",
    )


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
        "from a data set or template by --seed, else the first (default: what the prompts give)",
    )
    group.add_argument(
        "--num_images_per_prompt",
        type=cli.positive_int,
        metavar="K",
        help="images of each prompt that is used (default: 1, or what --num_images gives)",
    )


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
        nargs="+",
        default=[4.0],
        metavar="W",
        help="weight of the prompt: more of it draws findings clearer and all images more alike; "
        "1 switches guidance off and halves the work; several write one set each, guidance_W/, "
        "from the same noise (default: 4)",
    )
    group.add_argument(
        "--guidance_interval",
        type=cli.probability,
        nargs=2,
        default=[0.0, 1.0],
        metavar=("FROM", "TO"),
        help="guide only between these shares of the steps, 0 is the first, 1 the last: the others "
        "cost half (default: 0 1)",
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
        "--negative_prompt",
        type=cli.one_line,
        default="",
        metavar="TEXT",
        help="what guidance leads away from",
    )


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """What is written."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--format",
        choices=FORMATS,
        default="folder",
        help="a dataset folder, or WebDataset shards, OUTPUT_DIR/*.tar (default: %(default)s)",
    )
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
    group.add_argument(
        "--c2pa_cert",
        type=cli.existing_file,
        metavar="FILE",
        help="sign every PNG (C2PA content credentials) with this certificate chain in PEM, its "
        "own certificate first; needs --c2pa_key and the package c2pa-python",
    )
    group.add_argument(
        "--c2pa_key", type=cli.existing_file, metavar="FILE", help="its private key in PEM"
    )
    group.add_argument(
        "--c2pa_tsa_url",
        metavar="URL",
        help="time stamp authority that is asked over the network for every signature, so that "
        "it outlives the certificate (default: none, nothing leaves the machine)",
    )


def add_speed_flags(parser: argparse.ArgumentParser) -> None:
    """Where and how fast."""
    group = parser.add_argument_group("runtime")
    cli.add_runtime_flags(group, "seed", "device", "offline")
    group.add_argument(
        "--batch_size",
        type=batch_size,
        metavar="N",
        help="images drawn at once by each process, or auto: what the memory allows; changes no "
        "image (default: auto)",
    )
    group.add_argument(
        "--mixed_precision",
        choices=PRECISIONS,
        help="precision of U-Net and text encoder; the decoder stays in float32 (default: bf16 "
        "where the device computes in it, else no)",
    )
    group.add_argument(
        "--compile",
        choices=COMPILE_MODES,
        default="no",
        help="compile the U-Net, its transformer blocks or all of it: some minutes at the start, "
        "for GPUs (default: %(default)s)",
    )


def add_all(parser: argparse.ArgumentParser) -> None:
    """All of them, in groups."""
    add_prompt_flags(parser)
    add_number_flags(parser)
    add_sampling_flags(parser)
    gate_flags.add_gate_flags(parser)
    add_output_flags(parser)
    add_speed_flags(parser)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with status 2 where flags do not go together."""
    for problem in (*_prompt_problems(args), *_sampling_problems(args), *gate_flags.problems(args)):
        parser.error(problem)
    if args.model.startswith((".", "/", "~")) and not Path(args.model).expanduser().is_dir():
        parser.error(f"--model: no such folder: {args.model}")
    if bool(args.c2pa_cert) != bool(args.c2pa_key):
        parser.error("--c2pa_cert and --c2pa_key go together")
    if args.c2pa_tsa_url and (args.offline or not args.c2pa_cert):
        parser.error("--c2pa_tsa_url goes with --c2pa_cert, and not with --offline")
    for name in ("prompts_from", "train_dir", "real_dir"):
        source = Path(getattr(args, name) or "").expanduser()
        if getattr(args, name) and source.is_dir() and _within(args.output_dir, source):
            parser.error(
                f"--output_dir {args.output_dir} lies in --{name}: name a folder elsewhere"
            )
    if args.prompts_from and not args.prompts_split:
        args.prompts_split = "train"


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _prompt_problems(args: argparse.Namespace) -> Sequence[str]:
    found = []
    if args.label and not args.prompt:
        found.append("--label goes with --prompt; a file or data set brings its own labels")
    elif args.label and len(args.label) != len(args.prompt):
        found.append(f"{len(args.label)} --label for {len(args.prompt)} --prompt: one for each")
    if args.prompt and not all(text.strip() for text in args.prompt):
        found.append("--prompt: empty text")
    if args.prompts_split and not args.prompts_from:
        found.append("--prompts_split goes with --prompts_from")
    if args.class_balanced and (args.prompt or args.num_images is None):
        found.append(
            "--class_balanced needs --num_images, and --prompts_from, --prompts_file or --template"
        )
    return found


def _sampling_problems(args: argparse.Namespace) -> Sequence[str]:
    found = []
    if args.eta and args.sampler != "ddim":
        found.append(f"--eta goes with --sampler ddim, not {args.sampler}")
    if 1 in args.guidance_scale and (args.negative_prompt or args.guidance_rescale):
        found.append("--negative_prompt and --guidance_rescale do nothing at --guidance_scale 1")
    if not args.guidance_interval[0] < args.guidance_interval[1]:
        found.append("--guidance_interval: the first number must be below the second")
    if len({f"{scale:g}" for scale in args.guidance_scale}) < len(args.guidance_scale):
        found.append("--guidance_scale: a value is given twice")
    if len(args.guidance_scale) > 1 and args.format == "webdataset":
        found.append("--format webdataset takes one --guidance_scale: compare folders first")
    return found
