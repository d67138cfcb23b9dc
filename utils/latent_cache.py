"""Images and captions encoded once, kept on disk for all runs, while their encoders are frozen.

Kept is the posterior's mean and standard deviation, not a sample of it: latents are drawn anew
every time, as if the VAE ran every step. An entry's key is its content (the image's pixels, the
caption's token ids); its folder tells the encoder's weights, the resolution, the resize mode and
the arithmetic. So a renamed file is found again, and of what changed only that is made anew.

The folder may be shared by runs and machines, and deleted at any time. It does not belong into a
pipeline folder: latents decode to the patients' images.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from utils.cli import UserError
from utils.diffusion import PipelineParts, encode_pixels
from utils.image_files import DIGEST_BYTES, pixel_hash
from utils.module_hash import hash_module
from utils.pixel_digests import digest_pixels
from utils.run_folder import get_logger
from utils.shard_building import Job, Placement, fill, locate
from utils.tensor_shards import Space, existing_part
from utils.tensor_table import TensorTable
from utils.text_encoding import encode_text
from utils.training_data import CaptionTable, SampleOptions, TrainingSet, crop_rng, to_pixels

MAX_BATCH_SIZE = 16  # images; larger ones are no faster and need more memory
CAPTION_BATCH_SIZE = 64

_VARIANT_BYTES = 4
_TEXT_KEY_BYTES = 16
_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_LATENTS = (
    "mean and standard deviation of a VAE's posterior of training images; the VAE decodes them "
    "back to the images: as confidential as these. May be deleted, training makes them anew."
)
_TEXTS = (
    "text embeddings of training captions; words can be guessed from them: as confidential as the "
    "captions. May be deleted, training makes them anew."
)
_logger = get_logger("train")


def is_cacheable(samples: Sequence[TrainingSet | None], *, wanted: bool | None) -> bool:
    """Whether samples can be encoded once: not if they are not to be, or crops never repeat."""
    options = [each.options for each in samples if each is not None]
    endless = any(each.resize_mode == "random_crop" and not each.num_crops for each in options)
    return wanted is not False and not endless


def encode_once(
    samples: Sequence[TrainingSet | None],
    parts: PipelineParts,
    accelerator,
    *,
    folder: Path,
    batch_size: int,
    num_workers: int,
    with_text: bool = True,
    required: bool = False,
) -> list[TrainingSet | None]:
    """The same samples with what is kept on disk in place of pixels and token ids.

    Call it on every process: each encodes its share of what is missing. Afterwards the encoders
    are on the CPU; if no image is missing the VAE is not run.

    Args:
        samples: Made by `utils.training_data.make_training_set`; None stands for nothing.
        parts: Their VAE and text encoder encode.
        accelerator: Tells device, precision and the process's share.
        folder: The cache, on a disk that all processes share.
        batch_size: Images at once, at most `MAX_BATCH_SIZE`.
        num_workers: Processes that read images.
        with_text: Whether captions are encoded too; else they stay token ids, and the text
            encoder stays where it is.
        required: Whether too small a disk is an error; else the samples come back as they are.

    Raises:
        UserError: If the disk is too small; if an image changes meanwhile.
    """
    present = [each for each in samples if each is not None]
    maker = _Encoders(parts, accelerator, min(batch_size, MAX_BATCH_SIZE), num_workers)
    image_jobs = [_image_job(each, folder, maker) for each in present]
    text_jobs = [_text_job(each, folder, maker) for each in present if with_text]
    verified: set[Path] = set()
    jobs = [*image_jobs, *text_jobs]
    found = [(job.space, locate(job, accelerator, verified)) for job in jobs]
    if not _has_room(found, folder, accelerator, required=required):
        return list(samples)
    latents = [fill(job, accelerator, verified) for job in image_jobs]
    parts.vae.to("cpu")
    captions = [each.captions for each in present]
    if with_text:
        embeddings = [fill(job, accelerator, verified) for job in text_jobs]
        captions = [CaptionTable(old.rows, new) for old, new in zip(captions, embeddings)]
        parts.text_encoder.to("cpu")
    encoded = iter(
        each.encoded(text, table) for each, text, table in zip(present, captions, latents)
    )
    return [None if each is None else next(encoded) for each in samples]


def count_cached(samples: Sequence[TrainingSet | None]) -> dict[str, int]:
    """Number of distinct entries that samples take from the cache, and their size in bytes."""
    tables = [table for each in samples if each for table in (each.latents, each.captions.values)]
    places: dict[Path, list[np.ndarray]] = {}
    for table in tables:
        if isinstance(table, TensorTable):
            codes = np.unique(table.shards.astype(np.int64) << 32 | table.rows)
            numbers, starts = np.unique(codes >> 32, return_index=True)
            for number, rows in zip(numbers, np.split(codes, starts[1:])):
                places.setdefault(table.paths[number], []).append(rows & (2**32 - 1))
    counts = {path: len(np.unique(np.concatenate(rows))) for path, rows in places.items()}
    sizes = {path: table.entry_bytes for table in tables for path in getattr(table, "paths", ())}
    return {
        "entries": sum(counts.values()),
        "bytes": sum(count * sizes[path] for path, count in counts.items()),
    }


def _has_room(
    found: Sequence[tuple[Space, Placement]], folder: Path, accelerator, *, required: bool
) -> bool:
    """Whether what is missing fits on the disk; the log tells what is there and what is not."""
    num_missing = sum(len(placement.missing) for _, placement in found)
    missing = sum(len(placement.missing) * space.entry_bytes for space, placement in found)
    wanted = sum(placement.shards.size * space.entry_bytes for space, placement in found)
    writable = os.access(existing_part(folder), os.W_OK)
    free = shutil.disk_usage(existing_part(folder)).free if writable else 0
    free, writable = broadcast_object_list([free, writable])
    if accelerator.is_main_process:
        _logger.info(
            "latent cache %s: %.3g GiB are there, up to %.3g GiB (%d entries) to be made, %.3g "
            "GiB free",
            *(folder, (wanted - missing) / 2**30, missing / 2**30, num_missing, free / 2**30),
        )
    if missing <= free:
        return True
    problem = f"the latent cache needs {missing / 2**30:.3g} GiB more and {folder} " + (
        f"has {free / 2**30:.3g} GiB free" if writable else "may not be written to"
    )
    way_out = "name another disk with --latent_cache_dir"
    if required:
        raise UserError(f"{problem}: {way_out}")
    if accelerator.is_main_process:
        _logger.warning(
            "%s; images and captions are encoded every step. To avoid it, %s", problem, way_out
        )
    return False


@dataclass(frozen=True)
class _Encoders:
    parts: PipelineParts
    accelerator: object
    batch_size: int
    num_workers: int

    @cached_property
    def vae_sha256(self) -> str:
        """Of what encodes: the decoder may be another."""
        return hash_module(self.parts.vae, ("encoder.", "quant_conv."))

    @cached_property
    def text_sha256(self) -> str:
        """Of the text encoder."""
        return hash_module(self.parts.text_encoder)

    @property
    def precision(self) -> torch.dtype:
        """Type of the arithmetic, as in the uncached step."""
        return _TYPES.get(self.accelerator.mixed_precision, torch.float32)

    def latents(self, missing: "_MissingImages") -> Iterator[torch.Tensor]:
        """Posteriors (b, 2, C, h, w) float32 of images' variants."""
        layout = torch.channels_last  # a third faster, also on a CPU
        vae = self.parts.vae.to(self.accelerator.device, memory_format=layout)
        loader = DataLoader(
            missing,
            batch_size=max(1, self.batch_size // missing.largest),
            num_workers=self.num_workers,
            collate_fn=torch.cat,
        )
        for images in loader:
            for pixels in images.split(self.batch_size):
                with self.accelerator.autocast():
                    posterior = encode_pixels(vae, pixels.contiguous(memory_format=layout))
                yield torch.stack(posterior, dim=1).cpu()

    def texts(self, ids: torch.Tensor) -> Iterator[torch.Tensor]:
        """Embeddings (b, L, D) of captions' token ids (n, ...), in the run's precision."""
        text_encoder = self.parts.text_encoder.to(self.accelerator.device)
        for batch in ids.split(CAPTION_BATCH_SIZE):
            with self.accelerator.autocast():
                yield encode_text(text_encoder, batch).to("cpu", self.precision)


def _image_job(samples: TrainingSet, folder: Path, encoders: _Encoders) -> Job:
    """Latents of all images in all variants, keys (N, orientations, crops, bytes)."""
    options = samples.options
    facts = {
        "vae_sha256": encoders.vae_sha256,
        "resolution": options.resolution,
        "resize_mode": options.resize_mode,
        "computed_in": str(encoders.precision),
    }
    space = Space(
        *(folder, "latents", facts, (2, *options.latent_shape), torch.float32),
        DIGEST_BYTES + _VARIANT_BYTES,
    )
    digests = digest_pixels(samples.dataset, folder, encoders.accelerator)
    flips, crops = 1 + options.random_flip, options.num_crops or 1
    # Variant 2 k is crop k, 2 k + 1 its mirror image: the same number whatever the run's flags.
    variants = 2 * np.arange(crops) + np.arange(flips)[:, None]
    keys = np.empty((len(digests), flips, crops, space.key_bytes), np.uint8)
    keys[..., :DIGEST_BYTES] = digests[:, None, None]
    keys[..., DIGEST_BYTES:] = variants.astype(">u4")[..., None].view(np.uint8)

    def make(positions: np.ndarray) -> Iterator[torch.Tensor]:
        places = np.stack(np.unravel_index(positions, keys.shape[:3]), axis=1)  # (n, 3)
        return encoders.latents(_MissingImages(samples, places, digests))

    return Job(space, _LATENTS, keys, make, "encode images", "img", "--latent_cache_dir")


class _MissingImages(torch.utils.data.Dataset):
    """Pixels of the missing variants of each image, (variants, 3, 8h, 8w), in [-1, 1]."""

    def __init__(self, samples: TrainingSet, places: np.ndarray, digests: np.ndarray) -> None:
        """Group places (n, 3) of (index, flipped, crop), ordered by index, by image."""
        self._samples = samples
        self._digests = digests
        self._places = places
        self._starts = np.flatnonzero(np.diff(places[:, 0], prepend=-1, append=-1))
        self.largest = int(np.diff(self._starts).max())

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> torch.Tensor:
        group = self._places[self._starts[number] : self._starts[number + 1]]
        options = self._samples.options
        index = int(group[0, 0])
        record = self._samples.dataset[index]
        image, digest = record.image(), self._digests[index].tobytes().hex()
        if pixel_hash(image) != digest:
            raise UserError(f"{record.where}: {record.file_name} was changed just now; start again")
        return torch.stack([_variant(image, options, digest, *place[1:]) for place in group])


def _variant(image, options: SampleOptions, digest: str, flipped: int, crop: int) -> torch.Tensor:
    rng = crop_rng(digest, int(crop)) if options.num_crops else None
    return to_pixels(image, options, flipped=bool(flipped), rng=rng)


def _text_job(samples: TrainingSet, folder: Path, encoders: _Encoders) -> Job:
    """Embeddings of all captions, keys (K, bytes)."""
    ids, text_encoder = samples.captions.values, encoders.parts.text_encoder
    facts = {
        "text_encoder_sha256": encoders.text_sha256,
        "token_ids_shape": list(ids.shape[1:]),
        "computed_in": str(encoders.precision),
    }
    shape = (ids[0].numel(), text_encoder.config.hidden_size)  # (K L, D)
    space = Space(folder, "texts", facts, shape, encoders.precision, _TEXT_KEY_BYTES)
    hashes = [
        hashlib.blake2b(row.tobytes(), digest_size=_TEXT_KEY_BYTES).digest() for row in ids.numpy()
    ]
    keys = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(ids), -1)

    def make(positions: np.ndarray) -> Iterator[torch.Tensor]:
        return encoders.texts(ids[torch.from_numpy(positions)])

    return Job(space, _TEXTS, keys, make, "encode captions", "text", "--latent_cache_dir")
