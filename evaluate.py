r"""Measure how close a synthetic image set is to a real one, how useful, and whether it copies.

Reads data sets (a dataset folder, class folders, a CSV, *.tar shards or a hub name), brings every
image to one size in one way, and writes to --output_dir: options.json, metrics.json and
report.html, a page that needs no network; with --train_dir also copies.csv. The result is printed
as JSON too. Features are kept on disk, so the next run on the same images takes seconds.

Metrics
  fid              Fréchet distance of the features: lower is closer
  kid              kernel distance of the features, unbiased: also for few images; lower is closer
  cmmd             kernel distance of CLIP embeddings: lower is closer
  prdc             precision, recall, density, coverage: realism and variety apart; higher is better
  inception_score  sure and varied class predictions: higher is better; sees no real image
  ms_ssim          how alike images of one prompt are: best near the real set's own value
  agreement        share of images whose asked diagnosis a classifier recognises: higher is better
  cas              accuracy on real images of a classifier trained on the synthetic ones
  retrieval        do images find images and texts of the same finding: recall at 1, 5, 10
  copies           share of images that are copies of training images: lower is better
Each distance stands beside its floor, the same between two halves of the real set.
docs/metrics.md has definitions, sources and what compares with published figures.

Examples:
  python evaluate.py --real_dir data/clinic --real_split test --synthetic_dir runs/synthetic \
    --feature_extractor inception --feature_weights weights-inception-2015-12-05-6726825d.pth \
    --output_dir runs/evaluation
  python evaluate.py --real_dir data/clinic --real_split test --synthetic_dir runs/synthetic \
    --feature_extractor classifier:runs/diagnosis/classifier --train_dir data/clinic \
    --fail_above 0.1 --output_dir runs/evaluation
  python evaluate.py --real_dir data/clinic --real_split test --compare runs/a runs/b runs/c \
    --feature_extractor dinov2 --feature_weights models/dinov2-large --output_dir runs/comparison
  accelerate launch evaluate.py --real_dir data/clinic --synthetic_dir runs/synthetic \
    --feature_extractor clip --feature_weights models/clip-vit-large-patch14-336 \
    --output_dir runs/evaluation
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from utils import cli, evaluation_flags

if TYPE_CHECKING:
    from pathlib import Path

    from utils.auditor import Auditor
    from utils.classifier import Classifier
    from utils.copy_audit import Audit
    from utils.dataset import Dataset
    from utils.diagnosis_network import DiagnosisNetwork
    from utils.features import FeatureExtractor
    from utils.image_sets import ImageSet
    from utils.image_text import ImageTextModel
    from utils.reconstruction import Reconstruction
    from utils.scores import Side
    from utils.searcher import Searcher

TILES_PER_LABEL = 8
MIN_TRAIN = 2  # a copy detector learns to tell images apart
LONGEST_WAIT = timedelta(hours=6)


@dataclass(frozen=True)
class Sets:
    """What is compared: synthetic sets by name, all of one size.

    ``sources`` says where each lies, ``sizes`` and ``num_real`` how many images there are in all.
    """

    real: ImageSet
    synthetic: dict[str, ImageSet]
    train: ImageSet | None
    sources: dict[str, str]
    num_real: int
    sizes: dict[str, int]


@dataclass(frozen=True)
class Tools:
    """The networks; None for those that no metric needs."""

    device: str
    extractor: FeatureExtractor | None
    diagnoses: DiagnosisNetwork | None
    reconstruction: Reconstruction | None
    image_text: ImageTextModel | None

    @property
    def classifier(self) -> Classifier | None:
        """The classifier that agreement asks."""
        return self.diagnoses and self.diagnoses.classifier


def build_parser() -> argparse.ArgumentParser:
    """All flags, in groups."""
    parser = cli.make_parser(__doc__)
    evaluation_flags.add_data_flags(parser.add_argument_group("data"))
    evaluation_flags.add_metric_flags(parser.add_argument_group("metrics"))
    evaluation_flags.add_network_flags(parser.add_argument_group("networks"))
    run = parser.add_argument_group("run")
    shared = ("output_dir", "seed", "batch_size", "num_workers", "device", "offline")
    cli.add_runtime_flags(run, *shared, batch_size=32)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    evaluation_flags.check(parser, args)
    return args


def start(args: argparse.Namespace):
    """The state of the processes that ``accelerate launch`` started, or of this one alone."""
    if args.offline:
        cli.go_offline()
    cli.answer_signals()
    from utils.process_group import join

    # The others wait while the first checks all images.
    loggers = ("evaluate", "dataset", "cache")
    return join(args.device, longest_wait=LONGEST_WAIT, main_loggers=loggers)


def load_sets(args: argparse.Namespace, state) -> Sets:
    """Read and check all sets; every problem of a set is reported at once.

    Of several processes the first checks the pixels, and remembers which files are sound.
    """
    from utils.dataset import load_dataset
    from utils.image_sets import ImageSet, common_side, set_names

    columns = {
        f"{name}_column": getattr(args, f"{name}_column") for name in evaluation_flags.COLUMNS
    }

    def load(source: str, **more: object) -> Dataset:
        return load_dataset(
            source,
            check_pixels=state.is_main_process or args.skip_invalid,
            skip_invalid=args.skip_invalid,
            num_workers=args.num_workers,
            digest_dir=args.feature_cache_dir,
            offline=args.offline,
            **more,
        )

    sources = args.compare or [args.synthetic_dir]
    with state.main_process_first():
        synthetic = {
            name: load(source, allow_duplicates=True)
            for name, source in zip(set_names(sources), sources)
        }
        real = load(args.real_dir, split=args.real_split, **columns)
        train = None
        if args.train_dir:
            train = load(args.train_dir, split="train", allow_duplicates=True, **columns)
    if train is not None and len(train) < MIN_TRAIN:
        raise cli.UserError(f"--train_dir: {len(train)} image; {MIN_TRAIN} or more are needed")
    side = args.resolution or min(map(common_side, synthetic.values()))
    view = (side, args.resize_mode, args.num_workers)
    drawn = {name: ImageSet("synthetic", each, *view) for name, each in synthetic.items()}
    count = min(map(len, drawn.values())) if args.compare else len(drawn[next(iter(drawn))])
    count = min(count, args.num_images or count)
    real_set = ImageSet("real", real, *view)
    return Sets(
        real=real_set.draw(args.num_images or len(real), seed=args.seed),
        synthetic={name: each.draw(count, seed=args.seed) for name, each in drawn.items()},
        train=ImageSet("train", train, *view) if train else None,
        sources=dict(zip(drawn, sources)),
        num_real=len(real),
        sizes={name: len(each) for name, each in drawn.items()},
    )


def load_tools(args: argparse.Namespace, state, sets: Sets) -> Tools:
    """The networks that the metrics need."""
    from utils.classifier import Classifier
    from utils.diagnosis_network import DiagnosisNetwork
    from utils.features import load_extractor
    from utils.process_group import own_device

    device = own_device(args.device, state)
    where = {"device": device, "offline": args.offline}
    wanted = set(args.metrics)
    extractor = reconstruction = diagnoses = image_text = None
    if wanted & set(evaluation_flags.FEATURE_METRICS):
        extractor = load_extractor(args.feature_extractor, weights=args.feature_weights, **where)
    if wanted & set(evaluation_flags.DISTANCES) and args.model:
        from utils.reconstruction import Reconstruction  # imports diffusers

        reconstruction = Reconstruction(args.model, **where)
        reconstruction.check_resolution(sets.real.resolution)
    if args.classifier:
        diagnoses = DiagnosisNetwork(Classifier.load(args.classifier, device=device))
    if "retrieval" in wanted and args.retrieval_encoder != evaluation_flags.TRAIN_ENCODER:
        from utils.clip_models import load_image_text_model  # imports transformers

        image_text = load_image_text_model(args.retrieval_encoder, **where)
    return Tools(device, extractor, diagnoses, reconstruction, image_text)


def measure(args: argparse.Namespace, images: ImageSet, tools: Tools, state) -> Side:
    """Pass a set through the networks; what earlier runs kept is not computed again."""
    from utils.feature_cache import cached_features, digests_of
    from utils.scores import Side

    folder = args.feature_cache_dir
    digests = digests_of(images, state=state, folder=folder)
    options = {"digests": digests, "state": state, "folder": folder, "batch_size": args.batch_size}
    found = {}
    if tools.extractor:
        found["features"] = cached_features(images, tools.extractor, **options)
    if tools.diagnoses:
        found["probabilities"] = cached_features(images, tools.diagnoses, **options).pool
    if tools.image_text:
        found["embeddings"] = cached_features(images, tools.image_text, **options).pool
    if tools.reconstruction and images.name == "real":
        found["reconstructed"] = cached_features(
            images, tools.extractor, reconstruction=tools.reconstruction, **options
        )
    return Side(images, digests, **found)


@dataclass(frozen=True)
class Trained:
    """What is trained once, whatever the number of synthetic sets; None where not asked for.

    Attributes:
        auditor: Finds copies.
        searcher: Of retrieval.
        references: What CAS made of real training images, by labels and number.
    """

    auditor: Auditor | None
    searcher: Searcher | None
    references: dict


def train_judges(args: argparse.Namespace, sets: Sets, tools: Tools, real: Side) -> Trained:
    """Train what copies are found with and, if asked, what retrieval searches with."""
    from utils.auditor import Auditor
    from utils.searcher import Searcher

    auditor = searcher = None
    options = {"device": tools.device, "seed": args.seed}
    if "copies" in args.metrics:
        auditor = Auditor(sets.train, sets.real, folder=args.feature_cache_dir, **options)
    if "retrieval" in args.metrics:
        ready = {"model": tools.image_text, "vectors": real.embeddings}
        searcher = Searcher(sets.real, sets.train, **ready, **options)
    return Trained(auditor, searcher, {})


def score(
    args: argparse.Namespace,
    real: Side,
    synthetic: Side,
    *,
    train: ImageSet | None,
    tools: Tools,
    trained: Trained,
) -> tuple[dict[str, tuple[dict, dict]], Audit | None]:
    """Each metric's entry over all images, and its entries per label."""
    from utils import cas, distance_scores, diversity, scores
    from utils.extractor_names import CLASSIFIER_PREFIX

    wanted, common = (
        set(args.metrics),
        {"labels": labels_of(real.images, synthetic.images), "seed": args.seed},
    )
    found, audit = {}, None
    if distances := [name for name in evaluation_flags.DISTANCES if name in wanted]:
        options = {"num_resamples": args.bootstrap, "device": tools.device}
        found |= distance_scores.score_distances(distances, real, synthetic, **options, **common)
    if "inception_score" in wanted:
        same = args.feature_extractor == f"{CLASSIFIER_PREFIX}{args.classifier}"
        judge = None if same else tools.classifier
        found |= scores.score_inception(
            real, synthetic, judge, splits=args.inception_score_splits, **common
        )
    if "ms_ssim" in wanted:
        found["ms_ssim"] = diversity.score_ms_ssim(
            real.images, synthetic.images, max_pairs=args.max_pairs, **common
        )
    if "agreement" in wanted:
        found["agreement"] = scores.score_agreement(
            real, synthetic, tools.classifier, labels=common["labels"]
        )
    if "cas" in wanted:
        found["cas"] = cas.score_cas(
            *(side.images.dataset for side in (real, synthetic)),
            train=train and train.dataset,
            resolution=real.images.resolution,
            resize_mode=args.resize_mode,
            num_workers=args.num_workers,
            device=tools.device,
            references=trained.references,
            **common,
        )
    if "retrieval" in wanted:
        found |= trained.searcher.score(synthetic.images, vectors=synthetic.embeddings, **common)
    if "copies" in wanted:
        audit = trained.auditor.audit(synthetic.images)
        found["copies"] = (audit.entry(), {})
    return found, audit


