"""What to draw: prompts with their labels from the command line, a file or a data set.

A prompt is one line: white space is folded, as CLIP's tokenizer does it anyway, so that a prompt
is one line in every table.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from utils.cli import UserError
from utils.dataset import load_dataset
from utils.dataset_records import MAX_LISTED_PROBLEMS, Problem, split_labels
from utils.dataset_tables import decode_utf8
from utils.line_text import fold_spaces, text_problem
from utils.run_folder import get_logger

PROMPT_COLUMNS = ("text", "prompt", "caption")  # in a CSV, any case; the first found is taken
_COUNT = re.compile(r"[0-9]{1,9}")

_logger = get_logger("prompts")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text to draw.

    Attributes:
        text: One line, not empty.
        label: Diagnoses the image is meant to show, joined by ``;``; empty if unknown.
        modality: OCT, CXR, ...; empty if unknown.
        where: Where it was read (``prompts.csv:3``), for messages.
        num_images: How many to draw of it; None where the source does not say.
        full: What the model is told, where that is more than the text: its template filled.
    """

    text: str
    label: str
    modality: str
    where: str
    num_images: int | None = None
    full: str = ""

    @property
    def drawn(self) -> str:
        """What the model is told."""
        return self.full or self.text

    @property
    def labels(self) -> tuple[str, ...]:
        """The diagnoses one by one."""
        return split_labels(self.label)

    @property
    def sha256(self) -> str:
        """Hash of what is drawn, as hex: names the prompt where the text must not appear."""
        return sha256(self.drawn.encode()).hexdigest()


