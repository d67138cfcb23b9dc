"""From the decoder's numbers to the picture that is written: sound, and gray if gray is meant."""

import numpy as np
from PIL.Image import Image
from torch import Tensor

from utils.cli import UserError
from utils.images import to_uint8
from utils.prompts import Prompt

# Grey levels: what a decoder leaves of colour in a gray picture. The demo's leaves 3 to 6.
MAX_GRAY_CHROMA = 8.0


def is_gray(chroma: float, mode: str) -> bool:
    """Whether a picture of this mean chroma (grey levels) is written as gray."""
    return mode == "always" or (mode == "auto" and chroma <= MAX_GRAY_CHROMA)


def finish_image(pixels: Tensor, gray_mode: str) -> tuple[Image, float]:
    """Float pixels (3, H, W) in [-1, 1] to an 8-bit picture, gray or RGB, and its chroma.

    Chroma is the distance between the strongest and the weakest channel, the mean over the pixels,
    in grey levels: what is lost where the picture becomes gray.
    """
    picture = to_uint8(pixels[None])[0]
    levels = np.asarray(picture, dtype=np.int16)  # (H, W, 3)
    chroma = round(float(np.ptp(levels, axis=2).mean()), 3)
    if is_gray(chroma, gray_mode):
        gray = pixels.clamp(-1, 1).mean(0, keepdim=True).expand(3, -1, -1)
        picture = to_uint8(gray[None])[0].getchannel(0)
    return picture, chroma


def check_finite(pixels: Tensor, index: int, prompt: Prompt) -> None:
    """Stop at a picture that is none.

    Raises:
        UserError: If it holds NaN or infinities.
    """
    if not bool(pixels.isfinite().all()):
        raise UserError(
            f"image {index} ({prompt.where}, prompt sha256 {prompt.sha256[:16]}): the model gave "
            "NaN or infinities; nothing was written for it. With --mixed_precision fp16 try bf16 "
            "or no; else the weights are broken"
        )
