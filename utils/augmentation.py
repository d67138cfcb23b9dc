"""Random changes of training images that keep their diagnosis: pose, smoothing, gray scale, noise.

A classifier that has only seen raw speckle learns the speckle: in a trial it agreed with 8 % of
synthetic images, whose speckle a small VAE had smoothed away. These changes take that crutch away.

Shapes: B images, one gray channel, H = W pixels, float32 in [0, 1]. Lengths in pixels hold at
128 px and grow with the image. Everything random comes from one ``torch.Generator`` on the images'
device, so on the CPU the same seed gives the same bytes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

WEAK_STRENGTH = 0.5  # of the pose of a weak view, against the standard one
STRONG_STRENGTH = 1.5  # of the gray scale of a strong view
REFERENCE_PX = 128  # the side at which the lengths below are meant

MAX_ROTATION_DEG = 8.0
MAX_SHIFT = 0.06  # of the side
SCALE_RANGE = (0.9, 1.12)
MAX_BLUR_SIGMA_PX = 2.0
MAX_LOW_PASS = 2.0  # the image is brought to at least 1 / 2 of its size and back
SMOOTHER_RADIUS_PX = (1, 4)
SMOOTHER_EPS = (1e-3, 2e-2)  # variance below which the guided filter takes texture for noise
SMOOTHING_SHARES = (0.30, 0.25, 0.20, 0.25)  # as is, blurred, low-passed, edge-preserving
MAX_LOG_GAMMA = 0.35
CONTRAST_RANGE = (0.75, 1.3)
MAX_BRIGHTNESS = 0.10
MAX_SPECKLE = 0.25  # standard deviation of the multiplicative noise
MAX_NOISE = 0.06  # standard deviation of the additive noise
NUM_HOLES = 2
HOLE_SIDE_RANGE = (0.05, 0.30)  # of the image's side
HOLE_GRAY = 0.1  # the image's gray value below which this share of its pixels lie
HOLE_NOISE = 0.05  # standard deviation


def augment(
    images: torch.Tensor, generator: torch.Generator, *, flip: bool = False
) -> torch.Tensor:
    """Apply the standard augmentation, drawn anew for every image.

    In this order: mirror left-right half of the images (only with ``flip``: the side matters in
    findings such as "nasal" or "left"); turn, shift and scale; smooth (see ``smooth``); gamma,
    contrast and brightness; speckle-like and additive noise on half of the images each.

    Args:
        images: (B, 1, H, W) float32 in [0, 1].
        generator: On the device of ``images``.
        flip: Whether to mirror.

    Returns:
        (B, 1, H, W) float32 in [0, 1]; the argument is left as it was.
    """
    if flip:
        images = mirror(images, generator)
    images = move(images, generator)
    images = smooth(images, generator)
    images = regrade(images, generator)
    return add_noise(images, generator)


def weak_view(
    images: torch.Tensor, generator: torch.Generator, *, flip: bool = False
) -> torch.Tensor:
    """A view whose diagnosis is easy to see: half of the standard turn, shift and scale, no more.

    Arguments and result as of ``augment``.
    """
    if flip:
        images = mirror(images, generator)
    return move(images, generator, strength=WEAK_STRENGTH)


def strong_view(
    images: torch.Tensor, generator: torch.Generator, *, flip: bool = False
) -> torch.Tensor:
    """A view that hides shortcuts: ``augment`` with a stronger gray scale, then holes.

    The geometry is the standard one, so the layers stay layers: never upside down, never turned
    far. Arguments and result as of ``augment``.
    """
    if flip:
        images = mirror(images, generator)
    images = move(images, generator)
    images = smooth(images, generator)
    images = regrade(images, generator, strength=STRONG_STRENGTH)
    return cut_holes(add_noise(images, generator), generator)


def mirror(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Swap left and right of half of the images."""
    chosen = _uniform(len(images), 0, 1, generator) < 0.5
    return torch.where(chosen, images.flip(-1), images)


def move(
    images: torch.Tensor, generator: torch.Generator, *, strength: float = 1.0
) -> torch.Tensor:
    """Turn by up to 8 degrees, shift by up to 6 % of the side, scale by 0.9 to 1.12.

    ``strength`` scales the three. The edge is continued outwards, so that no black wedge gives the
    change away.
    """
    count = len(images)
    turn, reach = strength * MAX_ROTATION_DEG, strength * MAX_SHIFT
    angle = _uniform(count, -turn, turn, generator) * (math.pi / 180)
    scale = _uniform(count, *(end**strength for end in SCALE_RANGE), generator)
    shift = 2 * torch.cat([_uniform(count, -reach, reach, generator) for _ in "xy"], dim=1)
    cos, sin = angle.cos() / scale, angle.sin() / scale  # (B, 1, 1, 1)
    rows = [torch.cat([cos, -sin, shift[:, :1]], 3), torch.cat([sin, cos, shift[:, 1:]], 3)]
    matrix = torch.cat(rows, dim=2)[:, 0]  # (B, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def smooth(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Leave 30 % as they are, blur 25 %, low-pass 20 %, smooth 25 % with their edges kept.

    The three are what generators and compression do to a scan: a blur, a small latent grid, and a
    VAE that reproduces layers and forgets speckle.
    """
    draw = torch.rand(len(images), generator=generator, device=images.device)
    bounds = torch.tensor(SMOOTHING_SHARES, device=images.device).cumsum(0)[:-1]
    kind = torch.bucketize(draw, bounds)  # (B,) in 0..3
    result = images.clone()
    for number, change in enumerate((blur, low_pass, smooth_texture), start=1):
        chosen = (kind == number).nonzero().reshape(-1)
        if len(chosen):
            result[chosen] = change(images[chosen], generator)
    return result


def blur(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian blur, standard deviation drawn per image from 0 to 2 px (at 128 px)."""
    sigma = _uniform(len(images), 0.05, MAX_BLUR_SIGMA_PX, generator)
    return gaussian_blur(images, sigma.reshape(-1) * images.shape[-1] / REFERENCE_PX)


