"""YAML files of rules: found by name or path, extended by each other, told apart by line.

What is wrong with a file is told at once, each problem with its line. What the keys mean is said
by who reads them (`utils.finding_rules`, `utils.privacy_rules`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from utils.cli import UserError

Keys = tuple[str | int, ...]  # keys from the top of the file, e.g. ("findings", "drusen", "words")


@dataclass(frozen=True)
class RuleFormat:
    """A kind of rule files.

    Attributes:
        shipped: Folder of the files that come with the project, known by their stem.
        main_key: The key that no file is without.
        problems: What is wrong with a file's content: keys and words; its extended file is not
            merged in yet.
    """

    shipped: Path
    main_key: str
    problems: Callable[[dict], Iterator[tuple[Keys, str]]]


@dataclass(frozen=True)
class RuleSource:
    """A file's content merged over the files it extends, and where each part was written."""

    path: Path
    content: dict
    lines: dict[Keys, str]  # keys to "file, line N"

    def at(self, *keys: str | int) -> str:
        """Where keys stand, for messages."""
        return _at(self.lines, keys, self.path)


def read_rule_file(name_or_path: str, kind: RuleFormat) -> RuleSource:
    """Read a file of rules and those that it extends.

    Args:
        name_or_path: The stem of a shipped file, or a path.
        kind: What is expected of it.

    Raises:
        UserError: If there is no such file, or with everything that is wrong with it.
    """
    return _read(_locate(name_or_path, Path.cwd(), kind), kind, chain=())


def _locate(name_or_path: str, folder: Path, kind: RuleFormat) -> Path:
    shipped = kind.shipped / f"{name_or_path}.yaml"
    path = folder / Path(name_or_path).expanduser()
    if "/" not in name_or_path and shipped.is_file():
        return shipped
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in kind.shipped.glob("*.yaml")))
        raise UserError(f"{path}: no such file of rules; give a YAML file, or one of {names}")
    return path


def _read(path: Path, kind: RuleFormat, chain: tuple[Path, ...]) -> RuleSource:
    if path in chain:
        raise UserError(f"{path}: extends itself through {chain[-1].name}: take one extends out")
    try:
        text = path.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}): save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be keys and values, at least '{kind.main_key}:'")
    lines: dict[Keys, str] = {}
    problems = list(_walk(root, (), path, lines))
    problems += [f"{_at(lines, keys, path)}: {text}" for keys, text in kind.problems(content)]
    if problems:
        raise UserError("\n".join([f"{path}: {len(problems)} problem(s)", *problems]))
    if "extends" not in content:
        return RuleSource(path, content, lines)
    try:
        base = _read(_locate(content["extends"], path.parent, kind), kind, (*chain, path))
    except UserError as error:
        raise UserError(f"{lines[('extends',)]}: extends: {error}") from error
    return RuleSource(path, merged(base.content, content), {**base.lines, **lines})


def _walk(node: yaml.Node, keys: Keys, path: Path, lines: dict[Keys, str]) -> Iterator[str]:
    """Note each key's line; yield keys that stand twice, of which YAML would drop the first."""
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            lines[(*keys, place)] = f"{path.name}, line {item.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        inner = (*keys, key.value)
        where = f"{path.name}, line {key.start_mark.line + 1}"
        if inner in lines:
            yield f"{where}: the key {key.value!r} stands twice: make it one"
        lines[inner] = where
        yield from _walk(value, inner, path, lines)


def _at(lines: Mapping[Keys, str], keys: Keys, path: Path) -> str:
    names = tuple(
        key if isinstance(key, int) and i == len(keys) - 1 else str(key)
        for i, key in enumerate(keys)
    )
    where = next((lines[names[:n]] for n in range(len(names), 0, -1) if names[:n] in lines), None)
    shown = ".".join(str(key) for key in keys if not isinstance(key, int))
    return f"{where or path.name}: {shown}" if shown else where or path.name


def merged(base: object, over: object) -> object:
    """Content of a file over another's: mappings are joined, lists added, all else replaced."""
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {k: merged(base[k], v) if k in base else v for k, v in over.items()}
    if isinstance(base, list) and isinstance(over, list):
        return base + over
    return over
