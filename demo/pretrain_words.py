r"""Teach the text encoder of demo/base the words of chest X-rays, as CLIP has met them.

The text encoder of Stable Diffusion has read of hearts, lungs, left and right before anyone
fine-tunes it; one that has read OCT reports alone has not. Here it learns to say from a report
what is on the film (finding, side, severity, lobe, device), while its answers to OCT reports stay
those that the U-Net knows. No film is shown to anything: U-Net and autoencoder are copied.

Examples:
  python -m demo.pretrain_words --model runs/pretrained_base --output_dir runs/base
  python -m demo.pretrain_words --model demo/base --output_dir /tmp/base --num_reports 64 \
      --max_train_steps 4
"""

from __future__ import annotations

import argparse
import copy
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from demo import tiny_pipeline
from demo.pretrain_base import CAPTION_DROPOUT_PROB, COMBINATION_PROB, SEED, SHORT_CAPTION_PROB
from utils import cli, run_folder

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer

    from demo.simulate import Scan

MODALITIES = ("CXR", "OCT")
FACTS = ("severity", "side", "lobe", "device")  # columns of a film's truth that its report tells
TEMPLATE_PROB = 0.5  # a prompt names its modality, as with --prompt_template "{modality}: {text}"
KEEP_WEIGHT = 20.0
WARMUP_STEPS = 50


