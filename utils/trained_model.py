"""What a run trains: the U-Net, the U-Net with the text encoder, or adapters (LoRA) in the U-Net.

All of it is one module, so that one wrapper of accelerate (DDP, FSDP, DeepSpeed) holds it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from safetensors import SafetensorError

from utils.cli import UserError
from utils.diffusion import PipelineParts
from utils.text_encoding import embed_text

LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
_ADAPTER = "default"


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters, Hu et al. 2021 (https://arxiv.org/abs/2106.09685).

    Attributes:
        rank: Width of the two factors.
        alpha: The adapters' output is scaled by ``alpha / rank``.
        targets: Names that the adapted layers end in.
    """

    rank: int
    alpha: float
    targets: Sequence[str]


class TrainedModel(torch.nn.Module):
    """U-Net and, if it is trained too, the text encoder in front of it.

    Attributes:
        unet: The U-Net, with adapters or without.
        text_encoder: None where it stays frozen.
        has_adapters: Whether the adapters are all that is trained.
    """

    def __init__(self, unet, text_encoder=None, *, has_adapters: bool = False) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.has_adapters = has_adapters

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor):
        """Output of the U-Net; its ``sample`` is the prediction, (N, C, h, w).

        Args:
            latents: Noisy latents, (N, C, h, w).
            timesteps: (N,) int64.
            text: Embeddings (N, L, D); token ids (N, K, L) where the text encoder is trained.
        """
        if self.text_encoder is not None:
            text = embed_text(self.text_encoder, text)
        return self.unet(latents, timesteps, text)

    def enable_gradient_checkpointing(self) -> None:
        """Keep fewer activations and compute them again for the gradient."""
        self.unet.enable_gradient_checkpointing()
        if self.text_encoder is not None:
            self.text_encoder.gradient_checkpointing_enable()

    def folders(self) -> dict[str, Any]:
        """The parts that are saved, by the name of their folder."""
        if self.has_adapters:
            return {"lora": self.unet}
        parts = {"unet": self.unet, "text_encoder": self.text_encoder}
        return {name: part for name, part in parts.items() if part is not None}


def make_trained_model(
    parts: PipelineParts, what: str, lora: LoraOptions | None = None
) -> TrainedModel:
    """Set a pipeline's parts to be trained; what stays frozen needs no gradient afterwards.

    Args:
        parts: The pipeline; its U-Net and text encoder are changed in place.
        what: ``unet``, ``unet+text_encoder`` or ``lora``.
        lora: For ``lora``.

    Raises:
        UserError: If no layer of the U-Net is named as the adapters' targets say.
    """
    if what == "lora":
        _add_adapters(parts.unet, lora)
    text_encoder = parts.text_encoder if what == "unet+text_encoder" else None
    if text_encoder is not None:
        for name, parameter in text_encoder.named_parameters():
            parameter.requires_grad_(not name.startswith("pooler."))  # what no output depends on
    return TrainedModel(parts.unet, text_encoder, has_adapters=what == "lora").train()


def _add_adapters(unet: UNet2DConditionModel, lora: LoraOptions) -> None:
    from peft import LoraConfig

    unet.requires_grad_(False)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        init_lora_weights="gaussian",
        target_modules=list(lora.targets),
    )
    try:
        unet.add_adapter(config, _ADAPTER)
    except ValueError as error:
        raise UserError(f"--lora_targets {' '.join(lora.targets)}: {error}") from error


def parts_with(parts: PipelineParts, model: TrainedModel) -> PipelineParts:
    """The pipeline around this model, which may be a copy of the one that was trained."""
    text_encoder = parts.text_encoder if model.text_encoder is None else model.text_encoder
    return replace(parts, unet=model.unet, text_encoder=text_encoder)


def trained_parameters(model: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """The parameters that need a gradient, in the order of the module."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def save_weights(model: TrainedModel, folder: Path, suffix: str = "") -> None:
    """Write what is trained in diffusers' and transformers' formats.

    Args:
        model: Not wrapped.
        folder: Gets ``unet``, ``text_encoder`` or ``lora``.
        suffix: Appended to these names, e.g. ``_ema``.
    """
    for name, part in model.folders().items():
        target = folder / f"{name}{suffix}"
        if model.has_adapters:
            save_lora(part, target)
        else:
            part.save_pretrained(target)


def load_weights(model: TrainedModel, folder: Path, suffix: str = "") -> None:
    """Read what `save_weights` wrote; the adapters of the model exist already.

    Raises:
        UserError: If it is not there, or is of another kind of training.
    """
    for name, part in model.folders().items():
        source = folder / f"{name}{suffix}"
        if not source.is_dir():
            there = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
            raise UserError(f"{source} is missing: the run was started otherwise (has {there})")
        try:
            if model.has_adapters:
                _load_lora(part, source)
            else:
                part.load_state_dict(type(part).from_pretrained(source).state_dict())
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{source}: cannot be loaded: {error}") from error


def save_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write a U-Net's adapters as `LORA_FILE`, which ``pipeline.load_lora_weights`` reads."""
    from peft.utils import get_peft_model_state_dict

    options = unet.peft_config[_ADAPTER].to_dict()
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)),
        unet_lora_adapter_metadata=options | {"target_modules": sorted(options["target_modules"])},
    )
    _sort_metadata(folder / LORA_FILE)


def _sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in order: the library writes them in a random one."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the header grew"
        file.seek(8)
        file.write(text.ljust(length))


def _load_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    from peft import set_peft_model_state_dict

    state, _ = StableDiffusionPipeline.lora_state_dict(folder)
    layers = {name.removeprefix("unet."): tensor for name, tensor in state.items()}
    problems = set_peft_model_state_dict(
        unet, convert_unet_state_dict_to_peft(layers), adapter_name=_ADAPTER
    )
    if problems.unexpected_keys:
        raise ValueError(f"unknown layers, first {problems.unexpected_keys[0]}")


def fuse_adapters(unet: UNet2DConditionModel) -> None:
    """Add the adapters to the weights they adapt and take them out; a plain U-Net remains."""
    unet.fuse_lora()
    unet.unload_lora()
