"""Prompts from arguments and stdin."""

from __future__ import annotations

import codecs
import itertools
import os
import select
import shlex
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from gencli.cli.console import is_terminal
from gencli.errors import GencliError, UsageError
from gencli.json_files import check_ends

# Longest first: UTF-16's mark begins UTF-32's.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
NUL_HINT = "lines end with newlines, which `tr '\\0' '\\n'` makes of them (-0 is for what is printed)"
EXAMPLES = 'try `gencli text "Once upon a time"`, or pipe a prompt in; see `gencli text --help`'


def check_arguments(arguments: Sequence[str], *, stdin_by_default: bool = True) -> None:
    """Raise UsageError if there is no prompt, or stdin is named twice."""
    if arguments.count("-") > 1:
        raise UsageError("`-` (stdin) can be given only once")
    if not arguments and stdin_by_default and is_terminal(sys.stdin):
        raise UsageError("no prompt", EXAMPLES)


def read_prompt(arguments: Sequence[str], *, stdin_by_default: bool = True) -> str:
    """Return the prompt: arguments joined by a space; `-` is all of stdin, set off by newlines.

    Without arguments it is stdin, or "" unless `stdin_by_default`. With arguments and no `-` stdin is not touched.
    Raise UsageError as `check_arguments`, GencliError when stdin is closed, or it or an argument is not UTF-8.
    """
    check_arguments(arguments, stdin_by_default=stdin_by_default)
    if not arguments:
        return read_stdin() if stdin_by_default else ""
    _check_utf8(arguments)
    if "-" not in arguments:
        return " ".join(arguments)
    where = list(arguments).index("-")
    parts = [" ".join(arguments[:where])] if where else []
    parts.append(read_stdin())
    if arguments[where + 1 :]:
        parts.append(" ".join(arguments[where + 1 :]))
    return "\n".join(parts)


def note_file(arguments: Sequence[str], note: Callable[[str], None]) -> None:
    """Note an argument like @notes.txt, which other programs would read from that file."""
    for argument in arguments:
        if len(argument) > 1 and argument.startswith("@") and os.path.isfile(argument[1:]):
            note(f"{argument} is taken as text; `- < {shlex.quote(argument[1:])}` reads the file")


def pipe_waits() -> bool:
    """Return whether something waits in a pipe to stdin; False where the system does not say it."""
    try:
        import fcntl
        import termios

        number = -1 if sys.stdin is None else sys.stdin.fileno()
        waiting = stat.S_ISFIFO(os.fstat(number).st_mode) and any(fcntl.ioctl(number, termios.FIONREAD, bytes(4)))
    except (ImportError, OSError, ValueError):  # Windows; no stdin; io.UnsupportedOperation is both of the others
        return False
    return waiting


def read_stdin() -> str:
    """Return all of stdin without a newline at its end. Raise GencliError if it is closed or not UTF-8.

    UTF-16 and UTF-32 are read too where a byte order mark tells them.
    """
    return _without_newline(_decode(stdin_bytes().read(), "stdin"))


def read_lines() -> Iterator[str]:
    """Yield the lines of stdin as they arrive, without LF or CRLF. Raise GencliError for a line that is not UTF-8."""
    for line in each_line():
        if isinstance(line, GencliError):
            raise line
        yield line


class LineReader:
    """The lines of stdin as bytes, and whether one is there. count: bytes of the lines that were taken. Raise
    GencliError if it is closed."""

    def __init__(self) -> None:
        self.stream = stdin_bytes()
        self.count = 0
        self.ended = False
        self._lines: deque[bytes] = deque()  # whole ones, without their ends
        self._rest: list[bytes] = []  # parts of one that has not ended

    def ready(self) -> bool:
        """Return whether the next line, or the end, can be had without waiting."""
        while not self.ended and not self._lines and _has_input(self.stream):
            self._read()
        return self.ended or bool(self._lines)

    def readline(self) -> bytes:
        """Return the next line with its end; b"" after the last."""
        while not self.ended and not self._lines:
            self._read()
        if self._lines:
            line = self._lines.popleft() + b"\n"
        else:
            line, self._rest = b"".join(self._rest), []
        self.count += len(line)
        return line

    def rest(self) -> bytes:
        """Return all that comes."""
        held = [*(line + b"\n" for line in self._lines), *self._rest]
        self._lines.clear()
        self._rest, self.ended = [], True
        found = b"".join([*held, self.stream.read()])
        self.count += len(found)
        return found

    def _read(self) -> None:
        more = self.stream.read1(2**16)  # type: ignore[attr-defined]
        self.ended = not more
        first, *others = more.split(b"\n")
        self._rest.append(first)
        for line in others:
            self._lines.append(b"".join(self._rest))
            self._rest = [line]


