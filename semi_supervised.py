#!/usr/bin/env python3
r"""Train a diagnosis classifier on real images and measure it on patients it has not seen.

Reads any data source with labels (a dataset folder, class folders, a CSV, shards, a hub name), uses
its column ``split`` or divides the patients itself, trains, keeps the epoch with the lowest
validation loss, and reports AUROC, accuracy, balanced accuracy, F1, sensitivity and specificity per
diagnosis and macro, with 95 % bootstrap intervals over patients. Labels joined by ``;`` make the
task multi-label. The classifier is the quality gate of generate_synthetic_dataset.py and a feature
extractor of evaluate.py; it is trained on blurred, low-passed and noisy copies of the scans as
well, because generators smooth speckle.

Examples:
  python semi_supervised.py --real_dir runs/clinic --resolution 128 --output_dir runs/diagnosis
  python semi_supervised.py --real_dir data/oct --backbone resnet50 \
      --backbone_weights IMAGENET1K_V2 --output_dir runs/diagnosis
  python semi_supervised.py --real_dir data/train.csv --test_dir data/other_clinic --offline \
      --backbone densenet121 --backbone_weights weights/densenet121.pth --output_dir runs/diagnosis

Writes options.json, classifier/ (config.json, model.safetensors), training.csv, predictions.csv,
results.csv, comparisons.csv, results.json and report.html; prints the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli, run_folder
from utils.backbone_names import SMALL, TORCHVISION_BACKBONES, WEIGHT_SUFFIXES

if TYPE_CHECKING:
    from utils.classifier import Classifier
    from utils.classifier_training import Examples, TrainingOptions, TrainingResult
    from utils.diagnosis_data import DiagnosisData
    from utils.diagnosis_evaluation import Evaluation
    from utils.gray_images import GrayImages

ARMS = ("real",)
RESULT_FILES = (
    "results.json",
    "report.html",
    "results.csv",
    "comparisons.csv",
    "predictions.csv",
    "training.csv",
)
MIN_RESOLUTION = 32
# AdamW's peak rates: small network from scratch, large one from scratch, large one fine-tuned.
SMALL_RATE, SCRATCH_RATE, FINE_TUNING_RATE = 2e-3, 3e-4, 1e-4

logger = run_folder.get_logger("semi_supervised")


def arm(text: str) -> str:
    """Flag type: what the classifier is trained on."""
    if text not in ARMS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not available; this version trains the arm real only"
        )
    return text


def backbone(text: str) -> str:
    """Flag type: ``small`` or the name of a torchvision classification model."""
    if text != SMALL and text not in TORCHVISION_BACKBONES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither {SMALL!r} nor a classification model of torchvision, such as "
            "resnet18, resnet50, efficientnet_b0 or convnext_tiny"
        )
    return text


def build_parser() -> argparse.ArgumentParser:
    """Flags of this script."""
    parser = cli.make_parser(__doc__)
    _add_data_flags(parser.add_argument_group("data"))
    _add_network_flags(parser.add_argument_group("network"))
    training = parser.add_argument_group("training")
    _add_training_flags(training)
    _add_regularising_flags(training)
    group = parser.add_argument_group("run")
    cli.add_runtime_flags(
        group, "output_dir", "seed", "device", "mixed_precision", "num_workers", "offline"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace a finished run in --output_dir"
    )
    group.add_argument(
        "--num_resamples",
        type=cli.non_negative_int,
        default=1000,
        help="bootstrap draws of patients for the intervals; 0: none (default: %(default)s)",
    )
    return parser


def _add_data_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--real_dir",
        type=cli.data_source,
        required=True,
        metavar="SOURCE",
        help="real images with labels: dataset folder, class folders, CSV, shards or hub name",
    )
    group.add_argument(
        "--test_dir",
        type=cli.data_source,
        metavar="SOURCE",
        help="test set of its own, patients not in --real_dir (default: split test of --real_dir)",
    )
    group.add_argument(
        "--arms",
        type=arm,
        nargs="+",
        default=["real"],
        help="what to train on; this version: real (default: real)",
    )
    group.add_argument(
        "--task",
        choices=("auto", "multiclass", "multilabel"),
        default="auto",
        help="auto is multilabel if an image has several labels (default: %(default)s)",
    )
    for name, meaning in (("image", "the file"), ("label", "diagnoses"), ("patient", "patient")):
        group.add_argument(
            f"--{name}_column", help=f"column of {meaning}, where it has not its usual name"
        )
    group.add_argument(
        "--by_image",
        action="store_true",
        help="where a split has to be made: an image without patient_id is its own patient",
    )
    group.add_argument(
        "--skip_invalid", action="store_true", help="drop rows with a problem instead of stopping"
    )


def _add_network_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--backbone",
        type=backbone,
        default=SMALL,
        help="small (0.7 M parameters, for the CPU), or a classification model of torchvision "
        "such as resnet18, resnet50, efficientnet_b0, convnext_tiny (default: %(default)s)",
    )
    group.add_argument(
        "--backbone_weights",
        default="none",
        metavar="none|PATH|NAME",
        help="what the backbone starts from: none (random), a .safetensors or .pth file, or a "
        "weight name of torchvision such as IMAGENET1K_V1, which is downloaded "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--resolution",
        type=cli.resolution,
        default=224,
        help=f"side of the network's input in px, at least {MIN_RESOLUTION} (default: %(default)s)",
    )
    group.add_argument(
        "--resize_mode",
        choices=("center_crop", "random_crop", "pad", "stretch"),
        default="center_crop",
        help="how an image becomes a square; random_crop is central after training "
        "(default: %(default)s)",
    )


def _add_training_flags(group: argparse._ArgumentGroup) -> None:
    cli.add_runtime_flags(group, "batch_size", batch_size=32)
    group.add_argument(
        "--max_epochs",
        type=cli.positive_int,
        default=40,
        help="passes over the training images, at most (default: %(default)s)",
    )
    group.add_argument(
        "--max_train_steps",
        type=cli.positive_int,
        help="steps, at most (default: as --max_epochs says)",
    )
    group.add_argument(
        "--learning_rate",
        type=cli.positive_float,
        help=f"peak rate of AdamW (default: {SMALL_RATE} for small, {SCRATCH_RATE} for others from "
        f"random weights, {FINE_TUNING_RATE} with --backbone_weights)",
    )
    group.add_argument(
        "--weight_decay",
        type=cli.non_negative_float,
        default=0.05,
        help="weight decay of AdamW (default: %(default)s)",
    )


def _add_regularising_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--label_smoothing",
        type=cli.probability,
        default=0.0,
        help="share of the target spread over all labels, multiclass only (default: %(default)s)",
    )
    group.add_argument(
        "--class_balance",
        choices=("loss", "none"),
        default="loss",
        help="loss weighs a diagnosis by its rarity, up to tenfold (default: %(default)s)",
    )
    group.add_argument(
        "--augment",
        choices=("standard", "none"),
        default="standard",
        help="standard turns, shifts, scales, smooths, regrades and adds noise; a gate for "
        "synthetic images needs it (default: %(default)s)",
    )
    group.add_argument(
        "--random_flip",
        action="store_true",
        help="mirror left-right at random; off by default, because the side matters",
    )
    group.add_argument(
        "--ema_decay",
        type=cli.probability,
        default=0.99,
        help="moving average of the weights; 0: none (default: %(default)s)",
    )
    group.add_argument(
        "--early_stopping_patience",
        type=cli.non_negative_int,
        default=10,
        help="epochs without a lower validation loss before the end; 0: never (default: "
        "%(default)s)",
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if len(set(args.arms)) < len(args.arms):
        parser.error("--arms names an arm twice")
    if args.resolution < MIN_RESOLUTION:
        parser.error(f"--resolution {args.resolution} is below {MIN_RESOLUTION}")
    if args.batch_size < 2:
        parser.error("--batch_size 1: batch normalisation needs at least two images")
    if args.ema_decay == 1:
        parser.error("--ema_decay 1 would keep the random start for ever")
    weights = args.backbone_weights
    if weights.endswith(WEIGHT_SUFFIXES) and not Path(weights).is_file():
        parser.error(f"--backbone_weights {weights}: no such file")
    if weights != "none" and args.backbone == SMALL and not Path(weights).is_file():
        parser.error(f"--backbone_weights {weights}: no such file; small has no published weights")
    return args


def _is_ours(options_path: Path) -> bool:
    """Whether a file is the options.json of a run of this script."""
    try:
        options = json.loads(options_path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    flags = options.get("flags") if isinstance(options, dict) else None
    return isinstance(flags, dict) and "arms" in flags


def check_output_dir(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that another program filled, or a finished run unless it may go.

    Raises:
        UserError: If so.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not _is_ours(folder / "options.json"):
        raise cli.UserError(f"--output_dir {folder} holds files that this script did not make")
    if (folder / "results.json").exists() and not overwrite:
        raise cli.UserError(
            f"--output_dir {folder} holds a finished run; choose another folder, or --overwrite"
        )


def load_data(args: argparse.Namespace) -> DiagnosisData:
    """Read and check every table and pixel, then divide the patients."""
    from utils.dataset import load_dataset
    from utils.diagnosis_data import divide

    options = {
        "image_column": args.image_column,
        "label_column": args.label_column,
        "patient_column": args.patient_column,
        "require_label": True,
        "skip_invalid": args.skip_invalid,
        "num_workers": args.num_workers,
        "offline": args.offline,
    }
    real = load_dataset(args.real_dir, **options)
    test = load_dataset(args.test_dir, **options) if args.test_dir else None
    data = divide(real, test, task=args.task, seed=args.seed, by_image=args.by_image)
    for note in data.notes:
        logger.info(note)
    return data


def load_pixels(args: argparse.Namespace, data: DiagnosisData) -> dict[str, Examples]:
    """Images and targets of each split, at the network's size.

    Raises:
        UserError: If an image of --test_dir looks the same as one of --real_dir.
    """
    from tqdm import tqdm

    from utils.classifier_training import Examples
    from utils.diagnosis_data import refuse_shared_pixels, targets_of
    from utils.gray_images import GrayImages

    examples = {}
    for name in ("train", "val", "test"):
        records = getattr(data, name)
        with tqdm(total=len(records), desc=f"read {name}", unit="image", leave=False) as bar:
            images = GrayImages(
                records,
                resolution=args.resolution,
                resize_mode=args.resize_mode,
                num_workers=args.num_workers,
                progress=bar.update,
            )
        examples[name] = Examples(images, targets_of(records, data.labels))
    lost = examples["train"].images.shares_lost
    if lost and max(lost) > 0:
        share = sum(lost) / len(lost)
        logger.info("--resize_mode %s drops %.0f %% of an image", args.resize_mode, 100 * share)
    if args.test_dir:
        refuse_shared_pixels({name: part.images for name, part in examples.items()})
    return examples


def training_options(args: argparse.Namespace) -> TrainingOptions:
    """The flags as the training wants them."""
    from utils.classifier_training import TrainingOptions

    rate = args.learning_rate
    if rate is None and args.backbone == SMALL:
        rate = SMALL_RATE
    elif rate is None:
        rate = SCRATCH_RATE if args.backbone_weights == "none" else FINE_TUNING_RATE
    return TrainingOptions(
        max_epochs=args.max_epochs,
        max_train_steps=args.max_train_steps,
        batch_size=args.batch_size,
        learning_rate=rate,
        weight_decay=args.weight_decay,
        label_smoothing=args.label_smoothing,
        class_balance=args.class_balance,
        augment=args.augment,
        flip=args.random_flip,
        ema_decay=args.ema_decay,
        patience=args.early_stopping_patience,
        seed=args.seed,
        mixed_precision=args.mixed_precision,
    )


def build(args: argparse.Namespace, data: DiagnosisData, train_images: GrayImages) -> Classifier:
    """The untrained network with its starting weights, wrapped with what it needs to be used."""
    from utils.backbone_weights import load_backbone_weights
    from utils.backbones import build_network
    from utils.classifier import Classifier, ClassifierConfig

    mean, std = train_images.gray_statistics()
    network = build_network(
        args.backbone,
        num_labels=len(data.labels),
        resolution=args.resolution,
        seed=args.seed,
        mean=mean,
        std=std,
    )
    origin = load_backbone_weights(
        network, args.backbone, args.backbone_weights, offline=args.offline
    )
    logger.info("%s starts from %s", args.backbone, origin)
    config = ClassifierConfig(
        backbone=args.backbone,
        labels=data.labels,
        multi_label=data.multi_label,
        resolution=args.resolution,
        resize_mode=args.resize_mode,
        mean=mean,
        std=std,
        data_hash=data.fingerprint,
        initial_weights=origin,
    )
    return Classifier(config, network)


def train(
    classifier: Classifier, examples: dict[str, Examples], options: TrainingOptions, *, device: str
) -> tuple[Classifier, TrainingResult]:
    """Train a classifier's network on the real images, with a progress bar."""
    from tqdm import tqdm

    from utils.classifier import Classifier
    from utils.classifier_training import train_classifier

    with tqdm(total=options.max_epochs, desc="train", unit="epoch") as bar:

        def show(row: dict[str, float]) -> None:
            bar.set_postfix(loss=row["train_loss"], val_accuracy=row["val_accuracy"])
            bar.update()

        result = train_classifier(
            classifier.network,
            examples["train"],
            examples["val"],
            multi_label=classifier.multi_label,
            options=options,
            device=device,
            progress=show,
        )
    return Classifier(classifier.config, result.network, device=device), result


