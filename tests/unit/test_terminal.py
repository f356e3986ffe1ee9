"""What is drawn on the terminal that stderr is has that terminal's size, wherever stdout goes."""

import fcntl
import os
import pty
import re
import struct
import termios

import pytest
from PIL import Image

from gencli.cli.console import Console
from gencli.cli.preview import Preview


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 40 columns and 10 lines as stderr; stdout is none here. Returns a console and what was drawn."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 40, 0, 0))
    with os.fdopen(slave, "w") as stream, os.fdopen(master, "rb", buffering=0) as seen:
        yield Console(stream), lambda: seen.read(1 << 16).decode()


def test_progress_fits(terminal):
    console, seen = terminal
    console.progress("a label of some length", 3, 4, "12.5 steps/s")
    assert len(seen().removeprefix("\r\x1b[K")) == 39


def test_the_preview_fits(terminal):
    console, seen = terminal
    preview = Preview(console)
    preview.show(Image.new("RGB", (64, 64), "red"))
    drawn = ""
    while drawn.count("\n") < 8:
        drawn += seen()
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", drawn).replace("\r", "").splitlines()
    assert len(lines) == 8 and all(len(line) <= 39 for line in lines)  # so that the cursor can go back up


def test_a_terminal_of_no_size(terminal):
    console, _ = terminal
    fcntl.ioctl(console.stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    assert console.size.columns == 120
