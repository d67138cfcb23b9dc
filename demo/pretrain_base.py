r"""Train the tiny Stable Diffusion pipeline of demo/base on simulated OCT scans, from nothing.

Three stages, each kept in --work_dir, so that a later call goes on where the last one stopped:

  data   draw scans and reports with demo/simulate.py
  vae    train the autoencoder: L1 + gradients + texture energy + KL, then standardise its latents
  unet   train U-Net and text encoder together: v-prediction, zero terminal SNR, caption dropout

Examples:
  python -m demo.pretrain_base --work_dir runs/pretrain_base --output_dir demo/base
  python -m demo.pretrain_base --work_dir runs/pretrain_base --stages unet --unet_steps 20000
  python -m demo.pretrain_base --work_dir /tmp/try --output_dir /tmp/try/base --num_scans 64 \
      --vae_steps 4 --unet_steps 4
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import TYPE_CHECKING

from demo import tiny_pipeline
from demo.tiny_pipeline import RESOLUTION
from utils import cli, run_folder

if TYPE_CHECKING:
    import numpy as np
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

STAGES = ("data", "vae", "unet")
LOOKS = ("spectral", "cirrus", "swept")  # "portable" stays unseen, for the clinic of quickstart.sh
SEED = 20_000_000  # far from the populations that users simulate
COMBINATION_PROB = 0.15
CAPTION_DROPOUT_PROB = 0.1
SHORT_CAPTION_PROB = 0.25


def build_parser() -> argparse.ArgumentParser:
    """Flags of this script."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--work_dir", type=Path, required=True, help="data, checkpoints and logs")
    parser.add_argument("--output_dir", type=Path, help="where the pipeline is saved (stage unet)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--num_scans", type=cli.positive_int, default=30_000)
    parser.add_argument("--vae_steps", type=cli.positive_int, default=2_500)
    parser.add_argument("--unet_steps", type=cli.positive_int, default=20_000)
    parser.add_argument(
        "--max_minutes",
        type=cli.positive_float,
        default=1e9,
        help="end each training stage after so long, its schedule with it",
    )
    parser.add_argument("--batch_size", type=cli.positive_int, default=16)
    parser.add_argument("--learning_rate", type=cli.positive_float, default=1e-3)
    parser.add_argument("--seed", type=cli.non_negative_int, default=0)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if "unet" in args.stages and args.output_dir is None:
        parser.error("--output_dir is needed by the stage unet")
    return args


# ---------------------------------------------------------------------------------------- data


