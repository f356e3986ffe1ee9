"""Workers that are actors of Ray, on the machines of a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Protocol, TextIO, TypedDict, cast
from urllib.parse import urlsplit

from gencli import __version__
from gencli.errors import GencliError, UsageError
from gencli.many.worker import REASON, Message

PATIENCE = 5.0  # seconds that one call waits for messages
MANY = 64  # messages that one call brings at most
SILENCE = 10.0  # seconds in which the head of a cluster has to take a connection
LIMIT = 90.0  # seconds in which it has to be ready for work; Ray itself asks for 30 whether anyone is there
ATTEMPTS = 4  # how often a head is asked that answers, but cannot begin
CLIENT = "ray://"


class Method(Protocol):
    """A method of an actor, as the driver sees it."""

    def remote(self, *args: object) -> object: ...


class Handle(Protocol):
    """An actor, as the driver sees it."""

    put: Method
    take: Method


class Class(Protocol):
    """The class of an actor, as the driver sees it."""

    def remote(self, *args: object) -> Handle: ...


class Machine(TypedDict):
    """What Ray says of one."""

    Alive: bool
    Resources: dict[str, float]


class Ray(Protocol):
    """What is used of Ray."""

    def nodes(self) -> list[Machine]: ...
    def get(self, reference: object) -> list[bytes]: ...
    def kill(self, actor: Handle) -> None: ...
    def shutdown(self) -> None: ...


class Cluster:
    """A cluster that is reached, and what a worker takes of it.

    address: `ray`, for the cluster that RAY_ADDRESS names or else one that is started here and ends with this process;
    or ray://HOST:PORT. workers: how many, or None for one per GPU, or per machine. threads: of each worker, or None for
    an even share of the cluster's. gpus: of each worker, or None for one if there are any.
    Raise UsageError without Ray, GencliError for a cluster that cannot be reached or has too little for a worker.
    """

    def __init__(self, address: str, workers: int | None, threads: int | None, gpus: float | None):
        named = address if address != "ray" else os.environ.get("RAY_ADDRESS", "")
        self.name = f"--on {named or address}"
        ray = _imported(self.name, named)
        self.ray = cast("Ray", ray)
        self.stdout, sys.stdout = sys.stdout, cast("TextIO", OnlyBytes(sys.stdout))
        try:
            _connect(ray.init, named)
            machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        except Exception as error:
            self.close()
            words = _in_words(error)
            hint = "the head's token: RAY_AUTH_TOKEN, or its file ~/.ray/auth_token on this machine too"
            raise GencliError(
                f"{self.name}: no cluster can be reached: {words}", hint if "token" in words else None
            ) from None
        # A worker is on one machine: it can have no more than the largest has, however much they have together.
        cores, cards = ([machine.get(name, 0) for machine in machines] for name in ("CPU", "GPU"))
        if gpus is None:
            gpus = 1.0 if sum(cards) else 0.0
        self.workers = workers or (int(sum(cards) / gpus) if gpus else len(machines))
        self.threads = threads or max(int(min(sum(cores) // max(self.workers, 1), max(cores, default=0))), 1)
        if self.workers < 1 or self.threads > max(cores, default=0) or gpus > max(cards, default=0):
            self.close()
            has = f"{max(cores, default=0):g} cores and {max(cards, default=0):g} GPUs"
            raise GencliError(f"{self.name}: the largest machine has {has}, and a worker wants more")
        # A worker that dies is not restarted by Ray: its block is given to another, and a new one takes its place.
        # The groups are a thread each: messages stay in their order.
        wants: dict[str, object] = {"num_cpus": self.threads, "num_gpus": gpus, "max_restarts": 0}
        wants["concurrency_groups"] = {"in": 1, "out": 1}
        ray.method(concurrency_group="in")(Actor.put)
        ray.method(concurrency_group="out")(Actor.take)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # what a machine without gencli can read
        self.actor = cast("Class", ray.remote(**wants)(Actor))

    def start(self, tell: Callable[[Message], None]) -> RayWorker:
        """Start a worker whose messages `tell` takes. Raise GencliError where the cluster has gone."""
        try:
            return RayWorker(self.ray, self.actor.remote(os.getcwd()), tell)
        except Exception as error:
            raise GencliError(f"{self.name}: the cluster has gone: {_in_words(error)}") from None

    def close(self) -> None:
        """Let go of the cluster; one that was started here ends."""
        with contextlib.suppress(Exception):
            self.ray.shutdown()
        sys.stdout = self.stdout


def _imported(name: str, named: str) -> ModuleType:
    """Return Ray, told what holds for this process. Raise UsageError where a part of it is missing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to Ray's makers
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # no other cluster takes the place of one that has gone
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if named.startswith(CLIENT) and ("RAY_AUTH_TOKEN" in os.environ or any(map(os.path.exists, _tokens()))):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as Ray does it itself, but not for its client
    try:
        import ray

        if named.startswith(CLIENT):
            import grpc  # noqa: F401
    except ImportError as error:
        what = "Ray's client" if error.name == "grpc" else "Ray"
        raise UsageError(f"{name} needs {what}, which is not installed", "pip install 'gencli[ray]'") from None
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    logging.getLogger("ray.util.client.logsclient").addHandler(logging.NullHandler())  # it listens to no other
    warnings.filterwarnings("ignore", module=r"ray\b")
    threading.excepthook = TheirThreads(threading.excepthook)
    return ray


