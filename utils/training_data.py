"""What each training sample is: a pure function of the seed and its position in the data stream.

The stream goes through the data epoch by epoch, each in its own order. Position p is the p-th
sample since the start, over all processes; from (seed, p) follow image, crop, flip, caption, noise
and timestep. So neither the number of workers nor of processes changes a run, and resuming is
starting at a position.

Shapes: N images, C latent channels, h x w latents, K chunks of L tokens, D text width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from utils.captions import find_sides, swap_sides
from utils.cli import UserError
from utils.dataset import Dataset
from utils.diffusion import PipelineParts, encode_pixels, sample_latents
from utils.images import pixel_hash, resize, to_tensor
from utils.lazy_records import texts
from utils.sample_order import SampleOrder
from utils.tensor_table import TensorTable
from utils.text_encoding import encode_text, tokenize

MAX_LISTED_CAPTIONS = 20

# Streams of random numbers that must not be the same for the same (seed, number).
# 0 is the order's, in utils.sample_order, 4 and 5 are pairs', 6 weights', 7 and 8 rehearsal's.
_LOOK, _NOISE, _CROP = 1, 2, 3


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
        num_crops: Random crops each image has, the same in every epoch and run; None draws anew.
        even_timesteps: Spread the timesteps evenly over the positions, for measuring.
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
    num_crops: int | None = None
    even_timesteps: bool = False

    def of_pairs(self) -> "SampleOptions":
        """The same for preference pairs: what is preferred is preferred for its text."""
        return replace(self, caption_dropout_prob=0.0)

    def held_out(self) -> "SampleOptions":
        """The same for measuring the loss: nothing that makes the task harder, or random crops."""
        return replace(
            self,
            resize_mode=self.resize_mode.replace("random", "center"),
            random_flip=False,
            caption_dropout_prob=0.0,
            noise_offset=0.0,
            input_perturbation=0.0,
            num_crops=None,
            even_timesteps=True,
        )


@dataclass(frozen=True)
class CaptionTable:
    """Every caption a sample can have, with what stands for it.

    Attributes:
        rows: Caption to row.
        values: By row, token ids (K, L) int64, or a cached caption's embeddings (K L, D).
    """

    rows: Mapping[str, int]
    values: torch.Tensor | TensorTable

    def __getitem__(self, caption: str) -> torch.Tensor:
        return self.values[self.rows[caption]]


class TrainingSet(torch.utils.data.Dataset):
    """Samples by position; see the module's docstring.

    A sample is a dict: ``name``; ``text`` (token ids or embeddings); ``pixels`` (3, 8h, 8w) in
    [-1, 1], or ``mean`` and ``std`` of the VAE's posterior where they were cached; ``weight``, the
    factor of its loss; and what is random, all (C, h, w) float32 standard normal:
    ``posterior_noise``, ``noise`` (with offset), ``input_noise`` (also perturbed), and ``timestep``
    int64.
    """

    _look_stream, _noise_stream = _LOOK, _NOISE

    def __init__(
        self,
        dataset: Dataset,
        options: SampleOptions,
        captions: CaptionTable,
        latents: TensorTable | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        """Keep what samples are made of.

        Args:
            dataset: The records.
            options: How samples are made.
            captions: Has each of `possible_captions`.
            latents: Mean and standard deviation (2, C, h, w) by (index, flipped, crop), as
                `utils.latent_cache.encode_once` keeps them; without, images are read.
            weights: Factor of each image's loss, (N,) float32; None weighs all alike.
        """
        self.dataset = dataset
        self.options = options
        self.captions = captions
        self.latents = latents
        self.weights = weights
        self._order = SampleOrder(options.seed, len(dataset), dataset.blocks)

    def encoded(self, captions: CaptionTable, latents: TensorTable) -> "TrainingSet":
        """The same samples with what encoders made of captions and images."""
        return type(self)(self.dataset, self.options, captions, latents, self.weights)

    def __getitem__(self, position: int) -> dict:
        epoch, index = self._order[position]
        return self._show(index, self._look(epoch, index)) | self._draw_noise(position)

    def _look(self, epoch: int, number: int) -> np.random.Generator:
        """What draws how an image looks: its flip, dropped caption and crop."""
        return np.random.default_rng((self.options.seed, self._look_stream, epoch, number))

    def _show(self, index: int, look: np.random.Generator) -> dict:
        options = self.options
        flipped = bool(look.random() < 0.5) and options.random_flip
        dropped = look.random() < options.caption_dropout_prob
        crop = int(look.integers(options.num_crops)) if options.num_crops else None
        record = self.dataset[index]
        caption = "" if dropped else (swap_sides(record.text) if flipped else record.text)
        weight = torch.tensor(1.0 if self.weights is None else float(self.weights[index]))
        sample = {"name": record.file_name, "text": self.captions[caption], "weight": weight}
        if self.latents is None:
            sample["pixels"] = _read(record, options, flipped=flipped, crop=crop, rng=look)
        else:
            sample["mean"], sample["std"] = self.latents[index, int(flipped), crop or 0]
        return sample

    def _draw_noise(self, position: int) -> dict:
        options = self.options
        rng = np.random.default_rng((options.seed, self._noise_stream, position))
        shape = options.latent_shape

        def normal(shape: tuple[int, ...]) -> torch.Tensor:
            return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

        timestep = int(rng.integers(options.num_timesteps))
        if options.even_timesteps:
            place = (position + timestep / options.num_timesteps) / len(self.dataset)
            timestep = int(place % 1.0 * options.num_timesteps)
        posterior_noise, noise = normal(shape), normal(shape)
        if options.noise_offset:
            noise = noise + options.noise_offset * normal((shape[0], 1, 1))
        input_noise = noise
        if options.input_perturbation:
            input_noise = noise + options.input_perturbation * normal(shape)
        return {
            "timestep": torch.tensor(timestep),
            "posterior_noise": posterior_noise,
            "noise": noise,
            "input_noise": input_noise,
        }


def _read(record, options: SampleOptions, *, flipped: bool, crop: int | None, rng) -> torch.Tensor:
    image = record.image()
    if crop is not None:
        rng = crop_rng(pixel_hash(image), crop)
    return to_pixels(image, options, flipped=flipped, rng=rng)


def crop_rng(digest: str, crop: int) -> np.random.Generator:
    """What draws an image's ``crop``-th random crop: by its pixels, the same under every seed.

    Args:
        digest: The image's `utils.image_files.pixel_hash`.
        crop: Counted from 0.
    """
    return np.random.default_rng((int(digest, 16), _CROP, crop))


def to_pixels(image, options: SampleOptions, *, flipped: bool, rng) -> torch.Tensor:
    """PIL image as the VAE takes it, (3, resolution, resolution) in [-1, 1].

    Args:
        image: Mode ``L`` or ``RGB``, any size.
        options: Resolution and resize mode.
        flipped: Whether it is mirrored.
        rng: Draws the crop, if that is random.
    """
    pixels = to_tensor(resize(image, options.resolution, options.resize_mode, rng=rng))
    return pixels.flip(-1) if flipped else pixels


def make_training_set(
    dataset: Dataset,
    options: SampleOptions,
    tokenizer,
    num_chunks: int = 1,
    *,
    kind: type[TrainingSet] = TrainingSet,
    weights: np.ndarray | None = None,
) -> TrainingSet:
    """Samples whose captions are token ids, and whose images are read every time."""
    captions = possible_captions(dataset, options)
    rows = {caption: row for row, caption in enumerate(captions)}
    ids = tokenize(tokenizer, captions, num_chunks)  # (rows, K, L)
    return kind(dataset, options, CaptionTable(rows, ids), weights=weights)


def encode_batch(
    parts: PipelineParts, batch: dict, device, *, with_text: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (N, C, h, w) and text embeddings (N, K L, D) of a batch, on the device.

    What was not encoded before is encoded now, with the parts' own weights; without ``with_text``
    the text stays token ids (N, K, L), for a text encoder that is trained.
    """
    text = batch["text"].to(device, non_blocking=True)
    if "mean" in batch:
        mean, std = (batch[key].to(device, non_blocking=True) for key in ("mean", "std"))
    else:
        mean, std = encode_pixels(parts.vae, batch["pixels"])
    if with_text and not text.is_floating_point():
        text = encode_text(parts.text_encoder, text)
    noise = batch["posterior_noise"].to(device, non_blocking=True)
    return sample_latents(parts.vae, mean, std, noise), text


def check_sides(dataset: Dataset) -> None:
    """Refuse to mirror images whose captions speak of a side.

    Raises:
        UserError: Naming file, line and caption of each, the first `MAX_LISTED_CAPTIONS` in full.
    """
    sided = [index for index, text in enumerate(texts(dataset.records)) if find_sides(text)]
    if not sided:
        return
    lines = [
        f"  {record.where}: {', '.join(find_sides(record.text))}: {record.text!r}"
        for record in map(dataset.__getitem__, sided[:MAX_LISTED_CAPTIONS])
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
    captions = set(texts(dataset.records))
    if options.random_flip:
        captions |= {swap_sides(caption) for caption in captions}
    if options.caption_dropout_prob > 0:
        captions.add("")
    return sorted(captions)
