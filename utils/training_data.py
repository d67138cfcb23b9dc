"""What each training sample is: a pure function of the seed and its position in the data stream.

The stream goes through the data epoch by epoch, each in its own order. Position p is the p-th
sample since the start, over all processes; from (seed, p) follow image, crop, flip, caption, noise
and timestep. So neither the number of workers nor of processes changes a run, and resuming is
starting at a position.

Shapes: N images, C latent channels, h x w latents, L tokens, D text width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.captions import find_sides, swap_sides
from utils.cli import UserError
from utils.dataset import Dataset
from utils.diffusion import PipelineParts, encode_pixels, encode_text, tokenize
from utils.images import resize, to_tensor

MAX_LISTED_CAPTIONS = 20

# Streams of random numbers that must not be the same for the same (seed, number).
_ORDER, _LOOK, _NOISE = range(3)


@dataclass(frozen=True)
class SampleOptions:
    """How a sample is made from a record.

    Attributes:
        seed: Of everything random.
        resolution: Side of the image in pixels.
        resize_mode: One of `utils.images.RESIZE_MODES`.
        random_flip: Whether half of the images are mirrored, their captions with them.
        caption_dropout_prob: Share of samples that get the empty caption, for guidance.
        latent_shape: (C, h, w).
        num_timesteps: Timesteps are drawn from 0 .. num_timesteps - 1.
        noise_offset: Standard deviation of a noise that is the same all over a channel.
        input_perturbation: Extra noise in the input that is not in the target.
    """

    seed: int
    resolution: int
    resize_mode: str
    random_flip: bool
    caption_dropout_prob: float
    latent_shape: tuple[int, int, int]
    num_timesteps: int
    noise_offset: float = 0.0
    input_perturbation: float = 0.0


@dataclass(frozen=True)
class CaptionTable:
    """Every caption a sample can have, with what stands for it.

    Attributes:
        rows: Caption to row.
        values: Token ids (K, L) int64, or text embeddings (K, L, D).
    """

    rows: Mapping[str, int]
    values: torch.Tensor

    def __getitem__(self, caption: str) -> torch.Tensor:
        return self.values[self.rows[caption]]


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The order in which an epoch goes through the images, (num_images,) int64."""
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(num_images)


class TrainingSet(torch.utils.data.Dataset):
    """Samples by position; see the module's docstring.

    A sample is a dict: ``name``; ``text`` (token ids or embeddings); ``pixels`` (3, 8h, 8w) in
    [-1, 1], or ``mean`` and ``std`` of the VAE's posterior where they were cached; and what is
    random, all (C, h, w) float32 standard normal: ``posterior_noise``, ``noise`` (with offset),
    ``input_noise`` (also perturbed), and ``timestep`` int64.
    """

    def __init__(
        self,
        dataset: Dataset,
        options: SampleOptions,
        captions: CaptionTable,
        latents: torch.Tensor | None = None,
    ) -> None:
        """Keep what samples are made of.

        Args:
            dataset: The records.
            options: How samples are made.
            captions: Has each of `possible_captions`.
            latents: Result of `encode_dataset`; without it the images are read every time.
        """
        self.dataset = dataset
        self.options = options
        self.captions = captions
        self.latents = latents

    def __getitem__(self, position: int) -> dict:
        options = self.options
        epoch, place = divmod(position, len(self.dataset))
        index = int(epoch_order(options.seed, epoch, len(self.dataset))[place])
        look = np.random.default_rng((options.seed, _LOOK, epoch, index))
        flipped = bool(look.random() < 0.5) and options.random_flip
        dropped = look.random() < options.caption_dropout_prob
        record = self.dataset[index]
        caption = "" if dropped else (swap_sides(record.text) if flipped else record.text)
        sample = {"name": record.file_name, "text": self.captions[caption]}
        if self.latents is None:
            sample["pixels"] = read_pixels(record, options, flipped=flipped, rng=look)
        else:
            sample["mean"], sample["std"] = self.latents[index, int(flipped)]
        return sample | self._draw_noise(position)

    def _draw_noise(self, position: int) -> dict:
        options = self.options
        rng = np.random.default_rng((options.seed, _NOISE, position))
        shape = options.latent_shape

        def normal(shape: tuple[int, ...]) -> torch.Tensor:
            return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

        timestep = torch.tensor(int(rng.integers(options.num_timesteps)))
        posterior_noise, noise = normal(shape), normal(shape)
        if options.noise_offset:
            noise = noise + options.noise_offset * normal((shape[0], 1, 1))
        input_noise = noise
        if options.input_perturbation:
            input_noise = noise + options.input_perturbation * normal(shape)
        return {
            "timestep": timestep,
            "posterior_noise": posterior_noise,
            "noise": noise,
            "input_noise": input_noise,
        }


def read_pixels(record, options: SampleOptions, *, flipped: bool, rng) -> torch.Tensor:
    """Image of a record as the VAE takes it, (3, resolution, resolution) in [-1, 1]."""
    image = resize(record.image(), options.resolution, options.resize_mode, rng=rng)
    pixels = to_tensor(image)
    return pixels.flip(-1) if flipped else pixels


