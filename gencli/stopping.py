"""Ctrl-C and SIGTERM, which must never get lost.

Each raises its exception where it comes. C code that imports modules may swallow that, or make an ImportError of it
(torch's and numpy's do, for a moment of their own imports), so what has come is remembered too, for `heeded` to raise.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_came: list[BaseException] = []


class Terminated(BaseException):
    """SIGTERM came. No Exception, so that nothing on the way takes it for a failure."""


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """In here, SIGINT (unless it is ignored, as in a shell's background jobs) and SIGTERM raise and are remembered."""
    _came.clear()
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
def heeded() -> Iterator[None]:
    """Around heavy imports. Raise the KeyboardInterrupt or Terminated that came and was swallowed there."""
    try:
        yield
    except Exception:
        if not _came:
            raise
    if _came:
        raise _came[-1]


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _came.append(KeyboardInterrupt())
    raise _came[-1]


def _terminate(signum: int, frame: FrameType | None) -> None:
    _came.append(Terminated())
    raise _came[-1]
