"""An image on the terminal that stderr is: in full where it can (kitty, iTerm2, sixel), else as half blocks."""

from __future__ import annotations

import contextlib
import io
import os
from base64 import b64encode
from collections.abc import Iterator

import numpy as np
from PIL import Image

from gencli.cli.console import Console, is_terminal
from gencli.cli.preview import half_blocks

CHUNK = 4096  # bytes of one of kitty's escapes
COLORS = 255  # of a sixel's palette
VARIABLE = "GENCLI_GRAPHICS"  # names the protocol, where the terminal does not tell it


def protocol() -> str:
    """Return how this terminal draws images: kitty, iterm2, sixel or blocks."""
    env = os.environ
    term, program = env.get("TERM", ""), env.get("TERM_PROGRAM", "").lower()
    if (named := env.get(VARIABLE, "")) in ("kitty", "iterm2", "sixel", "blocks"):
        return named
    if env.get("TMUX") or term.startswith(("screen", "tmux")):
        return "blocks"
    if env.get("KITTY_WINDOW_ID") or "kitty" in term or "ghostty" in (term + program):
        return "kitty"
    if program in ("iterm.app", "wezterm", "vscode"):
        return "iterm2"
    return "sixel" if "sixel" in term or term.startswith(("foot", "mlterm", "contour")) else "blocks"


def show(console: Console, image: Image.Image) -> None:
    """Draw an image below what the terminal shows; nothing where stderr is no terminal with colours."""
    if not (is_terminal(console.stream) and console.colored()) or os.environ.get("TERM") == "dumb":
        return
    console.clear()
    size = console.size
    how = protocol()
    with contextlib.suppress(OSError, ValueError):  # nobody reads stderr
        if how == "blocks":
            true_color = os.environ.get("COLORTERM") in ("truecolor", "24bit")
            lines = half_blocks(image, size.columns - 1, max(size.lines - 2, 1), true_color=true_color)
            console.stream.write("".join(f"{line}\n" for line in lines))
        else:
            for part in {"kitty": kitty, "iterm2": iterm2, "sixel": sixel}[how](image):
                console.stream.write(part)
            console.stream.write("\n")
        console.stream.flush()


def kitty(image: Image.Image) -> Iterator[str]:
    """Yield kitty's escapes for an image: PNG in base64, in pieces (graphics protocol, f=100)."""
    data = _png(image)
    for start in range(0, len(data), CHUNK):
        head = "a=T,f=100," if start == 0 else ""
        yield f"\x1b_G{head}m={int(start + CHUNK < len(data))};{data[start : start + CHUNK]}\x1b\\"


def iterm2(image: Image.Image) -> Iterator[str]:
    """Yield iTerm2's escape for an image (OSC 1337)."""
    data = _png(image)
    yield f"\x1b]1337;File=inline=1;size={len(data) * 3 // 4}:{data}\x07"


def sixel(image: Image.Image) -> Iterator[str]:
    """Yield DEC's sixels of an image: bands of six rows, in each the pixels of one colour after the other."""
    picture = image.convert("RGB").quantize(COLORS)
    palette = picture.getpalette() or []
    pixels = np.asarray(picture)
    yield f'\x1bPq"1;1;{picture.width};{picture.height}'
    for color in np.unique(pixels).tolist():
        r, g, b = (round(value * 100 / 255) for value in palette[3 * color : 3 * color + 3])
        yield f"#{color};2;{r};{g};{b}"
    for top in range(0, len(pixels), 6):
        band = pixels[top : top + 6]
        bits = 1 << np.arange(len(band))[:, None]
        rows = [f"#{color}{_runs(((band == color) * bits).sum(0) + 63)}" for color in np.unique(band)]
        yield "$".join(rows) + "-"
    yield "\x1b\\"


def _runs(codes: np.ndarray) -> str:
    """Return sixels, of which a run of more than three equal ones is written as a number."""
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    lengths = np.diff(starts, append=len(codes))
    return "".join(
        f"!{length}{chr(codes[start])}" if length > 3 else chr(codes[start]) * int(length)
        for start, length in zip(starts, lengths, strict=True)
    )


def _png(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return b64encode(out.getvalue()).decode()
