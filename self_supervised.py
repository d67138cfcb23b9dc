#!/usr/bin/env python3
r"""Pre-train a vision transformer on OCT images without labels, and measure what that is worth.

A masked autoencoder hides most patches of an image and learns to tell them from the rest (He et al.
2022), on real images (the training split of --real_dir, and --unlabeled_dir), synthetic ones or
both; no patient of the test split is ever seen. Then classifiers are trained on shares of the
labels: the same transformer from scratch, on the frozen encoder (a linear probe), and fine-tuned.
The encoder is a backbone of semi_supervised.py and a feature extractor of evaluate.py.

Examples:
  python self_supervised.py --real_dir runs/clinic --resolution 128 --label_shares 1 5 10 100 \
      --num_seeds 3 --output_dir runs/mae
  accelerate launch self_supervised.py --real_dir data/oct --unlabeled_dir 'shards/oct' \
      --resolution 224 --mae_width 1024 --mae_depth 24 --patch_size 16 --decoder_width 512 \
      --decoder_depth 8 --pretrain_batch_size 1024 --mixed_precision bf16 --arms \
      --output_dir runs/mae-l
  python self_supervised.py --real_dir runs/clinic --synthetic_dir runs/synthetic \
      --pretrain_on real+synthetic --resolution 128 --output_dir runs/mae-both
  python semi_supervised.py --real_dir runs/clinic --resolution 128 --backbone vit \
      --backbone_weights runs/mae/encoder.safetensors --output_dir runs/diagnosis

The same command goes on where it was stopped; Ctrl-C and SIGTERM save a checkpoint first. On a CPU
a run that was stopped ends with the bytes of one that was not, and several processes make the steps
of one. Writes options.json, mae/ (for transformers), encoder.safetensors (layout of MAE and timm),
pretraining.csv, reconstructions.png and pretraining.json; then what semi_supervised.py writes of
its arms: runs/, classifier/, results.csv, comparisons.csv, results.json, report.html. Prints the
result as JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli, diagnosis_flags, mae_flags, run_folder
from utils.cli import UserError
from utils.sweep_plan import RESULT_FILES, RUN_FILES

if TYPE_CHECKING:
    from accelerate import Accelerator

    from utils.classifier_training import Examples
    from utils.dataset import Record
    from utils.diagnosis_data import DiagnosisData
    from utils.gray_images import GrayImages
    from utils.html_report import Page
    from utils.interruption import Interruption
    from utils.mae_batches import StepBatch, StepPlan
    from utils.mae_model import MaeOptions
    from utils.pretraining_data import PretrainingData
    from utils.sweep_plan import RunKey
    from utils.sweep_trainer import Trainer
    from utils.training_journal import Journal

KEPT_CHECKPOINTS = 2
LOG_STEPS = 10
ADAM_BETAS = (0.9, 0.95)  # He et al. 2022, table 8
VALIDATION_BATCH = 64  # images; fixed, so that the loss does not depend on the number of processes
LONGEST_WAIT = timedelta(days=7)  # of a process for the slowest one: classifiers take days

# Flags that may differ between a run and its continuation: they change nothing of the result.
FREE_FLAGS = (
    *("output_dir", "device", "num_workers", "offline", "overwrite", "checkpointing_steps"),
    *("arms", "label_shares", "num_seeds", "num_resamples"),
)
WORK = "pretraining"  # folder of logs and checkpoints
OUTPUTS = (
    *(*RESULT_FILES, "pretraining.json", "pretraining.csv", "reconstructions.png"),
    *("encoder.safetensors", "mae/*", f"{WORK}/*.csv", f"{WORK}/checkpoint-*/*"),
    *RUN_FILES,
    "classifier/*",
)

logger = run_folder.get_logger("self_supervised")


@dataclass(frozen=True)
class Run:
    """What the pre-training works with.

    Attributes:
        args: The flags.
        accelerator: Accelerate's view of devices and processes.
        options: Sizes and task.
        model: The autoencoder, as accelerate prepared it.
        optimizer: Likewise.
        images: To learn from.
        held_out: Batches to measure the loss on.
        plan: How the steps go through the images.
        first_step: Steps done before.
    """

    args: argparse.Namespace
    accelerator: Accelerator
    options: MaeOptions
    model: Any
    optimizer: Any
    images: GrayImages
    held_out: list[StepBatch]
    plan: StepPlan
    first_step: int

    @property
    def folder(self) -> Path:
        """Of logs and checkpoints."""
        return self.args.output_dir / WORK


# Parse


def build_parser() -> argparse.ArgumentParser:
    """Flags of this script."""
    parser = cli.make_parser(__doc__)
    data = parser.add_argument_group("data")
    diagnosis_flags.add_real_data_flags(data)
    mae_flags.add_data_flags(data)
    diagnosis_flags.add_input_flags(data)
    mae_flags.add_model_flags(parser.add_argument_group("autoencoder"))
    mae_flags.add_training_flags(parser.add_argument_group("pre-training"))
    classifiers = parser.add_argument_group("classifiers")
    mae_flags.add_arms(classifiers)
    diagnosis_flags.add_sweep_flags(classifiers)
    rates = (
        f"{mae_flags.SCRATCH_RATE} from scratch; fine-tuning {mae_flags.FINE_TUNING_RATE} up to a "
        f"--mae_width of {mae_flags.SMALL_WIDTH}, else {mae_flags.LARGE_FINE_TUNING_RATE}"
    )
    diagnosis_flags.add_training_flags(classifiers, rates=rates)
    diagnosis_flags.add_regularising_flags(classifiers)
    diagnosis_flags.add_run_flags(parser.add_argument_group("run"))
    # RETFound's recipe for fine-tuning
    parser.set_defaults(layer_decay=0.65, drop_path=0.1, label_smoothing=0.1)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    problem = diagnosis_flags.check_training(args) or mae_flags.contradiction(args)
    if problem:
        parser.error(problem)
    return args


# Load


def start_accelerator(args: argparse.Namespace) -> Accelerator:
    """Set up devices, processes and precision."""
    import torch
    from accelerate import Accelerator

    from utils.process_group import join

    device = cli.resolve_device(args.device)
    state = join(
        device, longest_wait=LONGEST_WAIT, main_loggers=[logger.name, "diagnosis", "dataset"]
    )
    if args.mixed_precision == "fp16" and state.device.type != "cuda":
        raise UserError("--mixed_precision fp16 needs a CUDA device; use bf16 or no")
    if state.num_processes == 1 and ":" in device:
        torch.cuda.set_device(device)
    if args.pretrain_batch_size % state.num_processes:
        raise UserError(
            f"--pretrain_batch_size {args.pretrain_batch_size}: not a multiple of the "
            f"{state.num_processes} processes"
        )
    try:
        return Accelerator(mixed_precision=args.mixed_precision)
    except ValueError as error:  # e.g. bf16 on a card without it
        raise UserError(f"--mixed_precision {args.mixed_precision}: {error}") from error


def load_data(
    args: argparse.Namespace, accelerator: Accelerator
) -> tuple[PretrainingData, DiagnosisData]:
    """Read and check every table and pixel: images without labels, and those with."""
    from accelerate import PartialState

    from utils.dataset import load_dataset
    from utils.diagnosis_data import divide
    from utils.leakage import refuse_leaks
    from utils.pretraining_data import gather
    from utils.process_group import main_first

    options = {
        # Of several processes the first decodes every image, unless all have to know which to drop.
        "check_pixels": accelerator.is_main_process or args.skip_invalid,
        "skip_invalid": args.skip_invalid,
        "num_workers": args.num_workers,
        "offline": args.offline,
    }
    with_synthetic = "synthetic" in args.pretrain_on
    with main_first(PartialState()):
        columns = {"image_column": args.image_column, "patient_column": args.patient_column}
        labelled = columns | {"label_column": args.label_column, "require_label": True}
        real = load_dataset(args.real_dir, **labelled, **options)
        test, unlabeled, synthetic = (
            load_dataset(source, **own, **options) if source and wanted else None
            for source, wanted, own in (
                (args.test_dir, True, labelled),
                (args.unlabeled_dir, True, columns | {"allow_duplicates": True}),
                (args.synthetic_dir, with_synthetic, {"allow_duplicates": True}),
            )
        )
    divided = divide(real, test, task=args.task, seed=args.seed, by_image=args.by_image)
    data = gather(divided, pretrain_on=args.pretrain_on, unlabeled=unlabeled, synthetic=synthetic)
    if synthetic is not None:
        leaks = refuse_leaks(
            synthetic.root,
            synthetic.records,
            learned=(*divided.train, *divided.val),
            test=divided.test,
            tested=test or real,
            test_source=args.test_dir or args.real_dir,
        )
        data = replace(data, notes=(*data.notes, *leaks))
    for note in data.notes:
        logger.info(note)
    return data, divided


def open_output(args: argparse.Namespace, accelerator: Accelerator, data: PretrainingData) -> None:
    """Make --output_dir ready, on the main process; the others wait."""
    from accelerate import PartialState

    from utils.checkpoints import remove_leftovers
    from utils.process_group import wait_for_all
    from utils.sweep_runner import open_sweep

    if accelerator.is_main_process:
        remove_leftovers(args.output_dir / WORK)
        open_sweep(
            args,
            identity={"pretraining_data": data.fingerprint},
            free_flags=FREE_FLAGS,
            outputs=OUTPUTS,
        )
        for path in (args.output_dir / WORK).glob("checkpoint-*"):
            if not any(path.iterdir()):
                path.rmdir()  # what is left of a run that was overwritten
    wait_for_all(PartialState())


def mae_options(args: argparse.Namespace) -> MaeOptions:
    """The flags as the model wants them."""
    from utils.backbone_names import VitSizes
    from utils.mae_model import MaeOptions

    return MaeOptions(
        encoder=VitSizes(args.mae_width, args.mae_depth, args.patch_size),
        resolution=args.resolution,
        decoder_width=args.decoder_width,
        decoder_depth=args.decoder_depth,
        mask_ratio=args.mask_ratio,
        norm_pix_loss=args.norm_pix_loss,
    )


def load_run(
    args: argparse.Namespace,
    accelerator: Accelerator,
    data: PretrainingData,
    test: Sequence[Record],
) -> Run:
    """The model where the last checkpoint left it, and the images."""
    import torch

    from utils.checkpoints import LATEST, find_checkpoint, is_complete, list_checkpoints, read_state
    from utils.classifier_optim import parameter_groups
    from utils.diagnosis_input import read_images
    from utils.leakage import refuse_shared_pixels
    from utils.mae_batches import StepPlan, held_out_batches
    from utils.mae_model import build_mae

    is_main = accelerator.is_main_process
    images = read_images(args, data.train, "train", shown=is_main)
    val = read_images(args, data.val, "val", shown=is_main)
    if is_main:
        tested = read_images(args, test, "test", shown=True)
        refuse_shared_pixels(tested, {"the sources to pre-train on": images})
    options = mae_options(args)
    model = build_mae(options, seed=args.seed)
    groups = parameter_groups(model, args.pretrain_weight_decay)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(groups, betas=ADAM_BETAS))
    first_step = 0
    if any(map(is_complete, list_checkpoints(args.output_dir / WORK))):
        checkpoint = find_checkpoint(args.output_dir / WORK, LATEST)
        first_step = read_state(checkpoint)["step"]
        accelerator.load_state(str(checkpoint))
        logger.info("going on from %s", checkpoint)
    rank, count = accelerator.process_index, accelerator.num_processes
    size = (args.pretrain_batch_size, options.num_patches, args.random_flip)
    plan = StepPlan(args.seed, *size, rank=rank, num_processes=count)
    fixed = {"num_patches": options.num_patches, "batch_size": VALIDATION_BATCH}
    held_out = held_out_batches(val, seed=args.seed, **fixed)
    return Run(args, accelerator, options, model, optimizer, images, held_out, plan, first_step)


# Loop


def pretrain(run: Run, journal: Journal, interruption: Interruption) -> int:
    """The training loop: one step after another, to the last.

    Returns:
        Steps done: all, or up to a signal.
    """
    from utils.classifier_optim import GRADIENT_NORM, learning_rate_at

    args, accelerator = run.args, run.accelerator
    steps = range(run.first_step, args.pretrain_steps)
    peak = mae_flags.peak_rate(args)
    step = run.first_step
    watch(run, journal, step)
    for batch in run.plan.batches(run.images, steps):
        # What the encoder sees, and what the decoder makes of it
        rate = learning_rate_at(step, total_steps=args.pretrain_steps, peak=peak)
        images = batch.images.to(accelerator.device, non_blocking=True)
        masking = batch.masking.to(accelerator.device, non_blocking=True)
        loss = run.model(images, noise=masking).loss

        # Learn
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        accelerator.backward(loss)
        grad_norm = accelerator.clip_grad_norm_(run.model.parameters(), GRADIENT_NORM)
        run.optimizer.step()
        run.optimizer.zero_grad()
        journal.add_batch(loss, batch.names)

        # Write down, save, measure
        step += 1
        epoch = step * args.pretrain_batch_size / len(run.images)
        journal.end_step(step, epoch=epoch, lr=rate, grad_norm=grad_norm)
        stopping = interruption.agreed()
        if stopping or step % args.checkpointing_steps == 0:
            journal.flush()  # ends the run at NaN, before it gets into a checkpoint
            save_training_state(run, step)
            journal.restart_clock()
        if stopping:
            break
        watch(run, journal, step)
    journal.flush()
    return step


def save_training_state(run: Run, step: int) -> None:
    """Write checkpoint-<step>; every process does its part."""
    from utils.checkpoints import save_checkpoint

    path = save_checkpoint(
        run.folder,
        {"step": step, "seed": run.args.seed, "num_processes": run.accelerator.num_processes},
        fill=lambda folder: run.accelerator.save_state(str(folder)),
        barrier=run.accelerator.wait_for_everyone,
        is_main=run.accelerator.is_main_process,
        total_limit=KEPT_CHECKPOINTS,
    )
    logger.info("saved %s", path)


def watch(run: Run, journal: Journal, step: int) -> None:
    """Measure the loss of held-out patients where it is due and not done.

    A resumed run calls it for its first step: the one before it may have been stopped after the
    checkpoint.
    """
    due = step % run.args.validation_steps == 0 or step == run.args.pretrain_steps
    if not due or journal.has_measured(step):
        return
    journal.flush()
    journal.add_held_out(step, measure_held_out(run), {})
    journal.restart_clock()


def measure_held_out(run: Run) -> float:
    """Mean loss of the held-out images, each process a share of the batches."""
    import torch

    accelerator = run.accelerator
    model = accelerator.unwrap_model(run.model).eval()
    losses = torch.zeros(len(run.held_out), device=accelerator.device)
    with torch.inference_mode(), accelerator.autocast():
        for number, batch in enumerate(run.held_out):
            if number % accelerator.num_processes == accelerator.process_index:
                images, masking = (t.to(accelerator.device) for t in (batch.images, batch.masking))
                losses[number] = model(images, noise=masking).loss
    model.train()
    sizes = torch.tensor([len(batch.names) for batch in run.held_out], dtype=torch.float32)
    losses = accelerator.reduce(losses, "sum").cpu()
    return float((losses * sizes).sum() / sizes.sum())


# Save


def save_pretraining(run: Run, data: PretrainingData, journal: Journal) -> None:
    """Write the encoder and what tells about it; pretraining.json last, then drop checkpoints."""
    from safetensors.torch import save_file

    from utils import mae_page
    from utils.mae_model import encoder_state, reconstruct

    folder, model = run.args.output_dir, run.accelerator.unwrap_model(run.model).eval()
    model = model.cpu().float()
    shutil.rmtree(folder / "mae", ignore_errors=True)
    with run_folder.atomic_folder(folder / "mae") as temporary:
        model.save_pretrained(temporary)
    with run_folder.atomic_path(folder / "encoder.safetensors") as temporary:
        save_file(encoder_state(model.state_dict()), temporary, {"format": "pt"})
    batch = run.held_out[0]
    shown = min(mae_page.SHEET_IMAGES, len(batch.names))
    pictures = reconstruct(model, batch.images[:shown], batch.masking[:shown])
    with run_folder.atomic_path(folder / "reconstructions.png") as temporary:
        mae_page.picture_sheet(*pictures).save(temporary)
    rows = mae_page.pretraining_rows(journal.rows, journal.held_out)
    run_folder.write_csv(folder / "pretraining.csv", rows, mae_page.COLUMNS)
    result = {
        "output_dir": folder,
        "encoder": {
            "path": folder / "encoder.safetensors",
            "sha256": run_folder.sha256_file(folder / "encoder.safetensors"),
            "backbone": run.options.encoder.name,
        },
        "images": data.counts,
        "steps": run.args.pretrain_steps,
        "epochs": run.args.pretrain_steps * run.args.pretrain_batch_size / len(run.images),
        "validation_images": len(data.val),
        "num_processes": run.accelerator.num_processes,
        "notes": data.notes,
        **journal.summary(),
    }
    run_folder.write_json(folder / "pretraining.json", result)
    for path in run.folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def add_pretraining(args: argparse.Namespace, page: Page) -> None:
    """The page's section on the pre-training."""
    from PIL import Image

    from utils import mae_page

    folder = args.output_dir
    result = read_pretraining(folder)
    images = ", ".join(f"{count} {name}" for name, count in result["images"].items())
    facts = {
        "images": images,
        "encoder": f"{result['encoder']['backbone']}, {args.resolution} px, {args.resize_mode}",
        "masked": f"{args.mask_ratio:.0%} of the patches",
        "training": f"{result['steps']} steps of {args.pretrain_batch_size} images, "
        f"{result['epochs']:.0f} epochs, {result['seconds']:.0f} s",
        "loss of held-out patients": f"{result['validation_loss']:.4f}",
        "encoder file": f"sha256 {result['encoder']['sha256']}",
    }
    mae_page.add_pretraining(
        page,
        facts=facts,
        notes=result["notes"],
        rows=mae_page.read_rows(folder / "pretraining.csv"),
        sheet=Image.open(folder / "reconstructions.png"),
    )


