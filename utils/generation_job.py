"""What is drawn from what: read, checked and agreed on before any network is loaded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
from accelerate import PartialState

from utils import prompts as prompt_sources
from utils.classifier import read_config as read_classifier_config
from utils.cli import UserError
from utils.dataset_import import template_fields
from utils.gate_inputs import check_inputs
from utils.gate_thresholds import check_labels
from utils.pipeline_folder import find_pipeline, read_config, settle_resolution
from utils.precision import has_fast_bf16
from utils.process_group import from_main, main_first, own_device
from utils.prompt_grammar import read_template_file
from utils.prompt_plan import plan_images
from utils.prompt_template import fill_prompt, settle_template
from utils.prompt_template_flag import PLAIN
from utils.prompts import Prompt
from utils.provenance import hash_pipeline
from utils.run_folder import get_logger, to_plain
from utils.sampling import make_scheduler

logger = get_logger("generate")


@dataclass(frozen=True)
class Job:
    """What is drawn from what, the same in every process.

    Attributes:
        prompts: One for each image asked for.
        labels: All that the prompts have, sorted.
        model_dir: The pipeline's folder.
        resolution: Side of the images in pixels.
        device: Where this process computes.
        precision: ``no``, ``fp16`` or ``bf16``.
        identity: What decides over the images beside the flags, and ends in options.json.
    """

    prompts: Sequence[Prompt]
    labels: Sequence[str]
    model_dir: Path
    resolution: int
    device: str
    precision: str
    identity: Mapping[str, object]


def prepare(args: argparse.Namespace, state: PartialState, *, free_flags: Collection[str]) -> Job:
    """Read and check all that is small: prompts, labels, thresholds, tables, the model's name.

    Args:
        args: The parsed flags.
        state: Of the processes.
        free_flags: Flags that may differ from process to process.
    """
    with main_first(state):
        prompts = make_plan(args)
    labels = sorted({name for prompt in prompts for name in prompt.labels})
    if args.classifier:
        config = read_classifier_config(args.classifier)
        check_labels(prompts, config.labels, multi_label=config.multi_label)
    with main_first(state):
        gate_inputs = check_inputs(args, labels)
        model_dir = find_pipeline(args.model, offline=args.offline)
    prompts = fill_templates(args, prompts, model_dir)
    resolution = settle_resolution(model_dir, args.resolution)
    scheduler = read_config(model_dir, "scheduler", "scheduler_config.json")
    make_scheduler(scheduler, args.sampler, args.num_inference_steps)  # refused before loading
    device = own_device(args.device, state)
    kind = torch.device(device).type
    precision = args.mixed_precision or ("bf16" if has_fast_bf16(kind) else "no")
    if kind == "cpu" and precision == "fp16":
        raise UserError("--mixed_precision fp16 is for GPUs; on a CPU use bf16 or no")
    content = [(prompt.drawn, prompt.label, prompt.modality) for prompt in prompts]
    identity = {
        "num_images": len(prompts),
        "plan_sha256": sha256(json.dumps(content).encode()).hexdigest(),
        "model_hash": hash_pipeline(model_dir),
        "gate_inputs": gate_inputs,
        "device_type": kind,
        "precision": precision,
    }
    flags = {name: value for name, value in vars(args).items() if name not in free_flags}
    agree(identity | to_plain(flags), state)
    return Job(prompts, labels, model_dir, resolution, device, precision, identity)


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


def fill_templates(
    args: argparse.Namespace, prompts: Sequence[Prompt], model_dir: Path
) -> Sequence[Prompt]:
    """The prompts in the template of the flag, else of the model.

    Raises:
        UserError: If the template asks for what prompts do not have.
    """
    template = settle_template(args.prompt_template, model_dir)
    if template is None:
        return prompts
    logger.info("prompts are %s", template)
    fields = dict.fromkeys(template_fields(template))
    unknown = [name for name in fields if name not in ("text", "label", "modality")]
    if unknown:
        raise UserError(
            f"--prompt_template {template!r}: a prompt has text, label and modality, no "
            f"{', '.join(unknown)}; give another template"
        )
    filled = []
    for prompt in prompts:
        columns = {"label": prompt.label, "modality": prompt.modality or args.modality}
        empty = [name for name in fields if not columns.get(name, prompt.text)]
        if empty:
            raise UserError(
                f"--prompt_template {template!r}: {prompt.where} has no {' and no '.join(empty)}; "
                "add it there (--modality NAME gives all prompts the same), or give "
                f"--prompt_template '{PLAIN}' for the prompts as they are"
            )
        filled.append(replace(prompt, full=fill_prompt(template, prompt.text, columns)))
    return filled


def agree(facts: dict[str, object], state: PartialState) -> None:
    """Compare what decides over the images with the main process's.

    Raises:
        UserError: If this process has other flags, prompts, model or gate.
    """
    first = from_main(facts)
    other = [name for name, value in facts.items() if first[name] != value]
    if other:
        raise UserError(
            f"process {state.process_index} has another {', '.join(other)} than process 0: all "
            "machines need the same flags and files"
        )
