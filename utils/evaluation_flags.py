"""Flags of evaluate.py, with what does not go together; nothing heavy is imported."""

from __future__ import annotations

import argparse
from pathlib import Path

from utils import cli, extractor_names
from utils.run_folder import FEATURE_CACHE

METRICS = (
    "fid",
    "kid",
    "cmmd",
    "prdc",
    "inception_score",
    "ms_ssim",
    "agreement",
    "cas",
    "retrieval",
    "copies",
)
DISTANCES = ("fid", "kid", "cmmd", "prdc")
FEATURE_METRICS = (*DISTANCES, "inception_score")
RESIZE_MODES = ("center_crop", "pad", "stretch")  # of training's modes those that draw nothing
COLUMNS = ("image", "caption", "label", "patient")
NO_CLASSES = ("clip", "dinov2", "vit")
TRAIN_ENCODER = "train"


def extractor_name(text: str) -> str:
    """Flag type: a feature network that can be loaded."""
    prefix = extractor_names.CLASSIFIER_PREFIX
    if text.startswith(prefix):
        return f"{prefix}{cli.existing_dir(text.removeprefix(prefix))}"
    if text not in extractor_names.WEIGHT_FILES:
        choices = f"{', '.join(extractor_names.WEIGHT_FILES)} or {prefix}DIR"
        raise argparse.ArgumentTypeError(f"{text!r} is none of {choices}")
    return text


def model_name(text: str) -> str:
    """Flag type: a folder or file that exists, or what can be a name on the hub."""
    path = Path(text).expanduser()
    if not path.exists() and not cli.looks_like_hub_name(text):
        raise argparse.ArgumentTypeError(f"no such file or folder, nor a hub name: {text!r}")
    return str(path) if path.exists() else text


def encoder_name(text: str) -> str:
    """Flag type: ``train``, or a model as `model_name`."""
    return text if text == TRAIN_ENCODER else model_name(text)


def add_data_flags(group: argparse._ArgumentGroup) -> None:
    """What is compared with what."""
    add = group.add_argument
    add("--real_dir", type=cli.data_source, required=True, help="the real images")
    add("--synthetic_dir", type=cli.data_source, help="the synthetic ones")
    add(
        "--compare",
        type=cli.data_source,
        nargs="+",
        metavar="DIR",
        help="several synthetic sets side by side, in place of --synthetic_dir; each is drawn down "
        "to the smallest one's number, for distances of unequal N do not compare",
    )
    add(
        "--real_split",
        choices=("train", "val", "test"),
        help="use this split of the real set, if it has splits (default: all of it)",
    )
    add(
        "--train_dir",
        type=cli.data_source,
        help="the images that the generator was trained on (of splits: train): for the audit of "
        "copies, and what cas and retrieval are compared with or learnt from",
    )
    for name in COLUMNS:
        add(f"--{name}_column", metavar="NAME", help=f"the {name} column of the real sets' tables")
    add("--skip_invalid", action="store_true", help="drop broken rows instead of refusing the set")
    add(
        "--num_images",
        type=cli.positive_int,
        help="use at most so many images of each set, drawn with the seed (default: all)",
    )
    add(
        "--resolution",
        type=cli.positive_int,
        help="side in pixels beyond which no metric sees detail (default: the synthetic images' "
        "shorter side)",
    )
    add(
        "--resize_mode",
        choices=RESIZE_MODES,
        default="center_crop",
        help="how images become squares; the generator's training should have used the same "
        "(default: %(default)s)",
    )


def add_metric_flags(group: argparse._ArgumentGroup) -> None:
    """What is computed."""
    add = group.add_argument
    add(
        "--metrics",
        nargs="+",
        choices=METRICS,
        help="what to compute; prdc is precision, recall, density, coverage (default: all that the "
        "flags allow, but cas, which trains a classifier, only if named)",
    )
    add(
        "--max_pairs",
        type=cli.positive_int,
        default=2000,
        help="image pairs of each set for ms_ssim, at most (default: %(default)s)",
    )
    add(
        "--inception_score_splits",
        type=cli.positive_int,
        default=10,
        help="parts that the inception score is averaged over; fewer, and said so, where a part "
        "would have under 10 images (default: %(default)s)",
    )
    add(
        "--bootstrap",
        type=cli.non_negative_int,
        default=50,
        metavar="N",
        help="resamples for the interval of fid; under 2: no interval (default: %(default)s)",
    )
    add(
        "--fail_above",
        type=cli.probability,
        metavar="SHARE",
        help="exit with status 1 if a larger share of the synthetic images are copies of training "
        "images, so that a release can be gated; results are written all the same",
    )


