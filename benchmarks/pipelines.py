"""The pipelines that a benchmark can be run on, and the device's name in its result."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli
from utils.run_folder import get_logger

if TYPE_CHECKING:
    import torch

DEMO_DIR = Path(__file__).resolve().parents[1] / "demo" / "base"

_logger = get_logger("throughput")


def model_flag(text: str) -> str:
    """Flag type: ``demo``, ``sd14`` or the path of a pipeline folder."""
    if text in ("demo", "sd14"):
        return text
    path = cli.existing_dir(text)
    if not (path / "model_index.json").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} has no model_index.json: no pipeline")
    return str(path)


def pipeline_folder(model: str, work_dir: Path, device: "torch.device") -> Path:
    """The model's folder; that of ``sd14`` is written into ``work_dir`` first.

    Raises:
        UserError: If ``sd14`` is asked for and there is no GPU.
    """
    if model != "sd14":
        return DEMO_DIR if model == "demo" else Path(model)
    if device.type == "cpu":
        raise cli.UserError("--model sd14 needs a GPU; on this machine take --model demo")
    from benchmarks.sd14 import write_pipeline

    _logger.info("drawing random weights of Stable Diffusion 1.4's size, 4.3 GB")
    write_pipeline(work_dir / "sd14", tokenizer_dir=DEMO_DIR / "tokenizer", device=device)
    return work_dir / "sd14"


def device_name(device: "torch.device") -> str:
    """Name of the card, or the number of cores."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {cli.available_cores()} cores, {torch.get_num_threads()} threads"