def read_pretraining(folder: Path) -> dict[str, object]:
    """What the pre-training found out."""
    return json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))


def ensure_encoder(
    args: argparse.Namespace,
    accelerator: Accelerator,
    data: PretrainingData,
    test: Sequence[Record],
) -> int:
    """Pre-train, or go on, or find it done; 0, or the exit status of the signal that stopped it."""
    from utils.interruption import Interruption, exit_status
    from utils.training_journal import Journal

    if (args.output_dir / "pretraining.json").exists():
        logger.info("the encoder is done: %s", args.output_dir / "encoder.safetensors")
        return 0
    run = load_run(args, accelerator, data, test)
    run.folder.mkdir(exist_ok=True)
    journal = Journal(
        accelerator,
        run.folder,
        steps=range(run.first_step, args.pretrain_steps),
        log_steps=LOG_STEPS,
        images_per_step=args.pretrain_batch_size,
        advice="a lower --pretrain_learning_rate, or --mixed_precision bf16 in place of fp16",
    )
    with journal, Interruption(num_processes=accelerator.num_processes) as interruption:
        step = pretrain(run, journal, interruption)
    if interruption.signal:
        logger.warning("stopped after step %d; the same command goes on", step)
        return exit_status(interruption.signal)
    if accelerator.is_main_process:
        save_pretraining(run, data, journal)
    accelerator.wait_for_everyone()
    return 0


