"""A generated set in numbers, from one pass over its manifest, and the pages that tell them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from utils.acceptance import Acceptance
from utils.dataset_card import dataset_card
from utils.generated_set import GATES_NAME
from utils.generation_page import generation_page
from utils.generation_samples import choose_samples
from utils.manifest import ACCEPTED, Manifest, Row
from utils.pictures import is_gray
from utils.run_folder import write_text


class _Accepted:
    """What is counted over the accepted images while the rows go by."""

    def __init__(self, gray_mode: str) -> None:
        self._gray_mode = gray_mode
        self._prompts: set[str] = set()
        self._dropped = self._most_dropped = 0.0
        self._num_gray = 0

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Pass on the rows."""
        for row in rows:
            if row["status"] == ACCEPTED:
                self._prompts.add(row["prompt_sha256"])
                if is_gray(chroma := float(row["chroma"]), self._gray_mode):
                    self._num_gray += 1
                    self._dropped += chroma
                    self._most_dropped = max(self._most_dropped, chroma)
            yield row

    def numbers(self) -> dict[str, object]:
        """Of all that went by."""
        gray = self._num_gray
        return {
            "num_prompts": len(self._prompts),
            "num_gray": gray,
            "chroma_dropped_mean": round(self._dropped / gray, 3) if gray else None,
            "chroma_dropped_max": self._most_dropped if gray else None,
        }


def summarise(
    args: argparse.Namespace,
    manifest: Manifest,
    *,
    identity: Mapping[str, object],
    resolution: int,
) -> tuple[dict[str, object], Acceptance]:
    """The numbers of a set whose images are all settled.

    Args:
        args: The flags of the run.
        manifest: Of the set.
        identity: What options.json has beside them.
        resolution: Side of the images in pixels.
    """
    counted = _Accepted(args.gray)
    acceptance = Acceptance.count(counted.watch(manifest.read()))
    gates = json.loads((args.output_dir / GATES_NAME).read_text(encoding="utf-8"))
    overall = acceptance.overall
    summary = {
        "num_asked": overall.asked,
        "num_images": overall.accepted,
        "num_failed": overall.failed,
        "num_attempts": overall.attempts,
        **counted.numbers(),
        "per_label": {label: tally.accepted for label, tally in acceptance.per_label.items()},
        "acceptance": acceptance.as_dict(),
        "gates": gates,
        "model": args.model,
        "model_hash": identity["model_hash"],
        "sampler": args.sampler,
        "steps": args.num_inference_steps,
        "eta": args.eta,
        "guidance_scale": args.guidance_scale,
        "guidance_interval": args.guidance_interval,
        "guidance_rescale": args.guidance_rescale,
        "negative_prompt": args.negative_prompt,
        "seed": args.seed,
        "precision": identity["precision"],
        "resolution": resolution,
        "prompts_source": _prompts_source(args),
        "embed_prompt": args.embed_prompt,
        "format": args.format,
    }
    return summary, acceptance


def _prompts_source(args: argparse.Namespace) -> str:
    if args.prompts_from:
        split = f" ({args.prompts_split} split)" if args.prompts_split else ""
        return f"{args.prompts_from}{split}"
    return str(args.prompts_file or args.template or "the command line")


def write_pages(
    folder: Path, manifest: Manifest, summary: Mapping[str, object], acceptance: Acceptance
) -> None:
    """Write the card and the page; the page shows pictures, which must lie in the folder."""
    write_text(folder / "dataset_card.md", dataset_card(summary))
    accepted, refused = choose_samples(manifest.read(), folder)
    generation_page(summary, acceptance, accepted, refused).write(folder / "report.html")
