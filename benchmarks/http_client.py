"""An HTTP/1.1 client small enough not to be what a benchmark measures."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: Of HTTP; 0 if the connection ended before it.
        headers: By lower-case name.
        body: In whole.
    """

    status: int
    headers: dict[str, str]
    body: bytes


NO_REPLY = Reply(0, {}, b"")


class Connection:
    """A connection to one server, opened when it is needed and kept while the server keeps it."""

    def __init__(self, port: int, *, timeout_s: float = 30.0) -> None:
        """Connect to a port of this machine later on."""
        self._port = port
        self._timeout_s = timeout_s
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def send(self, request: bytes) -> Reply:
        """Send bytes and read one reply; `NO_REPLY` if the server hung up instead."""
        try:
            return await asyncio.wait_for(self._exchange(request), self._timeout_s)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            self.close()
            return NO_REPLY

    async def send_only(self, request: bytes) -> None:
        """Send bytes by a connection of its own, and hang up at once."""
        self.close()
        try:
            await asyncio.wait_for(self._open(), self._timeout_s)
            self._writer.write(request)
        except (ConnectionError, asyncio.TimeoutError):
            pass
        self.close()

    async def _open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._port, limit=1 << 20
        )

    async def _exchange(self, request: bytes) -> Reply:
        if self._writer is None:
            await self._open()
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(": ") for line in head[1:] if line)
        headers = {name.lower(): value for name, _, value in fields}
        body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return Reply(int(head[0].split()[1]), headers, body)


def request_bytes(
    method: str, path: str, *, token: str | None = None, body: bytes | None = None
) -> bytes:
    """A request to this machine."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")
