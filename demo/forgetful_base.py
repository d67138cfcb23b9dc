r"""The demo's base pipeline, without some of what it knows: where a generator has to be weak.

demo/base has read thousands of reports of simulated scans, which no model that users start from
has. Here the weights through which the U-Net takes in the text (keys and values of the
cross-attention) are drawn anew: it still draws retinas, and has to learn the words from the pairs
it is given. With --forget all the whole U-Net is drawn anew.

Example:
  python -m demo.forgetful_base --output_dir runs/forgetful
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils import cli, run_folder

BASE = Path(__file__).with_name("base")
# What is forgotten -> ends of the names of its layers.
FORGOTTEN = {"words": ("attn2.to_k", "attn2.to_v"), "all": ("",)}


def build_parser() -> argparse.ArgumentParser:
    """Flags of this script."""
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--model", type=cli.existing_dir, default=BASE, help="pipeline folder (default: demo/base)"
    )
    parser.add_argument(
        "--forget", choices=tuple(FORGOTTEN), default="words", help="(default: %(default)s)"
    )
    cli.add_runtime_flags(parser, "output_dir", "seed")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Load, forget, save; says how many layers have forgotten."""
    args = build_parser().parse_args(argv)
    import torch

    from utils.checkpoints import pipeline_folder
    from utils.diffusion import load_pipeline

    pipeline = load_pipeline(args.model, offline=True)
    torch.manual_seed(args.seed)
    ends = FORGOTTEN[args.forget]
    layers = [
        layer
        for name, layer in pipeline.unet.named_modules()
        if name.endswith(ends) and hasattr(layer, "reset_parameters")
    ]
    for layer in layers:
        layer.reset_parameters()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with pipeline_folder(args.output_dir) as temporary:
        pipeline.save_pretrained(temporary, safe_serialization=True)
    run_folder.print_result({"output_dir": args.output_dir, "layers": len(layers)})


if __name__ == "__main__":
    cli.main_guard(main)
