"""A report model as a folder: load, save, and write the reports of images.

The folder is one of transformers (``utils/captioner_networks.py``), with ``captioner.json`` beside:
what is done to an image before the network sees it. Shapes: B images of a batch, H = W =
resolution, L tokens of a report.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.captioner_losses import encode, encoded, token_losses
from utils.captioner_networks import InputSettings, load_network, save_network
from utils.checkpoints import replace_folder
from utils.classifier import CPU_BATCH, batched, to_unit
from utils.classifier_optim import Precision
from utils.cli import UserError
from utils.gray_images import GrayImages
from utils.hub_models import hash_weights, local_folder, read_json
from utils.report_flags import MAX_TOKENS
from utils.report_tokenizer import decode_reports
from utils.run_folder import TEMPORARY_PREFIX, atomic_folder, write_json

CAPTIONER_NAME = "captioner.json"
DEFAULT_RESIZE = "center_crop"  # of a folder that was not made here


@dataclass(frozen=True)
class Decoding:
    """How a report is searched for.

    Attributes:
        num_beams: Beams; 1 takes the likeliest token every time.
        length_penalty: Exponent of the length by which a beam's log-probability is divided; more
            favours longer reports.
        no_repeat_ngram_size: Words (tokens) in a row that may not come twice; 0: any may.
        max_new_tokens: Longest report, in tokens.
    """

    num_beams: int = 3
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    max_new_tokens: int = 128


@dataclass(frozen=True)
class Written:
    """A report, and the mean log-probability of its tokens, the last one too: at most 0."""

    text: str
    confidence: float


class Captioner:
    """A network that writes reports, with its tokenizer and preprocessing."""

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: InputSettings,
        *,
        resize_mode: str,
        device: str = "cpu",
        mixed_precision: str = "no",
    ):
        """Take over a network and move it to ``device``."""
        self.network = network.to(device).eval()
        self.tokenizer, self.settings = tokenizer, settings
        self.resize_mode, self.device = resize_mode, device
        self.precision = Precision(device, mixed_precision)
        self.sha256: str | None = None  # of the weights, once they are a file

    @classmethod
    def load(
        cls,
        name_or_path: Path | str,
        *,
        device: str = "cpu",
        mixed_precision: str = "no",
        offline: bool = True,
    ) -> Captioner:
        """Read a folder, or a model of the hub.

        Raises:
            UserError: If it is not there, not complete or another model.
        """
        folder = local_folder(str(name_or_path), flag="--model", offline=offline)
        network, tokenizer, settings = load_network(folder, flag="--model")
        own = folder / CAPTIONER_NAME
        resize_mode = DEFAULT_RESIZE
        if own.is_file():
            resize_mode = read_json(own, flag="--model")["resize_mode"]
        captioner = cls(
            network,
            tokenizer,
            settings,
            resize_mode=resize_mode,
            device=device,
            mixed_precision=mixed_precision,
        )
        captioner.sha256 = hash_weights(folder)
        return captioner

    def save(self, folder: Path) -> None:
        """Write the folder, whole or not at all; an older one goes only afterwards.

        Raises:
            UserError: If it cannot be written.
        """
        fresh = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_folder(fresh) as temporary:
                save_network(self.network, self.tokenizer, self.settings, temporary)
                write_json(temporary / CAPTIONER_NAME, {"resize_mode": self.resize_mode})
        except SafetensorError as error:  # of a full disk, among others
            raise UserError(f"{folder} could not be written: {error}") from error
        replace_folder(fresh, folder)
        self.sha256 = hash_weights(folder)

    @property
    def resolution(self) -> int:
        """Side of the network's images in pixels."""
        return self.settings.resolution

    @property
    def max_new_tokens(self) -> int:
        """Length of the longest report that it was trained for, without the first token."""
        return self.network.generation_config.max_new_tokens or MAX_TOKENS - 1

    def pixel_values(self, gray: torch.Tensor) -> torch.Tensor:
        """(B, H, W) uint8 to what the network takes, (B, 3, H, W) float32."""
        return self.normalise(to_unit(gray.to(self.device)))

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) in [0, 1] to what the network takes, (B, 3, H, W) float32."""
        mean, std = (
            images.new_tensor(values).reshape(1, 3, 1, 1)
            for values in (self.settings.mean, self.settings.std)
        )
        return (images - mean) / std

    def write(
        self,
        images: GrayImages,
        decoding: Decoding,
        *,
        batch_size: int = CPU_BATCH,
        progress: Callable[[int], object] | None = None,
    ) -> list[Written]:
        """The reports of N images.

        On a CPU the batch is ``CPU_BATCH``, whatever is asked for: the last bits of a sum depend
        on it, and they can decide between two words.

        Args:
            images: At the network's resolution.
            decoding: How to search.
            batch_size: Images at once, on a GPU.
            progress: Called with the number of images of each batch when it is done.
        """
        size = CPU_BATCH if torch.device(self.device).type == "cpu" else batch_size
        found: list[Written] = []
        for pixels in batched(images, size):
            found += self.write_batch(torch.from_numpy(np.stack(pixels)), decoding)
            if progress is not None:
                progress(len(pixels))
        return found

    @torch.inference_mode()
    def write_batch(self, gray: torch.Tensor, decoding: Decoding) -> list[Written]:
        """The reports of the images of one batch, (B, H, W) uint8."""
        pixels = self.pixel_values(gray)
        with self.precision.autocast():
            tokens = encode(self.network, pixels)
            known = {"pixel_values": pixels} if tokens is None else encoded(tokens)
            ids = self.network.generate(
                **known,
                do_sample=False,
                num_beams=decoding.num_beams,
                length_penalty=decoding.length_penalty,
                no_repeat_ngram_size=decoding.no_repeat_ngram_size,
                max_new_tokens=decoding.max_new_tokens,
            )
            mask = _up_to_end(ids, self.tokenizer.eos_token_id)
            losses = token_losses(self.network, pixels, ids, mask, tokens=tokens).double()
        means = losses.sum(dim=1) / mask[:, 1:].sum(dim=1).clamp(min=1)
        rows = [row[kept.bool()].tolist() for row, kept in zip(ids, mask)]
        texts = decode_reports(self.tokenizer, rows)
        # In this order: the least of 0 and NaN is 0, which would be certainty.
        return [Written(text.strip(), min(-mean, 0.0)) for text, mean in zip(texts, means.tolist())]


def _up_to_end(ids: torch.Tensor, eos: int) -> torch.Tensor:
    """(B, L): 1 up to the first end token after the start, which may be the same token."""
    is_end = ids == eos
    is_end[:, 0] = False
    return (is_end.cumsum(dim=1) - is_end.long() == 0).long()
