"""Prompts and seeds to images, with the parts of a Stable Diffusion pipeline.

An image depends on its prompt and its seed, not on its company. Two things see to that: its noise
comes from a generator of its own, on the CPU; and on a CPU the networks always run on groups of one
size, on one thread. (Matrix libraries choose their kernels by shape and by number of threads, and
other kernels round differently, by 1e-6: enough to change grey levels here and there.) Several
cores work on several groups. On a GPU a batch is one group, and another batch size may change a
grey level by one.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch

from utils.cli import UserError, available_cores
from utils.prompt_encoder import PromptEncoder
from utils.run_folder import get_logger
from utils.sampling import (
    Settings,
    decode_latents,
    denoise,
    draw_noise,
    make_scheduler,
    one_thread,
    vae_factor,
)
from utils.unet_speed import prepare_unet

MAX_CPU_GROUP = 8  # images
CPU_GROUP_LATENTS = 2048  # pixels of the latents in a group: more are no faster
MAX_GPU_BATCH = 64  # images; fills any card's processors
# Bytes a U-Net takes for a row of a batch, in units of latent pixels x first block's channels x
# bytes of a number: 105 MB for SD 1.x at 512 px in 16 bits. Rough; a batch too large is halved.
ACTIVATIONS = 40
MEMORY_SHARE = 0.7  # of the free memory, for the U-Net's activations

Group = Sequence[tuple[str, int]]

_logger = get_logger("generate")
_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class ImageSampler:
    """A pipeline's parts, ready to draw.

    Args:
        unet: On the device and in the type to compute in; what `prepare_unet` does is done to it.
        vae: Decoder, on the same device; in float32 it keeps the grey levels.
        encoder: Texts to embeddings.
        scheduler_config: See `make_scheduler`.
        settings: How to draw.
        resolution: Side of the images in pixels.
        compile_mode: See `prepare_unet`.

    Attributes:
        device: Where it computes.
        group_size: On a CPU the number of images that the networks run on, whatever is asked for;
            None on a GPU.

    Raises:
        UserError: If sampler, model and resolution do not go together.
    """

    def __init__(
        self,
        *,
        unet,
        vae,
        encoder: PromptEncoder,
        scheduler_config: Mapping,
        settings: Settings,
        resolution: int,
        compile_mode: str = "no",
    ) -> None:
        factor = vae_factor(vae.config)
        if resolution % factor:
            raise UserError(f"--resolution {resolution}: must be a multiple of {factor}")
        make_scheduler(scheduler_config, settings.sampler, settings.num_steps)  # refused at once
        self._scheduler_config = scheduler_config
        self._encoder = encoder
        self._no_text = encoder(settings.negative_prompt).to(unet.dtype)  # (L, D)
        self._settings = settings
        side = resolution // factor
        self._shape = (unet.config.in_channels, side, side)
        self.device = unet.device
        self._vae = vae.eval().to(memory_format=torch.channels_last)
        self._unet = unet.eval()
        prepare_unet(
            unet,
            device_type=self.device.type,
            precision=_PRECISIONS.get(unet.dtype, "no"),
            compile_mode=compile_mode,
        )
        self.group_size: int | None = None
        if self.device.type == "cpu":
            self.group_size = max(1, min(MAX_CPU_GROUP, CPU_GROUP_LATENTS // side**2))
        self._most_at_once: int | None = None  # once the memory did not suffice

    @property
    def bytes_per_image(self) -> int:
        """Memory that the U-Net needs for one image more in a batch; an estimate."""
        rows = 1 if self._settings.guidance_scale == 1 else 2
        numbers = self._shape[1] * self._shape[2] * self._unet.config.block_out_channels[0]
        return rows * ACTIVATIONS * numbers * self._unet.dtype.itemsize

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        """Draw N images; as `stream` of groups, on all cores.

        Args:
            prompts: N texts, N >= 1.
            seeds: N seeds from `image_seed`.

        Returns:
            Images (N, 3, H, W), float32 on the CPU, about [-1, 1]; NaN where the networks fail.
        """
        pairs = list(zip(prompts, seeds, strict=True))
        size = self.group_size or len(pairs)
        groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        return torch.cat(list(self.stream(groups, num_workers=available_cores())))

    def stream(self, groups: Iterable[Group], *, num_workers: int) -> Iterator[torch.Tensor]:
        """Draw group after group while the caller works on those before.

        Groups are taken at most ``num_workers`` + 1 ahead of the images. On a CPU, all of torch
        computes on one thread until the iterator ends or is closed: so what the caller computes
        from the images does not depend on the number of cores either.

        Args:
            groups: Pairs of prompt and seed from `image_seed`, any number in a group; on a CPU
                ``group_size`` is best, other numbers are filled up to a multiple of it.
            num_workers: Groups drawn at once on a CPU, each on a core of its own; a GPU draws one.

        Yields:
            The images of each group, in order: (n, 3, H, W) as of `sample`.
        """
        on_cpu = self.device.type == "cpu"
        num_workers = num_workers if on_cpu else 1
        with one_thread() if on_cpu else nullcontext():
            pool = ThreadPoolExecutor(num_workers, thread_name_prefix="draw")
            waiting: deque = deque()
            try:
                for group in groups:
                    waiting.append(pool.submit(self._draw_group, group))
                    if len(waiting) > num_workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _draw_group(self, group: Group) -> torch.Tensor:
        """Images of pairs of prompt and seed, in as many pieces as must be; on the CPU."""
        images = []
        rest = list(group)
        while rest:
            size = self.group_size or self._most_at_once or len(rest)
            piece = rest[:size]
            drawn = self._try_to_draw(piece + piece[-1:] * ((self.group_size or 0) - len(piece)))
            if drawn is not None:
                images.append(drawn[: len(piece)])
                rest = rest[size:]
        return torch.cat(images)

    def _try_to_draw(self, piece: Group) -> torch.Tensor | None:
        """Images, or None where the GPU's memory does not suffice: the next piece is half of it.

        Raises:
            UserError: If the memory does not suffice for one image.
        """
        try:
            return self._draw(*zip(*piece)).cpu()
        except torch.OutOfMemoryError:
            if len(piece) == 1:
                raise UserError(
                    "the GPU's memory does not suffice for one image: take a smaller --resolution, "
                    "or 16 bits (--mixed_precision bf16 or fp16)"
                ) from None
        # Outside of the handler, which holds what the failed attempt had allocated.
        torch.cuda.empty_cache()
        self._most_at_once = len(piece) // 2
        _logger.warning(
            "the GPU's memory does not suffice for %d images at once: drawing %d",
            *(len(piece), self._most_at_once),
        )
        return None

    def _draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        """Images (N, 3, H, W) of N prompts and seeds."""
        settings = self._settings
        noise, generators = draw_noise(seeds, self._shape)
        latents = denoise(
            self._unet,
            make_scheduler(self._scheduler_config, settings.sampler, settings.num_steps),
            noise=noise.to(self.device),
            text=self._encoder.embed(prompts).to(self._unet.dtype),
            no_text=None if settings.guidance_scale == 1 else self._no_text,
            generators=generators,
            settings=settings,
        )
        return decode_latents(self._vae, latents)


def batching(sampler: ImageSampler, batch_size: int | None, *, num_workers: int) -> tuple[int, int]:
    """Images of a group, and how many groups to draw at once.

    Args:
        sampler: With the model loaded.
        batch_size: Images at once; None for `auto_batch_size`.
        num_workers: Cores that may draw, on a CPU.
    """
    batch_size = batch_size or auto_batch_size(sampler, num_workers=num_workers)
    if sampler.group_size is None:
        return batch_size, 1
    # On a CPU the group is fixed, and a core takes one: a smaller batch uses fewer cores.
    return sampler.group_size, min(num_workers, -(-batch_size // sampler.group_size))


def auto_batch_size(sampler: ImageSampler, *, num_workers: int) -> int:
    """How many images to draw at once: what keeps the cores or the GPU busy.

    Args:
        sampler: With the model loaded, so that the GPU's free memory is what remains.
        num_workers: Cores that draw, on a CPU.

    Returns:
        On a CPU ``num_workers`` groups. On a GPU a power of two up to `MAX_GPU_BATCH` that should
        fit; where it does not, the sampler halves it.
    """
    if sampler.group_size is not None:
        return num_workers * sampler.group_size
    free, _ = torch.cuda.mem_get_info(sampler.device)
    # What torch keeps for itself is free too, such as an earlier set's.
    free += torch.cuda.memory_reserved(sampler.device)
    free -= torch.cuda.memory_allocated(sampler.device)
    return batch_for_memory(free, bytes_per_image=sampler.bytes_per_image)


def batch_for_memory(free: int, *, bytes_per_image: int) -> int:
    """The largest power of two, from 1 to `MAX_GPU_BATCH`, whose activations fit into ``free``."""
    fitting = int(MEMORY_SHARE * free / bytes_per_image)
    return min(MAX_GPU_BATCH, 1 << max(0, fitting.bit_length() - 1))