def _tokens() -> list[str]:
    """Return where Ray looks for the token of a cluster."""
    return [os.environ.get("RAY_AUTH_TOKEN_PATH", ""), os.path.expanduser("~/.ray/auth_token")]


def _connect(init: Callable[..., object], named: str) -> None:
    """Connect to a cluster, or start one. Raise what Ray raises, OSError and TimeoutError."""
    how: dict[str, object] = {"log_to_driver": False, "logging_level": logging.FATAL}
    if not named:
        how |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    elif named.startswith(CLIENT):  # Ray would ask again and again
        where = urlsplit(named)
        socket.create_connection((where.hostname, where.port or 0), SILENCE).close()
    ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    logger = logging.getLogger("ray.util.client")  # which alone tells that a token is wrong
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(Refusals(ended.put))

    def run() -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                init(named or "local", **how)
                ended.put(None)
                return
            except Exception as error:
                # The head answered, but could not begin: its process for this client may die as it is forked.
                if attempt == ATTEMPTS or not isinstance(error, ConnectionAbortedError):
                    ended.put(error)
                    return
            time.sleep(attempt / 2)

    # In a thread of its own, as Ray's client may wait for ever, and as Ray takes signals for itself in the main one.
    threading.Thread(target=run, daemon=True).start()
    try:
        error = ended.get(timeout=LIMIT if named else None)
    except queue.Empty:
        raise TimeoutError(f"it is not ready for work after {LIMIT:.0f} s") from None
    if error is not None:
        raise error


class TheirThreads:
    """Says nothing of errors in threads of Ray and gRPC alone: the call that they work for tells it (`excepthook`).

    One thread watches the channel to the head until Ray has closed it, and ends with an error where it looks then.
    """

    def __init__(self, before: Callable[[threading.ExceptHookArgs], object]):
        self.before = before

    def __call__(self, error: threading.ExceptHookArgs) -> None:
        frames = (frame for frame, _ in traceback.walk_tb(error.exc_traceback))
        packages = {frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames}
        if "gencli" in packages or not packages & {"ray", "grpc"}:
            self.before(error)


class Refusals(logging.Handler):
    """Hears what Ray's client says of a token that the head does not take."""

    def __init__(self, tell: Callable[[Exception], None]):
        super().__init__()
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if "authentication token" in (said := record.getMessage()):
            self.tell(PermissionError(said.rpartition(": ")[2]))


def _in_words(error: Exception) -> str:
    """Return an error of Ray's in one line; of a traceback that it quotes, the end."""
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return " ".join((text.splitlines()[-1] if "Traceback" in text else text).split())[:REASON]


class OnlyBytes:
    """A stream that takes bytes through `buffer`, and drops the remarks that Ray prints as text."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


class RayWorker:
    """The driver's side of an actor (see `crew.Worker`)."""

    def __init__(self, ray: Ray, actor: Handle, tell: Callable[[Message], None]):
        self.ray, self.actor, self.tell = ray, actor, tell
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, message: object) -> None:
        """Give it a message; one that has ended does not get it."""
        with contextlib.suppress(Exception):
            self.actor.put.remote(pickle.dumps(message))

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(Exception):
            self.ray.kill(self.actor)

    def _listen(self) -> None:
        try:
            while True:
                for data in self.ray.get(self.actor.take.remote()):
                    message = pickle.loads(data)
                    if message[0] == "lacks":
                        hint = f"install gencli {__version__} on every machine that works: pip install gencli"
                        message = ("failed", GencliError(message[1], hint))
                    self.tell(message)
        except Exception as error:  # the actor or its machine has died, or the cluster cannot be reached any more
            self.tell(("died", f"Ray says {type(error).__name__}"))


class Actor:
    """The worker's side: `worker.serve` in a thread, and its messages in two queues.

    It travels as it stands here, and messages as bytes, so that gencli is needed where it works alone, and a machine
    that lacks it can say so. folder: the driver's, which it works in if it is there.
    """

    def __init__(self, folder: str) -> None:
        self.inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        with contextlib.suppress(OSError):
            os.chdir(folder)
        threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        """Be a worker."""
        host = socket.gethostname()
        try:
            from gencli.many.worker import serve
        except ImportError as error:
            self.outbox.put(pickle.dumps(("lacks", f"{host}, a machine of the cluster, cannot import gencli: {error}")))
            return

        def send(message: Message) -> None:
            if message[0] == "failed":
                message[1].message = f"{host}: {message[1].message}"
            self.outbox.put(pickle.dumps(message))

        serve(lambda: pickle.loads(self.inbox.get()), send)

    def put(self, data: bytes) -> None:
        """Take a message of the driver."""
        self.inbox.put(data)

    def take(self) -> list[bytes]:
        """Return the messages for the driver, once there are any or some time has passed."""
        found: list[bytes] = []
        try:
            found.append(self.outbox.get(timeout=PATIENCE))
            while len(found) < MANY:
                found.append(self.outbox.get_nowait())
        except queue.Empty:
            pass
        return found
