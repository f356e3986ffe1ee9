"""Opening the weights of a module: safetensors or, when allowed, pickles; one file or sharded."""

from __future__ import annotations

from pathlib import Path

from gencli.checkpoints.layout import (
    BIN,
    PICKLE_HINT,
    PICKLES,
    SAFETENSORS,
    find_pickles,
    shard_names,
    some,
    weight_file,
)
from gencli.checkpoints.tensors import Tensors
from gencli.errors import GencliError
from gencli.json_files import read_json


def open_tensors(path: Path, variant: str | None = None, *, allow_pickle: bool = False) -> Tensors:
    """Open the weights in a folder, or in one .safetensors file.

    variant: a name as the hub has it (`fp16` in model.fp16.safetensors); without it the plain files are taken, else
    fp16, else bf16. Files of two variants are never mixed. allow_pickle: open pickles where there are no safetensors,
    for their tensors alone (see `pickles`). Raise GencliError when there is nothing safe to open.
    """
    if path.is_file():
        if allow_pickle and f"*{path.suffix}" in PICKLES:
            return _pickled([path])
        if path.suffix != ".safetensors":
            raise GencliError(f"{path} is no .safetensors file", PICKLE_HINT if find_pickles([path.name]) else None)
        return Tensors([path])
    names = [file.name for file in path.iterdir() if file.is_file()] if path.is_dir() else []
    if file := weight_file(names, variant):
        return _sharded(path / file) if file.endswith(".json") else Tensors([path / file])
    if allow_pickle and (file := weight_file(names, variant, BIN)):
        return _sharded(path / file, BIN) if file.endswith(".json") else _pickled([path / file])
    pickles = find_pickles(names)
    seen = f" (only {some(pickles)})" if pickles else ""
    what = f"{variant} weights" if variant else "weights"
    raise GencliError(f"{path} has no {what} in safetensors{seen}", PICKLE_HINT if pickles else None)


def _sharded(index: Path, suffix: str = SAFETENSORS) -> Tensors:
    weight_map = read_json(index)
    names = shard_names(weight_map, str(index), suffix)
    for name in names:  # the file may be a broken link: snapshots in the hub cache consist of links
        if not (index.parent / name).is_file():
            raise GencliError(f"{index} names {name}, which is not there", "the download may be incomplete")
    files = [index.parent / name for name in names]
    if suffix == BIN:
        return _pickled(files, weight_map["weight_map"])
    return Tensors(files, weight_map["weight_map"])


def _pickled(files: list[Path], index: dict[str, str] | None = None) -> Tensors:
    from gencli.checkpoints.pickles import PickledTensors

    return PickledTensors(files, index)
