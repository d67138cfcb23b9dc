"""What one round runs: drawing and training, by the project's own scripts."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.checkpoints import list_checkpoints
from utils.stage_runner import StageRunner, to_argv

DRAW_SCRIPT = "generate_synthetic_dataset.py"
TRAIN_SCRIPT = "train_text_to_image.py"
CAPTION_SCRIPT = "report_generation.py"
LATENT_CACHE = "latent_cache"  # beside a run's folder, as train_text_to_image.py has it
MAX_WARMUP = 50


@dataclass(frozen=True)
class Stages:
    """The stages of a run folder.

    Attributes:
        args: Of self_improve.py.
        runner: Starts them.
        resolution: Side of the images in pixels.
        has_labels: Whether every prompt has a label, so that labels can be drawn equally often.
    """

    args: argparse.Namespace
    runner: StageRunner
    resolution: int
    has_labels: bool

    def draw(
        self,
        name: str,
        *,
        model: str,
        prompts: Path,
        num_images: int,
        seed: int,
        per_prompt: int | None = None,
        gated: bool = False,
    ) -> Path:
        """Draw a data set with a model.

        Args:
            name: Of the stage, and of its folder.
            model: Pipeline.
            prompts: Table of texts and labels.
            num_images: In all.
            seed: Of the images.
            per_prompt: Images of each prompt; None spreads them over all.
            gated: Whether the gate of ``--gate_flags`` chooses; never of images that measure.

        Returns:
            The dataset folder.
        """
        args, folder = self.args, self.runner.folder / name
        flags = {
            "model": model,
            "prompts_file": prompts,
            "num_images": num_images,
            "num_images_per_prompt": per_prompt,
            "class_balanced": self.has_labels,
            "resolution": self.resolution,
            "seed": seed,
            "device": args.device,
            "offline": args.offline,
            "output_dir": folder,
        }
        argv = to_argv(flags) + args.drawing_flags + (args.gate_flags if gated else [])
        self.runner.run(name, DRAW_SCRIPT, argv)
        return folder

    def train(self, name: str, *, model: str, flags: Mapping[str, object], seed: int) -> Path:
        """Train a model on from where it is.

        Args:
            name: Of the stage, and of its folder.
            model: Pipeline to start from.
            flags: What it learns from.
            seed: Of the training.

        Returns:
            The pipeline's folder.
        """
        args, folder = self.args, self.runner.folder / name
        common = {
            "pretrained_model_name_or_path": model,
            **flags,
            "resolution": self.resolution,
            "resize_mode": args.resize_mode,
            "train": args.train,
            "lora_rank": args.lora_rank if args.train == "lora" else None,
            "learning_rate": args.learning_rate,
            "lr_warmup_steps": min(MAX_WARMUP, args.max_train_steps // 10),
            "train_batch_size": args.train_batch_size,
            "max_train_steps": args.max_train_steps,
            "checkpoints_total_limit": 1,
            "mixed_precision": args.mixed_precision,
            "latent_cache_dir": args.output_dir.parent / LATENT_CACHE,
            "report_to": "none",
            "seed": seed,
            "offline": args.offline,
            "output_dir": folder,
        }
        again = ["--resume_from_checkpoint", "latest"] if list_checkpoints(folder) else []
        argv = to_argv(common) + args.training_flags
        self.runner.run(name, TRAIN_SCRIPT, argv, only_now=again)
        for checkpoint in list_checkpoints(folder):
            shutil.rmtree(checkpoint)  # of no use once the pipeline is whole
        return folder

    def caption(self, name: str, *, source: str) -> Path:
        """Write a report for every unlabeled scan.

        Args:
            name: Of the stage, and of its folder.
            source: The scans.

        Returns:
            The dataset folder, with a ``confidence`` in every row.
        """
        args, folder = self.args, self.runner.folder / name
        flags = {
            "caption_dir": source,
            "model": args.captioner,
            "skip_invalid": args.skip_invalid,
            "num_workers": args.num_workers,
            "device": args.device,
            "offline": args.offline,
            "output_dir": folder,
        }
        self.runner.run(name, CAPTION_SCRIPT, to_argv(flags))
        return folder
