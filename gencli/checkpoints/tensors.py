"""The tensors of safetensors files, memory-mapped: nothing is read before it is used, nothing is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from gencli.checkpoints.header import open_safetensors
from gencli.checkpoints.layout import some
from gencli.errors import GencliError


class Tensors:
    """The tensors of one module, by name, in one file or several. Opening reads headers only."""

    def __init__(self, files: list[Path], index: dict[str, str] | None = None):
        """index: name → file name, from `*.index.json`; each file must then hold exactly its names.

        Raise GencliError for a file that is truncated, overlapping or not safetensors, and for a wrong index.
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
        """Return name → an object that `shape`, `dtype` and `get` read the tensor from."""
        handle = open_safetensors(file, "pt")
        return dict.fromkeys(handle.keys(), handle)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, from the header."""
        return tuple(self._where[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors writes it (`F32`, `F16`, `BF16`, …), from the header."""
        return self._where[name].get_slice(name).get_dtype()

    def get(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU that shares the file's memory map: its pages are read when they are used."""
        try:
            return self._where[name].get_tensor(name)
        except (SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise GencliError(f"{self.files[0]}: cannot read tensor {name!r}: {reason}") from None
