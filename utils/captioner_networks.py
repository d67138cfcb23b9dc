"""Networks that write a report of an image: built small, or from pretrained parts; their folder.

An encoder-decoder of transformers: a vision transformer's tokens, which the decoder's
cross-attention reads. Shapes: N images of H = W pixels, L tokens of a report, V of the vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    BlipForConditionalGeneration,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    VisionEncoderDecoderModel,
)

from utils import captioner_decoders as decoders
from utils import captioner_encoders as encoders
from utils import hub_models
from utils.captioner_encoders import SMALL, InputSettings
from utils.captioner_losses import report_loss
from utils.cli import UserError
from utils.run_folder import sha256_file, write_json

FLAG = "--model"
_KINDS = {
    "blip": "BlipForConditionalGeneration",
    "vision-encoder-decoder": "VisionEncoderDecoderModel",
}
_PARTS = ("encoder", "decoder")
_PREPROCESSOR = "preprocessor_config.json"
_BILINEAR = 2  # as Pillow numbers it

Parts = tuple[PreTrainedModel, PreTrainedTokenizerBase, InputSettings]


@dataclass(frozen=True)
class CaptionerSpec:
    """What a network is built from.

    Attributes:
        resolution: Side of its images in pixels.
        encoder: ``small`` (random weights) or where a vision transformer lies.
        decoder: ``small`` (random weights, tokenizer of the corpus) or where a language model lies.
        model: Where a whole model lies (``VisionEncoderDecoderModel`` or
            ``BlipForConditionalGeneration``), in place of both; empty if none.
        max_tokens: Longest report, first and last token included.
        vocabulary_size: Most tokens of a tokenizer that is trained.
        offline: Whether only local files may be used.
    """

    resolution: int
    encoder: str = SMALL
    decoder: str = SMALL
    model: str = ""
    max_tokens: int = 128
    vocabulary_size: int = 4000
    offline: bool = False


def build_network(spec: CaptionerSpec, texts: Sequence[str], *, seed: int) -> Parts:
    """A network to train; what is new in it depends on the seed alone.

    Args:
        spec: Its parts.
        texts: Reports, of which the tokenizer of a ``small`` decoder is made.
        seed: Of the random weights.

    Returns:
        The network in evaluation mode, its tokenizer, and what its images must be. Weights that no
        report depends on, such as poolers, have ``requires_grad`` off.

    Raises:
        UserError: If a part is missing, not complete or of no supported kind, or does not take
            the resolution or reports of this length.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, tokenizer, settings = _load_whole(spec) if spec.model else _join(spec, texts)
    decoder = network.config.get_text_config(decoder=True)
    decoders.check_length(decoder, spec.max_tokens)
    _set_configuration(network, tokenizer, max_tokens=spec.max_tokens)
    _freeze_unused(network, tokenizer, settings)
    return network, tokenizer, settings


def _join(spec: CaptionerSpec, texts: Sequence[str]) -> Parts:
    """Encoder and decoder, with a projection between them if their widths differ."""
    if spec.decoder == SMALL:
        decoder, tokenizer = decoders.small_decoder(
            texts, vocabulary_size=spec.vocabulary_size, max_tokens=spec.max_tokens
        )
    else:
        decoder, tokenizer = decoders.load_decoder(spec.decoder, offline=spec.offline)
    encoder, settings = encoders.load_encoder(
        spec.encoder, resolution=spec.resolution, offline=spec.offline
    )
    network = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    return network, tokenizer, settings


def _load_whole(spec: CaptionerSpec) -> Parts:
    """A model of ``spec.model`` for images of the resolution."""
    folder = hub_models.local_folder(spec.model, flag=FLAG, offline=spec.offline)
    network, tokenizer, kind = _read_folder(folder, flag=FLAG)
    if isinstance(network, BlipForConditionalGeneration):
        network.vision_model = encoders.fit_resolution(network.vision_model, spec.resolution)
        network.config.vision_config = network.vision_model.config
    else:
        network.encoder = encoders.fit_resolution(network.encoder, spec.resolution)
        network.config.encoder = network.encoder.config
    settings = encoders.input_settings(folder, kind, resolution=spec.resolution, flag=FLAG)
    return network, tokenizer, settings


