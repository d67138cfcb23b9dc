"""Flags of the latent cache, with what does not go together; nothing heavy is imported."""

import argparse
from pathlib import Path

from utils import cli

FOLDER_NAME = "latent_cache"


def add_cache_flags(add) -> None:
    """Add the flags, given a parser's or group's ``add_argument``."""
    add(
        "--cache_latents",
        action=argparse.BooleanOptionalAction,
        help="encode images and captions once and keep them on disk, for this run and others "
        "(default: where crops are not drawn anew and the disk has room)",
    )
    add(
        "--latent_cache_dir",
        type=Path,
        metavar="DIR",
        help="folder of what is encoded, on a disk that all processes share; it holds patients' "
        "images in a form that the VAE decodes, so keep it apart from the model; it may be deleted "
        f"at any time (default: {FOLDER_NAME} beside output_dir)",
    )
    add(
        "--cache_crops",
        type=cli.positive_int,
        metavar="K",
        help="with --resize_mode random_crop: K crops of each image, kept like other latents, in "
        "place of a new crop every time",
    )
    add(
        "--cache_only",
        action="store_true",
        help="encode and keep what is missing, print entries, bytes and folder, and end; start it "
        "with the flags of the training that is to use it",
    )


def cache_contradictions(args: argparse.Namespace) -> list[tuple[bool, str]]:
    """Rules as (is it broken, what is wrong) on flags taken together."""
    new_crops = args.resize_mode == "random_crop" and args.cache_crops is None
    wanted = [flag for flag in ("cache_latents", "cache_only") if getattr(args, flag)]
    inside = args.output_dir.resolve() in (
        *(latent_cache_dir(args).resolve(), *latent_cache_dir(args).resolve().parents),
    )
    return [
        (
            bool(wanted) and new_crops,
            f"--{(wanted or [''])[0]}: a random crop is new every time; add --cache_crops K, "
            "--center_crop or another --resize_mode",
        ),
        (
            args.cache_crops is not None and args.resize_mode != "random_crop",
            "--cache_crops needs --resize_mode random_crop",
        ),
        (
            args.cache_crops is not None and args.cache_latents is False,
            "--cache_crops: --no-cache_latents keeps no crops",
        ),
        (
            args.cache_only and args.cache_latents is False,
            "--cache_only: --no-cache_latents forbids it",
        ),
        (
            inside,
            "--latent_cache_dir is in --output_dir: patients' images must not travel with the "
            "model; name a folder elsewhere",
        ),
        (
            latent_cache_dir(args).exists() and not latent_cache_dir(args).is_dir(),
            f"--latent_cache_dir {latent_cache_dir(args)} is a file",
        ),
    ]


def latent_cache_dir(args: argparse.Namespace) -> Path:
    """The cache's folder."""
    beside = args.output_dir.absolute().parent / FOLDER_NAME
    return beside if args.latent_cache_dir is None else args.latent_cache_dir.expanduser()
