"""Ctrl-C and SIGTERM, which must not get lost.

Each raises its exception at once. C code that imports modules may swallow it, or make an ImportError of it (torch's and
numpy's do, for a moment of their own imports), so it is recorded too, and `raise_pending_signals` raises it again.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_received: list[BaseException] = []


class Terminated(BaseException):
    """SIGTERM came. Not an Exception, so that nothing handles it as a failure."""


@contextlib.contextmanager
def record_signals() -> Iterator[None]:
    """Make SIGINT (unless it is ignored, as in a shell's background jobs) and SIGTERM raise, and record them."""
    _received.clear()
    before = {}
    try:
        with contextlib.suppress(ValueError):  # not the main thread: no signals there
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
            before[signal.SIGTERM] = signal.signal(signal.SIGTERM, _terminate)
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) in (_interrupt, _terminate):
                signal.signal(number, handler)


@contextlib.contextmanager
def raise_pending_signals() -> Iterator[None]:
    """Raise a KeyboardInterrupt or Terminated that was swallowed in this context; for heavy imports."""
    try:
        yield
    except Exception:
        if not _received:
            raise
    if _received:
        raise _received[-1]


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _received.append(KeyboardInterrupt())
    raise _received[-1]


def _terminate(signum: int, frame: FrameType | None) -> None:
    _received.append(Terminated())
    raise _received[-1]
