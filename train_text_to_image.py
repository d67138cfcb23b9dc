r"""Fine-tune Stable Diffusion on images with their findings in words.

    accelerate launch train_text_to_image.py --pretrained_model_name_or_path demo/base \
        --train_data_dir data/oct --resolution 128 --center_crop --use_ema \
        --train_batch_size 16 --max_train_steps 1000 --learning_rate 1e-4 --lr_warmup_steps 0 \
        --validation_prompts "normal" "mild retinal edema" --output_dir runs/oct

    # an own CSV; goes on from the last checkpoint
    accelerate launch train_text_to_image.py \
        --pretrained_model_name_or_path CompVis/stable-diffusion-v1-4 \
        --train_data_dir export.csv --image_column File --caption_column Report --center_crop \
        --mixed_precision bf16 --output_dir runs/clinic --resume_from_checkpoint latest

    # adapters only (LoRA), in a fraction of the memory
    accelerate launch train_text_to_image.py --train lora --lora_rank 16 --learning_rate 1e-4 \
        --pretrained_model_name_or_path models/sd14 --train_data_dir data/oct --center_crop \
        --output_dir runs/adapters

    # what doctors preferred (Diffusion-DPO), beside the usual loss, against the frozen start
    accelerate launch train_text_to_image.py --train lora --preference_pairs export/pairs.csv \
        --pretrained_model_name_or_path runs/oct --train_data_dir data/oct --center_crop \
        --resolution 128 --learning_rate 1e-4 --output_dir runs/preferred

    # another domain beside the old one: prompts name the modality, a tenth of the samples is OCT
    accelerate launch train_text_to_image.py --pretrained_model_name_or_path runs/oct-sd \
        --train_data_dir data/cxr --prompt_template "{modality}: {text}" --rehearsal data/oct \
        --center_crop --output_dir runs/cxr-sd

Takes the flags of diffusers' example of the same name. --output_dir becomes a pipeline folder that
StableDiffusionPipeline.from_pretrained loads, with options.json, model_card.md, train_log.csv,
checkpoint-<step>/ and validation/step-<step>/; of adapters also lora/, for load_lora_weights. The
result is printed as JSON. What VAE and text encoder make of the data is kept for all runs in
latent_cache beside --output_dir (--cache_only makes it beforehand); it decodes to the images, so
protect it like them.

Same seed, data and flags: the same model, with any number of data loader workers. Killed and
resumed, a run ends as if it had not been; Ctrl-C and SIGTERM save a checkpoint first. Resume from
your own checkpoints only: optimizer states are pickled.
"""

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli
from utils.checkpoints import (
    find_checkpoint,
    pipeline_folder,
    read_state,
    remove_leftovers,
    save_checkpoint,
)
from utils.latent_cache_flags import latent_cache_dir
from utils.preference_flags import trains_on_images
from utils.rehearsal_flags import rehearsal_share
from utils.run_folder import get_logger, print_result, write_options, write_text
from utils.training_conflicts import conflicts_on_disk, contradictions, missing_packages
from utils.training_flag_values import TRACKERS
from utils.training_flags import add_flags

if TYPE_CHECKING:
    from accelerate import Accelerator

    from utils.diffusion import PipelineParts
    from utils.interruption import Interruption
    from utils.preference_samples import MixedSet
    from utils.reference_model import Reference
    from utils.rehearsal import RehearsedSet
    from utils.trained_model import TrainedModel
    from utils.trained_weights import Weights
    from utils.training_data import TrainingSet
    from utils.training_journal import Journal
    from utils.training_objective import Objective
    from utils.training_samples import TrainingSamples
    from utils.training_state import Plan

UPLOADED_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "lora")

logger = get_logger("train")


@dataclass(frozen=True)
class Run:
    """What the training loop works with.

    Attributes:
        args: The flags.
        accelerator: Accelerate's view of devices and processes.
        parts: The pipeline, what is trained among it.
        model: What is trained (utils.trained_model), as accelerate prepared it.
        optimizer: Prepared by accelerate.
        lr_scheduler: Prepared by accelerate; steps once per optimizer step.
        ema: The model's running average, or None.
        weights: Of the model and its average, to look at and to save.
        stream: What to train on: images, rehearsed ones, preference pairs, by position.
        samples: The same one by one, and what to measure the loss on.
        objective: What is minimised.
        reference: The frozen model that preferences are measured against, or None.
        plan: Which part of the data stream to go through.
        state: Goes into every checkpoint, with step and position.
    """

    args: argparse.Namespace
    accelerator: "Accelerator"
    parts: "PipelineParts"
    model: Any
    optimizer: Any
    lr_scheduler: Any
    ema: Any
    weights: "Weights"
    stream: "TrainingSet | RehearsedSet | MixedSet"
    samples: "TrainingSamples"
    objective: "Objective"
    reference: "Reference | None"
    plan: "Plan"
    state: dict


