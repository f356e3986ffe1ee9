"""Messages typed at a terminal: lines with editing and recall, and several lines that are one message."""

from __future__ import annotations

import contextlib
import sys

from gencli.cli.console import is_terminal
from gencli.errors import GencliError

BLOCK = '"""'
PROMPT, MORE = "> ", ". "


def read_message() -> str:
    """The next message: a line, lines that end in a backslash but for the last, or a block between triple quotes.

    Raises EOFError when the terminal is closed (Ctrl-D), GencliError for bytes that are no text.
    """
    line = _read(PROMPT)
    if line.lstrip().startswith(BLOCK):
        block = line.lstrip()[len(BLOCK) :]
        while not block.rstrip().endswith(BLOCK):
            block += "\n" + _read(MORE)
        return block.rstrip()[: -len(BLOCK)].strip("\n")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + _read(MORE)
    return line


def use_line_editing() -> None:
    """Arrow keys and recall of what was typed, where the system has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (its import is what changes `input`)


def _read(prompt: str) -> str:
    """One line. The prompt is on the terminal: on stderr when stdout is something else."""
    try:
        if is_terminal(sys.stdout):
            return input(prompt)
        if sys.stderr is not None:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        line = sys.stdin.readline()
    except UnicodeDecodeError:
        raise GencliError("that line is not valid UTF-8") from None
    if not line:
        raise EOFError
    return line.removesuffix("\n")