# Measure


def make_trainer(args: argparse.Namespace, divided: DiagnosisData) -> tuple[Trainer, Examples]:
    """The trainer of the classifiers, and the images to test on."""
    from accelerate import PartialState

    from utils.arm_data import Pools
    from utils.classifier_training import Examples, TrainingOptions
    from utils.diagnosis_data import targets_of
    from utils.diagnosis_input import read_images
    from utils.encoder_arms import encoder_arms
    from utils.leakage import refuse_shared_pixels
    from utils.process_group import own_device
    from utils.untrained_classifier import describe_classifier

    state = PartialState()
    parts = {
        name: Examples(
            read_images(args, records, name, shown=state.is_main_process),
            targets_of(records, divided.labels),
        )
        for name, records in (
            ("train", divided.train),
            ("val", divided.val),
            ("test", divided.test),
        )
    }
    learned = parts["train"].images.joined(parts["val"].images)
    if args.test_dir:
        refuse_shared_pixels(parts["test"].images, {"--real_dir": learned})
    pools = Pools(divided.labels, parts["train"], parts["val"])
    backbone = read_pretraining(args.output_dir)["encoder"]["backbone"]
    trainer = encoder_arms(
        mae_flags.arm_rates(args),
        pools,
        describe_classifier(args, divided, parts["train"].images, backbone=backbone),
        encoder=args.output_dir / "encoder.safetensors",
        options=TrainingOptions.of_flags(args, learning_rate=0.0),  # each arm has its own
        cache_dir=args.output_dir.parent / run_folder.FEATURE_CACHE,
        device=own_device(args.device, state),
        state=state,
    )
    return trainer, parts["test"]