def labels_of(*sets: ImageSet) -> list[str]:
    """The labels of all sets, sorted."""
    return sorted({label for images in sets for label in images.dataset.labels})


def describe(args: argparse.Namespace, sets: Sets, tools: Tools) -> dict[str, object]:
    """What metrics.json records of the run beside the flags, the same for every synthetic set."""
    flags = {name: value for name, value in vars(args).items() if name != "output_dir"}
    hashes = {
        "classifier": tools.classifier,
        "model": tools.reconstruction,
        "retrieval_encoder": tools.image_text,
    }
    return {
        **flags,
        "resolution": sets.real.resolution,
        "real_fingerprint": sets.real.dataset.fingerprint,
        "real_has_splits": bool(args.real_split and any(r.split for r in sets.real.dataset)),
        "num_train": len(sets.train) if sets.train else None,
        "train_fingerprint": sets.train.dataset.fingerprint if sets.train else None,
        **{f"{name}_sha256": tool.sha256 if tool else None for name, tool in hashes.items()},
    }


def hashes_of(trained: Trained) -> dict[str, str | None]:
    """SHA-256 of what was trained, for metrics.json."""
    found = {}
    if trained.auditor is not None:
        found["copy_detector_sha256"] = trained.auditor.detector.sha256
    if trained.searcher is not None and trained.searcher.model is not None:
        found["retrieval_encoder_sha256"] = trained.searcher.model.sha256
    return found


