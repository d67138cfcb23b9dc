"""The journal of an import: what is to do, what is done, what is wrong, in one SQLite file.

It lets memory stay flat however many images there are, and lets an import that was killed go on.
The list of images is made anew at every start; what was done with them is kept.
"""

import errno
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from utils.cli import UserError
from utils.dataset_records import Problem

_PAGE_ROWS = 200

_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value BLOB);
CREATE TABLE IF NOT EXISTS results (
    name TEXT PRIMARY KEY, path TEXT, frame INTEGER, size INTEGER, mtime_ns INTEGER,
    target_size INTEGER, digest TEXT, depth INTEGER, window TEXT, kind TEXT, detail TEXT
);
DROP TABLE IF EXISTS images;
DROP TABLE IF EXISTS problems;
CREATE TABLE images (
    number INTEGER PRIMARY KEY, path TEXT, frame INTEGER, source_name TEXT, name TEXT UNIQUE,
    place TEXT, patient TEXT, split TEXT, cells TEXT, source_key TEXT UNIQUE, name_key TEXT UNIQUE
);
CREATE TABLE problems (number INTEGER, image INTEGER, place TEXT, kind TEXT, message TEXT);
CREATE INDEX problems_of_images ON problems (image);
CREATE INDEX patients_of_images ON images (patient);
CREATE INDEX IF NOT EXISTS digests_of_results ON results (digest);
"""


class Entry(NamedTuple):
    """One image of the list: its place in it, the source's names and the new name."""

    number: int
    path: str
    frame: int | None
    source_name: str
    name: str
    where: str
    row: Mapping[str, str]


class Done(NamedTuple):
    """What became of one image; ``kind`` and ``detail`` are set if it failed.

    Attributes:
        name: In the new folder.
        path: In the source.
        frame: In the source.
        size: Bytes of the source's file when it was read; see `utils.volumes.state_of`.
        mtime_ns: When the source's file was changed last; of a volume's files added up.
        target_size: Bytes that were written.
        digest: Of the pixels.
        depth: Bits per channel; 8 where the source does not tell.
        window: Grey values that became black and white, as text; empty where none was needed.
        kind: Of the problem.
        detail: Of the problem.
    """

    name: str
    path: str
    frame: int | None
    size: int = 0
    mtime_ns: int = 0
    target_size: int = 0
    digest: str = ""
    depth: int = 8
    window: str = ""
    kind: str = ""
    detail: str = ""


