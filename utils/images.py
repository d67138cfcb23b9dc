"""Pixels in memory: bring to size, change range, lay out as a sheet.

An image is a PIL image of mode ``L`` or ``RGB``, 8 bits; a tensor is float32 (3, H, W) in [-1, 1].
Reading and writing files is `utils.image_files`; its names may be imported from here too.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.image_files import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    ImageError,
    ImageInfo,
    inspect_image,
    pixel_hash,
    read_image,
    read_png_text,
    save_png,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "RESIZE_MODES",
    "ImageError",
    "ImageInfo",
    "contact_sheet",
    "inspect_image",
    "pixel_hash",
    "read_image",
    "read_png_text",
    "resize",
    "save_png",
    "share_lost",
    "shrink",
    "to_tensor",
    "to_uint8",
]

RESIZE_MODES = ("center_crop", "random_crop", "pad", "stretch")


def share_lost(width: int, height: int, mode: str) -> float:
    """Share of the image's area that `resize` drops, in [0, 1): 0 for pad and stretch."""
    if mode not in RESIZE_MODES:
        raise ValueError(f"resize mode {mode!r} is none of {', '.join(RESIZE_MODES)}")
    return 1 - min(width, height) / max(width, height) if mode.endswith("_crop") else 0.0


def resize(
    image: Image.Image, resolution: int, mode: str, *, rng: np.random.Generator | None = None
) -> Image.Image:
    """Bring an image to a square, antialiased (Lanczos).

    Args:
        image: Mode ``L`` or ``RGB``, any size.
        resolution: Side of the result in pixels.
        mode: ``center_crop``: shorter side to ``resolution``, then the central square;
            ``random_crop``: the same, the square drawn from ``rng``; ``pad``: longer side to
            ``resolution``, black bars; ``stretch``: the aspect ratio is given up.
        rng: Needed for ``random_crop`` only.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f"resize mode {mode!r} is none of {', '.join(RESIZE_MODES)}")
    if mode == "random_crop" and rng is None:
        raise ValueError("random_crop needs rng")
    if mode == "stretch":
        return image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    side = max(image.size) if mode == "pad" else min(image.size)
    width, height = (max(1, round(length * resolution / side)) for length in image.size)
    scaled = image.resize((width, height), Image.Resampling.LANCZOS)
    if mode == "pad":
        square = Image.new(image.mode, (resolution, resolution))
        square.paste(scaled, ((resolution - width) // 2, (resolution - height) // 2))
        return square
    if mode == "random_crop":
        left = int(rng.integers(width - resolution + 1))
        top = int(rng.integers(height - resolution + 1))
    else:
        left, top = (width - resolution) // 2, (height - resolution) // 2
    return scaled.crop((left, top, left + resolution, top + resolution))


def shrink(image: Image.Image, max_side: int) -> Image.Image:
    """The image with its longer side at most this many pixels (Lanczos); never larger."""
    scale = max_side / max(image.size)
    if scale >= 1:
        return image
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image):
    """PIL image to float32 tensor (3, H, W) in [-1, 1]."""
    import torch

    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1.0  # (H, W, 3)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def to_uint8(images) -> list[Image.Image]:
    """Float tensor (N, 3, H, W), clipped to [-1, 1], to N PIL images of mode ``RGB``."""
    scaled = ((images.detach().float().cpu() + 1.0) * 127.5).round().clamp(0, 255)
    pixels = scaled.byte().permute(0, 2, 3, 1).numpy()  # (N, H, W, 3)
    return [Image.fromarray(array) for array in pixels]


def _fitting(text: str, font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def contact_sheet(
    images: Iterable[Image.Image],
    *,
    columns: int,
    captions: Sequence[str] | None = None,
    tile_px: int = 128,
) -> Image.Image:
    """Lay images out in rows of equal tiles on black, each with its caption below.

    Args:
        images: Mode ``L`` or ``RGB``, at least one; each keeps its aspect ratio.
        columns: Tiles in a row.
        captions: One line per image, cut to the tile's width.
        tile_px: Side of a tile in pixels.

    Returns:
        An RGB image.
    """
    tiles = [resize(image, tile_px, "pad") for image in images]
    if not tiles:
        raise ValueError("a contact sheet needs at least one image")
    font = ImageFont.load_default(size=max(9, tile_px // 11))
    caption_px = 0 if captions is None else sum(font.getmetrics()) + 2
    columns = min(columns, len(tiles))
    num_rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (tile_px + 2), num_rows * (tile_px + caption_px + 2)))
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        left = index % columns * (tile_px + 2)
        top = index // columns * (tile_px + caption_px + 2)
        sheet.paste(tile, (left, top))
        if captions is not None:
            caption = _fitting(" ".join(captions[index].split()), font, tile_px)
            draw.text((left, top + tile_px), caption, font=font, fill="white")
    return sheet
