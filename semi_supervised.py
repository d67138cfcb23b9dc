#!/usr/bin/env python3
r"""Train diagnosis classifiers on real, synthetic and unlabeled images, and tell gain from chance.

An arm is what a classifier learns from: real, synthetic, real+synthetic (mixed), 'synthetic->real'
(pre-training, then fine-tuning; quote it), real+unlabeled (FixMatch or pseudo-labels) and
real+unlabeled+synthetic. Each is trained on shares of the labels (nested, whole patients, the same
for every arm) with several seeds, and tested on the same real patients. Arms are compared with the
arm real: difference, 95 % interval over patients and seeds, p after Holm's correction, a sentence.

Reads any data source with labels (a dataset folder, class folders, a CSV, shards, a hub name), uses
its column ``split`` or divides the patients itself. Labels joined by ``;`` make the task
multi-label. The classifier that does best on validation patients is kept: the quality gate of
generate_synthetic_dataset.py and a feature extractor of evaluate.py.

Examples:
  python semi_supervised.py --real_dir runs/clinic --resolution 128 --output_dir runs/diagnosis
  python semi_supervised.py --real_dir data/oct --backbone resnet50 \
      --backbone_weights IMAGENET1K_V2 --output_dir runs/diagnosis

  # how much is it, how long does it take?
  python semi_supervised.py --real_dir data/oct --synthetic_dir runs/synthetic --plan \
      --arms real real+synthetic 'synthetic->real' real+unlabeled --label_shares 1 5 10 100 \
      --num_seeds 5 --output_dir runs/few_labels

  # a process per GPU; stopped, the same command continues
  accelerate launch semi_supervised.py --real_dir data/oct --synthetic_dir runs/synthetic \
      --arms real real+synthetic 'synthetic->real' --label_shares 1 5 10 20 50 100 \
      --synthetic_ratios 100 200 500 1000 2000 --num_seeds 5 --output_dir runs/few_labels

Writes options.json, runs/ (a folder a run), classifier/ (config.json, model.safetensors),
results.csv, comparisons.csv, sources.csv, predictions.csv, training.csv, errors.png, results.json
and report.html; prints the result as JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING

from utils import arm_flags, cli, diagnosis_flags, run_folder
from utils.backbone_names import SMALL
from utils.sweep_plan import RESULT_FILES, RUN_FILES

if TYPE_CHECKING:
    from accelerate import PartialState

    from utils.classifier_training import Examples
    from utils.diagnosis_input import DiagnosisInput
    from utils.sweep_outcome import Outcome
    from utils.sweep_plan import RunKey
    from utils.sweep_trainer import Trainer

# AdamW's peak rates: small network from scratch, large one from scratch, large one fine-tuned.
SMALL_RATE, SCRATCH_RATE, FINE_TUNING_RATE = 2e-3, 3e-4, 1e-4
# After pre-training on synthetic images the same network needs smaller steps.
SECOND_STAGE_SHARE = 0.3
LONGEST_WAIT = timedelta(days=7)  # of a process for the slowest one: a sweep takes days

# Flags that may differ between a sweep and its continuation: they change no run.
FREE_FLAGS = (
    *("arms", "label_shares", "synthetic_ratios", "num_seeds", "plan", "num_resamples"),
    *("output_dir", "device", "num_workers", "offline", "overwrite"),
)
OUTPUTS = (*RESULT_FILES, *RUN_FILES, "classifier/*")

logger = run_folder.get_logger("semi_supervised")


def build_parser() -> argparse.ArgumentParser:
    """Flags of this script."""
    parser = cli.make_parser(__doc__)
    diagnosis_flags.add_real_data_flags(parser.add_argument_group("real data"))
    arms = parser.add_argument_group("arms")
    arm_flags.add_all(arms)
    diagnosis_flags.add_sweep_flags(arms)
    network = parser.add_argument_group("network")
    diagnosis_flags.add_network_flags(network)
    diagnosis_flags.add_input_flags(network)
    training = parser.add_argument_group("training")
    rates = (
        f"{SMALL_RATE} for small, {SCRATCH_RATE} for others from random weights, "
        f"{FINE_TUNING_RATE} with --backbone_weights"
    )
    diagnosis_flags.add_training_flags(training, rates=rates)
    diagnosis_flags.add_regularising_flags(training)
    diagnosis_flags.add_run_flags(parser.add_argument_group("run"))
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check = diagnosis_flags.check_training(args) or diagnosis_flags.check_backbone(args)
    problem = arm_flags.check(args) or check
    if problem:
        parser.error(problem)
    arm_flags.fill_defaults(args)
    return args


def start(args: argparse.Namespace) -> PartialState:
    """The state of the processes that ``accelerate launch`` started, or of this one alone."""
    if args.offline:
        cli.go_offline()
    cli.answer_signals()
    from utils.process_group import join

    loggers = ("semi_supervised", "diagnosis", "dataset", "cache")
    state = join(args.device, longest_wait=LONGEST_WAIT, main_loggers=loggers)
    if args.mixed_precision == "fp16" and state.device.type != "cuda":
        raise cli.UserError("--mixed_precision fp16 needs a CUDA device; use bf16 or no")
    return state


def plan_runs(args: argparse.Namespace, data: DiagnosisInput) -> list[RunKey]:
    """The runs that the flags ask for.

    Raises:
        UserError: If there are too few synthetic images for a ratio.
    """
    from utils.sweep_plan import expand

    return expand(
        args.arms,
        label_shares=args.label_shares,
        synthetic_ratios=data.ratios(args.synthetic_ratios),
        seeds=range(args.seed, args.seed + args.num_seeds),
    )


def peak_rate(args: argparse.Namespace) -> float:
    """AdamW's peak rate: the flag, else the default of the network."""
    if args.learning_rate is not None:
        return args.learning_rate
    if args.backbone == SMALL:
        return SMALL_RATE
    return SCRATCH_RATE if args.backbone_weights == "none" else FINE_TUNING_RATE


