"""Records that are built when asked for, and how to read any records without building them all.

What goes through a whole data set reads it by `take`, `cells` and `texts`, so that it costs little
where the records are lazy, and is the same where they are not.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from utils.dataset_records import Record


class LazyRecords(Sequence[Record]):
    """A sequence that builds its records; it can be pickled, and is small then."""

    @abstractmethod
    def take(self, indices: Iterable[int]) -> "LazyRecords":
        """The records at these indices, in this order."""

    @abstractmethod
    def with_text(self, make_text: Callable[[Record], str]) -> "LazyRecords":
        """The same records with the text that a function of a module makes of each."""

    @abstractmethod
    def cells(self, column: str) -> Iterator[str]:
        """One column as it stands in the source; empty where a record does not have it."""

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """The text of each record."""

    @property
    @abstractmethod
    def blocks(self) -> tuple[int, ...]:
        """Sizes of the runs of records that lie in one file."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the records' columns, in order, as hex."""

    @property
    @abstractmethod
    def names_are_checked(self) -> bool:
        """Whether each file name is known to be sound and to stand there once."""


def take(records: Sequence[Record], indices: Sequence[int]) -> Sequence[Record]:
    """The records at these indices, in this order; lazy where they were."""
    if isinstance(records, LazyRecords):
        return records.take(indices)
    return [records[index] for index in indices]


def cells(records: Sequence[Record], column: str) -> Iterator[str]:
    """One column of each record; empty where a record does not have it."""
    if isinstance(records, LazyRecords):
        return records.cells(column)
    return (record.row.get(column, "") for record in records)


def texts(records: Sequence[Record]) -> Iterator[str]:
    """The text of each record."""
    if isinstance(records, LazyRecords):
        return records.texts()
    return (record.text for record in records)


def with_text(records: Sequence[Record], make_text: Callable[[Record], str]) -> Sequence[Record]:
    """The same records with the text that a function of a module makes of each."""
    if isinstance(records, LazyRecords):
        return records.with_text(make_text)
    return [replace(record, text=make_text(record)) for record in records]
