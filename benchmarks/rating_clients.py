"""Who talks to a rating server under load: raters, and clients that mean no good."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections import Counter
from multiprocessing.connection import Connection as Pipe

from benchmarks.http_client import Connection, Reply, request_bytes

NOT_AWAITED = -1  # in place of the status of a reply

ANSWERS = {
    "turing": ("real", "synthetic"),
    "quality": (1, 2, 3, 4, 5),
    "agreement": (1, 2, 3, 4, 5),
    "diagnosis": ("unsure",),
    "errors": ([], ["artifact"], ["omission", "context"]),
    "preference": ("left", "right", "tie"),
}


class RaterLoad:
    """Raters who go through a study, and then change answers at random places of it.

    Attributes:
        next_ms: Times from asking for an item to having its images.
        put_ms: Times from sending answers to knowing that they are on the disk.
        errors: Replies other than 200, by status; 0 for none. Of 429 the request is repeated.
        sent: (rater's token, position) -> comment that the server acknowledged last.
    """

    def __init__(self, port: int, tokens: list[str], *, think_s: float, seconds: float) -> None:
        """Prepare.

        Args:
            port: Of the server.
            tokens: One for each rater.
            think_s: Mean time that a rater looks at an item; 0: none.
            seconds: How long it goes on.
        """
        self._port, self._tokens = port, tokens
        self._think_s, self._seconds = think_s, seconds
        self._end = 0.0
        self.next_ms: list[float] = []
        self.put_ms: list[float] = []
        self.errors: Counter[int] = Counter()
        self.sent: dict[tuple[str, int], str] = {}

    async def run(self) -> None:
        """Rate until the time is over."""
        self._end = time.monotonic() + self._seconds
        await asyncio.gather(*map(self._rate, self._tokens))

    async def _rate(self, token: str) -> None:
        await asyncio.sleep(random.uniform(0, max(self._think_s, 0.5)))  # they come one by one
        connection = Connection(self._port)
        about = await self._ask(connection, request_bytes("GET", "/api/study", token=token))
        if about is None:
            return
        about = json.loads(about.body)
        done, in_all = about["num_done"], about["num_items"]
        while time.monotonic() < self._end:
            position = done if done < in_all else random.randrange(in_all)
            item = await self._show(connection, token, position)
            if self._think_s:
                await asyncio.sleep(random.uniform(0.5, 1.5) * self._think_s)
            if item is not None and await self._answer(connection, token, item):
                done = max(done, position + 1)
        connection.close()

    async def _show(self, connection: Connection, token: str, position: int) -> dict | None:
        begin = time.perf_counter()
        path = f"/api/items/{position}"
        reply = await self._ask(connection, request_bytes("GET", path, token=token))
        if reply is None:
            return None
        item = json.loads(reply.body)
        for name in item["images"]:
            path = f"/api/images/{name}"
            if await self._ask(connection, request_bytes("GET", path, token=token)) is None:
                return None
        self.next_ms.append(1000 * (time.perf_counter() - begin))
        return item

    async def _answer(self, connection: Connection, token: str, item: dict) -> bool:
        comment = secrets.token_hex(8)
        answers = {name: random.choice(ANSWERS[name]) for name in item["questions"]}
        body = json.dumps({"answers": answers, "comment": comment, "seconds": 1.0}).encode()
        path = f"/api/items/{item['position']}"
        begin = time.perf_counter()
        reply = await self._ask(connection, request_bytes("PUT", path, token=token, body=body))
        if reply is None:
            return False
        self.put_ms.append(1000 * (time.perf_counter() - begin))
        self.sent[token, item["position"]] = comment
        return True

    async def _ask(self, connection: Connection, request: bytes) -> Reply | None:
        while True:
            reply = await connection.send(request)
            if reply.status == 200:
                return reply
            self.errors[reply.status] += 1
            if reply.status != 429:
                return None
            await asyncio.sleep(float(reply.headers["retry-after"]))


def run_raters(port: int, tokens: list[str], think_s: float, seconds: float, pipe: Pipe) -> None:
    """A process of raters; sends what they saw through the pipe."""
    load = RaterLoad(port, tokens, think_s=think_s, seconds=seconds)
    asyncio.run(load.run())
    pipe.send((load.next_ms, load.put_ms, load.errors, load.sent))


def run_hostile(port: int, clients: int, token: str, seconds: float, pipe: Pipe) -> None:
    """A process of hostile clients; sends the number of replies by status through the pipe."""
    pipe.send(asyncio.run(_attack(port, clients, token, seconds)))


async def _attack(port: int, clients: int, token: str, seconds: float) -> Counter[int]:
    statuses: Counter[int] = Counter()
    end = time.monotonic() + seconds

    async def hammer(number: int) -> None:
        connection = Connection(port)
        requests = _hostile_requests(token)
        while time.monotonic() < end:
            if number % 8 == 1:  # an eighth does not wait for replies, and so is never slowed down
                await connection.send_only(random.choice(requests))
                statuses[NOT_AWAITED] += 1
                continue
            reply = await connection.send(random.choice(requests))
            statuses[reply.status] += 1
            if number % 4 == 0:  # a quarter come by a new connection every time
                connection.close()
        connection.close()

    await asyncio.gather(*map(hammer, range(clients)))
    return statuses


def _hostile_requests(token: str) -> list[bytes]:
    """What they send; ``token`` is that of a rater who has gone over to them."""
    head = f"PUT /api/items/0 HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
    flood = (
        head.encode()
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"1000\r\n%b\r\n" % (b"x" * 4096) * 8
    )
    injection = json.dumps({"answers": {}, "comment": "'; DROP TABLE answers; --", "seconds": 1})
    forged = secrets.token_urlsafe(32)
    return [
        request_bytes("GET", "/"),
        request_bytes("GET", "/api/study"),
        request_bytes("GET", "/api/study", token=forged),
        request_bytes("GET", "/api/images/..%2f..%2fratings.sqlite", token=forged),
        request_bytes("GET", "/api/images/..%2f..%2fratings.sqlite", token=token),
        request_bytes("GET", "/../../etc/passwd"),
        request_bytes("PUT", "/api/items/0", token=forged, body=b"[" * 16_000),
        request_bytes("PUT", "/api/items/0", token=token, body=b"[" * 16_000),
        request_bytes("PUT", "/api/items/0", token=token, body=injection.encode()),
        request_bytes("PUT", "/api/items/0", token=token, body=b"x" * 200_000),
        request_bytes("DELETE", "/api/items/0", token=token),
        flood,
        b"\x16\x03\x01\x02\x00 no HTTP\r\n\r\n",
    ]