def build_parser() -> argparse.ArgumentParser:
    """Flags of this script."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="pipeline whose words to add to")
    parser.add_argument("--output_dir", type=Path, required=True, help="the pipeline with them")
    parser.add_argument("--num_reports", type=cli.positive_int, default=8_000, help="of each kind")
    parser.add_argument("--max_train_steps", type=cli.positive_int, default=1_600)
    parser.add_argument("--batch_size", type=cli.positive_int, default=32, help="of each kind")
    parser.add_argument("--learning_rate", type=cli.positive_float, default=1e-3)
    parser.add_argument("--seed", type=cli.non_negative_int, default=0)
    return parser


def _draw(index: int, *, modality: str) -> Scan:
    """Report `index` with its truth; the picture is drawn as small as it gets."""
    from demo.simulate import simulate

    return simulate(
        index, seed=SEED, modality=modality, resolution=32, combination_prob=COMBINATION_PROB
    )


def draw_reports(modality: str, *, num_reports: int) -> list[Scan]:
    """Simulate `num_reports` reports of one modality."""
    from tqdm import tqdm

    with get_context("spawn").Pool() as pool:
        drawn = pool.imap(partial(_draw, modality=modality), range(num_reports), chunksize=64)
        return list(tqdm(drawn, total=num_reports, desc=f"{modality} reports"))


def facts_of(scan: Scan) -> set[str]:
    """What the report says, e.g. {"label left pleural effusion", "severity mild", "side left"}."""
    said = {f"{column} {scan.truth[column]}" for column in FACTS if column in scan.truth}
    return {f"label {name}" for name in scan.label.split(";")} | said


def prompt(scan: Scan, *, modality: str, chances: Sequence[float]) -> str:
    """What one image is called this time: nothing, its findings or its report."""
    dropped, short, named = chances
    if dropped < CAPTION_DROPOUT_PROB:
        return ""
    text = scan.label.replace(";", ", ") if short < SHORT_CAPTION_PROB else scan.text
    return f"{modality}: {text}" if named < TEMPLATE_PROB else text


@dataclass
class Readout:
    """Reads a report's facts from the states of its end token and of the padding after it.

    CLIP pads with its end token, and the U-Net attends to all of these.
    """

    facts: list[str]
    linear: torch.nn.Linear

    @classmethod
    def new(cls, scans: Sequence[Scan], *, hidden_size: int) -> Readout:
        """An untrained one for all facts of the reports."""
        import torch

        facts = sorted(set().union(*map(facts_of, scans)))
        return cls(facts, torch.nn.Linear(hidden_size, len(facts)))

    def truth(self, scans: Sequence[Scan]) -> torch.Tensor:
        """Facts of each report, (B, F) of 0 and 1."""
        import torch

        told = [facts_of(scan) for scan in scans]
        return torch.tensor([[float(fact in said) for fact in self.facts] for said in told])

    def loss(self, states: torch.Tensor, truth: torch.Tensor, *, after: torch.Tensor):
        """Binary cross-entropy, a scalar; states (B, L, C), truth (B, F), after the end (B, L)."""
        from torch.nn import functional as F

        logits = self.linear(states)
        truth = truth[:, None].expand_as(logits)
        return F.binary_cross_entropy_with_logits(logits[after], truth[after])


@dataclass
class _Words:
    """Draws prompts of reports as tokens, (B, 77)."""

    tokenizer: CLIPTokenizer
    generator: torch.Generator

    def choose(self, scans: list[Scan], size: int) -> list[Scan]:
        import torch

        chosen = torch.randint(len(scans), (size,), generator=self.generator)
        return [scans[number] for number in chosen.tolist()]

    def tokens(self, scans: Sequence[Scan], *, modality: str) -> torch.Tensor:
        import torch

        chances = torch.rand(len(scans), 3, generator=self.generator)
        if modality == "CXR":
            chances[:, 0] = 1.0  # an empty report tells nothing
        prompts = [
            prompt(scan, modality=modality, chances=chance)
            for scan, chance in zip(scans, chances.tolist())
        ]
        return self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids


def train(
    text_encoder: CLIPTextModel,
    before: CLIPTextModel,
    words: _Words,
    reports: dict[str, list[Scan]],
    args: argparse.Namespace,
) -> Readout:
    """Train the text encoder in place, `before` being what it was; returns its readout of facts."""
    import torch
    from torch.nn import functional as F
    from tqdm import tqdm

    readout = Readout.new(reports["CXR"], hidden_size=text_encoder.config.hidden_size)
    parameters = [*text_encoder.parameters(), *readout.linear.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=1e-2)
    end = words.tokenizer.eos_token_id
    bar = tqdm(range(args.max_train_steps), desc="words")
    for step in bar:
        decay = 0.5 * (1 + math.cos(math.pi * step / args.max_train_steps))
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS) * decay
        films = words.choose(reports["CXR"], args.batch_size)
        new = words.tokens(films, modality="CXR")
        old = words.tokens(words.choose(reports["OCT"], args.batch_size), modality="OCT")
        states, kept = text_encoder(torch.cat([new, old]))[0].split(args.batch_size)
        told = readout.loss(states, readout.truth(films), after=new == end)
        change = F.mse_loss(kept, before(old)[0])
        optimizer.zero_grad()
        (told + KEEP_WEIGHT * change).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        bar.set_postfix(facts=f"{told.item():.4f}", change=f"{change.item():.5f}")
    return readout


def measure(
    text_encoder: CLIPTextModel,
    before: CLIPTextModel,
    readout: Readout,
    words: _Words,
    reports: dict[str, list[Scan]],
) -> dict[str, float]:
    """Share of films all of whose findings are read, and the change of OCT's states, relative.

    The change is the root-mean-square of the difference over that of the states' spread.
    """
    import torch

    new = words.tokens(reports["CXR"], modality="CXR")
    old = words.tokens(reports["OCT"], modality="OCT")
    labels = [fact.startswith("label ") for fact in readout.facts]
    with torch.no_grad():
        last = text_encoder(new)[0][:, -1]
        read = (readout.linear(last) > 0)[:, labels]
        states, known = text_encoder(old)[0], before(old)[0]
    right = (read == readout.truth(reports["CXR"])[:, labels].bool()).all(1)
    spread = (known - known.mean((0, 1))).pow(2).mean()
    return {
        "findings_read": round(right.float().mean().item(), 3),
        "oct_change": round(((states - known).pow(2).mean() / spread).sqrt().item(), 4),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure on reports that were held out, save a copy of the pipeline."""
    args = build_parser().parse_args(argv)
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.manual_seed(args.seed)
    tokenizer = CLIPTokenizer.from_pretrained(args.model / "tokenizer")
    before = CLIPTextModel.from_pretrained(args.model / "text_encoder")
    text_encoder = copy.deepcopy(before)
    before.eval().requires_grad_(False)
    words = _Words(tokenizer, torch.Generator().manual_seed(args.seed))
    number, held_out = args.num_reports, max(args.num_reports // 40, 1)
    reports = {name: draw_reports(name, num_reports=number + held_out) for name in MODALITIES}
    known = {name: scans[:number] for name, scans in reports.items()}
    unknown = {name: scans[number:] for name, scans in reports.items()}
    with run_folder.atomic_folder(args.output_dir) as temporary:  # a full folder is refused first
        readout = train(text_encoder, before, words, known, args)
        figures = measure(text_encoder, before, readout, words, unknown)
        shutil.copytree(args.model, temporary, dirs_exist_ok=True)
        tiny_pipeline.save_text_encoder(text_encoder, temporary)
    run_folder.print_result({"output_dir": args.output_dir, **figures})
    return 0


if __name__ == "__main__":
    cli.main_guard(main)
