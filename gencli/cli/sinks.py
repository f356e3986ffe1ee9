"""stdout: streamed text and JSON lines. Nothing but data is written here."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

from gencli.cli.console import escape_controls, is_terminal
from gencli.errors import GencliError

# Allowed in JSON, but a terminal obeys the first range, and some readers take the others for the ends of lines.
UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029]")


def write(data: bytes) -> None:
    """Write bytes to stdout and flush. Raise BrokenPipeError if the reader is gone, else GencliError."""
    out = stdout_bytes()
    with writing_to_stdout():
        out.write(data)
        out.flush()


@contextlib.contextmanager
def writing_to_stdout() -> Iterator[None]:
    """Say of errors of the system that they are stdout's. Raise BrokenPipeError as it is, else GencliError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise GencliError(f"cannot write to stdout: {error.strerror}") from None


def stdout_bytes() -> BinaryIO:
    """Return stdout for bytes. Raise GencliError if it is closed."""
    if sys.stdout is None:
        raise GencliError("stdout is closed: there is nowhere to write to")
    return sys.stdout.buffer


class TextSink:
    """Text as it is made, in UTF-8, each record ended by one newline (unless it has one) or, with `null`, by a NUL.

    On a terminal control characters are shown escaped; anywhere else text is written as it is.
    """

    def __init__(self, *, null: bool = False):
        stdout_bytes()  # fails now rather than after the work
        self.null = null
        self.terminal = is_terminal(sys.stdout)
        self._open = False  # a record has begun
        self._last = ""

    def write(self, text: str) -> None:
        """Write more of the current record, and flush."""
        self._open = True
        if not text:
            return
        self._last = text[-1]
        write((escape_controls(text) if self.terminal else text).encode("utf-8"))

    def end(self) -> None:
        """End the current record."""
        if self.null:
            write(b"\0")
        elif self._last != "\n":
            write(b"\n")
        self._open, self._last = False, ""

    def interrupted(self) -> None:
        """Leave the current record as it is; on a terminal, end its line."""
        if self._open and self.terminal and self._last not in ("", "\n"):
            write(b"\n")


def json_line(value: Mapping[str, object]) -> bytes:
    """Return a JSON object on one line."""
    import json

    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text = UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return text.encode("utf-8") + b"\n"


def write_json(value: Mapping[str, object]) -> None:
    """Write a JSON object on one line, and flush."""
    write(json_line(value))


def write_lines(lines: Iterable[str]) -> None:
    """Write lines on stdout. File names need not be UTF-8; bytes that are not become `?`."""
    sink = TextSink()
    sink.write("\n".join(lines).encode("utf-8", "replace").decode())
    sink.end()


def write_object(value: Mapping[str, object]) -> None:
    """Write a JSON object on stdout. It is strict JSON whatever a config holds: its NaN and Infinity become strings."""
    import json

    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    write_json(json.loads(text, parse_constant=str))
