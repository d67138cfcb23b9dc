"""Personal links of raters: the one file that knows the tokens, readable by its owner alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from utils.json_file import read_json
from utils.rating_store import Store
from utils.run_folder import atomic_path

LINKS_FILE = "tokens.json"


def read_tokens(study_dir: Path) -> dict[str, str]:
    """Token of each rater whose token is still in the file; the organiser may delete it."""
    path = study_dir / LINKS_FILE
    return dict(read_json(path)) if path.is_file() else {}


def write_tokens(study_dir: Path, tokens: Mapping[str, str]) -> None:
    """Replace the file."""
    with atomic_path(study_dir / LINKS_FILE) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(tokens, indent=2, ensure_ascii=False), encoding="utf-8")


def personal_links(study_dir: Path, url: str) -> dict[str, str]:
    """What each rater opens; what follows # is not sent to servers, nor noted in their logs."""
    return {name: f"{url}/#{token}" for name, token in read_tokens(study_dir).items()}


def add_raters(store: Store, names: list[str]) -> dict[str, str]:
    """Add raters to a study; returns their tokens, which are in the file then."""
    added = {name: store.add_rater(name) for name in names}
    write_tokens(store.folder, {**read_tokens(store.folder), **added})
    return added


def renew_token(store: Store, name: str) -> str:
    """Give a rater a new token in place of the old one."""
    token = store.renew_token(name)
    write_tokens(store.folder, {**read_tokens(store.folder), name: token})
    return token


def revoke(store: Store, name: str) -> None:
    """Lock a rater out."""
    store.revoke(name)
    kept = {other: token for other, token in read_tokens(store.folder).items() if other != name}
    write_tokens(store.folder, kept)