def make_result(
    name: str, found: dict[str, tuple[dict, dict]], *, options: dict, sets: Sets, tools: Tools
) -> dict:
    """What metrics.json holds of one synthetic set."""
    real, synthetic = sets.real, sets.synthetic[name]
    options = {
        **options,
        "synthetic_dir": sets.sources[name],
        "synthetic_fingerprint": synthetic.dataset.fingerprint,
        "notes": data_notes(real, synthetic) + set_notes(options, sets, name),
    }
    labels = labels_of(real, synthetic)
    keys = ("name", "dim", "input_px", "weights", "sha256", "note")
    network = tools.extractor
    return {
        "overall": {name: entry for name, (entry, _) in found.items()},
        "per_label": {
            label: {
                name: entries[label] for name, (_, entries) in found.items() if label in entries
            }
            for label in labels
        },
        "extractor": {key: getattr(network, key) for key in keys} if network else None,
        "options": options,
    }


def data_notes(real: ImageSet, synthetic: ImageSet) -> list[str]:
    """What to know about the data: rows dropped, labels that only one set has."""
    notes = []
    for images, other in ((real, synthetic), (synthetic, real)):
        if skipped := images.dataset.skipped:
            notes.append(f"{len(skipped)} broken {images.name} rows dropped, first: {skipped[0]}")
        notes += [f"{images.name} set: {note}" for note in images.dataset.notes]
        if only := set(images.dataset.labels) - set(other.dataset.labels):
            notes.append(f"only the {images.name} set has the label(s) {', '.join(sorted(only))}")
    return notes