def make_trainer(
    args: argparse.Namespace, data: DiagnosisInput, state: PartialState, device: str
) -> tuple[Trainer, Examples]:
    """The trainer of all runs, and the images to test on."""
    from utils.arm_training import ArmTrainer
    from utils.backbone_weights import full_name
    from utils.classifier_training import TrainingOptions
    from utils.diagnosis_input import load_pools
    from utils.fixmatch import Unlabeled
    from utils.probe_training import ProbeTrainer
    from utils.untrained_classifier import UntrainedClassifier, describe_classifier

    pools, test = load_pools(args, data)
    backbone = full_name(args.backbone, args.backbone_weights)
    config = describe_classifier(args, data.real, pools.train.images, backbone=backbone)
    start = UntrainedClassifier(config, weights=args.backbone_weights, offline=args.offline)
    if args.freeze_backbone:
        cache_dir = args.output_dir.parent / run_folder.FEATURE_CACHE
        options = {"class_balance": args.class_balance, "cache_dir": cache_dir}
        probes = ProbeTrainer(pools, start=start, device=device, state=state, **options)
        return probes, test
    unlabeled = pools.unlabeled and Unlabeled(
        pools.unlabeled,
        method=args.unlabeled_method,
        threshold=args.pseudo_threshold,
        ratio=args.unlabeled_ratio,
        weight=args.unlabeled_weight,
    )
    rate = peak_rate(args)
    trainer = ArmTrainer(
        pools,
        start=start,
        options=TrainingOptions.of_flags(args, learning_rate=rate),
        fine_tuning_rate=SECOND_STAGE_SHARE * rate,
        device=device,
        unlabeled=unlabeled,
        align_labels=args.distribution_alignment == "on",
    )
    return trainer, test