def plan_runs(args: argparse.Namespace) -> list[RunKey]:
    """The classifiers that the flags ask for."""
    from utils.sweep_plan import expand

    return expand(
        args.arms,
        label_shares=args.label_shares,
        synthetic_ratios=[],
        seeds=range(args.seed, args.seed + args.num_seeds),
    )


def measure_encoder(args: argparse.Namespace, divided: DiagnosisData) -> dict[str, object]:
    """Train classifiers on shares of the labels, compare them; the result on the main process."""
    from functools import partial

    from accelerate import PartialState

    from utils.process_group import own_device
    from utils.sweep_outcome import Outcome, finish
    from utils.sweep_runner import candidates, run_sweep, use_a_core_for_each

    keys, state = plan_runs(args), PartialState()
    device = own_device(args.device, state)
    use_a_core_for_each(keys, device=device, state=state)
    trainer, test = make_trainer(args, divided)
    run_sweep(
        keys,
        trainer,
        test=test.images,
        output_dir=args.output_dir,
        keep=candidates(keys),
        state=state,
    )
    if not state.is_main_process:
        return {}
    outcome = Outcome(
        title="What self-supervised pre-training is worth",
        reference_arm=mae_flags.SCRATCH if mae_flags.SCRATCH in args.arms else args.arms[0],
        facts={"real images": args.real_dir, "test images": args.test_dir or args.real_dir},
        notes=divided.notes,
        num_resamples=args.num_resamples,
        seed=args.seed,
        device=device,
        add_more=partial(add_pretraining, args),
    )
    return finish(args.output_dir, keys, divided, test, outcome=outcome)


def write_page(args: argparse.Namespace) -> None:
    """The page of a pre-training without classifiers."""
    from utils.html_report import Page

    page = Page("Self-supervised pre-training", lead=__doc__.splitlines()[0])
    add_pretraining(args, page)
    page.write(args.output_dir / "report.html")


def run(args: argparse.Namespace, accelerator: Accelerator) -> int:
    """Load, pre-train, save, measure; 0, or the exit status of the signal that stopped it."""
    from utils.resumable_run import only_writer

    is_main = accelerator.is_main_process
    data, divided = load_data(args, accelerator)
    if is_main:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    with only_writer(args.output_dir) if is_main else nullcontext():
        open_output(args, accelerator, data)
        status = ensure_encoder(args, accelerator, data, divided.test)
        if status:
            return status
        result = measure_encoder(args, divided) if args.arms else {}
        if is_main:
            if not args.arms:
                write_page(args)
            run_folder.print_result({"pretraining": read_pretraining(args.output_dir), **result})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run."""
    cli.answer_signals()
    args = parse_args(argv)
    if args.offline:
        cli.go_offline()
    accelerator = start_accelerator(args)
    status = run(args, accelerator)
    accelerator.end_training()
    return status


if __name__ == "__main__":
    cli.main_guard(main)
