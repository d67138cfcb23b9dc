#!/usr/bin/env python
r"""Improve a generator in rounds, with unlabeled scans, its own pairs, or doctors' ratings.

A round makes training data, trains a few hundred steps, and is measured on the same prompts and
seeds of held-out patients by networks that had no part in it. It stops when a round is worse or a
guard is hurt (recall, variety, the right finding, the loss on real scans, the distance from the
first model); the best round is the output, not the last. Real pairs stay part of every mix.

Modes
  unlabeled        unlabeled real scans join the training: with the report that a report model
                   writes, where it is sure, else without a text (the unconditional branch)
  synthetic_pairs  draws images, keeps those whose text, label and image agree, trains on real and
                   kept pairs
  rlhf             ratings of rate_images.py -> reward model; reward-weighted training or
                   Diffusion-DPO (--method), LoRA by default
  plain            the real pairs alone: what the others are compared with

Examples:
  python self_improve.py --mode unlabeled --model runs/oct-sd --real_dir data/oct \
      --unlabeled_dir data/unlabeled --captioner runs/reports/captioner \
      --classifier runs/gate/classifier --judge runs/diagnosis/classifier \
      --output_dir runs/improved

  python self_improve.py --mode synthetic_pairs --model runs/oct-sd --real_dir data/oct \
      --captioner runs/reports/captioner --classifier runs/gate/classifier \
      --judge runs/diagnosis/classifier --num_images 2000 --output_dir runs/improved

  # all GPUs; the ratings are what `rate_images.py export` wrote
  python self_improve.py --mode rlhf --method dpo --model runs/oct-sd --real_dir data/oct \
      --ratings runs/ratings --classifier runs/gate/classifier --judge runs/diagnosis/classifier \
      --launcher 'accelerate launch --num_processes 8' --output_dir runs/improved

Each stage is one of the project's scripts, told with its flags and kept in round-N/; started again,
the same command goes on where it stopped. Writes options.json, rounds.csv, round-N/ (data, drawn
images, scores, sheet.png), pipeline/ (the best round), results.json and report.html. The result is
printed as JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli, improve_checks, improve_flags, improve_mode_flags, run_folder

if TYPE_CHECKING:
    from utils.improvement import Improvement
    from utils.improvement_data import ImprovementData
    from utils.round_material import Material
    from utils.round_record import RoundRecord
    from utils.round_watch import Verdict

# Flags that may differ between a run and its continuation; others stand in the stages' commands.
FREE_FLAGS = ("num_rounds", "patience", "batch_size", "overwrite")
OUTPUTS = (
    *("rounds.csv", "results.json", "report.html", "prompts/*.csv", "logs/**/*.json"),
    *("captioned/**/*", "round-*/**/*", "test/**/*", "pipeline/**/*"),
    *("reward/*", "held_out_reward/*"),
)

logger = run_folder.get_logger("improve")


def build_parser() -> argparse.ArgumentParser:
    """All flags, in groups."""
    parser = cli.make_parser(__doc__)
    improve_flags.add_round_flags(parser.add_argument_group("rounds"))
    improve_flags.add_data_flags(parser.add_argument_group("data"))
    improve_flags.add_model_flags(parser.add_argument_group("networks"))
    improve_mode_flags.add_unlabeled_flags(parser.add_argument_group("mode unlabeled"))
    improve_mode_flags.add_reward_flags(parser.add_argument_group("mode rlhf"))
    improve_flags.add_training_flags(parser.add_argument_group("training"))
    improve_flags.add_watch_flags(parser.add_argument_group("measuring and stopping"))
    run = parser.add_argument_group("run")
    shared = ("output_dir", "seed", "batch_size", "num_workers", "mixed_precision", "device")
    cli.add_runtime_flags(run, *shared, "offline")
    run.add_argument(
        "--resolution", type=cli.resolution, metavar="PX", help="(default: the model's own)"
    )
    run.add_argument(
        "--launcher",
        type=improve_flags.words,
        default=[],
        metavar="'COMMAND'",
        help="what starts each stage, e.g. 'accelerate launch --num_processes 8' (default: this "
        "Python, one process)",
    )
    run.add_argument(
        "--overwrite",
        action="store_true",
        help="delete what an earlier run wrote to --output_dir (default: continue it)",
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if problem := improve_checks.check(args, parser.get_default):
        parser.error(problem)
    improve_checks.fill_in(args)
    if problem := improve_checks.stage_problem(args):
        parser.error(problem)
    return args


def start(args: argparse.Namespace) -> str:
    """Where this process computes; its stages may use more than that."""
    if args.offline:
        cli.go_offline()
    cli.answer_signals()
    from datetime import timedelta

    from utils.process_group import join, own_device
    from utils.stage_runner import stop_at_sigterm

    stop_at_sigterm()
    state = join(args.device, longest_wait=timedelta(minutes=10), main_loggers=())
    if state.num_processes > 1:
        raise cli.UserError(
            "start self_improve.py once, with python: it starts its stages on several processes "
            "itself, by --launcher"
        )
    return own_device(args.device, state)


def load(args: argparse.Namespace, device: str, lock: int | None) -> Improvement:
    """Check data and networks, make the folder ready, learn the rewards."""
    from utils.classifier import Classifier
    from utils.diagnosis_network import DiagnosisNetwork
    from utils.features import load_extractor
    from utils.improvement import Improvement
    from utils.improvement_data import load_improvement_data
    from utils.pipeline_folder import find_pipeline, settle_resolution
    from utils.provenance import hash_pipeline
    from utils.resumable_run import open_run
    from utils.round_scores import Judge
    from utils.round_stages import Stages
    from utils.stage_runner import StageRunner

    data = load_improvement_data(args)
    check_data(args, data)
    networks = check_networks(args, data)
    first = find_pipeline(args.model, offline=args.offline)
    resolution = settle_resolution(first, args.resolution)
    where = {"device": device, "offline": args.offline}
    extractor = load_extractor(args.feature_extractor, weights=args.feature_weights, **where)
    diagnoses = None
    if args.judge:
        diagnoses = DiagnosisNetwork(Classifier.load(args.judge, device=device))
    identity = {
        "data_hash": data.fingerprint,
        "model_hash": hash_pipeline(first),
        "networks": networks | {"extractor": extractor.sha256},
    }
    open_run(
        args.output_dir,
        args,
        identity=identity,
        free_flags=FREE_FLAGS,
        outputs=OUTPUTS,
        anew=args.overwrite,
    )
    rewards = {}
    if args.mode == "rlhf":
        from utils.reward_rounds import learn_rewards

        rewards = learn_rewards(args, device)
    cache_dir = args.output_dir.parent / run_folder.FEATURE_CACHE
    measured = (resolution, args.resize_mode, cache_dir, args.batch_size, args.seed)
    judge = Judge(extractor, diagnoses, rewards, *measured)
    runner = StageRunner(args.output_dir, Path(__file__).resolve().parent, args.launcher, lock)
    stages = Stages(args, runner, resolution, data.has_labels)
    return Improvement(args, data, stages, judge, device)


def check_data(args: argparse.Namespace, data: ImprovementData) -> None:
    """What would end a run hours later: too few images, or no labels where they are needed.

    Raises:
        UserError: With the flag and the way out.
    """
    from utils.distance_scores import NEIGHBOURS

    sizes = {"val": len(data.val), "test": len(data.test), "drawn": args.num_eval_images}
    if small := [f"{count} {name}" for name, count in sizes.items() if count <= NEIGHBOURS]:
        raise cli.UserError(
            f"{', '.join(small)} images to measure with: more than {NEIGHBOURS} of each are needed "
            "(splits of --real_dir, --num_eval_images)"
        )
    num_texts = len({record.text for record in data.train})
    if args.mode == "rlhf" and args.num_images > num_texts * args.images_per_prompt:
        raise cli.UserError(
            f"--num_images {args.num_images}: the {num_texts} texts of training patients give "
            f"{num_texts * args.images_per_prompt} with --images_per_prompt "
            f"{args.images_per_prompt}"
        )
    if not data.has_labels and args.mode == "synthetic_pairs":
        raise cli.UserError("--mode synthetic_pairs: every scan of --real_dir needs a label")
    if not data.has_labels and args.select_by == "agreement":
        raise cli.UserError(
            "the judge cannot look for labels, which scans of --real_dir lack: --select_by fid"
        )


def check_networks(args: argparse.Namespace, data: ImprovementData) -> dict[str, str]:
    """SHA-256 of what chooses and judges; the networks must differ.

    Raises:
        UserError: If one judges what it chose, or does not know a label of the data.
    """
    from utils.classifier import read_config
    from utils.extractor_names import CLASSIFIER_PREFIX
    from utils.network_folder import WEIGHTS_NAME
    from utils.rating_flags import ANSWERS_NAME

    folders = {"judge": args.judge, "classifier": args.classifier}
    if args.feature_extractor.startswith(CLASSIFIER_PREFIX):
        folders["feature_extractor"] = Path(args.feature_extractor.removeprefix(CLASSIFIER_PREFIX))
    labels = {label for part in (data.train, data.val, data.test) for label in part.labels}
    hashes = {}
    for name, folder in folders.items():
        if folder is None:
            continue
        known = read_config(folder).labels
        if name != "feature_extractor" and (unknown := sorted(labels - set(known))):
            raise cli.UserError(f"--{name} {folder} does not know {', '.join(unknown)}")
        hashes[name] = run_folder.sha256_file(folder / WEIGHTS_NAME)
    for name in ("judge", "feature_extractor"):
        if name in hashes and hashes[name] == hashes.get("classifier"):
            raise cli.UserError(
                f"--{name} {folders[name]} has the weights of --classifier {args.classifier}: what "
                "chooses the images cannot measure them"
            )
    for name in (ANSWERS_NAME, "pairs.csv") if args.ratings else ():
        hashes[name] = run_folder.sha256_file(args.ratings / name)
    if args.captioner and Path(args.captioner).is_dir():
        hashes["captioner"] = run_folder.hash_folder(args.captioner)
    if Path(args.finding_rules).is_file():
        hashes["finding_rules"] = run_folder.sha256_file(args.finding_rules)
    return hashes


# Loop


def improve(work: Improvement) -> tuple[list[RoundRecord], Verdict]:
    """The loop: round after round, each from the model of the one before, until one says stop."""
    from utils.round_material import training_flags
    from utils.round_record import read_records, round_dir, write_table

    args, records = work.args, read_records(work.folder)
    if not records:
        records.append(work.measure(0, args.model, {}))
    while not (verdict := judge(args, records)).stop:
        number, model = len(records), records[-1].model
        folder = round_dir(work.folder, number)
        logger.info("round %d of %d, from %s", number, args.num_rounds, model)
        material = gather(work, number, model)
        flags, found = training_flags(work, material, folder)
        trained = work.stages.train(
            f"{folder.name}/pipeline", model=model, flags=flags, seed=args.seed + number
        )
        records.append(work.measure(number, str(trained), found))
        write_table(args.output_dir / "rounds.csv", records, judge(args, records))
        tell(args, records)
    logger.info("stopped: %s; the best is round %d", verdict.stop, verdict.best)
    return records, verdict


def judge(args: argparse.Namespace, records: Sequence[RoundRecord]) -> Verdict:
    """Which round is the best so far, and whether to go on."""
    from utils.round_watch import judge_rounds

    return judge_rounds(
        [record.scores for record in records],
        [record.alarms for record in records],
        select_by=args.select_by,
        patience=args.patience,
        num_rounds=args.num_rounds,
    )


def gather(work: Improvement, number: int, model: str) -> Material:
    """What the mode adds to the real pairs in this round."""
    from utils.round_material import Material

    if work.args.mode == "unlabeled":
        from utils import unlabeled_rounds as mode
    elif work.args.mode == "synthetic_pairs":
        from utils import pair_rounds as mode
    elif work.args.mode == "rlhf":
        from utils import reward_rounds as mode
    else:
        return Material()
    return mode.gather(work, number, model)


def tell(args: argparse.Namespace, records: Sequence[RoundRecord]) -> None:
    """Say after each round what came of it, while the user can still stop."""
    first, last = records[0].scores, records[-1].scores
    for name in (args.select_by, "recall"):
        logger.info("%s: %.4g at first, %.4g now", name, first[name], last[name])
    for alarm in records[-1].alarms:
        logger.warning("%s", alarm)


# Save


def save(work: Improvement, records: Sequence[RoundRecord], verdict: Verdict) -> dict:
    """Publish the best round's pipeline, measure it on test patients, write page and results."""
    from utils.improvement_page import build_page
    from utils.pipeline_folder import find_pipeline
    from utils.round_record import write_table
    from utils.trained_pipeline import publish_pipeline

    args, folder = work.args, work.folder
    (folder / "results.json").unlink(missing_ok=True)  # until it is true again
    best = records[verdict.best]
    publish_pipeline(find_pipeline(best.model, offline=args.offline), folder / "pipeline")
    write_table(folder / "rounds.csv", records, verdict)
    result = {
        "mode": args.mode,
        "method": args.method,
        "select_by": args.select_by,
        "rounds": len(records) - 1,
        "best_round": verdict.best,
        "stopped": verdict.stop,
        "pipeline": folder / "pipeline",
        "best": best.scores,
        "first": records[0].scores,
        "compared": best.compared,
        "last": {"scores": records[-1].scores, "compared": records[-1].compared},
        "test": work.test(best) if verdict.best else None,
        "rewards": {name: one.report.as_json() for name, one in work.judge.rewards.items()},
        "notes": list(work.data.notes),
        "seconds": work.stages.runner.seconds(),
    }
    build_page(work, records, verdict, result).write(folder / "report.html")
    run_folder.write_json(folder / "results.json", result)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, loop, save."""
    args = parse_args(argv)
    device = start(args)

    from utils.resumable_run import only_writer

    args.output_dir.mkdir(parents=True, exist_ok=True)
    with only_writer(args.output_dir) as lock:
        work = load(args, device, lock)
        records, verdict = improve(work)
        result = save(work, records, verdict)
    run_folder.print_result(result)


if __name__ == "__main__":
    cli.main_guard(main)
