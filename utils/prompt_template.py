"""What a model is told beside a caption: a template such as ``{modality}: {text}``.

A model that keeps several domains apart learns with prompts that name theirs. The template belongs
to the trained model: it is kept in its text encoder's configuration as ``prompt_template``, which
plain diffusers ignores, so that further training and `generate_synthetic_dataset.py` use it too.
"""

import json
import string
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from utils.cli import UserError
from utils.dataset_import import template_fields
from utils.dataset_records import Record
from utils.lazy_records import cells, texts, with_text
from utils.prompt_template_flag import PLAIN, TEXT

_KEY = "prompt_template"


def settle_template(wanted: str | None, model: str | Path) -> str | None:
    """The template of a run: that of its flag, else the model's own; None for plain captions."""
    template = template_of(model) if wanted is None else wanted
    return None if template == PLAIN else template


def template_of(model: str | Path) -> str | None:
    """The template that a pipeline in a local folder was trained with, if there is one."""
    path = Path(model) / "text_encoder" / "config.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8")).get(_KEY)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error})") from error


def keep_template(text_encoder, template: str | None, *, asked: str | None) -> None:
    """Write a run's template into its text encoder's configuration, or leave none there.

    Args:
        text_encoder: As it was loaded.
        template: What `settle_template` found.
        asked: What the flag says.

    Raises:
        UserError: If the model, one of the hub, has a template that nobody asked for.
    """
    known = getattr(text_encoder.config, _KEY, None)
    if known is not None and template is None and asked is None:
        raise UserError(
            f"the model was trained with the prompts {known!r}: give --prompt_template with these, "
            f"or '{PLAIN}' for the captions as they are"
        )
    if template is not None:
        setattr(text_encoder.config, _KEY, template)
    elif known is not None:
        delattr(text_encoder.config, _KEY)


def fill_prompt(template: str | None, text: str, columns: Mapping[str, str]) -> str:
    """The prompt of a caption; an empty caption stays empty, for it is the unconditional one.

    Args:
        template: None leaves the caption as it is.
        text: The caption.
        columns: What the template's other fields are.
    """
    if template is None or not text:
        return text
    parts = []
    for words, name, _, _ in string.Formatter().parse(template):
        parts.append(words)
        if name:
            parts.append(text if name == TEXT else columns[name].strip())
    return "".join(parts)


def with_prompts(records: Sequence[Record], template: str | None, source: object):
    """The same records with prompts in place of their captions.

    Raises:
        UserError: If a column of the template is empty somewhere; the text names rows.
    """
    if template is None:
        return records
    for field in template_fields(template):
        if field != TEXT:
            _check_filled(records, field, template, source)
    return with_text(records, partial(_prompt_of, template=template))


def _prompt_of(record: Record, *, template: str) -> str:
    return fill_prompt(template, record.text, record.row)


def _check_filled(records: Sequence[Record], field: str, template: str, source: object) -> None:
    told = enumerate(zip(texts(records), cells(records, field)))
    empty = [index for index, (text, cell) in told if text and not cell.strip()]
    if not empty:
        return
    places = ", ".join(records[index].where for index in empty[:10])
    raise UserError(
        f"--prompt_template {template!r}: the column {field} is empty in {len(empty)} of "
        f"{len(records)} rows of {source}: {places}. Fill it (prepare_dataset.py import "
        f"--{field} NAME, where there is such a flag), or give --prompt_template "
        f"'{PLAIN}' for the captions as they are"
    )
