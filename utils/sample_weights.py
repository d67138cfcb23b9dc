"""How much each image or pair counts in the loss: a column of its table.

Weights are divided by their mean, so that the learning rate keeps its meaning; what has weight 0
is left out of the data, so that no time is spent on it.
"""

import math
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from utils.cli import UserError
from utils.dataset import Dataset
from utils.dataset_checks import Found
from utils.dataset_records import Problem, Table
from utils.dataset_tables import missing_column
from utils.lazy_records import cells, take
from utils.run_folder import get_logger

_logger = get_logger("train")


def check_weights(table: Table, kept: Sequence[int], column: str) -> Found:
    """What is wrong with a column of weights, as `utils.dataset_checks.check_table` tells it.

    Args:
        table: The table.
        kept: Indices of the records that are used.
        column: Its name.
    """
    if column not in table.columns:
        problem = missing_column(f"{table.name}:1", column, table.columns)
        return [(None, problem)]
    found: Found = []
    some = False
    records = take(table.records, kept)
    for place, cell in enumerate(cells(records, column)):
        trouble = _trouble(cell)
        if trouble:
            problem = Problem(records[place].where, f"bad {column}", trouble)
            found.append((kept[place], problem))
        some = some or (not trouble and float(cell) > 0)
    if len(records) and not some:
        found.append((None, Problem(table.name, "no rows", f"{column} is 0 in all of them")))
    return found


def _trouble(cell: str) -> str | None:
    if not cell.strip():
        return "empty"
    try:
        weight = float(cell)
    except ValueError:
        return f"{cell!r} is no number"
    if not math.isfinite(weight):
        return f"{cell!r} is not finite"
    return f"{cell!r} is negative" if weight < 0 else None


def read_weights(dataset: Dataset, column: str | None) -> np.ndarray | None:
    """Weights divided by their mean, (N,) float32 of mean 1; None where there are none.

    Args:
        dataset: The images, their weights checked, not all of them 0.
        column: Name of the weights; a data set without it, or None, has none.
    """
    if column is None or column not in dataset[0].row:
        return None
    weights = np.fromiter(map(float, cells(dataset.records, column)), np.float64, len(dataset))
    weights /= weights.max()  # or the sum could overflow
    return (weights / (math.fsum(weights) / len(weights))).astype(np.float32)


def without_weightless(dataset: Dataset, column: str) -> Dataset:
    """The data set without what has weight 0; how many, the log and its notes tell.

    Raises:
        UserError: If nothing is left.
    """
    column_cells: Iterable[tuple[int, str]] = enumerate(cells(dataset.records, column))
    weighty = array("q", (index for index, cell in column_cells if float(cell) > 0))
    if not weighty:
        raise UserError(f"{column} is 0 in all rows that are left: there is nothing to train on")
    if len(weighty) == len(dataset):
        return dataset
    note = f"{len(dataset) - len(weighty)} rows have {column} 0 and are left out"
    _logger.info("%s", note)
    kept = dataset.select(weighty)
    return Dataset(kept.records, kept.root, kept.skipped, (*kept.notes, note))
