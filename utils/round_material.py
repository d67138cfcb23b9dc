"""What a round learns from, however its mode came by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.improvement import Improvement
from utils.training_mix import WEIGHT, Part, cap_share, real_part, shares, write_mix
from utils.weight_flags import AS_FREQUENCY


@dataclass(frozen=True)
class Material:
    """What is added to the real pairs.

    Attributes:
        added: Weighed images with texts; their weights are capped afterwards.
        found: What was drawn, kept, scored on the way; goes into the round's record.
        pairs: Table of preferred and rejected images, or None.
    """

    added: Sequence[Part] = ()
    found: Mapping[str, object] = field(default_factory=dict)
    pairs: Path | None = None


def training_flags(work: Improvement, material: Material, folder: Path) -> tuple[dict, dict]:
    """Write the mix of a round; flags of train_text_to_image.py that name it, and what is in it.

    Args:
        work: The loop.
        material: Of the round.
        folder: Of the round; gets ``mix``.
    """
    args = work.args
    real = real_part(work.data.train.records)
    parts = list(material.added)
    if not args.without_real:
        parts = [real, *cap_share(real, parts, max_share=args.max_added_share)]
    flags: dict[str, object] = {}
    if material.pairs is not None:
        flags |= {"preference_pairs": material.pairs, "dpo_beta": args.dpo_beta}
    if material.pairs is not None and not parts:
        flags["denoising_weight"] = 0
    else:
        mix = folder / "mix"
        write_mix(mix, parts, num_workers=args.num_workers)
        flags |= {"train_data_dir": mix, "weight_column": WEIGHT, "weights_as": AS_FREQUENCY}
        flags["allow_empty_captions"] = any(not text for part in parts for text in part.texts)
    return flags, {**material.found, "mix": shares(parts)}