def _draw(index: int) -> tuple[np.ndarray, str, str, str]:
    """Scan `index` as pixels (R, R) uint8, text, label and severity."""
    import numpy as np

    from demo.simulate import simulate

    look = LOOKS[(index // 2 + index // 12) % len(LOOKS)]
    scan = simulate(index, seed=SEED, looks=[look], combination_prob=COMBINATION_PROB)
    return np.asarray(scan.image), scan.text, scan.label, scan.truth["severity"]


def draw_scans(work_dir: Path, *, num_scans: int) -> None:
    """Write scans.npy (N, R, R) uint8 and captions.json to `work_dir`."""
    import numpy as np
    from tqdm import tqdm

    pixels = np.empty((num_scans, RESOLUTION, RESOLUTION), np.uint8)
    captions = []
    with Pool() as pool:
        drawn = tqdm(pool.imap(_draw, range(num_scans), chunksize=64), total=num_scans, desc="draw")
        for index, (image, text, label, severity) in enumerate(drawn):
            pixels[index] = image
            captions.append({"text": text, "label": label, "severity": severity})
    np.save(work_dir / "scans.tmp.npy", pixels)
    (work_dir / "scans.tmp.npy").replace(work_dir / "scans.npy")
    run_folder.write_json(work_dir / "captions.json", captions)


def num_training(scans: Sized) -> int:
    """How many of the scans are trained on: all but the last sixtieth, which is held out."""
    return len(scans) - max(len(scans) // 60, 1)


def _progress(total_steps: int, *, start: int, max_minutes: float) -> Iterator[tuple[int, float]]:
    """Yield (step, share of the schedule done in [0, 1)) until steps or minutes run out."""
    began = time.monotonic()
    for step in range(start, total_steps):
        share = max(step / total_steps, (time.monotonic() - began) / 60 / max_minutes)
        if share >= 1:
            return
        yield step, share


def _learning_rate(peak: float, *, step: int, share: float) -> float:
    """Warm-up over 200 steps, flat, then a cosine to zero over the second half."""
    decay = 0.5 * (1 + math.cos(math.pi * max(0.0, share - 0.5) * 2))
    return peak * min(1.0, (step + 1) / 200) * decay


# ----------------------------------------------------------------------------------------- vae


def _augment(gray: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """Random contrast, brightness, flips and zooms, so that other devices reconstruct as well.

    Args:
        gray: (B, 1, R, R) in [-1, 1].
        generator: Source of randomness.

    Returns:
        The same shape and range.
    """
    import torch
    from torch.nn import functional as F

    batch = gray.shape[0]

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(batch, 1, 1, 1, generator=generator) * (high - low) + low

    unit = (gray + 1) / 2
    unit = unit.clamp(min=1e-4) ** torch.exp(uniform(-0.45, 0.45)) * uniform(0.7, 1.15)
    zoom_x, zoom_y = uniform(0.55, 1.1).flatten(), uniform(0.6, 1.1).flatten()
    flip = torch.where(uniform(0, 1).flatten() < 0.5, -1.0, 1.0)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = zoom_x * flip, zoom_y
    theta[:, 0, 2] = (1 - zoom_x).clamp(min=0) * uniform(-1, 1).flatten()
    theta[:, 1, 2] = (1 - zoom_y).clamp(min=0) * uniform(-1, 1).flatten()
    grid = F.affine_grid(theta, gray.shape, align_corners=False)
    moved = F.grid_sample(unit, grid, padding_mode="reflection", align_corners=False)
    plain = uniform(0, 1) < 0.5  # as drawn
    return torch.where(plain, gray, moved.clamp(0, 1) * 2 - 1)


def _gradients(gray: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences along rows and columns of (B, 1, H, W)."""
    return gray[..., 1:, :] - gray[..., :-1, :], gray[..., :, 1:] - gray[..., :, :-1]


def _texture_energy(gray: torch.Tensor) -> torch.Tensor:
    """Local root-mean-square of the finest detail, (B, 1, H, W) -> (B, 1, H // 4, W // 4)."""
    from torch.nn import functional as F

    detail = gray - F.avg_pool2d(gray, 3, stride=1, padding=1, count_include_pad=False)
    return (F.avg_pool2d(detail**2, 4) + 1e-5).sqrt()


def vae_loss(
    output: torch.Tensor, target: torch.Tensor, *, mean: torch.Tensor, log_variance: torch.Tensor
) -> torch.Tensor:
    """L1 + 0.5 gradient L1 + 0.25 texture energy + 1e-5 KL; pixels (B, 3, H, W) in [-1, 1]."""
    from torch.nn import functional as F

    gray = output.mean(1, keepdim=True)
    loss = F.l1_loss(output, target.expand_as(output))
    for ours, theirs in zip(_gradients(gray), _gradients(target)):
        loss = loss + 0.5 * F.l1_loss(ours, theirs)
    loss = loss + 0.25 * F.l1_loss(_texture_energy(gray), _texture_energy(target))
    kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).mean()
    return loss + 1e-5 * kl


def train_vae(args: argparse.Namespace) -> None:
    """Train the autoencoder and write it, standardised, to work_dir/vae."""
    import numpy as np
    import torch
    from diffusers import AutoencoderKL
    from tqdm import tqdm

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    scans = np.load(args.work_dir / "scans.npy", mmap_mode="r")
    unfinished = args.work_dir / "vae_unstandardised"
    vae = (
        AutoencoderKL.from_pretrained(unfinished)
        if unfinished.exists()
        else tiny_pipeline.new_vae()
    )
    vae = vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, weight_decay=1e-4)
    bar = tqdm(total=args.vae_steps, desc="vae")
    for step, share in _progress(args.vae_steps, start=0, max_minutes=args.max_minutes):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(1.5 * args.learning_rate, step=step, share=share)
        chosen = torch.randint(num_training(scans), (args.batch_size,), generator=generator)
        gray = torch.from_numpy(scans[chosen.sort().values.numpy()]).float()[:, None] / 127.5 - 1
        gray = _augment(gray, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            pixels = gray.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
            posterior = vae.encode(pixels).latent_dist
            latents = posterior.sample(generator=generator)
            output = vae.decode(latents).sample
        loss = vae_loss(
            output.float(), gray, mean=posterior.mean.float(), log_variance=posterior.logvar.float()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        bar.update()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", share=f"{share:.2f}")
        if step % 500 == 499:
            vae.save_pretrained(unfinished)
    vae.save_pretrained(unfinished)
    standardise_latents(vae, scans)
    vae.save_pretrained(args.work_dir / "vae")
    run_folder.write_json(
        args.work_dir / "vae.json",
        {"psnr_db": psnr(vae, scans[num_training(scans) :]), "steps": bar.n},
    )


def standardise_latents(vae: AutoencoderKL, scans: np.ndarray) -> None:
    """Fold per-channel mean and deviation of the latents into the 1 x 1 convolutions beside them.

    Diffusion assumes latents of zero mean and unit variance; a pipeline can store one scale only.
    """
    import torch

    means = torch.cat([mean for mean, _ in _encode(vae, scans[:2000])])
    shift = means.mean((0, 2, 3))
    scale = means.std((0, 2, 3))
    channels = len(shift)
    before, after = vae.quant_conv, vae.post_quant_conv
    with torch.no_grad():
        after.bias += after.weight[:, :, 0, 0] @ shift
        after.weight *= scale[None, :, None, None]
        before.bias[:channels] -= shift
        before.bias[:channels] /= scale
        before.weight[:channels] /= scale[:, None, None, None]
        before.bias[channels:] -= 2 * scale.log()


def _encode(vae: AutoencoderKL, scans: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Posterior mean and deviation, (B, C, h, w) float32 each, in batches of 64."""
    import numpy as np
    import torch

    for start in range(0, len(scans), 64):
        gray = torch.tensor(np.asarray(scans[start : start + 64])).float()[:, None] / 127.5 - 1
        pixels = gray.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
        yield posterior.mean.float(), posterior.std.float()


def psnr(vae: AutoencoderKL, scans: np.ndarray) -> float:
    """Peak signal-to-noise ratio of the reconstructions in dB, mean over scans (N, R, R) uint8."""
    import numpy as np
    import torch

    values = []
    for start in range(0, len(scans), 50):
        gray = torch.tensor(np.asarray(scans[start : start + 50])).float()[:, None] / 127.5 - 1
        with torch.no_grad():
            latents = vae.encode(gray.expand(-1, 3, -1, -1)).latent_dist.mode()
            output = vae.decode(latents).sample.mean(1, keepdim=True).clamp(-1, 1)
        error = ((output - gray) / 2).pow(2).mean((1, 2, 3))
        values += (-10 * error.log10()).tolist()
    return sum(values) / len(values)


# ---------------------------------------------------------------------------------------- unet


def _caption(entry: dict[str, str], chance: float, length: float) -> str:
    """What one scan is called this time: its report, a short name of it, or nothing."""
    if chance < CAPTION_DROPOUT_PROB:
        return ""
    if chance > 1 - SHORT_CAPTION_PROB:
        label = entry["label"].replace(";", ", ")
        graded = entry["severity"] != "none" and length < 0.5
        return f"{entry['severity']} {label}" if graded else f"retinal OCT B-scan, {label}"
    return entry["text"]


@dataclass
class _Latents:
    """The training set as the U-Net sees it: posterior mean and deviation (N, 4, h, w), words."""

    mean: torch.Tensor
    deviation: torch.Tensor
    captions: list[dict[str, str]]


def load_latents(work_dir: Path) -> _Latents:
    """Encode all scans once, or read what an earlier call encoded with the same autoencoder."""
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file, save_file

    vae_hash = run_folder.hash_folder(work_dir / "vae")
    path = work_dir / f"latents-{vae_hash[:12]}.safetensors"
    if not path.exists():
        import numpy as np

        vae = AutoencoderKL.from_pretrained(work_dir / "vae").to(memory_format=torch.channels_last)
        scans = np.load(work_dir / "scans.npy", mmap_mode="r")
        pairs = list(_encode(vae, scans))
        tensors = {
            "mean": torch.cat([m for m, _ in pairs]).contiguous(),
            "deviation": torch.cat([d for _, d in pairs]).contiguous(),
        }
        with run_folder.atomic_path(path) as temporary:
            save_file(tensors, temporary)
    tensors = load_file(path)
    captions = json.loads((work_dir / "captions.json").read_text())
    return _Latents(tensors["mean"], tensors["deviation"], captions)


def train_unet(args: argparse.Namespace) -> None:
    """Train U-Net and text encoder on the cached latents; save the pipeline of averaged weights."""
    import torch
    from tqdm import tqdm

    torch.manual_seed(args.seed)
    latents = load_latents(args.work_dir)
    tokenizer = tiny_pipeline.new_tokenizer(
        args.work_dir, [entry["text"] for entry in latents.captions]
    )
    unet, text_encoder = tiny_pipeline.new_unet(), tiny_pipeline.new_text_encoder(tokenizer)
    unet = unet.to(memory_format=torch.channels_last)
    scheduler = tiny_pipeline.new_scheduler()
    both = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    optimizer = torch.optim.AdamW(
        both.parameters(), lr=args.learning_rate, weight_decay=1e-2, betas=(0.9, 0.99), fused=True
    )
    average = [parameter.detach().clone() for parameter in both.parameters()]
    start = _load_checkpoint(args.work_dir, both, optimizer, average)
    log = (args.work_dir / "unet_log.csv").open("a", encoding="utf-8")
    bar = tqdm(total=args.unet_steps, initial=start, desc="unet")
    for step, share in _progress(args.unet_steps, start=start, max_minutes=args.max_minutes):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(args.learning_rate, step=step, share=share)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        loss = _unet_loss(
            latents,
            unet=unet,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            batch_size=args.batch_size,
            generator=generator,
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, list(both.parameters()), 1 - decay)
        bar.update()
        if step % 50 == 0:
            log.write(f"{step},{loss.item():.5f},{share:.4f}\n")
            log.flush()
            bar.set_postfix(loss=f"{loss.item():.4f}", share=f"{share:.2f}")
        if step % 1000 == 999:
            _save_checkpoint(args.work_dir, both, optimizer, average, step + 1)
    _save_checkpoint(args.work_dir, both, optimizer, average, bar.n)
    with torch.no_grad():
        torch._foreach_copy_(list(both.parameters()), average)
    run_folder.write_json(
        args.work_dir / "unet.json",
        {
            "steps": bar.n,
            "batch_size": args.batch_size,
            "scans": num_training(latents.mean),
            "minutes_of_this_call": round(bar.format_dict["elapsed"] / 60),
            "parameters": sum(p.numel() for p in both.parameters()),
        },
    )
    tiny_pipeline.save_pipeline(
        args.work_dir, args.output_dir, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer
    )


def _unet_loss(
    latents: _Latents,
    *,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: DDPMScheduler,
    batch_size: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean squared error of the predicted velocity (Salimans and Ho 2022), one batch; a scalar.

    Timesteps are stratified over the batch. The weight is 1, not min-SNR: that weight vanishes
    at the pure-noise end, where the layout is decided.
    """
    import torch
    from torch.nn import functional as F

    chosen = torch.randint(num_training(latents.mean), (batch_size,), generator=generator)
    noise, spread = torch.randn(2, batch_size, *latents.mean.shape[1:], generator=generator)
    clean = latents.mean[chosen] + latents.deviation[chosen] * spread
    strata = (torch.arange(batch_size) + torch.rand(batch_size, generator=generator)) / batch_size
    steps = (strata * scheduler.config.num_train_timesteps).long()
    chance = torch.rand(2, batch_size, generator=generator).tolist()
    words = [_caption(latents.captions[n], *pair) for n, *pair in zip(chosen.tolist(), *chance)]
    tokens = tokenizer(
        words, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    noisy = scheduler.add_noise(clean, noise, steps)
    target = scheduler.get_velocity(clean, noise, steps)
    with torch.autocast("cpu", torch.bfloat16):
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        predicted = unet(noisy, steps, text_encoder(tokens)[0]).sample
    return F.mse_loss(predicted.float(), target)


def _save_checkpoint(work_dir, both, optimizer, average, step) -> None:
    """Everything the stage needs to go on from `step`; for this script's own use only."""
    import torch

    state = {"model": both.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
    with run_folder.atomic_path(work_dir / "unet_checkpoint.pt") as temporary:
        torch.save({**state, "step": step}, temporary)


def _load_checkpoint(work_dir, both, optimizer, average) -> int:
    """Take up the newest checkpoint in place; 0 where there is none."""
    import torch

    path = work_dir / "unet_checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    both.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for ours, saved in zip(average, state["average"]):
        ours.copy_(saved)
    return state["step"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the asked stages in order."""
    args = parse_args(argv)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if "data" in args.stages:
        draw_scans(args.work_dir, num_scans=args.num_scans)
    if "vae" in args.stages:
        train_vae(args)
    if "unet" in args.stages:
        train_unet(args)
    return 0


if __name__ == "__main__":
    cli.main_guard(main)
