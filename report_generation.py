#!/usr/bin/env python3
r"""Train a model that writes the report of a scan, and tell what synthetic pairs add.

An arm is what a report model learns from: real pairs of scan and report, synthetic, real+synthetic
(mixed), 'synthetic->real' (pre-training, then fine-tuning; quote it). Each is trained on shares of
the patients (nested, the same for every arm) with several seeds, and writes the reports of the same
real test patients. Scores: findings (precision, recall, F1 by a labeler), side, size and number,
BLEU, ROUGE, METEOR, CIDEr; beside them what two dummies reach, the most frequent report and that of
the most similar training scan. Arms are compared with the arm real: difference, 95 % interval over
patients and seeds, p after Holm's correction, a sentence.

With --caption_dir it writes a report for every scan that has none, into a new data set.

Examples:
  python report_generation.py --real_dir data/oct --resolution 224 --output_dir runs/reports

  # is it worth while to add synthetic pairs? a process per GPU; stopped, the same command continues
  accelerate launch report_generation.py --real_dir data/oct --synthetic_dir runs/synthetic \
      --arms real real+synthetic 'synthetic->real' --label_shares 5 100 --num_seeds 3 \
      --output_dir runs/reports

  # pretrained parts, by folder or hub name; an encoder that self_supervised.py has trained
  python report_generation.py --real_dir data/oct --encoder google/vit-base-patch16-224 \
      --decoder gpt2 --resolution 224 --mixed_precision bf16 --output_dir runs/reports
  python report_generation.py --real_dir data/oct --encoder runs/self_supervised/mae \
      --resolution 96 --output_dir runs/reports

  # chest X-ray, the findings of CheXpert
  python report_generation.py --real_dir data/cxr --finding_rules cxr --output_dir runs/cxr_reports

  # reports for scans that have none
  python report_generation.py --caption_dir data/unlabeled --model runs/reports/captioner \
      --min_confidence -0.5 --output_dir runs/captioned

Writes options.json, runs/ (a folder a run), captioner/ (a folder of transformers), results.csv,
comparisons.csv, runs.csv, predictions.csv, training.csv, results.json and report.html; with
--caption_dir images/, metadata.csv, manifest.csv, results.json and report.html. Prints the result
as JSON. Pages show no report and no scan without --show_reports.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING

from utils import cli, diagnosis_flags, report_flags, run_folder
from utils.sweep_plan import RUN_FILES

if TYPE_CHECKING:
    from accelerate import PartialState

    from utils.report_data import ReportData, ReportPools
    from utils.report_outcome import ReportOutcome
    from utils.report_training import ReportTrainer

# AdamW's peak rates: all from scratch, or something pretrained.
SCRATCH_RATE, FINE_TUNING_RATE = 2e-3, 1e-4
# After pre-training on synthetic pairs the same network needs smaller steps.
SECOND_STAGE_SHARE = 0.3
LONGEST_WAIT = timedelta(days=7)  # of a process for the slowest one: a sweep takes days

# Flags that may differ between a sweep and its continuation: they change no run.
FREE_FLAGS = (
    *("arms", "label_shares", "synthetic_ratios", "num_seeds", "num_resamples"),
    *("finding_rules", "wordnet_dir", "bert_score_model", "bert_score_layer", "show_reports"),
    *("checkpointing_steps", "output_dir", "device", "num_workers", "offline", "overwrite"),
)
OUTPUTS = (
    *("results.json", "report.html", "results.csv", "comparisons.csv", "runs.csv"),
    *("predictions.csv", "training.csv", "captioner/*"),
    *RUN_FILES,
)

logger = run_folder.get_logger("reports")


def build_parser() -> argparse.ArgumentParser:
    """Flags of this script."""
    parser = cli.make_parser(__doc__)
    report_flags.add_data_flags(parser.add_argument_group("training: data"))
    report_flags.add_arm_flags(parser.add_argument_group("training: arms"))
    training = parser.add_argument_group("training: length and rate")
    rates = f"{SCRATCH_RATE} from scratch, {FINE_TUNING_RATE} with anything pretrained"
    diagnosis_flags.add_training_flags(training, rates=rates)
    diagnosis_flags.add_smoothing_flags(training)
    report_flags.add_caption_flags(parser.add_argument_group("writing"))
    model = parser.add_argument_group("model")
    report_flags.add_model_flags(model)
    report_flags.add_decoding_flags(model)
    report_flags.add_score_flags(parser.add_argument_group("scores and page"))
    report_flags.add_run_flags(parser.add_argument_group("run"))
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    problem = report_flags.check(args, parser.get_default)
    if problem:
        parser.error(problem)
    if args.real_dir and args.max_tokens is None:
        args.max_tokens = report_flags.MAX_TOKENS
    return args


def start(args: argparse.Namespace) -> PartialState:
    """The state of the processes that ``accelerate launch`` started, or of this one alone."""
    if args.offline:
        cli.go_offline()
    cli.answer_signals()
    from transformers.utils import logging

    from utils.process_group import join

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    loggers = ("reports", "diagnosis", "dataset", "cache")
    state = join(args.device, longest_wait=LONGEST_WAIT, main_loggers=loggers)
    if args.mixed_precision == "fp16" and state.device.type != "cuda":
        raise cli.UserError("--mixed_precision fp16 needs a CUDA device; use bf16 or no")
    return state


def make_trainer(
    args: argparse.Namespace, data: ReportData, pools: ReportPools, device: str
) -> ReportTrainer:
    """The trainer of all runs."""
    from utils.captioner import Decoding
    from utils.captioner_networks import CaptionerSpec
    from utils.captioner_training import CaptionerOptions
    from utils.report_training import ReportTrainer

    pretrained = args.model or {args.encoder, args.decoder} != {report_flags.SMALL}
    rate = args.learning_rate or (FINE_TUNING_RATE if pretrained else SCRATCH_RATE)
    epoch = max(1, len(data.train) // args.batch_size)
    steps = args.max_epochs * epoch
    return ReportTrainer(
        pools,
        spec=CaptionerSpec(
            args.resolution,
            encoder=args.encoder,
            decoder=args.decoder,
            model=args.model,
            max_tokens=args.max_tokens,
            offline=args.offline,
        ),
        options=CaptionerOptions(
            total_steps=min(steps, args.max_train_steps or steps),
            steps_per_epoch=epoch,
            checkpointing_steps=args.checkpointing_steps,
            batch_size=args.batch_size,
            learning_rate=rate,
            weight_decay=args.weight_decay,
            label_smoothing=args.label_smoothing,
            augment=args.augment,
            ema_decay=args.ema_decay,
            patience=args.early_stopping_patience,
            max_tokens=args.max_tokens,
            seed=args.seed,
        ),
        fine_tuning_rate=SECOND_STAGE_SHARE * rate,
        decoding=Decoding(
            args.num_beams, args.length_penalty, args.no_repeat_ngram_size, args.max_tokens - 1
        ),
        resize_mode=args.resize_mode,
        mixed_precision=args.mixed_precision,
        device=device,
        output_dir=args.output_dir,
    )


def describe_outcome(args: argparse.Namespace, data: ReportData, device: str) -> ReportOutcome:
    """What the page says about data and training, and what the arms are compared with."""
    from utils.report_outcome import ReportOutcome

    facts = {"real pairs": args.real_dir, "test pairs": args.test_dir or args.real_dir}
    facts |= {
        name: f"{part['pairs']} pairs"
        + (f" of {part['patients']} patients" if part["patients"] else "")
        for name, part in data.counts().items()
    }
    if data.synthetic:
        facts["synthetic pairs"] = f"{len(data.synthetic)} in {args.synthetic_dir}"
    network = args.model or f"{args.encoder} encoder, {args.decoder} decoder"
    facts |= {
        "network": f"{network}, {args.resolution} px, {args.resize_mode}",
        "search": f"{args.num_beams} beams, length penalty {args.length_penalty:g}",
        "findings": args.finding_rules,
        "seeds": f"{args.seed} to {args.seed + args.num_seeds - 1}",
    }
    return ReportOutcome(
        reference_arm="real" if "real" in args.arms else args.arms[0],
        facts=facts,
        notes=data.notes,
        num_resamples=args.num_resamples,
        seed=args.seed,
        device=device,
        finding_rules=args.finding_rules,
        wordnet_dir=args.wordnet_dir,
        bert_score_model=args.bert_score_model,
        bert_score_layer=args.bert_score_layer,
        show_reports=args.show_reports,
        offline=args.offline,
    )


def train_and_compare(args: argparse.Namespace, state: PartialState) -> dict[str, object]:
    """Load, train, compare, write; the result on the main process."""
    from utils.captioner_networks import hash_parts
    from utils.process_group import leave, main_first, own_device, wait_for_all
    from utils.report_data import load_pools, load_report_data, report_of
    from utils.report_training import ReportResult
    from utils.resumable_run import only_writer
    from utils.sweep_plan import expand
    from utils.sweep_runner import candidates, open_sweep, run_sweep, use_a_core_for_each

    is_main = state.is_main_process
    device = own_device(args.device, state)
    with main_first(state):
        data = load_report_data(args, check_pixels=is_main or args.skip_invalid)
    keys = expand(
        args.arms,
        label_shares=args.label_shares,
        synthetic_ratios=data.ratios(args.synthetic_ratios),
        seeds=range(args.seed, args.seed + args.num_seeds),
    )
    use_a_core_for_each(keys, device=device, state=state)
    if is_main:
        outcome = describe_outcome(args, data, device)
        scorer = outcome.scorer([report_of(record) for record in data.test])
    pools = load_pools(args, data)
    trainer = make_trainer(args, data, pools, device)
    if is_main:
        trainer.check(keys[0])
        args.output_dir.mkdir(parents=True, exist_ok=True)
    with only_writer(args.output_dir) if is_main else nullcontext():
        if is_main:
            identity = {
                "report_data_hash": data.fingerprint,
                "network_hash": hash_parts((args.encoder, args.decoder, args.model)),
            }
            open_sweep(args, identity=identity, free_flags=FREE_FLAGS, outputs=OUTPUTS)
        wait_for_all(state)
        run_sweep(
            keys,
            trainer,
            test=pools.test.images,
            output_dir=args.output_dir,
            keep=candidates(keys),
            state=state,
            result_type=ReportResult,
        )
        result = {}
        if is_main:
            from utils.report_outcome import finish

            result = finish(args.output_dir, keys, pools, scorer=scorer, outcome=outcome)
    leave(state)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, then train and compare, or write reports."""
    args = parse_args(argv)
    state = start(args)
    if args.caption_dir:
        from utils import captioning

        result = captioning.run(args, state)
    else:
        result = train_and_compare(args, state)
    if state.is_main_process:
        run_folder.print_result(result)


if __name__ == "__main__":
    cli.main_guard(main)