def _read_folder(
    folder: Path, *, flag: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, encoders.EncoderKind]:
    """A model as it lies in a folder, its tokenizer, and the kind of its encoder."""
    model_type = hub_models.model_type(folder, flag=flag)
    if model_type not in _KINDS:
        raise UserError(
            f"{flag} {folder}: a model of type {model_type!r}; supported are {', '.join(_KINDS)}"
        )
    if model_type == "blip":
        kind = encoders.check_kind("blip_vision_model", flag=flag)
    else:
        config = hub_models.read_json(folder / "config.json", flag=flag)
        encoder, decoder = (config.get(part, {}).get("model_type") for part in _PARTS)
        kind = encoders.check_kind(encoder, flag=f"{flag} {folder}")
        decoders.check_type(decoder, flag=f"{flag} {folder}")
    tokenizer = decoders.load_tokenizer(folder, flag=flag)
    network = hub_models.load_model(folder, _KINDS[model_type], flag=flag, spare=".pooler.")
    if model_type == "blip":
        decoders.set_blip_tokens(tokenizer, network.config, flag=f"{flag} {folder}")
    text_config = network.config.get_text_config(decoder=True)
    decoders.check_tokenizer(tokenizer, text_config, flag=f"{flag} {folder}")
    return network, tokenizer, kind


def _set_configuration(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> None:
    """Tell configuration and generation where a report starts and ends, and not where files lay."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.bos_token_id,
    }
    for name, value in ids.items():
        setattr(network.config, name, value)
    for part in network.modules():
        if isinstance(part, PreTrainedModel):
            part.config._name_or_path, part.config.dtype = "", torch.float32
    network.generation_config = GenerationConfig(**ids, max_new_tokens=max_tokens - 1)


def _freeze_unused(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: InputSettings
) -> None:
    """Switch off the gradient of weights that the loss does not depend on; try an image.

    Raises:
        UserError: If the encoder does not take the resolution, as a Swin smaller than its window.
    """
    image = torch.zeros(1, 3, settings.resolution, settings.resolution)
    ids = torch.tensor([[tokenizer.bos_token_id, tokenizer.eos_token_id]])
    network.eval().requires_grad_(True)
    try:
        report_loss(network, image, ids, torch.ones_like(ids)).backward()
    except RuntimeError as error:
        side = settings.resolution
        raise UserError(f"--resolution {side}: the encoder does not take it: {error}") from error
    for weight in network.parameters():
        weight.requires_grad_(weight.grad is not None)
    network.zero_grad(set_to_none=True)


def save_network(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: InputSettings,
    folder: Path,
) -> None:
    """Write a folder of transformers; same weights, same bytes.

    Transformers loads it without this project but for ``small`` encoders, for which
    ``utils.conv_encoder`` must have been imported.

    The folder is not written atomically: give a temporary one of ``run_folder.atomic_folder``.
    """
    # Of several processes transformers lets only the first write; here each has its own network.
    network.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        network.save_pretrained(folder)
    finally:
        del network.should_save_on_this_rank
    tokenizer.save_pretrained(folder)
    side = {"height": settings.resolution, "width": settings.resolution}
    write_json(
        folder / _PREPROCESSOR,
        {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": side,
            "resample": _BILINEAR,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": settings.mean,
            "image_std": settings.std,
        },
    )


def hash_parts(names: Sequence[str]) -> str:
    """SHA-256 of all weights that networks start from.

    Args:
        names: Of ``CaptionerSpec``; those of the hub have been downloaded.
    """
    digests = []
    for name in names:
        if name in ("", SMALL):
            digests.append(name)
        elif Path(name).is_file():
            digests.append(sha256_file(name))
        else:
            folder = hub_models.local_folder(name, flag=FLAG, offline=True)
            digests.append(hub_models.hash_weights(folder))
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def load_network(folder: Path, *, flag: str) -> Parts:
    """A network of ``save_network``, frozen and in evaluation mode.

    Args:
        folder: Where it lies.
        flag: What messages call the folder.

    Raises:
        UserError: If the folder is not complete, or holds another model.
    """
    network, tokenizer, kind = _read_folder(folder, flag=flag)
    size = hub_models.read_json(folder / _PREPROCESSOR, flag=flag).get("size")
    if not isinstance(size, dict) or not isinstance(resolution := size.get("height"), int):
        raise UserError(
            f"{flag} {folder}: {_PREPROCESSOR} has no size.height: train this model with "
            f"{FLAG} first"
        )
    settings = encoders.input_settings(folder, kind, resolution=resolution, flag=flag)
    return network, tokenizer, settings