@contextmanager
def full_disk_as_such() -> Iterator[None]:
    """Let a full disk be an `OSError` also where SQLite finds it."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "disk is full" not in str(error):
            raise
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for the journal") from error


class Journal:
    """Of one import; see the module."""

    def __init__(self, path: Path) -> None:
        """Open the file, made if missing, with an empty list; readable by its user alone.

        Raises:
            UserError: If it is damaged.
        """
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self.connection = sqlite3.connect(path, isolation_level=None)
        try:
            with full_disk_as_such():
                self.connection.executescript(_SCHEMA)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: damaged ({error}); start anew with --overwrite") from error

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep all that the block writes, or nothing of it."""
        with full_disk_as_such():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self.connection.rollback()
                raise
            self.connection.execute("COMMIT")

    def setting(self, name: str, value: bytes) -> bytes:
        """The value kept under a name; ``value`` if none was, which is kept from now on."""
        self.connection.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (name, value))
        found = self.connection.execute("SELECT value FROM settings WHERE name = ?", (name,))
        return found.fetchone()[0]

    def place_of(self, source_name: str) -> str | None:
        """Where an image of this name stands; None if it is not in the list."""
        found = self.connection.execute(
            "SELECT place FROM images WHERE source_key = ?", (source_name.lower(),)
        ).fetchone()
        return None if found is None else found[0]

    def is_taken(self, name: str) -> bool:
        """Whether an image of the list has this new name, whatever the case of its letters."""
        found = self.connection.execute(
            "SELECT 1 FROM images WHERE name_key = ?", (name.lower(),)
        ).fetchone()
        return found is not None

    def add_image(self, entry: Entry) -> None:
        """Put an image into the list."""
        row = entry.row
        self.connection.execute(
            "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(entry.number, entry.path, entry.frame, entry.source_name, entry.name),
                *(entry.where, row.get("patient_id", ""), row.get("split", "")),
                *(json.dumps(dict(row)), entry.source_name.lower(), entry.name.lower()),
            ),
        )

    def add_problem(self, number: int, problem: Problem, *, image: int | None = None) -> None:
        """Keep a problem.

        Args:
            number: Its place among the images and problems.
            problem: What is wrong.
            image: The number of the image that it spoils, if there is one.
        """
        values = (number, image, *problem)
        self.connection.execute("INSERT INTO problems VALUES (?, ?, ?, ?, ?)", values)

    def add_results(self, results: Iterable[Done]) -> None:
        """Keep what became of images; replaces what is known of them."""
        with self.transaction():
            self.connection.executemany(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", results
            )

    def results(self) -> Iterator[Done]:
        """What is known, in the order of the names."""
        for row in self._pages("SELECT * FROM results WHERE name > ? ORDER BY name", "", 0):
            yield Done(*row)

    def forget(self, names: Iterable[str]) -> None:
        """Forget what is known of these images, so that they are done again."""
        with self.transaction():
            self.connection.executemany(
                "DELETE FROM results WHERE name = ?", ((name,) for name in names)
            )

    def pending(self) -> Iterator[Entry]:
        """The images that are not done, in the order of the list."""
        return self._entries(f"number > ? AND NOT {_IS_DONE}")

    def num_pending(self) -> int:
        """How many images are not done."""
        return self.count(f"images WHERE NOT {_IS_DONE}")

    def sound(self) -> Iterator[Entry]:
        """The images without a problem, in the order of the list."""
        return self._entries(f"number > ? AND {IS_SOUND}")

    def num_sound(self) -> int:
        """How many images have no problem."""
        return self.count(f"images WHERE {IS_SOUND}")

    def leftovers(self) -> Iterator[str]:
        """Names of files that were written for images that are not to stay."""
        query = (
            "SELECT name FROM results WHERE name > ? AND NOT EXISTS (SELECT 1 FROM images "
            f"WHERE images.name = results.name AND {IS_SOUND}) ORDER BY name"
        )
        for (name,) in self._pages(query, "", 0):
            yield name

    def problems(self) -> Iterator[Problem]:
        """All problems, in the order of the list; what concerns no single row comes first."""
        query = "SELECT place, kind, message FROM problems ORDER BY number, rowid"
        for row in self.connection.execute(query):
            yield Problem(*row)

    def count(self, table_and_condition: str) -> int:
        """How many rows there are, e.g. ``images WHERE frame IS NOT NULL``."""
        found = self.connection.execute(f"SELECT COUNT(*) FROM {table_and_condition}")
        return found.fetchone()[0]

    def _entries(self, condition: str) -> Iterator[Entry]:
        query = (
            "SELECT number, path, frame, source_name, name, place, cells FROM images "
            f"WHERE {condition} ORDER BY number"
        )
        for *known, cells in self._pages(query, -1, 0):
            yield Entry(*known, json.loads(cells))

    def _pages(self, query: str, start: object, key: int) -> Iterator[tuple]:
        """Rows page by page, so that others may write between; the query goes on after a key."""
        while rows := self.connection.execute(f"{query} LIMIT {_PAGE_ROWS}", (start,)).fetchall():
            yield from rows
            start = rows[-1][key]


_IS_DONE = (
    "EXISTS (SELECT 1 FROM results WHERE results.name = images.name "
    "AND results.path = images.path AND results.frame IS images.frame AND results.kind = '')"
)
IS_SOUND = "NOT EXISTS (SELECT 1 FROM problems WHERE problems.image = images.number)"
