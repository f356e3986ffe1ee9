"""The progress line of a download."""

from __future__ import annotations

import time

from gencli.checkpoints import hub_cache
from gencli.checkpoints.catalogue import FORMATS, OVERHEAD
from gencli.checkpoints.find import Source
from gencli.checkpoints.hub_cache import Progress
from gencli.cli.console import Console

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".ckpt")
STORED = 2  # bytes per parameter of most models that are too large


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


def memory_note(source: Source, memory: int, *, text: bool = False) -> str | None:
    """Return a remark on a model whose weights need more than the memory of this machine, in bytes; else None.

    text: it is a language model, which may be quantized: what would then fit is named.
    """
    files = hub_cache.files(source.path) if source.path.is_dir() else {source.path.name: source.path.stat().st_size}
    weights = {name: size for name, size in files.items() if name.endswith(WEIGHTS)}
    needed = round(sum(weights.values()) * OVERHEAD)
    if not memory or needed <= memory:
        return None
    note = f"{source.name} needs about {in_words(needed)} of memory, and this machine has {in_words(memory)}"
    packed = {name: round(needed * size / STORED) for name, size in FORMATS.items()} if text else {}
    if any(name.endswith(".gguf") for name in weights):
        packed = {}
    fits = next((name for name, size in packed.items() if size <= memory), None)
    return f"{note}: --quantize {fits} needs about {in_words(packed[fits])}" if fits else f"{note}: it may fail"


def in_words(size: int) -> str:
    """Format a number of bytes: 613 B, 24.7 MB, 5.2 GB."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**power:
            return f"{size / 10**power:.1f} {unit}"
    return f"{size} B"