class PromptError(UserError):
    """Everything that is wrong with the prompts of one source, file and line."""

    def __init__(self, source: object, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [f"{source}: {len(problems)} problem{'s' * (len(problems) != 1)}"]
        lines += [f"  {problem}" for problem in problems[:MAX_LISTED_PROBLEMS]]
        if len(problems) > MAX_LISTED_PROBLEMS:
            lines.append(f"  ... and {len(problems) - MAX_LISTED_PROBLEMS} more")
        super().__init__("\n".join(lines))


def collect(raw: Iterable[Prompt], source: object, problems: list[Problem]) -> list[Prompt]:
    """Prompts on one line each, with tidy labels; raises with all that is wrong.

    Args:
        raw: As they were read; a text may be empty or span lines.
        source: What messages call it.
        problems: Those found so far, or while ``raw`` is read.

    Raises:
        PromptError: If there are problems, or no prompts.
    """
    prompts = []
    for prompt in raw:
        text = fold_spaces(prompt.text)
        label = ";".join(fold_spaces(name) for name in split_labels(prompt.label))
        modality = fold_spaces(prompt.modality)
        problem = text_problem(text) if text else ("empty text", "nothing to draw")
        problem = problem or text_problem(label) or text_problem(modality)
        if problem is None:
            prompts.append(replace(prompt, text=text, label=label, modality=modality))
        else:
            problems.append(Problem(prompt.where, *problem))
    if problems:
        raise PromptError(source, problems)
    if not prompts:
        raise PromptError(source, [Problem(str(source), "no prompts", "it has none")])
    return prompts


def prompts_from_flags(texts: Sequence[str], labels: Sequence[str] | None) -> list[Prompt]:
    """Prompts given on the command line.

    Args:
        texts: The prompts.
        labels: None, or one for each prompt.

    Raises:
        PromptError: If a prompt is empty or holds what `utils.line_text.text_problem` forbids.
    """
    rows = (
        Prompt(text, label, "", f"--prompt {number}")
        for number, (text, label) in enumerate(zip(texts, labels or [""] * len(texts)), start=1)
    )
    return collect(rows, "--prompt", [])


def read_prompts_file(path: Path) -> list[Prompt]:
    """Prompts of a text file (one a line, empty lines skipped) or a CSV.

    Args:
        path: ``.txt``, or ``.csv`` with a column ``text`` (or ``prompt``, ``caption``), and
            ``label``, ``modality`` and ``num_images`` if there are such; other columns are
            ignored. UTF-8, with or without byte order mark.

    Raises:
        PromptError: With everything that is wrong, by line.
    """
    if path.suffix.lower() not in (".txt", ".csv"):
        problem = Problem(path.name, "unknown kind", "a file of prompts ends in .txt or .csv")
        raise PromptError(path, [problem])
    text, problem = decode_utf8(path.read_bytes(), path.name)
    if problem is not None:
        raise PromptError(path, [problem])
    problems: list[Problem] = []
    if path.suffix.lower() == ".txt":
        return collect(_lines(text, path.name), path, problems)
    return collect(_csv_rows(text, path.name, problems), path, problems)


def _lines(text: str, name: str) -> Iterator[Prompt]:
    num_empty = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield Prompt(line, "", "", f"{name}:{number}")
        else:
            num_empty += 1
    num_empty -= not text or text.endswith("\n")  # what follows the last line end is no line
    if num_empty:
        _logger.info("%s: %d empty line(s) skipped", name, num_empty)


def _csv_rows(text: str, name: str, problems: list[Problem]) -> Iterator[Prompt]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        text_column = next((column for column in PROMPT_COLUMNS if column in header), None)
        if text_column is None:
            problems.append(_missing_text_column(f"{name}:1", header))
            return
        line = reader.line_num + 1
        for values in reader:
            where = f"{name}:{line}"
            line = reader.line_num + 1
            if values and len(values) != len(header):
                detail = f"{len(values)} fields, the header has {len(header)} (quote commas)"
                problems.append(Problem(where, "broken row", detail))
            elif values:
                row = dict(zip(header, values))
                num_images = _num_images(row, where, problems)
                label, modality = row.get("label", ""), row.get("modality", "")
                yield Prompt(row[text_column], label, modality, where, num_images)
    except csv.Error as error:
        detail = f"{error}; nothing from this row on was read (a quote left open?)"
        problems.append(Problem(f"{name}:{line}", "broken CSV", detail))


def _num_images(row: Mapping[str, str], where: str, problems: list[Problem]) -> int | None:
    """The row's cell of the column ``num_images``; None where there is no such column."""
    cell = row.get("num_images", "0").strip()
    if not _COUNT.fullmatch(cell):
        detail = f"{cell!r} is not a whole number from 0 to 999999999"
        problems.append(Problem(where, "wrong num_images", detail))
    elif "num_images" in row:
        return int(cell)
    return None


def _missing_text_column(where: str, header: Sequence[str]) -> Problem:
    columns = ", ".join(header) or "none"
    hint = "; use commas between fields" if any(";" in name for name in header) else ""
    wanted = " or ".join(PROMPT_COLUMNS)
    return Problem(where, "missing column", f"{wanted} (columns: {columns}){hint}")


def prompts_from_dataset(source: Path | str, *, split: str, offline: bool = False) -> list[Prompt]:
    """The captions and labels of a data set, one prompt per image.

    Args:
        source: Anything `utils.dataset.load_dataset` reads; its pixels are not looked at.
        split: train, val or test; all rows are taken where the data set has no column ``split``.
        offline: Forbid downloads.

    Raises:
        DatasetError: If the table is unsound, has no captions, or nothing in the split.
        PromptError: If a caption holds what `utils.line_text.text_problem` forbids.
    """
    dataset = load_dataset(
        source, split=split, require_text=True, check_pixels=False, offline=offline
    )
    if all(record.split is None for record in dataset):
        _logger.info("%s has no column split: captions of all its images are taken", source)
    elif split != "train":
        _logger.warning(
            "prompts are of the %s split: keep these images away from what is judged on it", split
        )
    rows = (
        Prompt(record.text, ";".join(record.labels), record.row.get("modality", ""), record.where)
        for record in dataset
    )
    return collect(rows, source, [])
