r"""Measure how close a synthetic image set is to a real one.

Reads two data sets (a dataset folder, class folders, a CSV, *.tar shards or a hub name), brings
every image to one size in one way, and writes to --output_dir: options.json, metrics.json and
report.html, a page that needs no network. The result is printed as JSON too.

Metrics
  fid              Fréchet distance of the features: lower is closer; with its floor, the distance
                   between two halves of the real set
  inception_score  sure and varied class predictions: higher is better; sees no real image
  ms_ssim          how alike images of one prompt are: best near the real set's own value
  agreement        share of images whose asked diagnosis a classifier recognises: higher is better
docs/metrics.md has definitions, sources and what compares with published figures.

Examples:
  python evaluate.py --real_dir data/clinic --real_split test --synthetic_dir runs/synthetic \
    --feature_extractor inception --feature_weights weights-inception-2015-12-05-6726825d.pth \
    --output_dir runs/evaluation
  python evaluate.py --real_dir data/clinic --real_split test --synthetic_dir runs/synthetic \
    --feature_extractor classifier:runs/diagnosis/classifier --output_dir runs/evaluation
  python evaluate.py --real_dir data/clinic --synthetic_dir runs/synthetic --metrics ms_ssim \
    --output_dir runs/diversity
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli, extractor_names

if TYPE_CHECKING:
    from utils.classifier import Classifier
    from utils.features import FeatureExtractor
    from utils.image_sets import ImageSet

METRICS = ("fid", "inception_score", "ms_ssim", "agreement")
FEATURE_METRICS = ("fid", "inception_score")
RESIZE_MODES = ("center_crop", "pad", "stretch")  # of training's modes those that draw nothing
COLUMNS = ("image", "caption", "label", "patient")
TILES_PER_LABEL = 8


def data_source(text: str) -> str:
    """Flag type: a file or folder that exists, shards, or what may be a hub name."""
    path = Path(text).expanduser()
    like_hub_name = text.count("/") == 1 and not text.startswith((".", "/", "~"))
    maybe_hub = like_hub_name and not path.parent.exists() and not path.suffix
    if not text or not (path.exists() or text.endswith(".tar") or maybe_hub):
        raise argparse.ArgumentTypeError(f"no such file or folder: {text!r}")
    return text


def extractor_name(text: str) -> str:
    """Flag type: a feature network that can be loaded."""
    prefix = extractor_names.CLASSIFIER_PREFIX
    choices = f"{', '.join(extractor_names.WEIGHT_FILES)} or {prefix}DIR"
    if text.startswith(prefix):
        cli.existing_dir(text.removeprefix(prefix))
    elif text in extractor_names.NOT_YET:
        raise argparse.ArgumentTypeError(f"{text!r} is not built yet; use {choices}")
    elif text not in extractor_names.WEIGHT_FILES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {choices}")
    return text


def build_parser() -> argparse.ArgumentParser:
    """All flags, in groups."""
    parser = cli.make_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--real_dir", type=data_source, required=True, help="the real images")
    data.add_argument("--synthetic_dir", type=data_source, required=True, help="the synthetic ones")
    data.add_argument(
        "--real_split",
        choices=("train", "val", "test"),
        help="use this split of the real set, if it has splits (default: all of it)",
    )
    for name in COLUMNS:
        data.add_argument(
            f"--{name}_column", metavar="NAME", help=f"the {name} column of the real set's table"
        )
    data.add_argument(
        "--skip_invalid", action="store_true", help="drop broken rows instead of refusing the set"
    )
    data.add_argument(
        "--resolution",
        type=cli.positive_int,
        help="side in pixels to which every image is brought before any metric "
        "(default: the synthetic images' shorter side)",
    )
    data.add_argument(
        "--resize_mode",
        choices=RESIZE_MODES,
        default="center_crop",
        help="how; the generator's training should have used the same (default: %(default)s)",
    )
    _add_metric_flags(parser.add_argument_group("metrics"))
    _add_network_flags(parser.add_argument_group("networks"))
    run = parser.add_argument_group("run")
    shared = ("output_dir", "seed", "batch_size", "num_workers", "device", "offline")
    cli.add_runtime_flags(run, *shared, batch_size=32)
    return parser


def _add_metric_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        help="what to compute (default: all; agreement only with a classifier)",
    )
    group.add_argument(
        "--max_pairs",
        type=cli.positive_int,
        default=2000,
        help="image pairs of each set for ms_ssim, at most (default: %(default)s)",
    )
    group.add_argument(
        "--inception_score_splits",
        type=cli.positive_int,
        default=10,
        help="parts that the inception score is averaged over; fewer, and said so, where a part "
        "would have under 10 images (default: %(default)s)",
    )
    group.add_argument(
        "--bootstrap",
        type=cli.non_negative_int,
        default=50,
        metavar="N",
        help="resamples for the interval of fid; under 2: no interval (default: %(default)s)",
    )


def _add_network_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--feature_extractor",
        type=extractor_name,
        default="inception",
        metavar="NAME",
        help="network of fid and inception_score: inception (the FID's own), classifier:DIR, or "
        "torchvision-inception (not the FID's) (default: %(default)s)",
    )
    group.add_argument(
        "--feature_weights",
        type=cli.existing_file,
        metavar="PATH",
        help="weight file of the two Inceptions; nothing is downloaded",
    )
    group.add_argument(
        "--classifier",
        type=cli.existing_dir,
        metavar="DIR",
        help="diagnosis classifier for agreement (default: that of --feature_extractor)",
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if Path(args.real_dir).resolve() == Path(args.synthetic_dir).resolve():
        parser.error("--real_dir and --synthetic_dir are the same")
    prefix = extractor_names.CLASSIFIER_PREFIX
    on_classifier = args.feature_extractor.startswith(prefix)
    if args.classifier is None and on_classifier:
        args.classifier = Path(args.feature_extractor.removeprefix(prefix))
    if args.metrics is None:
        args.metrics = [name for name in METRICS if name != "agreement" or args.classifier]
    if "agreement" in args.metrics and args.classifier is None:
        parser.error("--metrics agreement needs --classifier DIR")
    if args.feature_weights is not None and on_classifier:
        parser.error("--feature_weights is for the two Inceptions; a classifier's are in its DIR")
    wants_features = bool(set(FEATURE_METRICS) & set(args.metrics))
    if wants_features and not on_classifier and args.feature_weights is None:
        files = extractor_names.WEIGHT_FILES[args.feature_extractor]
        parser.error(
            f"--feature_extractor {args.feature_extractor} needs --feature_weights PATH: the file "
            f"{files}. Or choose --feature_extractor {prefix}DIR, or --metrics without "
            f"{' and '.join(FEATURE_METRICS)}"
        )
    return args


def load_sets(args: argparse.Namespace) -> tuple[ImageSet, ImageSet]:
    """Read and check both sets; every problem of a set is reported at once."""
    from utils.dataset import load_dataset
    from utils.image_sets import ImageSet, common_side

    common = {
        "skip_invalid": args.skip_invalid,
        "num_workers": args.num_workers,
        "offline": args.offline,
    }
    columns = {f"{name}_column": getattr(args, f"{name}_column") for name in COLUMNS}
    real = load_dataset(args.real_dir, split=args.real_split, **columns, **common)
    synthetic = load_dataset(args.synthetic_dir, **common)
    size = (args.resolution or common_side(synthetic), args.resize_mode, args.num_workers)
    return ImageSet("real", real, *size), ImageSet("synthetic", synthetic, *size)


def load_networks(args: argparse.Namespace) -> tuple[FeatureExtractor | None, Classifier | None]:
    """The networks that the metrics need."""
    from utils.classifier import Classifier
    from utils.features import load_extractor

    device = cli.resolve_device(args.device)
    extractor = classifier = None
    if set(FEATURE_METRICS) & set(args.metrics):
        extractor = load_extractor(
            args.feature_extractor,
            weights=args.feature_weights,
            device=device,
            offline=args.offline,
        )
    if "agreement" in args.metrics:
        classifier = Classifier.load(args.classifier, device=device)
    return extractor, classifier


def score(
    args: argparse.Namespace,
    real: ImageSet,
    synthetic: ImageSet,
    *,
    labels: Sequence[str],
    networks: tuple[FeatureExtractor | None, Classifier | None],
) -> tuple[dict[str, dict], dict[str, dict[str, dict]]]:
    """Compute the metrics asked for: all images, and per label."""
    from utils import diversity, scores
    from utils.image_sets import measure

    extractor, classifier = networks
    sides = []
    if extractor or classifier:
        seen = {"extractor": extractor, "classifier": classifier, "batch_size": args.batch_size}
        sides = [(images, measure(images, **seen)) for images in (real, synthetic)]
    results = {}
    if "fid" in args.metrics:
        results["fid"] = scores.score_frechet(
            *sides, labels, num_resamples=args.bootstrap, seed=args.seed
        )
    if "inception_score" in args.metrics:
        on_classifier = args.feature_extractor.startswith(extractor_names.CLASSIFIER_PREFIX)
        options = {"splits": args.inception_score_splits, "on_classifier": on_classifier}
        features = [seen.features for _, seen in sides]
        entry = scores.score_inception(*features, **options, seed=args.seed)
        results["inception_score"] = (entry, {})
    if "ms_ssim" in args.metrics:
        results["ms_ssim"] = diversity.score_ms_ssim(
            real, synthetic, labels, max_pairs=args.max_pairs, seed=args.seed
        )
    if "agreement" in args.metrics:
        results["agreement"] = scores.score_agreement(*sides, classifier, labels, seed=args.seed)
    overall = {name: entry for name, (entry, _) in results.items()}
    per_label = {
        label: {name: entries[label] for name, (_, entries) in results.items() if label in entries}
        for label in labels
    }
    return overall, per_label


def data_notes(real: ImageSet, synthetic: ImageSet) -> list[str]:
    """What to know about the data: rows dropped, labels that only one set has."""
    notes = []
    for images, other in ((real, synthetic), (synthetic, real)):
        if skipped := images.dataset.skipped:
            notes.append(f"{len(skipped)} broken {images.name} rows dropped, first: {skipped[0]}")
        if only := set(images.dataset.labels) - set(other.dataset.labels):
            notes.append(f"only the {images.name} set has the label(s) {', '.join(sorted(only))}")
    return notes


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, score, save."""
    args = parse_args(argv)
    if args.offline:
        cli.go_offline()
    from utils import run_folder
    from utils.evaluation_page import build_page

    logger = run_folder.get_logger("evaluate")
    real, synthetic = load_sets(args)
    labels = sorted({*real.dataset.labels, *synthetic.dataset.labels})
    networks = load_networks(args)
    options = {
        **{name: value for name, value in vars(args).items() if name != "output_dir"},
        "resolution": real.resolution,
        "real_fingerprint": real.dataset.fingerprint,
        "synthetic_fingerprint": synthetic.dataset.fingerprint,
        "classifier_sha256": networks[1].sha256 if networks[1] else None,
        "notes": data_notes(real, synthetic),
    }
    run_folder.write_options(args.output_dir, args, resolved=options)

    overall, per_label = score(args, real, synthetic, labels=labels, networks=networks)
    notes = {"data": options["notes"]}
    notes |= {name: entry.get("notes", []) for name, entry in overall.items()}
    for name, texts in notes.items():
        for text in texts:
            logger.warning("%s: %s", name, text)

    network = networks[0]
    keys = ("name", "dim", "weights", "sha256", "note")
    result = {
        "overall": overall,
        "per_label": per_label,
        "extractor": {key: getattr(network, key) for key in keys} if network else None,
        "options": options,
    }
    page = build_page(result, real=real, synthetic=synthetic, labels=labels, tiles=TILES_PER_LABEL)
    page.write(args.output_dir / "report.html")
    run_folder.write_json(args.output_dir / "metrics.json", result)
    run_folder.print_result(result)


if __name__ == "__main__":
    cli.main_guard(main)
