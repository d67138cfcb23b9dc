"""The tables of a rating study, and opening the SQLite file that holds them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from utils.cli import UserError

DATABASE = "ratings.sqlite"
APPLICATION_ID = 0x4F435452  # "OCTR", in the file's header: any other SQLite file is refused
SCHEMA_VERSION = 1
BUSY_SECONDS = 30.0  # how long one process waits for another's commit

_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE images (
    id INTEGER PRIMARY KEY,
    file TEXT NOT NULL UNIQUE,
    arm TEXT NOT NULL,
    label TEXT NOT NULL,
    text TEXT NOT NULL,
    source TEXT NOT NULL
) STRICT;
CREATE TABLE items (
    id INTEGER PRIMARY KEY,
    image INTEGER NOT NULL REFERENCES images,
    other_image INTEGER REFERENCES images CHECK (other_image <> image),
    text TEXT NOT NULL,
    questions TEXT NOT NULL
) STRICT;
CREATE TABLE raters (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    token_sha256 BLOB UNIQUE,
    created_at TEXT NOT NULL
) STRICT;
CREATE TABLE presentations (
    id INTEGER PRIMARY KEY,
    rater INTEGER NOT NULL REFERENCES raters,
    position INTEGER NOT NULL CHECK (position >= 0),
    item INTEGER NOT NULL REFERENCES items,
    is_repeat INTEGER NOT NULL CHECK (is_repeat IN (0, 1)),
    UNIQUE (rater, position),
    UNIQUE (rater, item, is_repeat)
) STRICT;
CREATE TABLE shown (
    opaque TEXT PRIMARY KEY,
    presentation INTEGER NOT NULL REFERENCES presentations,
    side INTEGER NOT NULL CHECK (side IN (0, 1)),
    image INTEGER NOT NULL REFERENCES images,
    UNIQUE (presentation, side)
) STRICT, WITHOUT ROWID;
CREATE TABLE answers (
    presentation INTEGER NOT NULL REFERENCES presentations,
    question TEXT NOT NULL,
    value TEXT NOT NULL,
    seconds REAL NOT NULL,
    answered_at TEXT NOT NULL,
    PRIMARY KEY (presentation, question)
) STRICT, WITHOUT ROWID;
CREATE TABLE changes (
    id INTEGER PRIMARY KEY,
    presentation INTEGER NOT NULL REFERENCES presentations,
    question TEXT NOT NULL,
    old_value TEXT,
    new_value TEXT,
    seconds REAL NOT NULL,
    changed_at TEXT NOT NULL
) STRICT;
"""


def create_database(folder: Path) -> sqlite3.Connection:
    """Make the empty tables in a folder that has none yet, readable by its owner alone."""
    path = folder / DATABASE
    path.touch(mode=0o600, exist_ok=False)
    connection = _connect(path)
    connection.executescript(
        f"PRAGMA journal_mode = WAL; PRAGMA application_id = {APPLICATION_ID};"
        f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )
    return connection


def open_database(folder: Path) -> sqlite3.Connection:
    """Connection to a study's tables: write-ahead log, every commit waits for the disk.

    Raises:
        UserError: If the folder holds no study, or one of another version.
    """
    path = folder / DATABASE
    if not path.is_file():
        raise UserError(f"{folder}: no study, for it lacks {DATABASE}; make one with create")
    try:
        connection = _connect(path)
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if application != APPLICATION_ID:
        connection.close()
        raise UserError(f"{path}: an SQLite file, but not of a study")
    if version != SCHEMA_VERSION:
        connection.close()
        raise UserError(
            f"{path}: tables of version {version}, this program knows {SCHEMA_VERSION}; "
            "use the program that made the study"
        )
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path.resolve()))}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,  # transactions are begun where they are needed, by name
        check_same_thread=False,  # the store holds a lock
        cached_statements=256,
    )
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


class StudyTables:
    """A connection that threads share: one at a time, and changes all or nothing."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Take over a connection of `create_database` or `open_database`."""
        self._connection = connection
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the file; the write-ahead log goes into it if nobody else has it open."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, on the disk when the block is left; one writer at a time."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, *values: object) -> list[tuple]:
        """All rows of a query."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()
