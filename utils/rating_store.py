"""Store of a rating study: raters, what each is shown, and what they answered, in SQLite.

    store = Store.open(study_dir)
    for rater in store.raters():
        for shown in store.presentations(rater):
            store.record(rater, shown.position, {"turing": "real", ...}, seconds=4.2)

`record` returns when the answer is on the disk (write-ahead log, ``synchronous = FULL``). Several
processes may have the store open; a `Store` itself may be used by several threads.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils import rating_answers as asked
from utils.rating_raters import RaterTables, now
from utils.rating_schema import create_database, open_database
from utils.rating_shown import Presentation, Rater, StudyImage
from utils.rating_table import Answer

IMAGES_DIR = "images"
_IMAGE_COLUMNS = "id, file, arm, label, text, source"


class OutOfOrderError(ValueError):
    """A position that is not the rater's turn yet, or does not exist."""


class Store(RaterTables):
    """An open study.

    Attributes:
        folder: The study's folder.
        facts: What is the same for all raters: title, questions, diagnoses, seed, ...
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        """Use `Store.open` or `Store.create`."""
        super().__init__(connection)
        self.folder = folder
        rows = self.rows("SELECT name, value FROM facts")
        self.facts: dict = {name: json.loads(value) for name, value in rows}

    @classmethod
    def open(cls, study_dir: Path | str) -> Store:
        """Open a study that `create` made.

        Raises:
            UserError: If there is none, or it is of another version.
        """
        return cls(Path(study_dir), open_database(Path(study_dir)))

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        facts: Mapping[str, object],
        images: Sequence[StudyImage],
        items: Sequence[tuple[int, int | None, str, Sequence[str]]],
    ) -> Store:
        """Make the store of a new study.

        Args:
            folder: Of the study.
            facts: See above; ``diagnoses``, ``repeat_share`` and ``seed`` are needed.
            images: All that are shown.
            items: For each the image, the other image or None, the text and the questions.
        """
        connection = create_database(folder)
        rows = [(n, one, other, text, " ".join(q)) for n, (one, other, text, q) in enumerate(items)]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO facts VALUES (?, ?)",
            [(name, json.dumps(value)) for name, value in facts.items()],
        )
        connection.executemany(
            "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)",
            [(i.id, i.file, i.arm, i.label, i.text, i.source) for i in images],
        )
        connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", rows)
        connection.execute("COMMIT")
        return cls(folder, connection)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def num_shown(self, rater: Rater) -> int:
        """How many presentations the rater has, repeats included."""
        return self.rows("SELECT count(*) FROM presentations WHERE rater = ?", rater.id)[0][0]

    def num_done(self, rater: Rater) -> int:
        """How many of them are answered; the position whose turn it is."""
        return self.rows(_NUM_DONE, rater.id)[0][0]

    def presentations(self, rater: Rater) -> list[Presentation]:
        """All that a rater is shown, in the rater's order."""
        return self._presentations("WHERE p.rater = ?", rater.id)

    def presentation(self, rater: Rater, position: int) -> Presentation | None:
        """One of them; None if there is no such position."""
        found = self._presentations("WHERE p.rater = ? AND p.position = ?", rater.id, position)
        return found[0] if found else None

    def _presentations(self, where: str, *values: object) -> list[Presentation]:
        rows = self.rows(f"{_SHOWN} {where} ORDER BY p.rater, p.position, s.side", *values)
        found: dict[int, Presentation] = {}
        for id, position, item, is_repeat, text, questions, first, opaque, *image in rows:
            one = StudyImage(*image)
            if id in found:
                found[id] = found[id].with_second(one, opaque)
                continue
            found[id] = Presentation(
                id=id,
                position=position,
                item=item,
                is_repeat=bool(is_repeat),
                swapped=one.id != first,
                text=text,
                questions=tuple(questions.split()),
                images=(one,),
                opaque=(opaque,),
            )
        return list(found.values())

    def image_file(self, rater: Rater, opaque: str) -> Path | None:
        """File of an image that the rater may see under this name; None for any other name."""
        rows = self.rows(
            "SELECT i.file FROM shown s JOIN presentations p ON p.id = s.presentation "
            "JOIN images i ON i.id = s.image WHERE s.opaque = ? AND p.rater = ?",
            opaque,
            rater.id,
        )
        return self.folder / IMAGES_DIR / rows[0][0] if rows else None

    def images(self) -> list[StudyImage]:
        """All images of the study; `StudyImage.export_name` is what answers call them."""
        return [StudyImage(*row) for row in self.rows(f"SELECT {_IMAGE_COLUMNS} FROM images")]

    def given(self, shown: Presentation) -> dict[str, str]:
        """Current answers of a presentation as stored, the comment among them if there is one."""
        return dict(
            self.rows("SELECT question, value FROM answers WHERE presentation = ?", shown.id)
        )

    def record(
        self,
        rater: Rater,
        position: int,
        answers: Mapping[str, object],
        comment: str = "",
        seconds: float = 0.0,
    ) -> int:
        """Take the answers of one presentation; a second time they replace the first ones.

        Args:
            rater: Who answers.
            position: Place in the rater's order; at most the number of answered ones.
            answers: As the page sends them (see `utils.rating_answers.check_answers`).
            comment: Free text; empty for none.
            seconds: From showing the item to the answer.

        Returns:
            How many presentations the rater has answered, once all is on the disk.

        Raises:
            AnswerError: If an answer is missing, unknown or out of range.
            OutOfOrderError: If it is not this position's turn.
        """
        shown = self.presentation(rater, position)
        if shown is None:
            raise OutOfOrderError(f"no position {position}")
        values = asked.check_answers(
            answers, questions=shown.questions, diagnoses=self.facts["diagnoses"]
        )
        if comment := asked.check_comment(comment):
            values[asked.COMMENT] = comment
        seconds = asked.check_seconds(seconds)
        with self.transaction() as tables:
            num_done = tables.execute(_NUM_DONE, (rater.id,)).fetchone()[0]
            if position > num_done:
                raise OutOfOrderError(f"position {position} comes after {num_done}")
            _write(tables, shown.id, values, seconds)
        return max(num_done, position + 1)

    def answers(self) -> list[Answer]:
        """All current answers, by rater and position."""
        shown: dict[int, tuple[str, Presentation]] = {}
        for rater in self.raters():
            shown.update((one.id, (rater.name, one)) for one in self.presentations(rater))
        rows = self.rows("SELECT presentation, question, value, seconds, answered_at FROM answers")
        place = {name: number for number, name in enumerate((*asked.QUESTIONS, asked.COMMENT))}
        order = {id: number for number, id in enumerate(shown)}
        rows.sort(key=lambda row: (order[row[0]], place[row[1]]))
        return [shown[id][1].answer(shown[id][0], *answer) for id, *answer in rows]


