"""Workers that are actors of Ray, on the machines of a cluster."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from gencli import signals
from gencli.errors import GencliError, UsageError
from gencli.many.worker import REASON, Message, serve

PATIENCE = 5.0  # seconds that one call waits for messages
MANY = 64  # messages that one call brings at most


class Cluster:
    """A cluster that is reached, and what a worker takes of it.

    address: `ray`, for the cluster that RAY_ADDRESS names or else one that is started here and ends with this process;
    or ray://HOST:PORT. workers: how many, or None for one per GPU, or per machine. threads: of each worker, or None for
    an even share of the cluster's. gpus: of each worker, or None for one if there are any.
    Raise UsageError without Ray, GencliError for a cluster that cannot be reached or has too little for a worker.
    """

    def __init__(self, address: str, workers: int | None, threads: int | None, gpus: float | None):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to Ray's makers
        try:
            import ray
        except ImportError:
            raise UsageError("--on needs Ray, which is not installed", "pip install 'gencli[ray]'") from None
        self.ray: Any = ray
        self.stdout, sys.stdout = sys.stdout, OnlyBytes(sys.stdout)
        named = address if address != "ray" else os.environ.get("RAY_ADDRESS")
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.FATAL}
        if not named:
            how |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        handlers = {number: signal.getsignal(number) for number in signals.ENDING}
        try:
            ray.init(named or "local", **how)
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        except Exception as error:
            sys.stdout = self.stdout
            words = " ".join(str(error).split())[:REASON]
            raise GencliError(f"--on {named or address}: no cluster can be reached: {words}") from None
        finally:  # Ray takes SIGTERM for itself
            for number, handler in handlers.items():
                signal.signal(number, handler)
        # A worker is on one machine: it can have no more than the largest has, however much they have together.
        cores, cards = ([machine.get(name, 0) for machine in machines] for name in ("CPU", "GPU"))
        if gpus is None:
            gpus = 1.0 if sum(cards) else 0.0
        self.workers = workers or (int(sum(cards) / gpus) if gpus else len(machines))
        self.threads = threads or max(int(min(sum(cores) // max(self.workers, 1), max(cores, default=0))), 1)
        if self.workers < 1 or self.threads > max(cores, default=0) or gpus > max(cards, default=0):
            has = f"{max(cores, default=0):g} cores and {max(cards, default=0):g} GPUs"
            raise GencliError(f"--on {named or address}: the largest machine has {has}, and a worker wants more")
        # A worker that dies is not restarted by Ray: its block is given to another, and a new one takes its place.
        wants: dict[str, Any] = {"num_cpus": self.threads, "num_gpus": gpus, "max_restarts": 0}
        wants["concurrency_groups"] = {"in": 1, "out": 1}  # a thread each: messages stay in their order
        self.actor = ray.remote(**wants)(Actor)

    def start(self, tell: Callable[[Message], None]) -> RayWorker:
        """Start a worker whose messages `tell` takes."""
        return RayWorker(self.ray, self.actor.remote(), tell)

    def close(self) -> None:
        """Let go of the cluster; one that was started here ends."""
        self.ray.shutdown()
        sys.stdout = self.stdout


class OnlyBytes:
    """A stream that takes bytes through `buffer`, and drops the remarks that Ray prints as text."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class RayWorker:
    """The driver's side of an actor (see `crew.Worker`)."""

    def __init__(self, ray: Any, actor: Any, tell: Callable[[Message], None]):
        self.ray, self.actor, self.tell = ray, actor, tell
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, message: Any) -> None:
        self.actor.put.options(concurrency_group="in").remote(message)

    def kill(self) -> None:
        self.ray.kill(self.actor)

    def _listen(self) -> None:
        try:
            while True:
                for message in self.ray.get(self.actor.take.options(concurrency_group="out").remote()):
                    self.tell(message)
        except Exception as error:  # the actor or its machine has died, or the cluster cannot be reached any more
            self.tell(("died", f"Ray says {type(error).__name__}"))


class Actor:
    """The worker's side: `worker.serve` in a thread, and its messages in two queues."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=serve, args=(self.inbox.get, self.outbox.put), daemon=True).start()

    def put(self, message: Any) -> None:
        """Take a message of the driver."""
        self.inbox.put(message)

    def take(self) -> list[Message]:
        """Return the messages for the driver, once there are any or some time has passed."""
        found: list[Message] = []
        try:
            found.append(self.outbox.get(timeout=PATIENCE))
            while len(found) < MANY:
                found.append(self.outbox.get_nowait())
        except queue.Empty:
            pass
        return found
