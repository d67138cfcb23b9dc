"""The networks that draw and judge, loaded when they are first asked for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import StableDiffusionPipeline

from utils.content_credentials import Signer
from utils.diffusion import load_pipeline
from utils.gate_loading import gate_facts, load_gate
from utils.generated_set import GATES_NAME
from utils.generation_job import Job
from utils.image_sampler import ImageSampler, batching
from utils.process_group import from_main, main_first
from utils.prompt_encoder import PromptEncoder
from utils.prompts import Prompt
from utils.quality_gate import QualityGate
from utils.run_folder import get_logger, write_json
from utils.sampling import Settings
from utils.workers import cores_per_process

MAX_PROMPTS_NAMED = 5
_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

logger = get_logger("generate")


@dataclass(frozen=True)
class DrawingKit:
    """What draws and judges the images of one set.

    Attributes:
        sampler: Prompts and seeds to images.
        group_size: Images drawn at once.
        num_workers: Groups drawn at once.
        gate: What is kept.
        signer: Signs the PNGs; None if they are not to be signed.
    """

    sampler: ImageSampler
    group_size: int
    num_workers: int
    gate: QualityGate
    signer: Signer | None


class Tools:
    """What a run needs; one that is finished needs nothing."""

    def __init__(self, args: argparse.Namespace, job: Job, state: PartialState) -> None:
        """Remember what to load; a certificate is tried at once, before anything is written."""
        self._args, self._job, self._state = args, job, state
        self._signer = None
        if args.c2pa_cert is not None:
            self._signer = Signer(args.c2pa_cert, args.c2pa_key, tsa_url=args.c2pa_tsa_url)

    def kit_for(self, args: argparse.Namespace) -> DrawingKit:
        """Load what draws a set; all processes must call it.

        Args:
            args: The flags of this set.
        """
        facts = from_main(self._settle_gate(args.output_dir / GATES_NAME))
        with main_first(self._state):  # should the cache have been lost, the others find it
            gate = self._gate(facts)
        sampler = self._sampler(args.guidance_scale)
        cores = cores_per_process(self._state.num_processes)
        group_size, num_workers = batching(sampler, args.batch_size, num_workers=cores)
        return DrawingKit(sampler, group_size, num_workers, gate, self._signer)

    def _settle_gate(self, path: Path) -> dict[str, object] | None:
        """What the gate hangs on, on the main process: of the set's beginning, or found now."""
        if not self._state.is_main_process:
            return None
        if not path.exists():
            write_json(path, self._new_gate_facts)
        return json.loads(path.read_text(encoding="utf-8"))

    @cached_property
    def _new_gate_facts(self) -> dict[str, object]:
        return gate_facts(self._args, labels=self._job.labels, **self._gate_options)

    def _gate(self, facts: dict[str, object]) -> QualityGate:
        quiet = not self._state.is_main_process
        return load_gate(self._args, facts, quiet=quiet, **self._gate_options)

    @property
    def _gate_options(self) -> dict[str, object]:
        job = self._job
        return {"resolution": job.resolution, "device": job.device}

    @cached_property
    def _parts(self) -> StableDiffusionPipeline:
        """The pipeline's parts, never its safety checker, on the device."""
        pipeline = load_pipeline(self._job.model_dir, offline=True)
        for part in (pipeline.unet, pipeline.text_encoder):
            part.to(self._job.device, _DTYPES[self._job.precision])
        pipeline.vae.to(self._job.device)
        return pipeline

    @cached_property
    def _encoder(self) -> PromptEncoder:
        """Prompts to embeddings."""
        encoder = PromptEncoder(self._parts.tokenizer, self._parts.text_encoder)
        if self._state.is_main_process:
            tell_cut_prompts(encoder, self._job.prompts)
        return encoder

    def _sampler(self, guidance_scale: float) -> ImageSampler:
        args = self._args
        return ImageSampler(
            unet=self._parts.unet,
            vae=self._parts.vae,
            encoder=self._encoder,
            scheduler_config=self._parts.scheduler.config,
            settings=Settings(
                sampler=args.sampler,
                num_steps=args.num_inference_steps,
                guidance_scale=guidance_scale,
                guidance_rescale=args.guidance_rescale,
                negative_prompt=args.negative_prompt,
                eta=args.eta,
                guidance_interval=tuple(args.guidance_interval),
            ),
            resolution=self._job.resolution,
            compile_mode=args.compile,
        )


def tell_cut_prompts(encoder: PromptEncoder, plan: Sequence[Prompt]) -> None:
    """Warn of prompts whose end the model does not see."""
    places = {prompt.drawn: prompt.where for prompt in plan}
    lengths = dict(zip(places.values(), encoder.num_tokens(list(places))))
    cut = [where for where, length in lengths.items() if length > encoder.max_tokens]
    if cut:
        logger.warning(
            "%d prompt(s) are longer than the %d tokens the model reads, what is beyond has no "
            "effect: %s%s",
            len(cut),
            encoder.max_tokens,
            ", ".join(f"{where} ({lengths[where]} tokens)" for where in cut[:MAX_PROMPTS_NAMED]),
            ", ..." if len(cut) > MAX_PROMPTS_NAMED else "",
        )
