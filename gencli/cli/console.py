"""stderr, for people: progress, notes, statistics, errors. Nothing here ever reaches stdout."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import IO, TextIO

from gencli.errors import HINT_LIMIT, MESSAGE_LIMIT, GencliError, shorten

BOLD, RED, YELLOW, CYAN, DIM = "1", "1;31", "33", "36", "2"
PROGRESS_INTERVAL = 0.1  # seconds between two drawings of the progress line
PATIENCE = 1.0  # seconds after which a speed is trusted


def escape_controls(text: str, keep: str = "\n\t") -> str:
    """Show control characters (Unicode's Cc: C0, DEL, C1) as `\\x1b`, so that no text can steer a terminal."""
    if text.isprintable():
        return text
    return "".join(
        c if c in keep or unicodedata.category(c) != "Cc" else c.encode("unicode_escape").decode() for c in text
    )


def duration(seconds: float) -> str:
    """Return a time as people say it: 40 s, 12 min, 3 h 5 min."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def is_terminal(stream: IO[str] | None) -> bool:
    """Return whether a stream exists, is open and is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


class Console:
    """Messages on stderr. `main` makes one, which every command gets as `ctx.obj`.

    `color` is auto, always or never; `quiet` leaves out progress and notes; `debug` shows tracebacks.
    """

    def __init__(self, stream: TextIO | None = None, *, debug: bool = False):
        self.stream = sys.stderr if stream is None else stream
        self.color = "auto"
        self.quiet = False
        self.debug = debug
        self._drawn = False  # the progress line is on the screen
        self._aside = False  # an aside has begun a line
        self._last = 0.0
        self._began = ("", 0, 0.0)  # the label of the progress line, and what was done when, as it began

    def colored(self, stream: IO[str] | None = None) -> bool:
        """Return whether `stream` (default: stderr) gets colours: by --color, else by its kind, NO_COLOR and TERM."""
        if self.color != "auto":
            return self.color == "always"
        stream = self.stream if stream is None else stream
        return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def style(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colored() else text

    def note(self, text: str) -> None:
        """Print something worth knowing that is not an error."""
        if not self.quiet:
            self._line(f"{self.style('note:', CYAN)} {shorten(self._safe(text), MESSAGE_LIMIT)}")

    def stats(self, text: str) -> None:
        """Print what --stats asks for, even with --quiet."""
        self._line(self.style(self._safe(text), DIM))

    def say(self, text: str) -> None:
        """Print the answer to a command of `gencli chat`, even with --quiet."""
        self._line(self._safe(text))

    def aside(self, text: str) -> None:
        """Print a model's reasoning as it comes, only on a terminal: dimmed, or named where there are no colours."""
        text = text if self._aside else text.lstrip()
        if text and not self.quiet and is_terminal(self.stream):
            self.clear()
            named = "" if self._aside or self.colored() else "reasoning: "
            self._aside = True
            self._write(named + self.style(self._safe(text), DIM))

    def end_aside(self) -> None:
        """End the line of an aside, if one is open."""
        if self._aside:
            self._aside = False
            self._write("\n")

    def error(self, error: GencliError) -> None:
        """Print `error: …`, and `hint: …` if there is one."""
        self._line(f"{self.style('error:', RED)} {shorten(self._safe(error.message), MESSAGE_LIMIT)}")
        if error.hint:
            self._line(f"{self.style('hint:', YELLOW)} {shorten(self._safe(error.hint), HINT_LIMIT)}")

    def traceback(self, error: BaseException) -> None:
        """Print the traceback of an error, with --debug only."""
        if self.debug:
            import traceback

            self._line("".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip())

    @property
    def size(self) -> os.terminal_size:
        """Columns and lines of the terminal that stderr is, whatever stdout is."""
        try:
            size = os.get_terminal_size(self.stream.fileno())
        except (OSError, ValueError, AttributeError):
            return shutil.get_terminal_size()
        return size if min(size) > 0 else shutil.get_terminal_size()

    @property
    def shows_progress(self) -> bool:
        """Whether stderr is a terminal that can redraw a line."""
        return not self.quiet and is_terminal(self.stream) and os.environ.get("TERM") != "dumb"

    def progress(
        self, label: str, done: int | None = None, total: int | None = None, rate: str = "", left: float | None = None
    ) -> None:
        """Draw the progress line: `label`, or `label ━━─ done/total rate, time left`. Any other line clears it.

        left: seconds to the end, if not those that the speed since the label's first line lets expect.
        """
        if not self.shows_progress:
            return
        now = time.monotonic()
        if self._began[0] != label or (done or 0) < self._began[1]:
            self._began = label, done or 0, now
        if self._drawn and now - self._last < PROGRESS_INTERVAL and done is not None and done != total:
            return
        self._last, self._drawn = now, True
        text = self._safe(label)
        if done is not None and total:
            filled = round(20 * done / total)
            text = f"{text} {'━' * filled}{'─' * (20 - filled)} {done}/{total} {rate}".rstrip()
            gained, spent = done - self._began[1], now - self._began[2]
            if left is None and gained and spent >= PATIENCE:
                left = (total - done) * spent / gained
            if left:
                text += f", {duration(left)} left"
        elif rate:
            text = f"{text} {rate}"
        width = self.size.columns - 1
        self._write(f"\r\x1b[K{text[:width]}")

    def clear(self) -> None:
        """Clear the progress line; required before anything else is written to the terminal."""
        if self._drawn:
            self._drawn = False
            self._write("\r\x1b[K")

    def _safe(self, text: str) -> str:
        return escape_controls(text) if is_terminal(self.stream) else text

    def _line(self, text: str) -> None:
        """Write a line, which breaks between words on a terminal."""
        self.clear()
        self.end_aside()
        if is_terminal(self.stream) and "\n" not in text and len(text) > (columns := self.size.columns):
            import textwrap

            text = "\n".join(textwrap.wrap(text, max(columns - 1, 20), break_long_words=False, break_on_hyphens=False))
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        if self.stream is None:
            return
        try:
            encoding = getattr(self.stream, "encoding", None) or "utf-8"
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self.stream.flush()
        except (OSError, ValueError):  # nobody reads stderr: no reason to fail
            pass


class Relay(Console):
    """The console of a worker: its notes go to `tell`, and nothing is shown."""

    def __init__(self, tell: Callable[[str], None]):
        super().__init__()
        self.quiet, self.tell = True, tell

    def note(self, text: str) -> None:
        self.tell(text)
