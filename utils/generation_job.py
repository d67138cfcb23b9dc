"""What is drawn from what: read, checked and agreed on before any network is loaded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from utils import cli
from utils import prompts as prompt_sources
from utils.classifier import read_config as read_classifier_config
from utils.cli import UserError
from utils.gate_thresholds import check_labels
from utils.network_folder import WEIGHTS_NAME
from utils.pipeline_folder import find_pipeline, read_config, settle_resolution
from utils.precision import has_fast_bf16
from utils.prompt_grammar import read_template_file
from utils.prompt_plan import plan_images
from utils.prompts import Prompt
from utils.provenance import hash_pipeline
from utils.run_folder import get_logger, sha256_file
from utils.sampling import make_scheduler

logger = get_logger("generate")


@dataclass(frozen=True)
class Job:
    """What is drawn from what, the same in every process.

    Attributes:
        prompts: One for each image asked for.
        model_dir: The pipeline's folder.
        resolution: Side of the images in pixels.
        device: Where this process computes.
        precision: ``no``, ``fp16`` or ``bf16``.
        identity: What decides over the images beside the flags, and ends in options.json.
    """

    prompts: Sequence[Prompt]
    model_dir: Path
    resolution: int
    device: str
    precision: str
    identity: Mapping[str, object]


def prepare(args: argparse.Namespace, state: PartialState) -> Job:
    """Read and check all that is small: prompts, labels, the model's name."""
    with state.main_process_first():
        prompts = make_plan(args)
    if args.classifier:
        config = read_classifier_config(args.classifier)
        check_labels(prompts, config.labels, multi_label=config.multi_label)
    with state.local_main_process_first():
        model_dir = find_pipeline(args.model, offline=args.offline)
    resolution = settle_resolution(model_dir, args.resolution)
    scheduler = read_config(model_dir, "scheduler", "scheduler_config.json")
    make_scheduler(scheduler, args.sampler, args.num_inference_steps)  # refused before loading
    device = cli.resolve_device(args.device) if state.num_processes == 1 else str(state.device)
    kind = torch.device(device).type
    precision = args.mixed_precision or ("bf16" if has_fast_bf16(kind) else "no")
    if kind == "cpu" and precision == "fp16":
        raise UserError("--mixed_precision fp16 is for GPUs; on a CPU use bf16 or no")
    identity = identity_of_run(args, prompts, model_dir, device_type=kind, precision=precision)
    return Job(prompts, model_dir, resolution, device, precision, agree(identity, state))


def make_plan(args: argparse.Namespace) -> list[Prompt]:
    """Read the prompts and give each image its own."""
    if args.prompt:
        prompts = prompt_sources.prompts_from_flags(args.prompt, args.label)
    elif args.prompts_file:
        prompts = prompt_sources.read_prompts_file(args.prompts_file)
    elif args.template:
        prompts = read_template_file(args.template)
    else:
        prompts = prompt_sources.prompts_from_dataset(
            args.prompts_from, split=args.prompts_split, offline=args.offline
        )
    plan = plan_images(
        prompts,
        num_images=args.num_images,
        images_per_prompt=args.num_images_per_prompt,
        class_balanced=args.class_balanced,
        shuffle_seed=args.seed if args.prompts_from or args.template else None,
    )
    num_used = len({prompt.where for prompt in plan})
    logger.info("%d images of %d of %d prompts", len(plan), num_used, len(prompts))
    return plan


def identity_of_run(
    args: argparse.Namespace,
    prompts: Sequence[Prompt],
    model_dir: Path,
    *,
    device_type: str,
    precision: str,
) -> dict[str, object]:
    """What decides over the images beside the flags; a continued run must agree in all of it."""
    content = [(prompt.text, prompt.label, prompt.modality) for prompt in prompts]
    return {
        "num_images": len(prompts),
        "plan_sha256": sha256(json.dumps(content).encode()).hexdigest(),
        "model_hash": hash_pipeline(model_dir),
        "classifier_sha256": args.classifier and sha256_file(args.classifier / WEIGHTS_NAME),
        "device_type": device_type,
        "precision": precision,
    }


def agree(identity: dict[str, object], state: PartialState) -> dict[str, object]:
    """The main process's identity; another machine's files must be the same.

    Raises:
        UserError: If this process sees other prompts, another model or classifier.
    """
    [first] = broadcast_object_list([identity])
    other = [name for name, value in identity.items() if first[name] != value]
    if other:
        raise UserError(
            f"process {state.process_index} sees another {', '.join(other)} than process 0: all "
            "machines need the same files"
        )
    return identity