def set_notes(options: dict, sets: Sets, name: str) -> list[str]:
    """What the flags did to the sets that is not to be overlooked."""
    notes = []
    if options["real_split"] and not options["real_has_splits"]:
        notes.append("the real set has no column split: all of it is used, seen in training or not")
    if sets.train and not all(record.split for record in sets.train.dataset):
        notes.append("the training set has no column split: all of it counts as training images")
    for each, whole in ((sets.real, sets.num_real), (sets.synthetic[name], sets.sizes[name])):
        if len(each) < whole:
            notes.append(f"{len(each)} of the {whole} {each.name} images, drawn with the seed")
    groups = {"real": sets.real, "training": sets.train}
    for kind, images in groups.items():
        count = sum(record.patient_id is None for record in images.dataset) if images else 0
        if count:
            notes.append(
                f"{count} {kind} images have no patient_id: where patients are kept apart (halves, "
                "held-out images, intervals) each counts as a patient of its own"
            )
    return notes


def save(
    folder: Path,
    result: dict,
    *,
    real: Side,
    synthetic: Side,
    audit: Audit | None,
    train: ImageSet | None,
) -> None:
    """Write the page, the list of copies and, last, metrics.json of one synthetic set."""
    from utils import run_folder
    from utils.audit_page import add_audit
    from utils.copy_audit import COLUMNS
    from utils.evaluation_page import build_page
    from utils.evaluation_pictures import add_galleries, add_nearest

    sets, seed = (real.images, synthetic.images), result["options"]["seed"]
    page = build_page(result, real=real.images, synthetic=synthetic.images)
    if audit is not None:
        add_audit(page, audit, synthetic_image=synthetic.images.image, train_image=train.image)
        run_folder.write_csv(folder / "copies.csv", audit.rows(), COLUMNS)
    labels = labels_of(*sets)
    add_galleries(page, *sets, labels=labels, tiles=TILES_PER_LABEL, seed=seed)
    if real.features is not None:
        pools = (real.features.pool, synthetic.features.pool)
        add_nearest(page, *sets, features=pools, seed=seed)
    page.write(folder / "report.html")
    run_folder.write_json(folder / "metrics.json", result)


