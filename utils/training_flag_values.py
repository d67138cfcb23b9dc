"""Values of ``train_text_to_image.py``'s flags: what they may be, and why not.

Nothing heavy is imported: a bad flag must answer at once.
"""

import argparse
import re
from pathlib import Path
from string import Formatter

RESIZE_MODES = ("center_crop", "random_crop", "pad", "stretch")  # utils.images, which needs Pillow
LR_SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
)
TRAINED = ("unet", "unet+text_encoder", "lora")
TRACKERS = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "none": ()}
TRACKERS["all"] = TRACKERS["tensorboard"] + TRACKERS["wandb"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_KINDS = {"model_index.json": "pipeline", "config.json": "text encoder"}


class Refused(argparse.Action):
    """A flag of the example that is not taken, with the reason in ``help``."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """End with status 2 and the reason."""
        parser.error(f"{option_string} {self.help}")


def model_source(text: str, index: str = "model_index.json") -> str:
    """Flag type: a pipeline's folder, known by the file ``index``, or a name on the hub."""
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / index).is_file():
            raise argparse.ArgumentTypeError(f"{text!r} has no {index}: no {_KINDS[index]}")
        return str(path)
    if not _HUB_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a folder nor a name on the hub")
    return text


def text_encoder_source(text: str) -> str:
    """Flag type: a text encoder's folder, or its name on the hub."""
    return model_source(text, "config.json")


def data_source(text: str) -> str:
    """Flag type: a path that exists, or a pattern of shards."""
    path = Path(text).expanduser()
    if not path.exists() and not re.search(r"[*?\[{]", text):
        raise argparse.ArgumentTypeError(f"no such file or folder: {text!r}")
    return str(path)


def template(text: str) -> str:
    """Flag type: a caption with fields, e.g. ``"OCT, {label}"``."""
    try:
        list(Formatter().parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    return text


def interpolation(text: str) -> str:
    """Flag type: lanczos."""
    if text != "lanczos":
        raise argparse.ArgumentTypeError(
            f"{text!r} is refused: images are resized by Lanczos, antialiased, in every script, "
            "so that training and evaluation see the same pixels"
        )
    return text


def tracker(text: str) -> str:
    """Flag type: one of `TRACKERS`."""
    if text == "comet_ml":
        raise argparse.ArgumentTypeError(
            "'comet_ml' is refused: it sends the run to a server; use tensorboard or wandb, which "
            "here stays offline unless WANDB_MODE says otherwise"
        )
    if text not in TRACKERS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(TRACKERS)}")
    return text
