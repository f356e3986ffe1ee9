"""Prompts from arguments and stdin."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from gencli.cli.console import is_terminal
from gencli.errors import GencliError, UsageError

EXAMPLES = 'try `gencli text "Once upon a time"`, or pipe a prompt in; see `gencli text --help`'


def check_arguments(arguments: Sequence[str], *, stdin_by_default: bool = True) -> None:
    """Raise UsageError if there is no prompt, or stdin is named twice."""
    if arguments.count("-") > 1:
        raise UsageError("`-` stands for all of stdin and can be given once")
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


def read_stdin() -> str:
    """Return all of stdin without a newline at its end. Raise GencliError if it is closed or not UTF-8."""
    return _without_newline(_decode(stdin_bytes().read(), "stdin"))


def read_lines() -> Iterator[str]:
    """Yield the lines of stdin as they arrive, without LF or CRLF. Raise GencliError for a line that is not UTF-8."""
    for number, line in enumerate(stdin_bytes(), 1):
        yield _without_newline(_decode(line, f"line {number} of stdin"))


def stdin_bytes() -> BinaryIO:
    """Return stdin for bytes. Raise GencliError if it is closed."""
    if sys.stdin is None:
        raise GencliError("stdin is closed", "give the prompt as an argument, or redirect stdin from a file")
    return sys.stdin.buffer


def read_data(limit: int, reader: str) -> bytes:
    """Return at most `limit` bytes of stdin. reader: what reads there, for the GencliError if it is closed."""
    if sys.stdin is None:
        raise GencliError(f"stdin is closed, and {reader} from there")
    return sys.stdin.buffer.read(limit)


def _check_utf8(arguments: Sequence[str]) -> None:
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:  # bytes of argv that cannot be decoded arrive as lone surrogates
            raise GencliError(f"the prompt is not valid UTF-8: {argument!r}"[:200]) from None


def _decode(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GencliError(
            f"{what} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}",
            "convert it first, for example with `iconv -f latin1 -t utf-8`",
        ) from None


def _without_newline(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
