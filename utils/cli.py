"""What every script's command line shares: the parser, validating flag types, exits.

Nothing heavy is imported here: ``--help`` and a bad flag must answer at once.
"""

import argparse
import errno
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from utils.line_text import fold_spaces, text_problem

EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports

_OFFLINE_VARIABLES = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "DIFFUSERS_OFFLINE",
)


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class UserError(ValueError):
    """Something the user can put right; its text is shown without a traceback."""


def make_parser(doc: str) -> argparse.ArgumentParser:
    """Parser of a script whose docstring, with its runnable examples, is the ``--help``."""
    return argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name,
        description=doc.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _number(text: str, kind: type, accepts: Callable[[float], bool], wanted: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not math.isfinite(value) or not accepts(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


def positive_int(text: str) -> int:
    """Flag type: an integer of 1 or more."""
    return _number(text, int, lambda value: value >= 1, "an integer >= 1")


def non_negative_int(text: str) -> int:
    """Flag type: an integer of 0 or more."""
    return _number(text, int, lambda value: value >= 0, "an integer >= 0")


def positive_float(text: str) -> float:
    """Flag type: a finite number above 0."""
    return _number(text, float, lambda value: value > 0, "a finite number > 0")


def non_negative_float(text: str) -> float:
    """Flag type: a finite number of 0 or more."""
    return _number(text, float, lambda value: value >= 0, "a finite number >= 0")


def probability(text: str) -> float:
    """Flag type: a number in [0, 1]."""
    return _number(text, float, lambda value: 0 <= value <= 1, "a number in [0, 1]")


def resolution(text: str) -> int:
    """Flag type: side of the square image in pixels, a multiple of the VAE's factor 8."""
    return _number(
        text, int, lambda value: value >= 8 and value % 8 == 0, "a positive multiple of 8"
    )


def one_line(text: str) -> str:
    """Flag type: text for a prompt or a table's cell, its white space folded; may be empty."""
    text = fold_spaces(text)
    if (problem := text_problem(text)) is not None:
        raise argparse.ArgumentTypeError(": ".join(problem))
    return text


def existing_path(text: str) -> Path:
    """Flag type: a file or folder that exists."""
    path = Path(text).expanduser()
    if not text or not path.exists():
        raise argparse.ArgumentTypeError(f"no such file or folder: {text!r}")
    return path


def existing_dir(text: str) -> Path:
    """Flag type: a folder that exists."""
    path = existing_path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"not a folder: {text!r}")
    return path


def existing_file(text: str) -> Path:
    """Flag type: a file that exists."""
    path = existing_path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"not a file: {text!r}")
    return path


def output_dir(text: str) -> Path:
    """Flag type: a folder, or a place where one can be made; ``~`` is the home folder."""
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:  # ~nobody
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    for place in (path, *path.parents):
        if os.path.lexists(place) and not place.is_dir():
            raise argparse.ArgumentTypeError(f"{str(place)!r} is not a folder")
    return path


def looks_like_hub_name(text: str) -> bool:
    """Whether text can be a data set's name on the hub: ``name`` or ``owner/name``.

    ``data/oct`` is not one where a folder ``data`` is here: it is a path mistyped.
    """
    return bool(_HUB_NAME.fullmatch(text)) and not ("/" in text and Path(text).parent.is_dir())


def data_source(text: str) -> str:
    """Flag type: whatever `utils.dataset.load_dataset` reads; a path must exist."""
    if Path(text).expanduser().exists() and text:
        return text
    if not text.endswith(".tar") and not looks_like_hub_name(text):
        raise argparse.ArgumentTypeError(f"no such file or folder: {text!r}")
    return text


def available_cores() -> int:
    """CPU cores this process may use (a container or scheduler may grant fewer than exist)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _runtime_flags() -> dict[str, dict]:
    return {
        "output_dir": {
            "type": output_dir,
            "metavar": "DIR",
            "help": "folder for all that is written; made if missing",
        },
        "seed": {
            "type": non_negative_int,
            "default": 0,
            "help": "seed of everything random (default: %(default)s)",
        },
        "batch_size": {
            "type": positive_int,
            "default": 16,
            "help": "images per step and process (default: %(default)s)",
        },
        "num_workers": {
            "type": non_negative_int,
            "default": min(8, available_cores()),
            "help": "processes that read images; 0 reads in the main process "
            "(default: one per core, at most 8)",
        },
        "device": {
            "default": "auto",
            "help": "auto, cpu, cuda or cuda:N; auto is cuda where there is one "
            "(default: %(default)s)",
        },
        "mixed_precision": {
            "choices": ("no", "fp16", "bf16"),
            "default": "no",
            "help": "precision of the arithmetic; the weights stay float32 (default: %(default)s)",
        },
        "offline": {
            "action": "store_true",
            "help": "forbid every download: models and data sets must be on this disk",
        },
    }


def add_runtime_flags(parser: argparse._ActionsContainer, *names: str, **defaults: object) -> None:
    """Add shared flags, worded the same in every script.

    Args:
        parser: A parser or an argument group.
        names: Any of ``output_dir seed batch_size num_workers device mixed_precision offline``.
        defaults: Default per flag where the script's own differs, e.g. ``batch_size=64``.
            ``output_dir`` is required unless it gets one here.
    """
    flags = _runtime_flags()
    for name in names:
        options = flags[name]
        if name in defaults:
            options["default"] = defaults[name]
            if name == "output_dir":
                options["help"] += " (default: %(default)s)"
        elif name == "output_dir":
            options["required"] = True
        parser.add_argument(f"--{name}", **options)


def go_offline() -> None:
    """Forbid downloads; call before the Hugging Face libraries are imported."""
    for name in _OFFLINE_VARIABLES:
        os.environ[name] = "1"


def resolve_device(name: str) -> str:
    """Turn ``--device`` into a device that exists.

    Raises:
        UserError: If the name is not a device, or there is no such CUDA device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine shows {torch.cuda.device_count()} CUDA device(s)"
        )
    return name


def answer_signals() -> None:
    """Let Ctrl-C and SIGTERM end this process, also where its launcher was told to ignore them."""
    answers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    for number, answer in answers.items():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, answer)


def fail(message: object) -> NoReturn:
    """Print ``error: message`` on stderr and exit with status 1."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(1)


def main_guard(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's ``main``; what the user can put right ends in a message, not a traceback.

    Exit status: what ``main`` returns (None is 0), 1 for a user's error, a missing file or a
    full disk, 2 for a bad flag (argparse), 130 for Ctrl-C. Anything else is our bug and keeps
    its traceback.
    """
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        status = EXIT_INTERRUPTED
    except UserError as error:
        fail(error)
    except ModuleNotFoundError as error:
        fail(
            f"package {error.name} is missing in {sys.executable}: activate the environment "
            "(source .venv/bin/activate) or pip install -r requirements.txt"
        )
    except (FileNotFoundError, PermissionError) as error:
        fail(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fail(f"the disk is full: {error}")
    raise SystemExit(status or 0)
