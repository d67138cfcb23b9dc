"""The networks that draw and judge, loaded when they are first asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cached_property

import torch
from accelerate import PartialState
from diffusers import StableDiffusionPipeline

from utils.content_credentials import Signer
from utils.diffusion import load_pipeline
from utils.gate_loading import load_gate
from utils.generation_job import Job
from utils.image_sampler import ImageSampler
from utils.prompt_encoder import PromptEncoder
from utils.prompts import Prompt
from utils.quality_gate import QualityGate
from utils.run_folder import get_logger
from utils.sampling import Settings

MAX_PROMPTS_NAMED = 5
_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

logger = get_logger("generate")


class Tools:
    """What a run needs; one that is finished needs nothing."""

    def __init__(self, args: argparse.Namespace, job: Job, state: PartialState) -> None:
        """Remember what to load."""
        self._args, self._job, self._state = args, job, state

    @cached_property
    def parts(self) -> StableDiffusionPipeline:
        """The pipeline's parts, never its safety checker, on the device."""
        pipeline = load_pipeline(self._job.model_dir, offline=True)
        for part in (pipeline.unet, pipeline.text_encoder):
            part.to(self._job.device, _DTYPES[self._job.precision])
        pipeline.vae.to(self._job.device)
        return pipeline

    @cached_property
    def encoder(self) -> PromptEncoder:
        """Prompts to embeddings."""
        encoder = PromptEncoder(self.parts.tokenizer, self.parts.text_encoder)
        tell_cut_prompts(encoder, self._job.prompts)
        return encoder

    @cached_property
    def gate(self) -> tuple[QualityGate, dict[str, object]]:
        """What is kept, and the facts it hangs on; the first process trains what is to train."""
        with self._state.main_process_first():
            return load_gate(
                self._args,
                labels=sorted({name for prompt in self._job.prompts for name in prompt.labels}),
                resolution=self._job.resolution,
                device=self._job.device,
            )

    @cached_property
    def signer(self) -> Signer | None:
        """What signs the PNGs, if they are to be signed."""
        if self._args.c2pa_cert is None:
            return None
        return Signer(self._args.c2pa_cert, self._args.c2pa_key)

    def sampler(self, guidance_scale: float) -> ImageSampler:
        """The sampler at a guidance scale."""
        args = self._args
        return ImageSampler(
            unet=self.parts.unet,
            vae=self.parts.vae,
            encoder=self.encoder,
            scheduler_config=self.parts.scheduler.config,
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
    places = {prompt.text: prompt.where for prompt in plan}
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