def _has_input(stream: BinaryIO) -> bool:
    """Return whether reading would not wait; False where the system does not say it."""
    try:
        return bool(select.select([stream.fileno()], [], [], 0)[0])
    except (OSError, ValueError):  # Windows; io.UnsupportedOperation is both
        return False


def each_line(reader: LineReader | None = None) -> Iterator[str | GencliError]:
    """Yield the lines of stdin as `read_lines`; an error stands for a line that is not UTF-8, or
    has NUL bytes."""
    reader = reader or LineReader()
    first = reader.readline()
    if _coding(first) not in ("", "utf-8"):  # wide characters: a line does not end at a byte
        text = _without_newline(_decode(first + reader.rest(), "stdin"))
        yield from text.replace("\r\n", "\n").split("\n")
        return
    for number, line in enumerate(itertools.chain([first] if first else [], iter(reader.readline, b"")), 1):
        try:
            text = _without_newline(_decode(line, f"line {number} of stdin", first=number == 1))
            if "\0" in text:
                raise GencliError(f"line {number} of stdin has NUL bytes", NUL_HINT)
            yield text
        except GencliError as error:
            yield error


def stdin_bytes() -> BinaryIO:
    """Return stdin for bytes. Raise GencliError if it is closed."""
    if sys.stdin is None:
        raise GencliError("stdin is closed", "give the prompt as an argument, or redirect stdin from a file")
    check_ends("stdin")
    return sys.stdin.buffer


def read_data(limit: int, reader: str) -> bytes:
    """Return at most `limit` bytes of stdin. reader: what reads there, for the GencliError if it is closed."""
    if sys.stdin is None:
        raise GencliError(f"stdin is closed, and {reader} from there")
    check_ends("stdin")
    return sys.stdin.buffer.read(limit)


def image_data(path: str, reader: str) -> str | bytes:
    """Return the path of an image, or what stdin holds for `-`. reader: see `read_data`."""
    from gencli.image.files.pictures import FILE_LIMIT

    return read_data(FILE_LIMIT, reader) if path == "-" else path


def _check_utf8(arguments: Sequence[str]) -> None:
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:  # bytes of argv that cannot be decoded arrive as lone surrogates
            raise GencliError(f"the prompt is not valid UTF-8: {argument!r}"[:200]) from None


def _coding(data: bytes) -> str:
    """Return the encoding that a byte order mark tells, or ""."""
    return next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "")


def _decode(data: bytes, what: str, *, first: bool = True) -> str:
    """Return data as text. first: it may begin with a byte order mark, which is no part of the text."""
    mark = _coding(data) if first else ""
    coding = mark or "utf-8"
    wide = next((name for start, name in ((1, "utf-16le"), (0, "utf-16be")) if _is_wide(data, start)), None)
    try:
        if wide and not mark:
            hint = f"convert it: `iconv -f {wide} -t utf-8`"
            if what != "stdin":
                hint += "; NUL bytes between texts: `tr '\\0' '\\n'`"
            raise GencliError(f"{what} is not UTF-8: it looks like UTF-16", hint)
        return data.decode(coding).removeprefix("\ufeff" if mark else "")
    except UnicodeDecodeError as error:
        named = "UTF-8" if coding == "utf-8" else f"the {coding.upper()} that its first bytes say"
        raise GencliError(
            f"{what} is not {named}: byte 0x{data[error.start]:02x} at offset {error.start}",
            "convert it first, for example with `iconv -f latin1 -t utf-8`",
        ) from None


def _is_wide(data: bytes, start: int) -> bool:
    """Return whether most of every second byte is zero and few of the others are: UTF-16 of a Western text."""
    half, other = data[start : start + 4096 : 2], data[1 - start : 4096 : 2]
    return len(data) > 3 and half.count(0) * 2 > len(half) and other.count(0) * 8 < len(other)


def _without_newline(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
