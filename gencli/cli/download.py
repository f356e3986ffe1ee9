"""The progress line of a download."""

from __future__ import annotations

import time

from gencli.checkpoints.hub_cache import Progress
from gencli.cli.console import Console


def show_download(console: Console) -> Progress:
    """Return a callback that shows a download as one progress line for all files."""
    began = time.monotonic()
    before: int | None = None  # bytes that an earlier try had fetched

    def show(name: str, done: int, total: int) -> None:
        nonlocal before
        before = done if before is None else before
        unit, letter = (10**6, "MB") if total >= 10**7 else (10**3, "kB")
        speed = (done - before) / max(time.monotonic() - began, 1e-3)
        console.progress(f"fetching {name}", done // unit, total // unit, f"{letter}, {speed / 1e6:.1f} MB/s")
        if done >= total:
            console.clear()

    return show


def in_words(size: int) -> str:
    """Format a number of bytes: 613 B, 24.7 MB, 5.2 GB."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**power:
            return f"{size / 10**power:.1f} {unit}"
    return f"{size} B"
