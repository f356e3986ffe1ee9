"""Ctrl-C, SIGTERM and SIGHUP: the first one ends the work in order, the second one at once.

The first raises its exception, but for heavy imports: C code that imports modules may swallow it, make an ImportError
of it, or abort the process (torch's and numpy's do), so `raise_pending_signals` raises it when they are done. The
second ends the process even inside one long operation of C code, for whose end Python's handlers wait: the system's
own handler writes the number of each signal into a pipe at once, and a thread reads there.

Nothing is imported but what the interpreter itself needs, so that signals find their handlers as early as can be.
"""

from __future__ import annotations

# What `signal` is made of: that module's own imports would take most of the time until here.
import _signal  # type: ignore[import-not-found]
import _thread
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    Handler = Callable[[int, FrameType | None], object] | int | None  # of a signal

ENDING: tuple[int, ...] = tuple(
    getattr(_signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(_signal, name)
)
PAUSE = 0.1  # seconds after a signal in which another belongs to it: timeout(1) sends two

_received: list[BaseException] = []  # the first signal, unless it was answered
_holding = 0  # how many contexts there are at whose end it is raised
_before: dict[int, Handler] = {}  # handlers that were there before
_pipe: list[int] = []
_since: float | None = None  # when the first one came
_answered = -PAUSE  # when one was answered last
_finished = False


class Terminated(SystemExit):
    """SIGTERM or SIGHUP came. Not an Exception, so that nothing handles it as a failure; and a SystemExit, which an
    event loop (the prompt's, the server's) lets through wherever it comes, as it does KeyboardInterrupt and no other.
    """

    def __init__(self, number: int = 15):
        super().__init__()
        self.number = number


def listen() -> None:
    """Take over those of the signals that are not ignored, as nohup has SIGHUP and a shell's background jobs SIGINT."""
    global _since, _finished
    _received.clear()
    _since, _finished = None, False
    try:
        for number in ENDING:
            if _signal.getsignal(number) in (_signal.SIG_DFL, _signal.default_int_handler):
                _before[number] = _signal.signal(number, _receive)
    except ValueError:  # not the main thread: no signals there
        return
    if os.name == "posix":
        reader, writer = os.pipe()
        _pipe.append(writer)
        os.set_blocking(writer, False)
        _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        _thread.start_new_thread(_watch, (reader,))


def watch() -> None:
    """Have signals reach the thread that counts them again, after a library (asyncio) has taken them elsewhere."""
    if _pipe:
        _signal.set_wakeup_fd(_pipe[0], warn_on_full_buffer=False)


def stop_listening() -> None:
    """Put the handlers back that were there before."""
    for number, handler in _before.items():
        if _signal.getsignal(number) is _receive:
            _signal.signal(number, handler)
    _before.clear()
    if _pipe:
        _signal.set_wakeup_fd(-1)
        os.close(_pipe.pop())


def answered() -> None:
    """Say that the signal which came is dealt with, and the process goes on: the next one is a first one."""
    global _since, _answered
    _received.clear()
    _since, _answered = None, time.monotonic()


def finish() -> None:
    """Say that the work is done: from now on the first signal ends the process at once."""
    global _finished
    _finished = True


class raise_pending_signals:
    """A context, for heavy imports, after which the exception of a signal is raised that came in it."""

    def __enter__(self) -> None:
        import gc
        import sys

        global _holding
        _holding += 1
        self._first = gc.isenabled() and "torch" not in sys.modules
        if self._first:
            gc.disable()  # what torch makes as it is imported stays: looking for garbage there takes an eighth as long

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        import gc

        global _holding
        _holding -= 1
        if self._first:
            gc.freeze()
            gc.enable()
        if _received and (error is None or isinstance(error, Exception)):
            raise _received[-1] from None


def _receive(number: int, frame: FrameType | None) -> None:
    if _finished:
        os._exit(128 + number)
    if not _received:
        _received.append(KeyboardInterrupt() if number == _signal.SIGINT else Terminated(number))
        if not _holding:
            raise _received[0]


def _watch(reader: int) -> None:
    """End the process at the second signal. This thread takes none itself: they interrupt the main one."""
    global _since
    _signal.pthread_sigmask(_signal.SIG_BLOCK, ENDING)
    while data := os.read(reader, 1):
        now = time.monotonic()
        if data[0] not in _before or now - _answered < PAUSE:
            continue
        if _since is None:
            _since = now
        elif now - _since > PAUSE:
            os._exit(128 + data[0])
    os.close(reader)