def add_network_flags(group: argparse._ArgumentGroup) -> None:
    """By which networks."""
    add = group.add_argument
    add(
        "--feature_extractor",
        type=extractor_name,
        default="inception",
        metavar="NAME",
        help="network of the distances and the inception score: inception (the FID's own), clip, "
        "dinov2, vit (RETFound-like), classifier:DIR, or torchvision-inception (not the FID's) "
        "(default: %(default)s)",
    )
    add(
        "--feature_weights",
        type=model_name,
        metavar="PATH",
        help="its weights: a file for the Inceptions and vit, a folder or hub name for clip and "
        "dinov2",
    )
    add(
        "--classifier",
        type=cli.existing_dir,
        metavar="DIR",
        help="diagnosis classifier for agreement and an inception score over diagnoses (default: "
        "that of --feature_extractor)",
    )
    add(
        "--model",
        type=model_name,
        metavar="DIR",
        help="the generator's pipeline: adds to each distance its VAE's floor, real images against "
        "what the VAE makes of them",
    )
    add(
        "--retrieval_encoder",
        type=encoder_name,
        metavar="NAME",
        help="image-text model for retrieval: a CLIP-family folder or hub name (BiomedCLIP as a "
        "folder), or train: a small one, trained on real pairs",
    )
    add(
        "--feature_cache_dir",
        type=Path,
        metavar="DIR",
        help="folder of features, kept by the images' content, on a disk that all processes "
        f"share; may be deleted at any time (default: {FEATURE_CACHE} beside output_dir)",
    )


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse contradictions, and fill in what depends on other flags; may exit with status 2."""
    if (args.synthetic_dir is None) == (args.compare is None):
        parser.error("give either --synthetic_dir or --compare")
    for flag, sources in (("--synthetic_dir", [args.synthetic_dir]), ("--compare", args.compare)):
        if any(source and same_place(source, args.real_dir) for source in sources or ()):
            parser.error(f"--real_dir and {flag} are the same")
    if args.compare and len({Path(source).resolve() for source in args.compare}) < len(
        args.compare
    ):
        parser.error("--compare names a set twice")
    prefix = extractor_names.CLASSIFIER_PREFIX
    if args.classifier is None and args.feature_extractor.startswith(prefix):
        args.classifier = Path(args.feature_extractor.removeprefix(prefix))
    if args.metrics is None:
        left_out = {"cas"} | {name for name, flags in _needs(args).items() if flags}
        if args.feature_extractor in NO_CLASSES and not args.classifier:
            left_out.add("inception_score")
        args.metrics = [name for name in METRICS if name not in left_out]
    for name in args.metrics:
        if flags := _needs(args).get(name):
            parser.error(f"--metrics {name} needs {flags}")
    if args.fail_above is not None and "copies" not in args.metrics:
        parser.error("--fail_above needs --train_dir DIR and, where --metrics is given, copies")
    _check_extractor(parser, args)
    if args.feature_cache_dir is None:
        args.feature_cache_dir = args.output_dir.absolute().parent / FEATURE_CACHE
    _check_folders(parser, args)


def same_place(one: str, other: str) -> bool:
    """Whether two data sources are the same files."""
    return _place(one) == _place(other)


def _place(source: str | Path) -> Path:
    return Path(source).expanduser().resolve()


def _check_folders(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse to write over data, or to keep features where data may be passed on."""
    sources = [args.real_dir, args.train_dir, args.synthetic_dir, *(args.compare or ())]
    written, kept = _place(args.output_dir), _place(args.feature_cache_dir)
    for source in filter(None, sources):
        place = _place(source)
        if written == place or (args.compare and written == place.parent):
            parser.error(f"--output_dir {args.output_dir} would be written into {source}")
        if place in (kept, *kept.parents):
            parser.error(
                f"--feature_cache_dir {args.feature_cache_dir} is in {source}: what is kept of "
                "patients' images must not travel with a data set; name a folder elsewhere"
            )


def _needs(args: argparse.Namespace) -> dict[str, str]:
    """Metric -> the flag that it lacks; empty where it lacks none."""
    return {
        "cmmd": "" if args.feature_extractor == "clip" else "--feature_extractor clip",
        "agreement": "" if args.classifier else "--classifier DIR",
        "retrieval": "" if args.retrieval_encoder else "--retrieval_encoder train|PATH",
        "copies": "" if args.train_dir else "--train_dir DIR",
    }


def _check_extractor(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse a feature network without its weights, or with some that it does not take."""
    name, prefix = args.feature_extractor, extractor_names.CLASSIFIER_PREFIX
    wanted = bool(set(FEATURE_METRICS) & set(args.metrics))
    if name.startswith(prefix):
        if args.feature_weights is not None:
            parser.error("--feature_weights: a classifier's are in its DIR")
    elif wanted and args.feature_weights is None:
        parser.error(
            f"--feature_extractor {name} needs --feature_weights PATH: "
            f"{extractor_names.WEIGHT_FILES[name]}. Or choose --feature_extractor {prefix}DIR, or "
            f"--metrics without {', '.join(FEATURE_METRICS)}"
        )
    elif wanted and name not in extractor_names.HUB_MODELS and not _is_file(args.feature_weights):
        parser.error(f"--feature_weights: no such file: {args.feature_weights!r}")


def _is_file(text: str) -> bool:
    return Path(text).is_file()