# Parse


def build_parser() -> argparse.ArgumentParser:
    """All flags; they stand in utils/training_flags.py."""
    parser = cli.make_parser(__doc__)
    add_flags(parser)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for message in contradictions(args) + missing_packages(args) + conflicts_on_disk(args):
        parser.error(message)
    return args


# Load


def start_accelerator(args: argparse.Namespace) -> "Accelerator":
    """Set up devices, processes, precision and trackers."""
    if args.offline:
        cli.go_offline()
    if args.cache_dir is not None:
        os.environ["HF_HUB_CACHE"] = os.environ["HF_DATASETS_CACHE"] = str(args.cache_dir)
    os.environ.setdefault("WANDB_MODE", "offline")  # nothing leaves this machine unasked
    import torch
    from accelerate import Accelerator, PartialState
    from accelerate.utils import ProjectConfiguration, parse_flag_from_env

    from utils.precision import choose_precision
    from utils.training_engines import set_up_engine

    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    precision = choose_precision(args.mixed_precision, PartialState(cpu=on_cpu).device)
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=precision,
            log_with=list(TRACKERS[args.report_to]) or None,
            project_config=ProjectConfiguration(
                project_dir=str(args.output_dir),
                logging_dir=str(args.output_dir / args.logging_dir),
            ),
            step_scheduler_with_optimizer=False,
        )
    except ValueError as error:  # e.g. bf16 on a card without it
        raise cli.UserError(f"--mixed_precision {precision}: {error}") from error
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise cli.UserError(
            f"{started} processes were started, but each runs alone, for this machine shows no "
            "GPU: start one process, or set ACCELERATE_USE_CPU=true to let them train together"
        )
    set_up_engine(args, accelerator, precision)
    if not accelerator.is_local_main_process:
        for quiet in (logger, get_logger("cache")):
            quiet.setLevel("ERROR")
    return accelerator


def agree_on_seed(args: argparse.Namespace, state: dict) -> int:
    """The seed of the flags, else of the resumed run, else a new one, the same on all processes."""
    from accelerate.utils import broadcast_object_list, set_seed

    seeds = [args.seed if args.seed is not None else state.get("seed", secrets.randbelow(2**31))]
    seed = broadcast_object_list(seeds)[0]
    set_seed(seed)
    return seed


def make_plan(
    args: argparse.Namespace, accelerator: "Accelerator", state: dict, data: dict
) -> "Plan":
    """How many steps, from where; warns if images will be seen often enough to be memorised."""
    from utils.rehearsal import pass_length
    from utils.training_notes import warn_of_memorisation
    from utils.training_state import Plan, steps_of_epochs

    num_images, share = data["images"] or data["pairs"], rehearsal_share(args)
    num_samples = pass_length(num_images, share)
    images_per_step = (
        args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    )
    first_step = state.get("step", 0)
    last_step = args.max_train_steps or steps_of_epochs(
        args.num_train_epochs, num_images=num_samples, images_per_step=images_per_step
    )
    if first_step > last_step:
        logger.warning("the checkpoint is past the last step %d: one more is made", last_step)
        last_step = first_step + 1  # as diffusers' example does
    plan = Plan(num_samples, images_per_step, first_step, last_step, state.get("position", 0))
    warn_of_memorisation(plan, num_images, num_rehearsed=data["rehearsed"], share=share)
    return plan


