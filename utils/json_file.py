"""JSON that a person wrote: what is wrong is told with file, line and column."""

import json
from pathlib import Path

from utils.cli import UserError


def read_json(path: Path) -> object:
    """Content of a JSON file: UTF-8, UTF-16 or UTF-32, with or without byte order mark.

    Raises:
        UserError: If it is not JSON, an object has a key twice, or a number is NaN or infinite.
    """
    try:
        return json.loads(
            path.read_bytes(), object_pairs_hook=_object, parse_constant=_refuse_constant
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"the key {twice!r} stands twice in one object")
    return found


def _refuse_constant(name: str) -> None:
    raise UserError(f"{name} is no number of JSON")
