"""safetensors files, one or sharded, memory-mapped: nothing is read before it is used, nothing is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

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
from gencli.errors import GencliError
from gencli.files import read_json

__all__ = ["Tensors", "open_tensors", "read_json"]


class Tensors:
    """The tensors of one module, by name, in one file or several. Opening reads headers only."""

    def __init__(self, files: list[Path], index: dict[str, str] | None = None):
        """`index`: name → file name, from `*.index.json`; the files must then hold exactly those names there.

        Raises GencliError for a file that is truncated, overlapping or no safetensors, and for a wrong index.
        """
        self.files = files
        self._where: dict[str, Any] = {}
        for file in files:
            for name, handle in self._open(file).items():
                if name in self._where:
                    raise GencliError(f"{file}: tensor {name!r} is in another shard too")
                if index is not None and index.get(name) != file.name:
                    raise GencliError(f"{file}: tensor {name!r} is not where the index says ({index.get(name)})")
                self._where[name] = handle
        if index is not None and (lost := [name for name in index if name not in self._where]):
            raise GencliError(f"{files[0].parent}: the index names tensors that no shard holds: {some(lost)}")

    def _open(self, file: Path) -> dict[str, Any]:
        """A file's tensors: name → whatever `shape`, `dtype` and `get` read it from."""
        try:
            handle = safe_open(file, framework="pt")
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # torch's, when it is too large to map
            raise GencliError(f"{file} is broken or no safetensors file: {_one_line(error)}") from None
        return dict.fromkeys(handle.keys(), handle)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header."""
        return tuple(self._where[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """A tensor's dtype as safetensors writes it (`F32`, `F16`, `BF16`, …), from the header."""
        return self._where[name].get_slice(name).get_dtype()

    def get(self, name: str) -> torch.Tensor:
        """A tensor on the CPU that shares the file's memory map: its pages are read when they are used."""
        try:
            return self._where[name].get_tensor(name)
        except (SafetensorError, RuntimeError) as error:
            raise GencliError(f"{self.files[0]}: cannot read tensor {name!r}: {_one_line(error)}") from None


def open_tensors(path: Path, variant: str | None = None, *, allow_pickle: bool = False) -> Tensors:
    """Open the weights in a folder (or one .safetensors file).

    `variant` names one as the hub does (`fp16` in model.fp16.safetensors); without it the plain files are taken, else
    fp16, else bf16; files of two variants are never mixed. With `allow_pickle` pickles are opened where
    there are no safetensors, tensors alone (see `pickles`). Raises GencliError when there is nothing safe to open.
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
    for name in names:  # what lies there may be a link: the hub's cache is made of them
        if not (index.parent / name).is_file():
            raise GencliError(f"{index} names {name}, which is not there", "the download may be incomplete")
    files = [index.parent / name for name in names]
    if suffix == BIN:
        return _pickled(files, weight_map["weight_map"])
    return Tensors(files, weight_map["weight_map"])


def _pickled(files: list[Path], index: dict[str, str] | None = None) -> Tensors:
    from gencli.checkpoints.pickles import PickledTensors

    return PickledTensors(files, index)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
