"""The page that goes with a synthetic data set: what it is, from what, how many of which."""

import argparse
from collections.abc import Mapping


def dataset_card(args: argparse.Namespace, summary: Mapping[str, object]) -> str:
    """What the set is, in words, for whoever finds the folder."""
    source = args.prompts_from or args.prompts_file or "the command line"
    split = f" ({args.prompts_split} split)" if args.prompts_split else ""
    gray = f"{summary['num_gray']} of {summary['num_images']} images are 8-bit gray"
    if summary["num_gray"]:
        gray += (
            f"; dropped chroma: mean {summary['chroma_dropped_mean']}, "
            f"largest {summary['chroma_dropped_max']} grey levels"
        )
    labels = "\n".join(f"| {label} | {count} |" for label, count in summary["per_label"].items())
    return f"""# Synthetic images

Every image in this folder was made by a diffusion model; none was taken of a patient. They are
meant for research, not for diagnosis; what they teach a model must be checked on real images.

| | |
|---|---|
| images | {summary["num_images"]} |
| prompts | {summary["num_prompts"]}, from {source}{split} |
| model | {args.model} |
| model hash | {summary["model_hash"]} |
| sampler | {args.sampler}, {args.num_inference_steps} steps, eta {args.eta:g} |
| guidance | {args.guidance_scale:g}, rescaled {args.guidance_rescale:g} |
| negative prompt | {args.negative_prompt or "none"} |
| seed | {args.seed} |
| precision | {args.mixed_precision} |

{gray}.

| label | images |
|---|---|
{labels}

Each image's prompt, label and seed are in `metadata.csv`; each attempt is in `manifest.csv`. Each
PNG says in its metadata that it is synthetic, by which model and from which seed, and names its
prompt by a hash{" and in words" if args.embed_prompt else ""}.

Diffusion models can repeat images they were trained on. Whether this one does is not known until
it is measured: compare the set with the training images before it leaves the house.
"""
