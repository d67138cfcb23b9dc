"""Running the rating server: its socket, its links, and its clean end."""

from __future__ import annotations

import argparse
import asyncio
import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from utils.cli import UserError
from utils.rating_links import personal_links
from utils.rating_server import LOCAL_HOSTS, make_app
from utils.rating_store import Store
from utils.request_guard import RequestGuard
from utils.run_folder import get_logger, print_result

MAX_CONNECTIONS = 2000
# Connections that wait to be accepted. With a long queue a flood of new ones is accepted in bursts,
# in which raters wait; with a short one the kernel slows down those who connect too often.
BACKLOG = 32
SPARE_FILES = 100  # the database, the log, images that are read
HEAD_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 30
STOP_SECONDS = 5
THREAD_SWITCH_SECONDS = 0.001  # else the writing thread waits 5 ms for a busy event loop, twice

_logger = get_logger("ratings")


class HastyProtocol(H11Protocol):
    """Gives up a connection whose request's head is not there in time.

    Uvicorn waits without end for the first request, and anew for every byte of a slow one; so a
    few thousand idle clients could hold all connections. Where there are too many, the newest is
    given up: Uvicorn would refuse the requests of all.

    Attributes:
        max_connections: At once.
    """

    max_connections = MAX_CONNECTIONS
    _head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Send replies at once, and begin to wait for the first request."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        # asyncio does it for sockets that name their protocol only; 40 ms a reply without it.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Go on waiting if this was not the rest of the head."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
        else:
            self._end_wait()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; a request whose body it was to be gets no second reply."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
        super().send_400_response(msg)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._end_wait()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._head_deadline is None:
            self._head_deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _end_wait(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


def serve_study(args: argparse.Namespace) -> None:
    """Serve a study by the flags of ``serve`` until SIGINT or SIGTERM; prints what was answered.

    Raises:
        UserError: If there is no study, or the address cannot be listened on.
    """
    is_local = _is_loopback(args.host)
    address = f"[{args.host}]" if ":" in args.host else args.host
    hosts = [*LOCAL_HOSTS, address] if is_local else None
    if args.public_url and hosts is not None:
        hosts.append(urlsplit(args.public_url).hostname)
    with _listen(args.host, args.port) as listener:
        app = make_app(args.study_dir, hosts=hosts)
        _tell(args, f"http://{address}:{listener.getsockname()[1]}", is_local)
        HastyProtocol.max_connections = _num_connections()
        sys.setswitchinterval(THREAD_SWITCH_SECONDS)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _ignore)  # uvicorn raises the signal that ended it once more
        uvicorn.Server(_settings(app, behind_proxy=bool(args.public_url))).run([listener])
    print_result(_progress(args.study_dir))


def _settings(app: RequestGuard, *, behind_proxy: bool) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # else a line for each bad request
    return uvicorn.Config(
        app,
        http=HastyProtocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,  # the guard writes one, without what must not be in it
        server_header=False,
        proxy_headers=behind_proxy,
        forwarded_allow_ips="127.0.0.1,::1",
        backlog=BACKLOG,
        h11_max_incomplete_event_size=16 * 1024,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def _ignore(number: int, frame: object) -> None:
    """The end that was asked for has come."""


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port}: is in use on {host}; name another one") from error
        raise UserError(f"--host {host} --port {port}: {error.strerror}") from error


def _num_connections() -> int:
    """How many connections may be open: the files that a process may open are raised to it."""
    if os.name != "posix":  # Windows has no such limit
        return MAX_CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(MAX_CONNECTIONS, soft - SPARE_FILES)


def _tell(args: argparse.Namespace, url: str, is_local: bool) -> None:
    _logger.info("listening on %s; Ctrl-C ends it", url)
    if not is_local:
        _logger.warning(
            "--host %s: ratings and tokens cross the network unencrypted; better listen on "
            "127.0.0.1 behind a reverse proxy with TLS, and name its --public_url",
            args.host,
        )
    if args.show_links:
        for name, link in personal_links(args.study_dir, args.public_url or url).items():
            _logger.info("%s: %s", name, link)


def _progress(study_dir: Path) -> dict:
    with Store.open(study_dir) as store:
        return {
            "study_dir": study_dir,
            "raters": [
                {"rater": r.name, "done": store.num_done(r), "shown": store.num_shown(r)}
                for r in store.raters()
            ],
        }