def describe_plan(
    args: argparse.Namespace, keys: Sequence[RunKey], trainer: Trainer, state: PartialState
) -> dict[str, object]:
    """How many runs there are, how many are done, and how long the others take at most."""
    from utils.sweep_estimate import estimate_seconds, seconds_per_image
    from utils.sweep_plan import count_by_arm, in_stages
    from utils.sweep_runner import candidates, runs_to_do

    every = [key for stage in in_stages(keys) for key in stage]
    todo = [
        key for stage in runs_to_do(keys, args.output_dir, keep=candidates(keys)) for key in stage
    ]
    seconds = 0.0
    if todo and not args.freeze_backbone:  # probes take no time beside the features
        seconds = estimate_seconds(
            todo,
            trainer,
            num_processes=state.num_processes,
            per_image=seconds_per_image(trainer, todo[0]),
        )
    return {
        "num_runs": len(every),
        "num_done": len(every) - len(todo),
        "runs_by_arm": count_by_arm(every),
        "steps_per_run": max(map(trainer.num_steps, every)),
        "num_processes": state.num_processes,
        "estimated_seconds": round(seconds),
    }


def tell_plan(
    args: argparse.Namespace, keys: Sequence[RunKey], trainer: Trainer, state: PartialState
) -> None:
    """Say what lies ahead, where that is more than one run."""
    from tqdm import tqdm

    if len(keys) > 1:
        plan = describe_plan(args, keys, trainer, state)
        longest = tqdm.format_interval(plan["estimated_seconds"])
        logger.info("%d runs, %d done; %s at most", plan["num_runs"], plan["num_done"], longest)


def describe_outcome(args: argparse.Namespace, data: DiagnosisInput, device: str) -> Outcome:
    """What the page says about data and training, and what the arms are compared with."""
    from utils.sweep_outcome import Outcome

    sizes = {
        name: f"{part['images']} images"
        + (f" of {part['patients']} patients" if part["patients"] else "")
        for name, part in data.real.counts().items()
    }
    facts = {"real images": args.real_dir, "test images": args.test_dir or args.real_dir, **sizes}
    if data.synthetic:
        facts["synthetic images"] = f"{len(data.synthetic)} in {args.synthetic_dir}"
    if data.unlabeled:
        facts["more images without labels"] = f"{len(data.unlabeled)} in {args.unlabeled_dir}"
    facts |= {
        "network": f"{args.backbone}, {args.resolution} px, {args.resize_mode}",
        "started from": "random weights"
        if args.backbone_weights == "none"
        else args.backbone_weights,
        "augmentation": args.augment,
        "seeds": f"{args.seed} to {args.seed + args.num_seeds - 1}",
    }
    return Outcome(
        title="Diagnosis from " + ("real images" if args.arms == ["real"] else "few labels"),
        reference_arm="real" if "real" in args.arms else args.arms[0],
        facts=facts,
        notes=data.notes,
        num_resamples=args.num_resamples,
        seed=args.seed,
        device=device,
    )


def run(args: argparse.Namespace, state: PartialState) -> dict[str, object]:
    """Load, train, compare, write; the result on the main process."""
    from utils.diagnosis_input import load_input
    from utils.process_group import leave, main_first, own_device, wait_for_all
    from utils.resumable_run import only_writer
    from utils.sweep_runner import candidates, open_sweep, run_sweep, use_a_core_for_each

    is_main = state.is_main_process
    with main_first(state):
        data = load_input(args, check_pixels=is_main or args.skip_invalid)
    keys = plan_runs(args, data)
    device = own_device(args.device, state)
    use_a_core_for_each(keys, device=device, state=state)
    trainer, test = make_trainer(args, data, state, device)
    if args.plan:
        return describe_plan(args, keys, trainer, state)
    if is_main:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    with only_writer(args.output_dir) if is_main else nullcontext():
        if is_main:
            open_sweep(
                args,
                identity={"data_hash": data.fingerprint},
                free_flags=FREE_FLAGS,
                outputs=OUTPUTS,
            )
            tell_plan(args, keys, trainer, state)
        wait_for_all(state)
        run_sweep(
            keys,
            trainer,
            test=test.images,
            output_dir=args.output_dir,
            keep=candidates(keys),
            state=state,
        )
        result = {}
        if is_main:
            from utils.sweep_outcome import finish

            result = finish(
                args.output_dir, keys, data.real, test, outcome=describe_outcome(args, data, device)
            )
    leave(state)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, train, compare, write."""
    args = parse_args(argv)
    state = start(args)
    result = run(args, state)
    if state.is_main_process:
        run_folder.print_result(result)


if __name__ == "__main__":
    cli.main_guard(main)
