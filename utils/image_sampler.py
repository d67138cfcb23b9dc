"""Prompts and seeds to images, with the parts of a Stable Diffusion pipeline.

An image depends on its prompt and its seed, not on its company. Two things see to that: its noise
comes from a generator of its own, on the CPU; and on a CPU the networks always run on
`CPU_GROUP` images, on one thread. (Matrix libraries choose their kernels by shape and by number of
threads, and other kernels round differently, by 1e-6: enough to change grey levels here and
there.) Several cores work on several groups. On a GPU a batch is one group, and another batch size
may change a grey level by one.
"""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from utils.cli import UserError, available_cores
from utils.sampling import (
    Settings,
    decode_latents,
    denoise,
    draw_noise,
    make_scheduler,
    vae_factor,
)
from utils.text_encoding import (
    encode_text,
    max_tokens,
    num_caption_chunks,
    token_lengths,
    tokenize,
)

CPU_GROUP = 4  # images; 8 are no faster, 1 takes a fifth longer (measured, 9 M parameters, 128 px)
MAX_CACHED_PROMPTS = 1024  # 240 MB with the text encoder of SD 1.x


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


class PromptEncoder:
    """Text to embeddings, each text once; the latest `MAX_CACHED_PROMPTS` are kept.

    Texts are encoded one at a time, so that an embedding does not depend on its neighbours, and
    in as many chunks as the model was trained on (`utils.text_encoding`).
    """

    def __init__(self, tokenizer, text_encoder) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._num_chunks = num_caption_chunks(text_encoder)
        self._cache: OrderedDict[str, torch.Tensor] = OrderedDict()

    def num_tokens(self, text: str) -> int:
        """Length of the text in tokens with start and end; beyond `max_tokens` it is cut."""
        return token_lengths(self._tokenizer, [text])[0]

    @property
    def max_tokens(self) -> int:
        """How many tokens the model reads, with start and end."""
        return max_tokens(self._tokenizer, self._num_chunks)

    @torch.inference_mode()
    def __call__(self, text: str) -> torch.Tensor:
        """Embedding of a text: (K L, D), on the text encoder's device, in its type."""
        if text not in self._cache:
            self._cache[text] = self._encode(text)
            if len(self._cache) > MAX_CACHED_PROMPTS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(text)
        return self._cache[text]

    def _encode(self, text: str) -> torch.Tensor:
        ids = tokenize(self._tokenizer, [text], self._num_chunks)  # (1, K, L)
        with _one_thread():
            return encode_text(self._text_encoder, ids)[0]


class ImageSampler:
    """A pipeline's parts, ready to draw.

    Args:
        unet: On the device and in the type to compute in.
        vae: Decoder, on the same device; in float32 it keeps the grey levels.
        encoder: Texts to embeddings.
        scheduler_config: See `make_scheduler`.
        settings: How to draw.
        resolution: Side of the images in pixels.

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
    ) -> None:
        factor = vae_factor(vae)
        if resolution % factor:
            raise UserError(f"--resolution {resolution}: must be a multiple of {factor}")
        self._scheduler = make_scheduler(scheduler_config, settings.sampler, settings.num_steps)
        self._encoder = encoder
        self._no_text = encoder(settings.negative_prompt).to(unet.dtype)  # (L, D)
        self._settings = settings
        self._shape = (unet.config.in_channels, resolution // factor, resolution // factor)
        # On a CPU the decoder gains a quarter from this layout, the U-Net nothing.
        self._vae = vae.eval().to(memory_format=torch.channels_last)
        on_cpu = unet.device.type == "cpu"
        self._unet = unet.eval() if on_cpu else unet.eval().to(memory_format=torch.channels_last)
        self.group_size = CPU_GROUP if on_cpu else None

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        """Draw N images.

        Args:
            prompts: N texts, N >= 1.
            seeds: N seeds from `image_seed`.

        Returns:
            Images (N, 3, H, W), float32 on the CPU, about [-1, 1]; NaN where the networks fail.
        """
        if self.group_size is None:
            return self._draw(self._embed(prompts), seeds).cpu()
        groups = list(_groups(list(zip(prompts, seeds)), self.group_size))
        num_workers = min(len(groups), available_cores())
        with _one_thread(), ThreadPoolExecutor(num_workers) as pool:
            jobs = [
                pool.submit(
                    self._draw,
                    self._embed([text for text, _ in group]),
                    [seed for _, seed in group],
                )
                for group in groups
            ]
            return torch.cat([job.result() for job in jobs])[: len(prompts)]

    def _embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings (N, L, D) in the U-Net's type."""
        return torch.stack([self._encoder(prompt) for prompt in prompts]).to(self._unet.dtype)

    def _draw(self, text: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Embeddings (N, L, D) and N seeds to images (N, 3, H, W)."""
        guided = self._settings.guidance_scale != 1
        noise, generators = draw_noise(seeds, self._shape)
        latents = denoise(
            self._unet,
            copy.deepcopy(self._scheduler),
            noise=noise.to(self._unet.device),
            text=text,
            no_text=self._no_text if guided else None,
            generators=generators,
            settings=self._settings,
        )
        return decode_latents(self._vae, latents)


def _groups(images: list, size: int) -> Iterator[list]:
    """Groups of exactly ``size``; the last one is filled up with repetitions of its last image."""
    for start in range(0, len(images), size):
        group = images[start : start + size]
        yield group + group[-1:] * (size - len(group))
