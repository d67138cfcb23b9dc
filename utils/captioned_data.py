"""Images with captions to train on; where a source has no captions, its labels stand in."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from utils.cli import UserError
from utils.dataset import Dataset, accept, examine_dataset
from utils.dataset_checks import in_order_of_rows
from utils.dataset_import import check_template, fill_template
from utils.dataset_records import Columns
from utils.lazy_records import texts, with_text
from utils.prompt_template import with_prompts
from utils.run_folder import get_logger
from utils.sample_weights import check_weights, without_weightless

_logger = get_logger("train")


def load_captioned(
    source: Path | str,
    *,
    columns: Columns,
    split: str | None,
    template: str | None,
    check_pixels: bool,
    skip_invalid: bool,
    offline: bool,
    allow_empty: bool = False,
    weight_column: str | None = None,
    prompt_template: str | None = None,
) -> Dataset:
    """Read and check a source whose images all have a caption.

    Args:
        source: Anything `utils.dataset.load_dataset` takes.
        columns: The user's column names.
        split: Rows to keep; None for all.
        template: Makes every caption, e.g. ``"retinal OCT B-scan, {label}"``. None takes the
            captions there are; a source without any, such as class folders, gets its labels.
        check_pixels: Decode every image once.
        skip_invalid: Drop rows with a problem.
        offline: Forbid downloads.
        allow_empty: Whether a caption may be empty; the column must be there.
        weight_column: Column of each image's weight; images of weight 0 are left out.
        prompt_template: Makes prompts of the captions, e.g. ``"{modality}: {text}"``.

    Raises:
        DatasetError: With all problems at once, an empty caption among them.
        UserError: If there are neither captions nor what the templates ask for.
    """
    examination = examine_dataset(
        source,
        columns=columns,
        split=split,
        keep_pixels=False,
        required=["text"] if columns.caption and not allow_empty else [],
        filled=["text"] if template is None and not allow_empty else [],
        with_pixels=check_pixels,
        offline=offline,
    )
    if weight_column is not None:
        found = check_weights(examination.table, examination.kept, weight_column)
        problems = in_order_of_rows(examination.problems + found)
        examination = examination._replace(problems=problems)
    dataset = accept(examination, source, skip_invalid=skip_invalid)
    if weight_column is not None:
        dataset = without_weightless(dataset, weight_column)
    columns = examination.table.columns
    dataset = _captioned(dataset, source, columns, template=template, allow_empty=allow_empty)
    records = with_prompts(dataset.records, prompt_template, source)
    return Dataset(records, dataset.root, dataset.skipped, dataset.notes)


def _captioned(
    dataset: Dataset,
    source: Path | str,
    columns: Sequence[str],
    *,
    template: str | None,
    allow_empty: bool,
) -> Dataset:
    """The same with captions by the template, or of the labels where there are none."""
    if template is None and "text" in columns:
        return _count_empty(dataset) if allow_empty else dataset
    if allow_empty:
        raise UserError(
            f"--allow_empty_captions: {source} has no captions (columns: "
            f"{', '.join(columns)}); name their column with --caption_column"
        )
    if template is None and "label" not in columns:
        raise UserError(
            f"{source}: neither captions nor labels (columns: {', '.join(columns)}); name one with "
            "--caption_column, or give all images the same with --caption"
        )
    template = template or "{label}"
    check_template(dataset.records, template)
    make_text = partial(fill_template, template=template)
    _logger.info("captions are made of the labels; first: %r", make_text(dataset[0]))
    records = with_text(dataset.records, make_text)
    return Dataset(records, dataset.root, dataset.skipped, dataset.notes)


def _count_empty(dataset: Dataset) -> Dataset:
    """The same, with the number of empty captions among its notes and in the log."""
    count = sum(not text for text in texts(dataset.records))
    note = f"{count} of {len(dataset)} captions are empty: they train the unconditional branch"
    _logger.info("%s", note)
    return Dataset(dataset.records, dataset.root, dataset.skipped, (*dataset.notes, note))