def write_tables(
    args: argparse.Namespace, data: DiagnosisData, result: TrainingResult, evaluation: Evaluation
) -> None:
    """Write training.csv, predictions.csv, results.csv and comparisons.csv."""
    from utils import diagnosis_report as report

    folder = args.output_dir
    run = {"arm": "real", "label_share": 100, "synthetic_ratio": 0, "seed": args.seed}
    rows = report.result_rows(evaluation.scores, evaluation.targets, data.labels, **run)
    predictions = report.prediction_rows(
        data.test, evaluation.probs, data.labels, multi_label=data.multi_label
    )
    run_folder.write_csv(folder / "training.csv", result.history, list(result.history[0]))
    run_folder.write_csv(folder / "predictions.csv", predictions, list(predictions[0]))
    run_folder.write_csv(folder / "results.csv", rows, report.RESULT_COLUMNS)
    run_folder.write_csv(folder / "comparisons.csv", [], report.COMPARISON_COLUMNS)


def summarise(
    args: argparse.Namespace,
    data: DiagnosisData,
    classifier: Classifier,
    result: TrainingResult,
    *,
    seconds: float,
) -> dict[str, object]:
    """What was trained on what: the head of results.json and of the printed result."""
    return {
        "output_dir": args.output_dir,
        "classifier": {"path": args.output_dir / "classifier", "sha256": classifier.sha256},
        "report": args.output_dir / "report.html",
        "task": "multilabel" if data.multi_label else "multiclass",
        "data": data.counts(),
        "training": {
            "steps": result.steps,
            "epochs": len(result.history),
            "best_epoch": result.best_epoch,
            "stopped_early": result.stopped_early,
            "seconds": round(seconds, 1),
        },
    }


