"""The entry point of `gencli …` and `python -m gencli …`; every end of a run becomes an exit code here."""

from __future__ import annotations

import os
import sys

from gencli import signals  # and nothing that takes longer to import

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from gencli.cli.console import Console
    from gencli.errors import GencliError

DONE, FAILED, INTERRUPTED, BROKEN_PIPE = 0, 1, 130, 141
# How often a thread of OpenMP's looks for work before it sleeps: enough between two products of one step, and little
# for a neighbour on the same cores. libgomp's own 300,000 made two runs at once many times slower than one.
SPINS = "1000"


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args`, print errors on stderr, and return the exit code.

    Without `args` it is the process's own command line, and nothing of the process is used afterwards: a signal ends it
    here, as the interpreter's own end would stumble over what is still running.
    """
    console = None
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():  # the user's word counts
        os.environ["GOMP_SPINCOUNT"] = SPINS
        os.environ["KMP_BLOCKTIME"] = "1"  # milliseconds of LLVM's OpenMP (macOS), which has 200 itself
    if args is None:
        _speak_utf8()
    try:
        _open_standard_streams()
        signals.listen()
        if os.environ.get("_GENCLI_COMPLETE"):
            from gencli.cli.tab import quick

            if (code := quick()) is not None:
                return code
        from gencli.cli.console import Console

        words = sys.argv[1:] if args is None else args
        console = Console(debug="--debug" in (words[: words.index("--")] if "--" in words else words))
        from gencli.cli.app import run

        code = run(words, console)
        if sys.stdout is not None:
            from gencli.cli.sinks import writing_to_stdout

            with writing_to_stdout():
                sys.stdout.flush()
        signals.finish()
        return code
    except BaseException as error:
        ended = isinstance(error, KeyboardInterrupt | signals.Terminated)
        if not ended:
            signals.finish()
        code = _exit_code(error, console)
        _let_go_of_stdout(code)
        if ended and args is None:
            os._exit(code)
        return code
    finally:
        if args is not None:
            signals.stop_listening()
        elif "torch" in sys.modules:  # where the interpreter's end looks for garbage, a fifth of a short command's time
            import gc

            gc.freeze()


def _exit_code(error: BaseException, console: Console | None) -> int:
    """Print the error, if there is anything to print, and return its exit code."""
    if console is not None:
        console.clear()
        console.traceback(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, signals.Terminated):
        return 128 + error.number
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else (DONE if error.code is None else FAILED)
    from gencli.errors import GencliError

    known = error if isinstance(error, GencliError) else _in_plain_words(error)
    if console is not None:
        console.error(known)
    return known.exit_code


def _in_plain_words(error: BaseException) -> GencliError:
    """Translate errors of the operating system; anything else is reported as a defect of gencli."""
    from gencli.errors import GencliError

    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "out of memory" in text or "DefaultCPUAllocator" in text:  # torch's words
        hint = "a smaller model, a smaller --dtype, or less at a time needs less memory"
        return GencliError(f"out of memory{': ' + text if text else ''}", hint)
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        return GencliError(f"cannot read or write{where}: {error.strerror or text}")
    return GencliError(f"{type(error).__name__}: {text}", "this is a defect of gencli; --debug shows where it is")


def _speak_utf8() -> None:
    """Start again in UTF-8 where Python was told another encoding for arguments, names and streams (PYTHONUTF8=0)."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode and os.name == "posix":
        python = os.fsencode(sys.executable)
        os.execv(python, [python, b"-X", b"utf8", b"-m", b"gencli", *map(os.fsencode, sys.argv[1:])])


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
    import contextlib

    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