def load_models(
    args: argparse.Namespace, accelerator: "Accelerator", seed: int
) -> tuple["PipelineParts", Any, Any]:
    """The pipeline's parts, what is trained of them, and its running average or None."""
    from utils.diffusion import load_pipeline_parts
    from utils.text_encoder_swap import replace_text_encoder
    from utils.trained_model import LoraOptions, make_trained_model
    from utils.training_state import load_unet, make_ema
    from utils.unet_speed import prepare_unet

    model_name = args.pretrained_model_name_or_path
    where = {"variant": args.variant, "cache_dir": args.cache_dir}
    with accelerator.main_process_first():
        parts = load_pipeline_parts(
            model_name,
            revision=args.revision,
            offline=args.offline,
            **where,
            prediction_type=args.prediction_type,
            zero_terminal_snr=args.rescale_betas_zero_snr,
        )
        if args.text_encoder_name_or_path is not None:
            source = {"offline": args.offline, "cache_dir": args.cache_dir}
            parts = replace_text_encoder(parts, args.text_encoder_name_or_path, seed=seed, **source)
    check_parts(args, parts)
    lora = LoraOptions(args.lora_rank, args.lora_alpha or args.lora_rank, args.lora_targets)
    model = make_trained_model(parts, args.train, lora)
    prepare_unet(
        parts.unet,
        device_type=accelerator.device.type,
        precision=accelerator.mixed_precision,
        compile_mode=args.compile,
        is_split=accelerator.is_fsdp2,
    )
    ema = None
    if args.use_ema:  # made here, it has the memory layout of the weights
        ema = make_ema(model, decay=args.ema_decay)
        ema.to("cpu" if args.offload_ema else accelerator.device)
    if args.non_ema_revision is not None:
        where |= {"subfolder": "unet", "local_files_only": args.offline}
        unet = load_unet(model_name, revision=args.non_ema_revision, **where)
        parts.unet.load_state_dict(unet.state_dict())
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if args.enable_xformers_memory_efficient_attention:
        parts.unet.enable_xformers_memory_efficient_attention()
    return parts, model, ema


def check_parts(args: argparse.Namespace, parts: "PipelineParts") -> None:
    """Refuse flags that do not go with the pipeline as it was loaded."""
    if args.dream_training and parts.noise_scheduler.config.prediction_type != "epsilon":
        raise cli.UserError("--dream_training is defined for epsilon prediction only")
    projected = args.text_encoder_name_or_path and parts.unet.config.encoder_hid_dim
    if projected and args.train == "lora":
        raise cli.UserError(
            "--train lora: the text encoder's width is not the U-Net's, and adapters leave the "
            "projection between them untrained; use --train unet"
        )


def fill_cache(args: argparse.Namespace) -> int:
    """Encode what the latent cache lacks, print what it holds of these data, and end."""
    from utils.latent_cache import count_cached
    from utils.training_datasets import load_training_data
    from utils.training_samples import make_samples

    accelerator = start_accelerator(args)
    seed = agree_on_seed(args, {})
    datasets = load_training_data(args, accelerator, seed)
    parts, *_ = load_models(args, accelerator, seed)
    samples = make_samples(args, accelerator, parts, datasets, seed)
    if accelerator.is_main_process:
        sets = [getattr(samples, field.name) for field in fields(samples)]
        print_result(count_cached(sets) | {"latent_cache_dir": latent_cache_dir(args)})
    accelerator.end_training()
    return 0


def make_optimizer(args: argparse.Namespace, accelerator: "Accelerator", model, last_step: int):
    """AdamW on what is trained and its learning rate schedule, counted in optimizer steps."""
    import torch
    from diffusers.optimization import get_scheduler

    from utils.trained_model import trained_parameters

    options = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "weight_decay": args.adam_weight_decay,
        "eps": args.adam_epsilon,
    }
    if args.scale_lr:
        per_pass = args.train_batch_size * accelerator.num_processes
        options["lr"] *= per_pass * args.gradient_accumulation_steps
    if args.use_8bit_adam:
        from bitsandbytes.optim import AdamW8bit

        optimizer = AdamW8bit(trained_parameters(model), **options)
    else:
        optimizer = torch.optim.AdamW(trained_parameters(model), fused=True, **options)
    schedule = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=last_step,
    )
    return optimizer, schedule


def make_objective(args: argparse.Namespace, parts: "PipelineParts", device) -> "Objective":
    """What a step minimises, with the weights of the timesteps on the device."""
    from utils.diffusion import min_snr_weights
    from utils.training_objective import Objective

    snr_weights = None
    if args.snr_gamma is not None:
        snr_weights = min_snr_weights(parts.noise_scheduler, args.snr_gamma).to(device)  # (T,)
    return Objective(
        num_images=args.train_batch_size if trains_on_images(args) else 0,
        num_pairs=args.train_batch_size if args.preference_pairs is not None else 0,
        snr_weights=snr_weights,
        beta=args.dpo_beta,
        denoising_weight=args.denoising_weight,
    )


