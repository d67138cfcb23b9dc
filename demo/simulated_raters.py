r"""Answer a whole rating study as simulated doctors would, to try what follows without doctors.

    python -m demo.simulated_raters --study_dir runs/study --classifier runs/oracle/classifier
    python -m demo.simulated_raters --study_dir runs/study --classifier runs/oracle/classifier \
        --num_raters 6 --kappa 0.4 --seed 7

The oracle (--classifier, of semi_supervised.py) should be trained on many simulated scans with
their drawn truth, and on no image of the study. Every rater has an own leniency for each question
and errs anew on each image; both grow together until the mean of Cohen's quadratically weighted
kappa of the agreement ratings (of quality, if the study does not ask for agreement) over all pairs
of raters is --kappa on the images of this study.

These are no doctors: they share the oracle's blind spots, err independently of each other, and
judge what a classifier can see. What is learnt from them shows that the machinery works, and
nothing about patients. They join the study as "simulated 1", "simulated 2", ...; other raters'
answers stay as they are. A run that was interrupted goes on; the answers are the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils import cli, run_folder

RECORD_NAME = "simulated_raters.json"


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add(
        "--study_dir",
        type=cli.existing_dir,
        required=True,
        metavar="DIR",
        help="the study, as rate_images.py create wrote it",
    )
    add(
        "--classifier",
        type=cli.existing_dir,
        required=True,
        metavar="DIR",
        help="the oracle: a classifier of semi_supervised.py",
    )
    add(
        "--num_raters",
        type=cli.positive_int,
        default=4,
        help="simulated raters, 2 or more (default: %(default)s)",
    )
    add(
        "--kappa",
        type=cli.probability,
        default=0.6,
        help="agreement between raters to reach, between 0 and 1 (default: %(default)s)",
    )
    add(
        "--finding_rules",
        default="oct",
        metavar="NAME|FILE",
        help="by which texts are read: oct, cxr or a YAML file (default: %(default)s)",
    )
    cli.add_runtime_flags(parser, "seed", "device")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 0 < args.kappa < 1:
        parser.error(f"--kappa {args.kappa:g}: must be above 0 and below 1")
    if args.num_raters < 2:
        parser.error("--num_raters 1: agreement is between two raters at least")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Look at the images, find how much the raters err, answer."""
    args = parse_args(argv)
    from demo.simulated_study import SimulatedStudy
    from utils.classifier import Classifier
    from utils.finding_labeler import load_labeler
    from utils.rating_store import Store

    classifier = Classifier.load(args.classifier, device=cli.resolve_device(args.device))
    labeler = load_labeler(args.finding_rules)
    with Store.open(args.study_dir) as store:
        study = SimulatedStudy(store, classifier, labeler, seed=args.seed)
        raters = study.join(args.num_raters)
        noise = study.find_noise(raters, kappa=args.kappa)
        result = {
            "study_dir": args.study_dir,
            "raters": [rater.name for rater in raters],
            "kappa_asked": args.kappa,
            "kappa": study.kappas(raters, noise),
            "noise_points": noise,
            "oracle_sha256": classifier.sha256,
            "seed": args.seed,
        }
        keep_record(args.study_dir / RECORD_NAME, run_folder.to_plain(result))
        for rater in raters:
            study.answer(rater, noise)
    run_folder.print_result(result)
    return 0


def keep_record(path: Path, result: dict) -> None:
    """Note how the study is answered; a run that goes on must answer alike.

    Raises:
        cli.UserError: If an earlier run answered otherwise.
    """
    if path.exists():
        from utils.json_file import read_json

        before = read_json(path)
        places = ("study_dir",)  # it may have been moved
        changed = [
            name for name in result if name not in places and result[name] != before.get(name)
        ]
        if changed:
            raise cli.UserError(
                f"{path}: simulated raters answered this study with other settings "
                f"({', '.join(changed)}); take the same ones, or make a new study"
            )
    run_folder.write_json(path, result)


if __name__ == "__main__":
    cli.main_guard(main)
