"""Images and captions encoded once and kept in memory, while VAE and text encoder are frozen.

Kept is the posterior's mean and standard deviation, not a sample of it: latents are drawn anew
every time, as if the VAE ran every step.
"""

import math
from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.diffusion import PipelineParts, encode_pixels
from utils.run_folder import get_logger
from utils.text_encoding import encode_text
from utils.training_data import CaptionTable, SampleOptions, TrainingSet, read_pixels

LIMIT_GIB = 8  # kept by default, per process
MAX_BATCH_SIZE = 16  # images; larger ones are no faster and need more memory
CAPTION_BATCH_SIZE = 64

_logger = get_logger("train")


def num_orientations(options: SampleOptions) -> int:
    """As is, and mirrored if samples can be."""
    return 2 if options.random_flip else 1


def encoded_bytes(samples: TrainingSet, text_width: int) -> int:
    """Memory that `encode_samples` fills at float32, in bytes."""
    images = len(samples.dataset) * num_orientations(samples.options)
    latents = images * 2 * math.prod(samples.options.latent_shape)
    return 4 * (latents + samples.captions.values.numel() * text_width)


def fits(
    samples: Sequence[TrainingSet | None], parts: PipelineParts, *, wanted: bool | None
) -> bool:
    """Whether all samples can be encoded once and kept; the log tells the memory that takes.

    Args:
        samples: What would be kept; None stands for nothing.
        parts: Tells the width of the text embeddings.
        wanted: True keeps them beyond `LIMIT_GIB` too, False never does.
    """
    present = [each for each in samples if each is not None]
    if wanted is False or any(each.options.resize_mode == "random_crop" for each in present):
        return False
    width = parts.text_encoder.config.hidden_size
    gib = sum(encoded_bytes(each, width) for each in present) / 2**30
    keeps = bool(wanted) or gib <= LIMIT_GIB
    how = "kept in memory" if keeps else "encoded every step, unless --cache_latents is given"
    _logger.info("latents and captions take up to %.3g GiB: %s", gib, how)
    return keeps


def encode_once(
    samples: Sequence[TrainingSet | None],
    parts: PipelineParts,
    accelerator,
    *,
    batch_size: int,
    num_workers: int,
    with_text: bool = True,
) -> list[TrainingSet | None]:
    """Encode all samples (see `encode_samples`), then send VAE and text encoder to the CPU."""
    precision = accelerator.mixed_precision
    types = {"fp16": torch.float16, "bf16": torch.bfloat16}
    encoded = [
        each
        and encode_samples(
            each,
            parts,
            batch_size=batch_size,
            num_workers=num_workers,
            text_dtype=types.get(precision, torch.float32),
            show_progress=accelerator.is_local_main_process,
            with_text=with_text,
        )
        for each in samples
    ]
    parts.vae.to("cpu")
    if with_text:
        parts.text_encoder.to("cpu")
    return encoded


def encode_samples(
    samples: TrainingSet,
    parts: PipelineParts,
    *,
    batch_size: int,
    num_workers: int,
    text_dtype: torch.dtype,
    show_progress: bool,
    with_text: bool = True,
) -> TrainingSet:
    """The same samples with latents and text embeddings in place of pixels and token ids.

    Args:
        samples: Made by `utils.training_data.make_training_set`, without random crops.
        parts: VAE and text encoder, on the device to compute on.
        batch_size: Images at once, at most `MAX_BATCH_SIZE`.
        num_workers: Processes that read images.
        text_dtype: What the embeddings are kept in; the latents stay float32.
        show_progress: Whether to draw a progress bar on stderr.
        with_text: Whether captions are encoded too; they are not where the text encoder is trained.
    """
    captions = samples.captions
    if with_text:
        values = [
            encode_text(parts.text_encoder, token_ids).to("cpu", text_dtype)
            for token_ids in captions.values.split(CAPTION_BATCH_SIZE)
        ]
        captions = CaptionTable(captions.rows, torch.cat(values))
    orientations = num_orientations(samples.options)
    loader = DataLoader(
        _Orientations(samples, orientations),
        batch_size=min(batch_size, MAX_BATCH_SIZE),
        num_workers=num_workers,
    )
    latents = torch.empty(len(samples.dataset), orientations, 2, *samples.options.latent_shape)
    done = 0
    for pixels in tqdm(loader, desc="encode images", unit="batch", disable=not show_progress):
        # (n, orientations, 3, 8h, 8w) -> (n * orientations, 2, C, h, w)
        posterior = torch.stack(encode_pixels(parts.vae, pixels.flatten(0, 1)), dim=1)
        latents[done : done + len(pixels)] = posterior.unflatten(0, (-1, orientations)).cpu()
        done += len(pixels)
    return TrainingSet(samples.dataset, samples.options, captions, latents)


class _Orientations(torch.utils.data.Dataset):
    """Pixels of each image as is and, if there are two, mirrored: (orientations, 3, 8h, 8w)."""

    def __init__(self, samples: TrainingSet, orientations: int) -> None:
        self._samples = samples
        self._mirrored = (False, True)[:orientations]

    def __len__(self) -> int:
        return len(self._samples.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        record, options = self._samples.dataset[index], self._samples.options
        pixels = read_pixels(record, options, flipped=False, rng=None)
        return torch.stack([pixels.flip(-1) if flip else pixels for flip in self._mirrored])