def load_run(args: argparse.Namespace) -> Run:
    """Everything that training needs; the data is checked before any model is loaded."""
    from accelerate.utils import set_seed

    from utils.prompt_template import keep_template
    from utils.reference_model import Reference
    from utils.trained_weights import prepare
    from utils.training_datasets import load_training_data
    from utils.training_engines import precision_used
    from utils.training_samples import make_samples

    checkpoint, stored = None, {}
    if args.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
        stored = read_state(checkpoint)
    accelerator = start_accelerator(args)
    seed = agree_on_seed(args, stored)
    datasets = load_training_data(args, accelerator, seed)
    data = datasets.describe()
    plan = make_plan(args, accelerator, stored, data)
    state = {
        "seed": seed,
        **data,
        "rehearsal_share": rehearsal_share(args),
        "images_per_step": plan.images_per_step,
        "num_processes": accelerator.num_processes,
    }
    for name in state if checkpoint else ():
        before = stored.get(name) or None  # runs before rehearsal and templates tell nothing
        if before != (state[name] or None):
            told = (checkpoint, name, before, state[name])
            logger.warning("%s: %s was %s and is %s; it does not end as it would have", *told)
    if accelerator.is_main_process:
        remove_leftovers(args.output_dir)
        facts = {
            "plan": plan,
            "mixed_precision_used": precision_used(accelerator),
            "resumed_from": checkpoint,
        }
        write_options(args.output_dir, args, **state, **facts, **datasets.found())
    parts, model, ema = load_models(args, accelerator, seed)
    keep_template(parts.text_encoder, datasets.template, asked=args.prompt_template)
    reference = None if datasets.pairs is None else Reference(accelerator, model, args.compile)
    samples = make_samples(args, accelerator, parts, datasets, seed)
    optimizer, schedule = make_optimizer(args, accelerator, model, plan.last_step)
    *prepared, weights = prepare(accelerator, model, ema, optimizer, schedule)
    set_seed(seed, device_specific=True)  # dropout differs between processes
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        accelerator.step = 0  # counts passes to accumulate, which may be others now
        logger.info("going on from %s", checkpoint)
    _start_trackers(args, accelerator)
    trained = (*prepared, ema, weights)
    data = (samples.trained(rehearsal_share(args)), samples)
    aim = (make_objective(args, parts, accelerator.device), reference)
    return Run(args, accelerator, parts, *trained, *data, *aim, plan, state)


def _start_trackers(args: argparse.Namespace, accelerator: "Accelerator") -> None:
    flags = {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in vars(args).items()
        if name != "validation_prompts"
    }
    folder = {"wandb": {"dir": str(args.output_dir)}}
    accelerator.init_trackers(args.tracker_project_name, flags, init_kwargs=folder)


# Loop