_NUM_DONE = (
    "SELECT count(*) FROM presentations p WHERE p.rater = ? "
    "AND EXISTS (SELECT 1 FROM answers a WHERE a.presentation = p.id)"
)
_SHOWN = (
    "SELECT p.id, p.position, p.item, p.is_repeat, t.text, t.questions, t.image, s.opaque, "
    "i.id, i.file, i.arm, i.label, i.text, i.source FROM presentations p "
    "JOIN items t ON t.id = p.item JOIN shown s ON s.presentation = p.id "
    "JOIN images i ON i.id = s.image"
)


def _write(
    tables: sqlite3.Connection, presentation: int, values: Mapping[str, str], seconds: float
) -> None:
    """Bring the stored answers to ``values``; what changes goes into the log, and only that.

    A page that got no reply sends the same again: nothing changes then.
    """
    query = "SELECT question, value FROM answers WHERE presentation = ?"
    old = dict(tables.execute(query, (presentation,)))
    changed = [name for name in {**old, **values} if old.get(name) != values.get(name)]
    at = now()
    tables.executemany(
        "INSERT INTO changes (presentation, question, old_value, new_value, seconds, changed_at) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        [(presentation, name, old.get(name), values.get(name), seconds, at) for name in changed],
    )
    tables.executemany(
        "DELETE FROM answers WHERE presentation = ? AND question = ?",
        [(presentation, name) for name in changed if name in old],
    )
    tables.executemany(
        "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
        [(presentation, name, values[name], seconds, at) for name in changed if name in values],
    )


def answers(study_dir: Path | str) -> list[Answer]:
    """All current answers of a study.

    Raises:
        UserError: If the folder holds no study.
    """
    with Store.open(study_dir) as store:
        return store.answers()
