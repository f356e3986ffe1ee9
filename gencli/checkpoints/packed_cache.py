"""Packed copies of models (`--quantize`), beside the hub's cache: made once, then mapped as GGUF files are.

gencli/FILES-MIX-CONTENT.gguf      FILES: hash of the weights' paths; CONTENT: of their sizes, times and VERSION

A copy has the tensors alone; config and tokenizer stay the checkpoint's. Language models that GGUF has names for are
written under those; other models under their own. A copy of what a file was before is removed when a new one is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gencli.atomic import PARTIAL, open_over
from gencli.checkpoints import hub_cache
from gencli.checkpoints.checkpoint import Part
from gencli.checkpoints.gguf_file import GgufFile, metadata_get
from gencli.checkpoints.tensors import Tensors
from gencli.errors import GencliError
from gencli.kernels import PACKED

VERSION = 1  # of how weights are packed
IDLE = 3600  # seconds after which nobody writes a file any more
SOURCES, HEADS = "gencli.sources", "gencli.heads"

Show = Callable[[str, int, int], None]


def root() -> Path:
    """Return the folder of the copies."""
    return hub_cache.root().parent / "gencli"


def open_packed(part: Part, config: Mapping[str, object], mix: str, progress: Show, *, device: str) -> Tensors:
    """Return the tensors of a model packed, from the copy in the cache, which is made if it is not there.

    config: the part's, where a user's word holds over the file's. mix: a row of `mixes.MIXES`. progress: as
    `gguf_write.write_gguf`. device: the kind that the model is for.
    Raise GencliError for another device than the CPU, where the copy cannot be written, and for weights that cannot be
    packed or are so already.
    """
    from gencli.checkpoints.formats.gguf import gguf_tensors

    weights = part.tensors()
    if packed := sorted({weights.dtype(name) for name in weights} & set(PACKED)):
        raise GencliError(f"--quantize: the weights in {part.path} are packed already ({', '.join(packed)})")
    if device != "cpu":
        raise GencliError(f"--quantize: packed weights run on the CPU, not on {device}", "--device cpu")

    def show(name: str, done: int, total: int) -> None:
        weights.forget()  # of the tensor before: never two copies in memory
        progress(name, done, total)

    path = _path(weights.files, mix, part.name)
    if (found := _read(path)) is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent)
            _write(path, part, config, mix, show)
            weights.forget()
        except OSError as error:
            raise GencliError(
                f"cannot keep the packed weights as {path}: {error.strerror or error}",
                "HF_HOME names another place; or `gencli models convert` writes a file for -m",
            ) from None
        for old in path.parent.glob(f"{path.name.rpartition('-')[0]}-*.gguf"):
            if old != path:
                old.unlink(missing_ok=True)
        found = GgufFile(path)
    if (heads := metadata_get(found.metadata, HEADS, list)) is None:
        return Tensors([found])
    return gguf_tensors(found, dict(zip(("num_attention_heads", "num_key_value_heads"), heads, strict=True)))


def _sweep(folder: Path) -> None:
    """Remove what runs that were killed have left half written; a run that writes does so all the time."""
    for partial in folder.glob(f"{PARTIAL}*"):
        with contextlib.suppress(FileNotFoundError):  # it became a copy, or another run has removed it
            if time.time() - partial.stat().st_mtime > IDLE:
                partial.unlink()


def _read(path: Path) -> GgufFile | None:
    """The file of a copy; None if it is not there, or damaged."""
    try:
        return GgufFile(path) if path.is_file() else None
    except GencliError:
        return None


def _write(path: Path, part: Part, config: Mapping[str, object], mix: str, progress: Show) -> None:
    import torch

    from gencli.checkpoints.build import load
    from gencli.checkpoints.formats.gguf_draft import family_of, plan, plan_own
    from gencli.checkpoints.formats.gguf_families import FAMILIES
    from gencli.checkpoints.gguf_write import write_gguf

    weights = part.tensors()
    # Whose weights stay mapped.
    module = load(part.path, dtype=torch.float32, config=config, tensors=weights, layerwise_casting=True)
    metadata: dict[str, object] = {SOURCES: [os.path.realpath(file) for file in weights.files]}
    family = family_of(module)
    if family is not None and FAMILIES[family].read:  # which llama.cpp has in another order: the config is the model's
        family = None
    if family is not None:
        heads = getattr(module.config, "num_attention_heads", 1)
        metadata |= {"general.architecture": family, HEADS: [heads, getattr(module.config, "kv_heads", heads)]}
    with open_over(path) as stream:
        write_gguf(stream, metadata, plan_own(module, mix) if family is None else plan(module, mix), progress)


def _path(files: Sequence[Path], mix: str, part: str) -> Path:
    paths = sorted(os.path.realpath(file) for file in files)
    states = [(path, (state := os.stat(path)).st_size, state.st_mtime_ns) for path in paths]
    return root() / f"{_digest([part, *paths] if part else paths)}-{mix}-{_digest([VERSION, states])}.gguf"


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def copies(folder: Path | None = None) -> dict[Path, int]:
    """Return the copies, and their bytes; with a folder or file those of weights that lie in it."""
    found = {}
    for path in sorted(root().glob("*-*-*.gguf")):
        sources = _sources(path)
        place = None if folder is None else Path(os.path.realpath(folder))
        if place is None or any(place == source or place in source.parents for source in sources):
            found[path] = path.stat().st_size
    return found


def mixes(folder: Path) -> dict[str, int]:
    """Return the types that there are copies in of weights in a folder or file, and their bytes."""
    found: dict[str, int] = {}
    for path, size in copies(folder).items():
        mix = path.name.split("-")[1]
        found[mix] = found.get(mix, 0) + size
    return found


def _sources(copy: Path) -> list[Path]:
    file = _read(copy)
    return [] if file is None else [*map(Path, metadata_get(file.metadata, SOURCES, list, []))]


def lost() -> list[Path]:
    """Return the files of weights that there are copies of and that are gone."""
    return sorted({source for copy in copies() for source in _sources(copy) if not source.exists()})


def remove(folder: Path, *, only_lost: bool = False) -> int:
    """Remove the copies of weights in a folder or file. Return the bytes that were freed.

    only_lost: those alone of which some weights are not there any more.
    """
    found = copies(folder)
    if only_lost:
        found = {path: size for path, size in found.items() if not all(map(os.path.exists, _sources(path)))}
    for path in found:
        path.unlink(missing_ok=True)
    return sum(found.values())