def write_results(
    args: argparse.Namespace,
    data: DiagnosisData,
    summary: dict[str, object],
    *,
    evaluation: Evaluation,
    facts: dict[str, object],
    history: list[dict[str, float]],
) -> dict[str, object]:
    """Write the page and, last, results.json; returns what is printed."""
    from utils import diagnosis_report as report
    from utils.classification_scores import MACRO

    report.write_page(
        args.output_dir / "report.html",
        title="Diagnosis from real images",
        facts=facts,
        notes=data.notes,
        evaluation=evaluation,
        labels=data.labels,
        multi_label=data.multi_label,
        history=history,
    )
    entries = report.result_entries(evaluation.scores)
    result = summary | {"macro": entries[MACRO], "robustness": evaluation.robustness}
    details = {
        "arms": {"real": entries},
        "notes": data.notes,
        "table": report.score_table(evaluation.scores, evaluation.targets, data.labels),
    }
    run_folder.write_json(args.output_dir / "results.json", result | details)
    return result


def page_facts(
    args: argparse.Namespace, classifier: Classifier, summary: dict[str, object]
) -> dict[str, object]:
    """What the page says about data, network and training."""
    sizes = {
        name: f"{part['images']} images"
        + (f" of {part['patients']} patients" if part["patients"] else "")
        for name, part in summary["data"].items()
    }
    training = summary["training"]
    return {
        "real images": args.real_dir,
        "test images": args.test_dir or args.real_dir,
        **sizes,
        "network": f"{args.backbone}, {args.resolution} px, {args.resize_mode}",
        "started from": classifier.config.initial_weights,
        "training": f"{training['steps']} steps, {training['epochs']} epochs, best epoch "
        f"{training['best_epoch']}, {training['seconds']} s",
        "augmentation": args.augment,
        "seed": args.seed,
        "classifier": f"sha256 {classifier.sha256}",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, train, evaluate, write."""
    args = parse_args(argv)
    check_output_dir(args.output_dir, overwrite=args.overwrite)
    if args.offline:
        cli.go_offline()
    device = cli.resolve_device(args.device)
    if args.mixed_precision == "fp16" and not device.startswith("cuda"):
        raise cli.UserError("--mixed_precision fp16 needs a CUDA device; use bf16 or no")
    data = load_data(args)
    run_folder.write_options(args.output_dir, args, data_hash=data.fingerprint)
    for name in RESULT_FILES:
        (args.output_dir / name).unlink(missing_ok=True)
    examples = load_pixels(args, data)

    started = time.monotonic()
    untrained = build(args, data, examples["train"].images)
    trained, result = train(untrained, examples, training_options(args), device=device)
    seconds = time.monotonic() - started
    trained.save(args.output_dir / "classifier")

    from utils.classifier import Classifier
    from utils.diagnosis_data import patients_of
    from utils.diagnosis_evaluation import evaluate_classifier

    classifier = Classifier.load(args.output_dir / "classifier", device=device)
    evaluation = evaluate_classifier(
        classifier,
        examples["test"],
        patients=patients_of(data.test),
        batch_size=args.batch_size,
        num_resamples=args.num_resamples,
        seed=args.seed,
    )
    write_tables(args, data, result, evaluation)
    summary = summarise(args, data, classifier, result, seconds=seconds)
    printed = write_results(
        args,
        data,
        summary,
        evaluation=evaluation,
        facts=page_facts(args, classifier, summary),
        history=result.history,
    )
    run_folder.print_result(printed)
    return 0


if __name__ == "__main__":
    cli.main_guard(main)
