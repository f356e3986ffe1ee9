"""Opening the weights of a module: safetensors or, when allowed, pickles; one file or sharded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from gencli.checkpoints.layout import (
    BIN,
    PICKLE_HINT,
    PICKLES,
    SAFETENSORS,
    find_pickles,
    other_hint,
    shard_names,
    some,
    weight_file,
)
from gencli.checkpoints.safetensors_file import SafetensorsFile
from gencli.checkpoints.scaled_file import with_scales
from gencli.checkpoints.tensors import TensorFile, Tensors
from gencli.errors import GencliError
from gencli.json_files import read_json

GGUF = ".gguf"


def is_gguf_file(path: Path) -> bool:
    """Return whether a file is GGUF: by its ending, or by its first bytes, as ollama's and renamed ones; a .safetensors
    file, which is opened once, says itself that it is none."""
    if path.suffix in (GGUF, SAFETENSORS):
        return path.suffix == GGUF
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    except OSError:  # told where the file is opened
        return False


def open_file(path: Path) -> TensorFile:
    """Open a file of tensors: safetensors, GGUF, or a pickle's tensors and nothing else. Raise GencliError."""
    if is_gguf_file(path):
        from gencli.checkpoints.gguf_file import GgufFile  # and with it numpy

        return GgufFile(path)
    if f"*{path.suffix}" not in PICKLES:
        return with_scales(SafetensorsFile(path))
    from gencli.checkpoints.pickles import PickledFile

    return PickledFile(path)


def check_suffix(path: Path, *, allow_pickle: bool) -> None:
    """Raise GencliError for a file that is no .safetensors file, nor a pickle that may be opened."""
    if path.suffix != SAFETENSORS and not (allow_pickle and f"*{path.suffix}" in PICKLES):
        raise GencliError(f"{path} is not a .safetensors file", PICKLE_HINT if find_pickles([path.name]) else None)


def open_tensors(
    path: Path,
    variant: str | None = None,
    *,
    allow_pickle: bool = False,
    open_file: Callable[[Path], TensorFile] = open_file,
    read_json: Callable[[Path], Mapping[str, object]] = read_json,
) -> Tensors:
    """Open the weights in a folder, or in one .safetensors file.

    variant: named as on the hub (`fp16` in model.fp16.safetensors); without it the plain files are taken, else fp16,
    else bf16. Files of two variants are never mixed. allow_pickle: open pickles where there are no safetensors, for
    their tensors alone (see `pickles`). open_file, read_json: a caller's, which remember what they have read.
    Raise GencliError when there is nothing safe to open.
    """
    if path.is_file():
        check_suffix(path, allow_pickle=allow_pickle)
        return Tensors([open_file(path)])
    names = [file.name for file in path.iterdir() if file.is_file()] if path.is_dir() else []
    for suffix in (SAFETENSORS, BIN) if allow_pickle else (SAFETENSORS,):
        if file := weight_file(names, variant, suffix):
            if not file.endswith(".json"):
                return Tensors([open_file(path / file)])
            shards, index = _shards(path / file, suffix, read_json)
            return Tensors([open_file(shard) for shard in shards], index)
    pickles = find_pickles(names)
    seen = f" (only {some(pickles)})" if pickles else ""
    what = f"{variant} weights" if variant else "weights"
    raise GencliError(f"{path} has no {what} in safetensors{seen}", PICKLE_HINT if pickles else other_hint(names))


def _shards(
    index: Path, suffix: str, read_json: Callable[[Path], Mapping[str, object]]
) -> tuple[list[Path], Mapping[str, str]]:
    """Return the files that an index names, and its weight_map. Raise GencliError for a missing one."""
    raw = read_json(index)
    names = shard_names(raw, str(index), suffix)
    for name in names:  # may be a broken link: snapshots in the hub cache consist of links
        if not (index.parent / name).is_file():
            raise GencliError(f"{index} names {name}, which is not there", "the download may be incomplete")
    return [index.parent / name for name in names], cast("Mapping[str, str]", raw["weight_map"])