def gaussian_blur(images: torch.Tensor, sigma_px: torch.Tensor) -> torch.Tensor:
    """Separable Gaussian blur with one standard deviation per image, cut at three of them.

    Args:
        images: (B, 1, H, W).
        sigma_px: (B,) > 0, in pixels of these images.

    Returns:
        (B, 1, H, W).
    """
    count, _, height, width = images.shape
    radius = min(max(1, math.ceil(3 * float(sigma_px.max()))), height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma_px[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # (B, K)
    rows = images.reshape(1, count, height, width)  # images as channels: one kernel each
    for shape, pad in (
        ((count, 1, -1, 1), (0, 0, radius, radius)),
        ((count, 1, 1, -1), (radius, radius, 0, 0)),
    ):
        rows = F.pad(rows, pad, mode="replicate")
        rows = F.conv2d(rows, kernel.reshape(shape), groups=count)
    return rows.reshape(images.shape)


def low_pass(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Scale down by a factor of 1 to 2 and up again; the factor is the batch's."""
    factor = 1 + (MAX_LOW_PASS - 1) * float(_uniform(1, 0, 1, generator))
    size = [max(1, round(side / factor)) for side in images.shape[-2:]]
    small = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)


def smooth_texture(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Self-guided filter: flat regions lose their speckle, layer borders stay sharp.

    He, Sun and Tang 2010 (https://doi.org/10.1007/978-3-642-15549-9_1): ``a = v / (v + eps)`` with
    the local variance v in a window, output ``a I + (1 - a) mean``, both box-averaged once more.
    The radius (1 to 4 px at 128 px) is the batch's, eps is drawn per image.
    """
    low, high = SMOOTHER_RADIUS_PX
    drawn = float(_uniform(1, low, high + 1, generator)) * images.shape[-1] / REFERENCE_PX
    radius = max(1, min(int(drawn), (images.shape[-1] - 1) // 2))
    eps = torch.exp(_uniform(len(images), *map(math.log, SMOOTHER_EPS), generator))
    mean = _box(images, radius)
    variance = (_box(images * images, radius) - mean * mean).clamp_min(0)
    gain = variance / (variance + eps)
    return _box(gain, radius) * images + _box((1 - gain) * mean, radius)


def regrade(
    images: torch.Tensor, generator: torch.Generator, *, strength: float = 1.0
) -> torch.Tensor:
    """Gamma of 0.7 to 1.4, contrast of 0.75 to 1.3 about the mean, brightness by up to 0.1.

    ``strength`` scales the three.
    """
    count = len(images)
    bend, lift = strength * MAX_LOG_GAMMA, strength * MAX_BRIGHTNESS
    gamma = torch.exp(_uniform(count, -bend, bend, generator))
    contrast = _uniform(count, *(end**strength for end in CONTRAST_RANGE), generator)
    brightness = _uniform(count, -lift, lift, generator)
    images = images.clamp(0, 1) ** gamma
    mean = images.mean(dim=(-2, -1), keepdim=True)
    return ((images - mean) * contrast + mean + brightness).clamp(0, 1)


def add_noise(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Multiplicative noise up to 25 % on half of the images, additive up to 6 % on half."""
    count, device = len(images), images.device
    speckle = _uniform(count, -MAX_SPECKLE, MAX_SPECKLE, generator).clamp_min(0)
    additive = _uniform(count, -MAX_NOISE, MAX_NOISE, generator).clamp_min(0)
    fields = torch.randn((2, *images.shape), generator=generator, device=device)
    return (images * (1 + speckle * fields[0]) + additive * fields[1]).clamp(0, 1)


def cut_holes(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cover two rectangles, each side 5 to 30 % of the image's, with its own dark gray and noise.

    After Cutout (DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552), with smaller holes:
    a lesion of the size of a hole may be covered, the retina may not.
    """
    count, _, *sides = images.shape
    holes = torch.zeros_like(images, dtype=torch.bool)
    for _ in range(NUM_HOLES):
        covered = torch.ones_like(holes)
        for axis, side in zip((2, 3), sides):
            shape = [1, 1, 1, 1]
            shape[axis] = side
            places = ((torch.arange(side, device=images.device) + 0.5) / side).reshape(shape)
            centre = _uniform(count, 0, 1, generator)
            length = _uniform(count, *HOLE_SIDE_RANGE, generator)
            covered = covered & ((places - centre).abs() < length / 2)
        holes |= covered
    pixels = images.flatten(1)
    dark = pixels.kthvalue(1 + int(HOLE_GRAY * pixels.shape[1]), dim=1).values.reshape(-1, 1, 1, 1)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return torch.where(holes, (dark + HOLE_NOISE * noise).clamp(0, 1), images)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """(count, 1, 1, 1) numbers from [low, high)."""
    drawn = torch.rand((count, 1, 1, 1), generator=generator, device=generator.device)
    return low + (high - low) * drawn


def _box(images: torch.Tensor, radius: int) -> torch.Tensor:
    """Mean over a square window of 2 radius + 1 pixels; at the border, over what is inside."""
    side = 2 * radius + 1
    rows = F.avg_pool2d(images, (side, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), 1, (0, radius), count_include_pad=False)