def train(run: Run, journal: "Journal", interruption: "Interruption") -> int:
    """The training loop: one optimizer step after another, to the plan's last.

    Returns:
        The number of the last step: the plan's, or that of a signal or of an early stop.
    """
    from diffusers.training_utils import compute_dream_and_update_latents as apply_dream

    from utils.diffusion import image_errors, training_target
    from utils.trained_model import trained_parameters
    from utils.training_batches import PositionBatches, make_loader
    from utils.training_data import encode_batch
    from utils.training_engines import clip_gradients
    from utils.training_samples import num_loader_workers

    args, accelerator, plan, model = run.args, run.accelerator, run.plan, run.model
    device, schedule = accelerator.device, run.parts.noise_scheduler
    parameters = list(trained_parameters(model))
    frozen_text = args.train != "unet+text_encoder"
    positions = PositionBatches(
        start=plan.first_position,
        batch_size=args.train_batch_size,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    workers = num_loader_workers(args, accelerator, cached=run.stream.latents is not None)
    pin_memory = device.type == "cuda"
    batches = iter(make_loader(run.stream, positions, num_workers=workers, pin_memory=pin_memory))

    step = plan.first_step
    if step > 0:
        watch(run, journal, step)
    while step < plan.last_step and not out_of_patience(args, journal):
        batch = next(batches)
        with accelerator.accumulate(model):
            # The images and captions, and the noise drawn for them
            with accelerator.autocast():
                latents, text = encode_batch(run.parts, batch, device, with_text=frozen_text)
            noise = batch["noise"].to(device, non_blocking=True)
            input_noise = batch["input_noise"].to(device, non_blocking=True)
            timesteps = batch["timestep"].to(device, non_blocking=True)

            # What the U-Net sees and what it should say
            noisy = schedule.add_noise(latents, input_noise, timesteps)
            target = training_target(schedule, latents, noise, timesteps)
            if args.dream_training:
                known = (model, schedule, timesteps, noise, noisy, target, text)
                noisy, target = apply_dream(*known, args.dream_detail_preservation)

            # Predict and learn
            known = reference_errors(run, noisy, timesteps, text, target)
            prediction = model(noisy, timesteps, text).sample
            loss, told = run.objective(
                image_errors(prediction, target),
                weights=batch["weight"].to(device, non_blocking=True),
                timesteps=timesteps,
                reference=known,
            )
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                grad_norm = clip_gradients(accelerator, parameters, args.max_grad_norm)
            run.optimizer.step()
            run.optimizer.zero_grad()
        journal.add_batch(loss, batch["names"], told)
        if not accelerator.sync_gradients:
            continue

        # Once per optimizer step
        step += 1
        rate = run.lr_scheduler.get_last_lr()[0]
        if not run.optimizer.step_was_skipped:
            run.lr_scheduler.step()
            update_average(run, parameters)
        journal.end_step(step, epoch=plan.epoch(step), lr=rate, grad_norm=grad_norm)
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


def reference_errors(run: Run, noisy, timesteps, text, target):
    """Errors (2 P,) of the frozen reference on the pairs' images of a batch; None without pairs."""
    from utils.diffusion import image_errors

    if run.reference is None:
        return None
    pairs = run.objective.pairs
    seen = (noisy[pairs], timesteps[pairs], text[pairs])
    return image_errors(run.reference.predict(run.model, *seen), target[pairs])


def update_average(run: Run, parameters: Sequence[Any]) -> None:
    """Move the running average of the trained parameters one step on."""
    if run.ema is None:
        return
    if run.args.offload_ema:
        run.ema.to(run.accelerator.device, non_blocking=True)
    run.ema.step(parameters)
    if run.args.offload_ema:
        run.ema.to("cpu", non_blocking=True)


def save_training_state(run: Run, step: int) -> None:
    """Write checkpoint-<step>; every process does its part."""
    path = save_checkpoint(
        run.args.output_dir,
        run.state | {"step": step, "position": run.plan.position(step)},
        fill=lambda folder: run.accelerator.save_state(str(folder)),
        barrier=run.accelerator.wait_for_everyone,
        is_main=run.accelerator.is_main_process,
        total_limit=run.args.checkpoints_total_limit,
    )
    logger.info("saved %s", path)


def watch(run: Run, journal: "Journal", step: int, *, at_end: bool = False) -> None:
    """Draw the validation prompts and measure the held-out loss, where they are due and not done.

    At the end both are due. A resumed run calls it for its first step: the one before it may have
    been stopped after the checkpoint.
    """
    args, plan = run.args, run.plan
    if args.validation_steps is not None:
        due = step % args.validation_steps == 0
    else:
        due = plan.ends_epoch(step, args.validation_epochs)
    loss_due = due if args.validation_loss_steps is None else step % args.validation_loss_steps == 0
    pictures = args.output_dir / "validation" / f"step-{step}"
    draws = (due or at_end) and args.validation_prompts is not None and step not in journal.drawn
    measures = (
        (loss_due or at_end) and run.samples.held_out is not None and not journal.has_measured(step)
    )
    if not draws and not measures:
        return
    journal.flush()
    with run.weights.averaged() as model:
        if draws:
            draw_validation(run, model, pictures, step)
            journal.drawn.add(step)
        if measures:
            measure_held_out(run, model, journal, step)
    if run.stream.latents is not None:
        run.parts.vae.to("cpu")
        if model.text_encoder is None:
            run.parts.text_encoder.to("cpu")
    journal.restart_clock()


def draw_validation(run: Run, model, folder: Path, step: int) -> None:
    """Draw the validation prompts, each process its share."""
    from utils.trained_model import parts_with
    from utils.validation import draw_prompts, track_pictures

    args = run.args
    prompts = args.validation_prompts[: args.max_validation_images]
    paths = draw_prompts(
        run.accelerator,
        parts_with(run.parts, model),
        model.unet,
        prompts,
        folder=folder,
        resolution=args.resolution,
        seed=run.state["seed"],
    )
    model.train()
    track_pictures(run.accelerator, paths, prompts, step)


def measure_held_out(run: Run, model, journal: "Journal", step: int) -> None:
    """Measure the loss on held-out images and write it down."""
    from utils.validation import measure_loss

    known = (run.accelerator, run.parts, model)
    size = run.args.train_batch_size
    loss, others = measure_loss(*known, run.samples.held_out, batch_size=size)
    if run.samples.rehearsal_held_out is not None:
        rehearsed, _ = measure_loss(*known, run.samples.rehearsal_held_out, batch_size=size)
        others["rehearsal_loss"] = rehearsed
    journal.add_held_out(step, loss, others)


def out_of_patience(args: argparse.Namespace, journal: "Journal") -> bool:
    """Whether the held-out loss has not fallen for so many measurements that training ends."""
    patience = args.early_stopping_patience
    if patience is None or journal.measurements_since_best() < patience:
        return False
    lowest = min(journal.held_out, key=lambda measured: measured[1])
    logger.info(
        "stopping early: the held-out loss was lowest, %.4g, at step %d", lowest[1], lowest[0]
    )
    return True


# Save


def save_run(run: Run, model: "TrainedModel", journal: "Journal", step: int) -> dict:
    """Write the pipeline folder and its card, on the main process; returns the result."""
    from utils.diffusion import save_pipeline
    from utils.model_card import model_card_text
    from utils.trained_model import fuse_adapters, parts_with, save_lora
    from utils.training_engines import precision_used

    args = run.args
    result = {
        "output_dir": args.output_dir,
        "trained": args.train,
        "steps": step,
        "epochs": run.plan.epoch(step),
        "images": run.state["images"],
        "rehearsed": run.state["rehearsed"] or None,
        "pairs": run.state["pairs"] or None,
        "mixed_precision": precision_used(run.accelerator),
        "seed": run.state["seed"],
        **journal.summary(),
    }
    with pipeline_folder(args.output_dir) as temporary:
        if model.has_adapters:
            save_lora(model.unet, temporary / "lora")
            fuse_adapters(model.unet)
        save_pipeline(parts_with(run.parts, model), model.unet, temporary)
    prompts = args.validation_prompts or []
    card = model_card_text(
        title=args.output_dir.resolve().name,
        base_model=args.pretrained_model_name_or_path,
        prompt=prompts[0] if prompts else "normal",
        facts=result | {"resolution": args.resolution, "learning rate": args.learning_rate},
        num_samples=len(prompts[: args.max_validation_images]),
    )
    write_text(args.output_dir / "model_card.md", card)
    return result


def push(args: argparse.Namespace) -> None:
    """Upload pipeline and card, nothing else, to a private repository on the hub."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(args.hub_model_id, private=True, exist_ok=True)
    patterns = ["model_index.json", *(f"{part}/*" for part in UPLOADED_PARTS)]
    card = {"path_or_fileobj": args.output_dir / "model_card.md", "path_in_repo": "README.md"}
    api.upload_folder(
        repo_id=args.hub_model_id, folder_path=args.output_dir, allow_patterns=patterns
    )
    api.upload_file(repo_id=args.hub_model_id, **card)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, loop, save."""
    cli.answer_signals()  # train.sh's launchers ignore them
    args = parse_args(argv)
    if args.cache_only:
        return fill_cache(args)
    run = load_run(args)

    from utils.interruption import Interruption, exit_status, resume_command
    from utils.training_journal import Journal

    journal = Journal(
        run.accelerator,
        args.output_dir,
        steps=range(run.plan.first_step, run.plan.last_step),
        log_steps=args.log_steps,
        images_per_step=run.plan.images_per_step,
        told=run.objective.columns,
    )
    with journal, Interruption(num_processes=run.accelerator.num_processes) as interruption:
        step = train(run, journal, interruption)
    if interruption.signal:
        run.accelerator.end_training()
        command = resume_command(sys.argv)
        logger.warning("stopped after step %d; to go on:\n  %s", step, command)
        return exit_status(interruption.signal)
    watch(run, journal, step, at_end=True)
    model = run.weights.finished()
    if run.accelerator.is_main_process:
        result = save_run(run, model, journal, step)
        if args.push_to_hub:
            push(args)
    run.accelerator.end_training()
    if run.accelerator.is_main_process:
        print_result(result)
    return 0


if __name__ == "__main__":
    cli.main_guard(main)
