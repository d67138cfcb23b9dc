"""What every request to the rating server passes before it reaches a route.

Host, rate limits, token and size of the body are checked here, and every reply, also a refusal,
gets the same headers. Nothing is asked of the frameworks that costs much, so that a flood of
refused requests leaves the raters their server.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from ipaddress import IPv6Address, ip_address

from utils.rate_limits import RateLimit
from utils.rating_shown import Rater
from utils.run_folder import get_logger

MAX_BODY_BYTES = 16 * 1024
BODY_SECONDS = 10.0
MAX_PAUSING = 512  # refused requests that are held back at once
PAUSE_SECONDS = 1.0
LOG_SECONDS = 60.0
CLIENT_GONE = 499  # in the log alone, as nginx writes it
_BEARER = re.compile(r"Bearer ([A-Za-z0-9_-]{43})")  # 32 bytes, as URL-safe base64

_COMMON_HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

Scope = MutableMapping
Receive = Callable[[], Awaitable[MutableMapping]]
Send = Callable[[MutableMapping], Awaitable[None]]

_logger = get_logger("ratings")


class Refusal(Exception):
    """Why a request goes no further.

    Attributes:
        status: Of HTTP.
        error: In words, for the page.
        retry_after: Seconds after which it may be tried again, or 0.
        close: Whether the connection is of no use any more.
    """

    def __init__(
        self, status: int, error: str, *, retry_after: float = 0.0, close: bool = False
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.retry_after = retry_after
        self.close = close


class _GoneError(Exception):
    """The client left before its request was whole: there is nobody to reply to."""


class RequestGuard:
    """ASGI application around another one; a rater's request carries ``scope["rater"]``."""

    def __init__(
        self,
        app: Callable,
        *,
        find_rater: Callable[[str], Rater | None],
        content_security_policy: str,
        hosts: Collection[str] | None,
    ) -> None:
        """Guard an application.

        Args:
            app: ASGI application behind.
            find_rater: Whose token it is, or None.
            content_security_policy: Header of every reply.
            hosts: Host names by which the server may be called, without port; None: any.
        """
        self._app = app
        self._find_rater = find_rater
        self._hosts = hosts
        headers = _COMMON_HEADERS | {"content-security-policy": content_security_policy}
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        # A rater at a keyboard asks three times an image. A token cannot be guessed at any rate:
        # the limit on failures keeps the log short and the processor free.
        self._of_rater = RateLimit(per_second=50, burst=200)
        self._of_failures = RateLimit(per_second=1, burst=20)
        self._of_pages = RateLimit(per_second=10, burst=60)
        self._pausing = 0
        self._refused = 0
        self._told = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":  # the server's own start and stop; web sockets are off
            await self._app(scope, receive, send)
            return
        begin, status = time.monotonic(), 0

        async def send_guarded(message: MutableMapping) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        try:
            self._admit(scope)
            receive = await _whole_body(scope, receive)
            await self._app(scope, receive, send_guarded)
        except Refusal as refusal:
            if refusal.status == 429:
                await self._pause()
            await _send_refusal(refusal, send_guarded)
        except _GoneError:
            status = CLIENT_GONE
        self._log(scope, status, time.monotonic() - begin)

    def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        self._check_host(headers.get(b"host", b"").decode("latin-1"))
        address = _network((scope.get("client") or ("unknown", 0))[0])
        if not scope["path"].startswith("/api/"):
            _limit(self._of_pages, address)
            return
        found = _BEARER.fullmatch(headers.get(b"authorization", b"").decode("latin-1"))
        rater = self._find_rater(found[1]) if found else None
        if rater is None:
            _limit(self._of_failures, address)
            raise Refusal(401, "this link is not valid; ask for a new one")
        _limit(self._of_rater, rater.id)
        scope["rater"] = rater

    def _check_host(self, host: str) -> None:
        """A page elsewhere whose name is pointed to this machine gets nothing (DNS rebinding)."""
        name = re.sub(r":[0-9]*$", "", host).lower()
        if self._hosts is not None and name not in self._hosts:
            raise Refusal(421, "this server is not called by that name")

    async def _pause(self) -> None:
        """Hold back who asks too often, so that a client that waits for replies slows down."""
        if self._pausing >= MAX_PAUSING:
            return
        self._pausing += 1
        try:
            await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._pausing -= 1

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        """One line a request, without query and token; many refusals in one."""
        if status == 429:
            self._refused += 1
            return
        if self._refused and time.monotonic() - self._told > LOG_SECONDS:
            _logger.warning("%d requests were refused: too many", self._refused)
            self._refused, self._told = 0, time.monotonic()
        rater = scope.get("rater")
        who = f"rater {rater.id}" if rater else (scope.get("client") or ("unknown",))[0]
        path = ascii(scope["path"][:60])
        _logger.info("%s %s %s %d %.1f ms", who, scope["method"], path, status, 1000 * seconds)


def _limit(limit: RateLimit, key: object) -> None:
    if wait := limit.wait(key):
        raise Refusal(429, "too many requests; wait a moment", retry_after=wait)


def _network(address: str) -> str:
    """Whom a limit counts as one: an address, of version 6 the network of 64 bits."""
    try:
        parsed = ip_address(address)
    except ValueError:  # a test client's name
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(parsed.exploded[:19])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


async def _whole_body(scope: Scope, receive: Receive) -> Receive:
    """Read the body of a PUT up to the limit; other requests have none that is read."""
    if scope["method"] != "PUT":
        return receive
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if not declared.isdigit() or int(declared[:12]) > MAX_BODY_BYTES or len(declared) > 12:
        raise Refusal(413, f"at most {MAX_BODY_BYTES} bytes are taken", close=True)
    try:
        body = await asyncio.wait_for(_read(receive), BODY_SECONDS)
    except asyncio.TimeoutError as error:
        raise Refusal(408, "the request did not come to its end", close=True) from error

    async def replay() -> MutableMapping:
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise Refusal(413, f"at most {MAX_BODY_BYTES} bytes are taken", close=True)
        if not message.get("more_body", False):
            return body


async def _send_refusal(refusal: Refusal, send: Send) -> None:
    body = json.dumps({"error": refusal.error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if refusal.retry_after:
        headers.append((b"retry-after", str(math.ceil(refusal.retry_after)).encode()))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
