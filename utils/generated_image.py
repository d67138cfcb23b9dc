"""One drawn image on the disk and in the manifest."""

from __future__ import annotations

import argparse
from hashlib import sha256
from typing import TYPE_CHECKING

from PIL.Image import Image

from utils.generated_set import image_name, rejected_name
from utils.image_files import png_bytes
from utils.manifest import ACCEPTED, FAILED, REJECTED, Row
from utils.prompts import Prompt
from utils.provenance import png_text
from utils.quality_gate import Verdict
from utils.run_folder import write_bytes
from utils.sampling import image_seed

if TYPE_CHECKING:
    from utils.content_credentials import Signer


def record_image(
    args: argparse.Namespace,
    picture: Image,
    *,
    index: int,
    attempt: int,
    prompt: Prompt,
    chroma: float,
    verdict: Verdict,
    model_hash: str,
    signer: Signer | None,
) -> Row:
    """Write a picture with its mark, if it is to be written; returns its line of the manifest."""
    name, status = image_name(index), ACCEPTED
    if verdict.reasons:
        name = rejected_name(index, attempt) if args.keep_rejected else ""
        status = FAILED if attempt + 1 == args.max_attempts else REJECTED
    seed = image_seed(args.seed, index, attempt)
    data = b""
    if name:
        mark = png_text(
            prompt_sha256=prompt.sha256,
            seed=seed,
            model_hash=model_hash,
            prompt=prompt.drawn if args.embed_prompt else None,
        )
        data = png_bytes(picture, text=mark)
        data = signer.sign(data) if signer else data
        write_bytes(args.output_dir / name, data)
    return {
        "index": str(index),
        "file_name": name,
        "text": prompt.text,
        "label": prompt.label,
        "source": "synthetic",
        "modality": prompt.modality or args.modality,
        "prompt": prompt.drawn,
        "seed": str(seed),
        "model": args.model,
        "model_hash": model_hash,
        "sampler": args.sampler,
        "steps": str(args.num_inference_steps),
        "guidance": f"{args.guidance_scale:g}",
        "score": _number(verdict.score, 4),
        "accepted": str(status == ACCEPTED).lower(),
        "attempt": str(attempt),
        "status": status,
        "reason": ";".join(verdict.reasons),
        "contrast": _number(verdict.contrast, 3),
        "chroma": _number(chroma, 3),
        "train_similarity": _number(verdict.train_similarity, 4),
        "prompt_sha256": prompt.sha256,
        "phash": verdict.phash,
        "phash_mirrored": verdict.phash_mirrored,
        "png_bytes": str(len(data)) if name else "",
        "png_sha256": sha256(data).hexdigest() if name else "",
    }


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
