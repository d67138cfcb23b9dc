"""The raters of a study: who they are, their tokens, and the order in which each sees the items."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
from datetime import datetime, timezone

from utils.cli import UserError
from utils.rating_order import draw_order
from utils.rating_schema import StudyTables
from utils.rating_shown import Rater

TOKEN_BYTES = 32
OPAQUE_BYTES = 16


def token_hash(token: str) -> bytes:
    """What is stored of a token: enough to know it again, not to make a link of."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def now() -> str:
    """UTC, ISO 8601, with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class RaterTables(StudyTables):
    """The part of the store that is about raters.

    Attributes:
        facts: What is the same for all raters; ``repeat_share`` and ``seed`` are used here.
    """

    facts: dict

    def add_rater(self, name: str) -> str:
        """A new rater with an order of their own; returns the token, which is stored nowhere.

        Raises:
            UserError: If the name is there already.
        """
        token = secrets.token_urlsafe(TOKEN_BYTES)
        with self.transaction() as tables:
            if tables.execute("SELECT 1 FROM raters WHERE name = ?", (name,)).fetchone():
                raise UserError(f"rater {name!r} is in this study already")
            rater = tables.execute(
                "INSERT INTO raters (name, token_sha256, created_at) VALUES (?, ?, ?)",
                (name, token_hash(token), now()),
            ).lastrowid
            self._insert_order(tables, rater, name)
        return token

    def _insert_order(self, tables: sqlite3.Connection, rater: int, name: str) -> None:
        items = {
            row[0]: row[1:] for row in tables.execute("SELECT id, image, other_image FROM items")
        }
        order = draw_order(
            list(items),
            repeat_share=self.facts["repeat_share"],
            repeat_seed=f"{self.facts['seed']} {name}",
        )
        for position, showing in enumerate(order):
            place = tables.execute(
                "INSERT INTO presentations (rater, position, item, is_repeat) VALUES (?, ?, ?, ?)",
                (rater, position, showing.item, showing.is_repeat),
            ).lastrowid
            images = [image for image in items[showing.item] if image is not None]
            if showing.swapped:
                images.reverse()
            tables.executemany(
                "INSERT INTO shown VALUES (?, ?, ?, ?)",
                [(secrets.token_urlsafe(OPAQUE_BYTES), place, *pair) for pair in enumerate(images)],
            )

    def renew_token(self, name: str) -> str:
        """Give a rater a new token; the old one is worthless from now on.

        Raises:
            UserError: If there is no such rater.
        """
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self._set_token(name, token_hash(token))
        return token

    def revoke(self, name: str) -> None:
        """Lock a rater out; the answers stay.

        Raises:
            UserError: If there is no such rater.
        """
        self._set_token(name, None)

    def _set_token(self, name: str, digest: bytes | None) -> None:
        with self.transaction() as tables:
            done = tables.execute(
                "UPDATE raters SET token_sha256 = ? WHERE name = ?", (digest, name)
            )
            if not done.rowcount:
                raise UserError(f"no rater {name!r} in this study")

    def raters(self) -> list[Rater]:
        """All raters, in the order in which they joined; also those locked out."""
        rows = self.rows("SELECT id, name, token_sha256 IS NOT NULL FROM raters ORDER BY id")
        return [Rater(id, name, bool(active)) for id, name, active in rows]

    def rater_by_token(self, token: str) -> Rater | None:
        """Whose token this is, or None."""
        digest = token_hash(token)
        rows = self.rows("SELECT id, name, token_sha256 FROM raters WHERE token_sha256 = ?", digest)
        # The index found equal hashes; that time tells nothing of a token that hashes elsewhere.
        matching = [row for row in rows if hmac.compare_digest(row[2], digest)]
        return Rater(matching[0][0], matching[0][1], True) if matching else None
