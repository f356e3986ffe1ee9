"""Where the server listens, and its life from the first request to the last."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvicorn

from gencli.errors import GencliError
from gencli.serve.app import Server
from gencli.serve.handover import Handover
from gencli.serve.refusal import UNAVAILABLE, Refusal
from gencli.signals import ENDING, Terminated

CONNECTIONS = 512  # at once; beyond them clients are told to come again
HEADERS = 16 * 1024  # bytes of a request's head
LAST = 2  # seconds after the grace in which clients are told that there is no more
ENDS = Refusal(UNAVAILABLE, "the server ends, and the time for answers under way is over")


def serve(
    server: Server,
    sockets: Sequence[socket.socket],
    handover: Handover,
    commands: socket.socket,
    *,
    grace: float,
    ready: Callable[[], None],
    idle: float = math.inf,
) -> None:
    """Answer requests on these sockets, and commands on theirs, until a signal comes or nobody has asked for `idle`
    seconds; then those under way have `grace` seconds to end."""
    config = uvicorn.Config(
        server.app(),
        log_config=None,
        log_level="error",  # what clients do wrong they are told, and nobody else
        access_log=False,
        lifespan="off",
        http="h11",
        ws="none",
        server_header=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEADERS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=None if math.isinf(grace) else math.ceil(grace) + LAST,
    )

    async def run() -> None:
        http = _Announced(config, ready)
        tasks = (server.pool.watch(), _end_idle(http, server, handover, idle), _end_grace(http, server, grace))
        watches = [asyncio.create_task(one) for one in tasks]
        handover.start(commands)
        try:
            await http.serve(list(sockets))
        finally:
            commands.shutdown(socket.SHUT_RDWR)  # no more of them
            await asyncio.to_thread(handover.finish, (http.since or time.monotonic()) + grace)
            for watch in watches:
                watch.cancel()
            server.pool.put_away(all=True)
        if http.ended_by is not None:
            raise KeyboardInterrupt if http.ended_by == signal.SIGINT else Terminated(http.ended_by)

    asyncio.run(run())


async def _end_idle(http: _Announced, server: Server, handover: Handover, idle: float) -> None:
    """End the server when nothing has been under way for so long."""
    last = time.monotonic()
    while True:
        await asyncio.sleep(min(max(idle / 20, 0.05), 10))
        if server.counts.under_way or handover.links:
            last = time.monotonic()
        elif time.monotonic() - max(last, server.pool.used) >= idle:
            http.should_exit = True
            return


async def _end_grace(http: _Announced, server: Server, grace: float) -> None:
    """Tell those whose answers are not done when the grace is over, as long as there are some."""
    while http.since is None or time.monotonic() < http.since + grace:
        await asyncio.sleep(0.05)
    while True:
        server.pool.refuse(ENDS)
        await asyncio.sleep(0.2)


class _Announced(uvicorn.Server):
    """A server that says when it can be reached. A signal ends it in order; a second one is gencli's watch's."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self.ready = ready
        self.ended_by: int | None = None
        self.since: float | None = None  # when the end began

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take over the signals that end a process, while it serves."""
        taken = {number: signal.getsignal(number) for number in map(signal.Signals, ENDING)}
        taken = {number: handler for number, handler in taken.items() if handler is not signal.SIG_IGN}
        for number in taken:
            signal.signal(number, self._end)
        try:
            yield
        finally:
            for number, handler in taken.items():
                signal.signal(number, handler)

    def _end(self, number: int, frame: object) -> None:
        self.ended_by, self.should_exit, self.since = number, True, time.monotonic()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()


@contextlib.contextmanager
def unix_socket(path: Path) -> Iterator[socket.socket]:
    """A socket that this user alone can reach; removed in the end.

    A socket that nobody answers any more is replaced. Raise GencliError where another server answers, for a path that
    is something else, and for one that cannot be made.
    """
    if not path.parent.is_dir():
        raise GencliError(f"cannot listen at {path}: there is no folder {path.parent}", "--socket names another path")
    try:
        if path.is_symlink() or path.exists():
            _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(128)
    except OSError as error:
        raise GencliError(f"cannot listen at {path}: {error.strerror or error}") from None
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    if path.is_symlink() or not stat.S_ISSOCK(path.stat().st_mode):
        raise GencliError(f"{path} is there and is no socket", "--socket names another path")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise GencliError(f"another server answers at {path}", "end it, or name another path by --socket")


@contextlib.contextmanager
def tcp_socket(host: str, port: int) -> Iterator[socket.socket]:
    """A TCP socket at a host and port; port 0 is any that is free. Raise GencliError where there is none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        hint = "--listen 0 picks a port that is free" if error.errno == errno.EADDRINUSE else None
        raise GencliError(f"cannot listen at {host}:{port}: {error.strerror or error}", hint) from None
    with contextlib.closing(listener):
        yield listener