def save_comparison(args: argparse.Namespace, results: dict[str, dict], sets: Sets) -> None:
    """Write the page and the numbers of several synthetic sets side by side."""
    from utils import run_folder
    from utils.comparison_page import build_comparison

    page = build_comparison(results, real=sets.real, synthetic=sets.synthetic, seed=args.seed)
    page.write(args.output_dir / "report.html")
    run_folder.write_json(args.output_dir / "metrics.json", {"sets": results})


def gate(args: argparse.Namespace, results: dict[str, dict]) -> int:
    """Exit status: 1 if ``--fail_above`` was given and a set has a larger share of copies."""
    from utils.run_folder import get_logger

    if args.fail_above is None:
        return 0
    status = 0
    for name, result in results.items():
        share = result["overall"]["copies"]["value"]
        if share is None or share > args.fail_above:
            told = "cannot be told" if share is None else f"is {share:.3f}"
            get_logger("evaluate").error(
                "%s: the share of copies %s; --fail_above %g", name, told, args.fail_above
            )
            status = 1
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, measure, score, save."""
    args = parse_args(argv)
    state = start(args)
    from utils import run_folder
    from utils.process_group import leave

    sets = load_sets(args, state)
    tools = load_tools(args, state, sets)
    options = describe(args, sets, tools)
    if state.is_main_process:
        run_folder.write_options(args.output_dir, args, resolved=options)
    real = measure(args, sets.real, tools, state)
    synthetic = {name: measure(args, each, tools, state) for name, each in sets.synthetic.items()}
    leave(state)
    if not state.is_main_process:
        return 0

    trained = train_judges(args, sets, tools, real)
    options |= hashes_of(trained)
    results = {}
    for name, side in synthetic.items():
        found, audit = score(args, real, side, train=sets.train, tools=tools, trained=trained)
        results[name] = make_result(name, found, options=options, sets=sets, tools=tools)
        folder = args.output_dir / name if args.compare else args.output_dir
        save(folder, results[name], real=real, synthetic=side, audit=audit, train=sets.train)
    if args.compare:
        save_comparison(args, results, sets)
    run_folder.print_result({"sets": results} if args.compare else results[name])
    return gate(args, results)


if __name__ == "__main__":
    cli.main_guard(main)