class PositionBatches:
    """Batch sampler: the positions of one process's batches, from a position on, without end."""

    def __init__(self, *, start: int, batch_size: int, rank: int, num_processes: int) -> None:
        """Take every ``num_processes``-th batch after ``start``, beginning with the ``rank``-th."""
        self.first = start + rank * batch_size
        self.stride = num_processes * batch_size
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[range]:
        for first in count(self.first, self.stride):
            yield range(first, first + self.batch_size)


def collate(samples: Sequence[dict]) -> dict:
    """Stack samples: tensors get a first dimension N, ``name`` becomes the list ``names``."""
    batch = {key: torch.stack([s[key] for s in samples]) for key in samples[0] if key != "name"}
    return batch | {"names": [sample["name"] for sample in samples]}


def make_loader(
    samples: TrainingSet,
    batches: PositionBatches | Sequence[Sequence[int]],
    *,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader:
    """Loader of the given batches; the number of workers changes the speed only."""
    return DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )


def check_sides(dataset: Dataset) -> None:
    """Refuse to mirror images whose captions speak of a side.

    Raises:
        UserError: Naming file, line and caption of each, the first `MAX_LISTED_CAPTIONS` in full.
    """
    sided = [record for record in dataset if find_sides(record.text)]
    if not sided:
        return
    lines = [
        f"  {record.where}: {', '.join(find_sides(record.text))}: {record.text!r}"
        for record in sided[:MAX_LISTED_CAPTIONS]
    ]
    if len(sided) > len(lines):
        lines.append(f"  ... and {len(sided) - len(lines)} more")
    raise UserError(
        f"--random_flip mirrors images, and {len(sided)} of {len(dataset)} captions speak of a "
        "side, which would then be false:\n" + "\n".join(lines) + "\n"
        "Leave out --random_flip, or add --flip_swaps_sides to mirror these words with the image."
    )


def possible_captions(dataset: Dataset, options: SampleOptions) -> list[str]:
    """Every caption a sample of this data set can have, sorted."""
    captions = {record.text for record in dataset}
    if options.random_flip:
        captions |= {swap_sides(caption) for caption in captions}
    if options.caption_dropout_prob > 0:
        captions.add("")
    return sorted(captions)


def tokenize_captions(captions: Sequence[str], tokenizer) -> CaptionTable:
    """Token ids of the captions, for a text encoder that runs every step."""
    rows = {caption: row for row, caption in enumerate(captions)}
    return CaptionTable(rows, tokenize(tokenizer, captions))


def encode_captions(
    table: CaptionTable, text_encoder, *, batch_size: int, dtype: torch.dtype
) -> CaptionTable:
    """Text embeddings of the captions, for a text encoder that need not run again; on the CPU."""
    encoded = [
        encode_text(text_encoder, ids).to("cpu", dtype) for ids in table.values.split(batch_size)
    ]
    return CaptionTable(table.rows, torch.cat(encoded))


def cache_bytes(
    num_images: int, options: SampleOptions, *, num_captions: int, values_per_caption: int
) -> int:
    """Memory that `encode_dataset` and `encode_captions` take at float32, in bytes."""
    orientations = 2 if options.random_flip else 1
    latents = num_images * orientations * 2 * math.prod(options.latent_shape)
    return 4 * (latents + num_captions * values_per_caption)


class _Orientations(torch.utils.data.Dataset):
    """Pixels of each record in the orientations a sample can have, (orientations, 3, 8h, 8w)."""

    def __init__(self, dataset: Dataset, options: SampleOptions) -> None:
        self.dataset = dataset
        self.options = options

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = read_pixels(self.dataset[index], self.options, flipped=False, rng=None)
        return torch.stack([pixels, pixels.flip(-1)] if self.options.random_flip else [pixels])


def encode_dataset(
    dataset: Dataset,
    options: SampleOptions,
    parts: PipelineParts,
    *,
    batch_size: int,
    num_workers: int,
    show_progress: bool,
) -> torch.Tensor:
    """Posterior mean and standard deviation of every image, computed once.

    Returns:
        Unscaled, (N, orientations, 2, C, h, w) float32 on the CPU; the second orientation is the
        mirrored one, there if ``options.random_flip``.
    """
    pixels = _Orientations(dataset, options)
    loader = DataLoader(pixels, batch_size=batch_size, num_workers=num_workers)
    orientations = 2 if options.random_flip else 1
    latents = torch.empty(len(dataset), orientations, 2, *options.latent_shape)
    done = 0
    for batch in tqdm(loader, desc="encode images", unit="batch", disable=not show_progress):
        posterior = torch.stack(encode_pixels(parts.vae, batch.flatten(0, 1)), dim=1)
        latents[done : done + len(batch)] = posterior.unflatten(0, (-1, orientations)).cpu()
        done += len(batch)
    return latents
