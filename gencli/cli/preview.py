"""An image on the terminal: two pixels per character cell, one above the other, as half blocks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from PIL import Image

from gencli.cli.console import Console, is_terminal

WIDEST = 48  # columns
SHARE = 0.25  # of the running time, at most
LEVELS = (0, 95, 135, 175, 215, 255)  # of the 256-colour cube


def half_blocks(picture: Image.Image, columns: int, rows: int, *, true_color: bool) -> list[str]:
    """Return an image as lines of `▀`, whose foreground is the upper pixel and whose background the lower one."""
    scale = min(columns / picture.width, 2 * rows / picture.height)
    width, height = max(round(picture.width * scale), 1), max(round(picture.height * scale / 2), 1)
    small = picture.convert("RGB").resize((width, 2 * height), Image.Resampling.BOX)
    pixels = small.tobytes()
    color = _true if true_color else _cube
    lines = []
    for row in range(height):
        cells = []
        for column in range(width):
            top, bottom = (3 * ((2 * row + half) * width + column) for half in (0, 1))
            cells.append(f"\x1b[38;{color(pixels, top)};48;{color(pixels, bottom)}m▀")
        lines.append("".join(cells) + "\x1b[0m")
    return lines


def _true(pixels: bytes, at: int) -> str:
    return f"2;{pixels[at]};{pixels[at + 1]};{pixels[at + 2]}"


def _nearest_level(value: int) -> int:
    return min(range(6), key=lambda i: abs(LEVELS[i] - value))


def _cube(pixels: bytes, at: int) -> str:
    r, g, b = (_nearest_level(value) for value in pixels[at : at + 3])
    return f"5;{16 + 36 * r + 6 * g + b}"


class Preview:
    """Redraws an image in the same place of stderr. `wanted` returns whether it is time to draw again."""

    def __init__(self, console: Console):
        self.console = console
        self.works = is_terminal(console.stream) and console.colored() and os.environ.get("TERM") != "dumb"
        self.began, self.spent = time.monotonic(), 0.0
        self._lines = 0

    def wanted(self) -> bool:
        return self.works and self.spent <= SHARE * (time.monotonic() - self.began)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time in this context as spent on the preview."""
        before = time.monotonic()
        yield
        self.spent += time.monotonic() - before

    def forget(self) -> None:
        """Leave the image on the screen; the next one is drawn below it."""
        self._lines = 0

    def show(self, picture: Image.Image) -> None:
        if not self.works:
            return
        size = self.console.size
        true_color = os.environ.get("COLORTERM") in ("truecolor", "24bit")
        lines = half_blocks(picture, min(size.columns - 1, WIDEST), max(size.lines - 2, 1), true_color=true_color)
        self.console.clear()
        up = f"\x1b[{self._lines}A" if self._lines else ""
        try:
            self.console.stream.write(up + "".join(f"\r{line}\x1b[K\n" for line in lines))
            self.console.stream.flush()
        except (OSError, ValueError):  # nobody reads stderr
            self.works = False
        self._lines = len(lines)
