"""The flag of what a model is told beside a caption; nothing heavy is imported."""

import argparse

TEXT = "text"
PLAIN = "{text}"  # the caption as it is


def add_prompt_template_flag(add) -> None:
    """Add the flag, given a parser's or group's ``add_argument``."""
    add(
        "--prompt_template",
        type=prompt_template,
        metavar="TEMPLATE",
        help="what the model is told: the caption with other columns, e.g. '{modality}: {text}', "
        f"so that one model keeps several domains apart (default: the model's own, else '{PLAIN}')",
    )


def prompt_template(text: str) -> str:
    """Flag type: a template that holds ``{text}`` and else only columns."""
    from utils.dataset_import import template_fields

    try:
        fields = template_fields(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if TEXT not in fields:
        raise argparse.ArgumentTypeError(f"{text!r} has no {PLAIN}: the captions would be lost")
    return text
