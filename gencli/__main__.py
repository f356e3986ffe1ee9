"""The entry point of `gencli …` and `python -m gencli …`; every end of a run becomes an exit code here."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gencli import signals
from gencli.errors import GencliError

if TYPE_CHECKING:
    from gencli.cli.console import Console

DONE, FAILED, INTERRUPTED, BROKEN_PIPE, TERMINATED = 0, 1, 130, 141, 143


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args` (default: the process's own), print errors on stderr, and return the exit code."""
    with signals.record_signals():
        return _main(sys.argv[1:] if args is None else args)


def _main(args: Sequence[str]) -> int:
    console = None
    try:
        from gencli.cli.console import Console  # in here, so that Ctrl-C during imports ends well too

        _open_standard_streams()
        console = Console(debug="--debug" in (args[: args.index("--")] if "--" in args else args))
        from gencli.cli.app import run

        code = run(args, console)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BaseException as error:
        code = _exit_code(error, console)
        _let_go_of_stdout(code)
        return code


def _exit_code(error: BaseException, console: Console | None) -> int:
    """Print the error, if there is anything to print, and return its exit code."""
    if console is not None:
        console.clear()
        console.traceback(error)
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C has nothing more to stop
        return INTERRUPTED
    if isinstance(error, signals.Terminated):
        return TERMINATED
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else (DONE if error.code is None else FAILED)
    known = error if isinstance(error, GencliError) else _in_plain_words(error)
    if console is not None:
        console.error(known)
    return known.exit_code


def _in_plain_words(error: BaseException) -> GencliError:
    """Translate errors of the operating system; anything else is reported as a defect of gencli."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "out of memory" in text or "DefaultCPUAllocator" in text:  # torch's words
        hint = "a smaller model, a smaller --dtype, or less at a time needs less memory"
        return GencliError(f"out of memory{': ' + text if text else ''}", hint)
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        return GencliError(f"cannot read or write{where}: {error.strerror or text}")
    return GencliError(f"{type(error).__name__}: {text}", "this is a defect of gencli; --debug shows where it is")


def _open_standard_streams() -> None:
    """Open the null device for closed descriptors 0 to 2, so that no other file gets these numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _let_go_of_stdout(code: int) -> None:
    """Flush stdout or drop its buffer, so that the interpreter does not fail on it at exit."""
    if sys.stdout is None:
        return
    try:
        if code != BROKEN_PIPE:
            sys.stdout.flush()
            return
    except (OSError, ValueError):
        pass
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
