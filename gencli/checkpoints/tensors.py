"""The tensors of a module by name, in one file or several: nothing is read before it is used, nothing is trusted.

No torch before a tensor is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gencli.checkpoints.layout import some
from gencli.errors import GencliError
from gencli.models.base import EXPERT_LIMIT

if TYPE_CHECKING:
    from torch import Tensor

BUFFERS = re.compile(r".*\.(rotary_emb\.inv_freq|attn\.(masked_)?bias)")  # an index may name them though none is saved


class TensorFile(Protocol):
    """An open file of tensors, by name. shapes and dtypes (as safetensors writes them: `F32`, …) are known at once."""

    @property
    def path(self) -> Path: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def dtypes(self) -> Mapping[str, str]: ...

    @property
    def metadata(self) -> Mapping[str, object]:
        """Return what the writer says about the file."""
        ...

    def get(self, name: str) -> Tensor:
        """Return a tensor on the CPU, in the file's own memory where it can be. Raises GencliError."""
        ...

    def numbers(self, name: str) -> Sequence[float] | None:
        """Return the numbers of a small tensor of floats; None for other kinds."""
        ...

    def forget(self) -> None:
        """Let go of the memory that was read, which is read again if it is used again."""
        ...


class Tensors:
    """The tensors of one module, by name, in one file or several."""

    def __init__(self, files: Sequence[TensorFile], index: Mapping[str, str] | None = None):
        """Take the tensors of all files. Raise GencliError for a name that is in two files, and for a wrong index.

        index: name → file name, from `*.index.json`; the files must then hold exactly those names.
        """
        self.files = [file.path for file in files]
        self.metadata: Mapping[str, object] = files[0].metadata if files else {}
        self._where: dict[str, TensorFile] = {}
        for file in files:
            for name in file.shapes:
                if name in self._where:
                    raise GencliError(f"{file.path}: tensor {name!r} is in another shard too")
                if index is not None and index.get(name) != file.path.name:
                    raise GencliError(f"{file.path}: tensor {name!r} is not where the index says ({index.get(name)})")
                self._where[name] = file
        if index is not None and (
            lost := [name for name in index if name not in self._where and not BUFFERS.fullmatch(name)]
        ):
            raise GencliError(f"{self.files[0].parent}: the index names tensors that no shard holds: {some(lost)}")

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def stored(self) -> dict[str, TensorFile]:
        """Return the tensors that lie in files: their names there, and the file."""
        return dict(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, without reading it."""
        return tuple(self._where[name].shapes[name])

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors writes it (`F32`, `F16`, `BF16`, …), without reading it."""
        return self._where[name].dtypes[name]

    def get(self, name: str) -> Tensor:
        """Return a tensor on the CPU that shares the file's memory map: its pages are read when they are used."""
        return self._where[name].get(name)

    def forget(self) -> None:
        """Let go of the memory that was read, which is read again if it is used again."""
        for file in {id(file): file for file in self._where.values()}.values():
            file.forget()


class PrefixedFile:
    """A file of tensors with a prefix before all names, so that it can be one of several."""

    def __init__(self, file: TensorFile, prefix: str):
        self.path, self.metadata, self._file, self._prefix = file.path, file.metadata, file, prefix
        self.shapes = {prefix + name: shape for name, shape in file.shapes.items()}
        self.dtypes = {prefix + name: dtype for name, dtype in file.dtypes.items()}

    def get(self, name: str) -> Tensor:
        """Return a tensor on the CPU."""
        return self._file.get(name.removeprefix(self._prefix))

    def numbers(self, name: str) -> Sequence[float] | None:
        """Return the numbers of a small tensor."""
        return self._file.numbers(name.removeprefix(self._prefix))

    def forget(self) -> None:
        """Let go of the memory that was read."""
        self._file.forget()


class Piece(NamedTuple):
    """Where a tensor comes from: its name in the file, and what changes it on the way (None: nothing does)."""

    source: str
    transform: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Expert:
    """Cuts a matrix of one expert out of those of all, (count, rows, columns). part, parts: which of several matrices,
    one below the other, is meant."""

    number: int
    count: int
    part: int = 0
    parts: int = 1

    def cut(self, rows: Tensor) -> Tensor:
        """Return this one's rows of those of all, one below the other."""
        size = len(rows) // (self.count * self.parts)
        first = (self.number * self.parts + self.part) * size
        return rows[first : first + size]

    def __call__(self, tensor: Tensor) -> Tensor:
        return self.cut(tensor.flatten(0, 1))


class RenamedTensors(Tensors):
    """Tensors under other names, and in other shapes where their pieces have a `transform`.

    Transforms are views of the file's memory, but for small matrices.
    """

    def __init__(self, tensors: Tensors, pieces: Mapping[str, Piece]):
        self.files, self.metadata = tensors.files, tensors.metadata
        self._tensors, self._pieces, stored = tensors, pieces, tensors.stored()
        self._where = {name: stored[piece.source] for name, piece in pieces.items()}

    def stored(self) -> dict[str, TensorFile]:
        """Return the tensors that lie in files: their names there, and the file."""
        return {piece.source: self._where[name] for name, piece in self._pieces.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape after its transform, without reading it."""
        piece = self._pieces[name]
        if piece.transform is None:
            return self._tensors.shape(piece.source)
        import torch

        return tuple(self._changed(piece, torch.empty(self._tensors.shape(piece.source), device="meta")).shape)

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors writes it, without reading it."""
        return self._tensors.dtype(self._pieces[name].source)

    def get(self, name: str) -> Tensor:
        """Return a tensor on the CPU. Raises GencliError for one that its transform does not fit."""
        piece = self._pieces[name]
        return self._changed(piece, self._tensors.get(piece.source))

    def _changed(self, piece: Piece, tensor: Tensor) -> Tensor:
        try:
            return tensor if piece.transform is None else piece.transform(tensor)
        except GencliError as error:
            raise GencliError(f"{self.files[0]}: {piece.source}: {error.message}") from None


def elementwise(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a transform that keeps shapes: of a tensor without numbers it computes nothing, for which torch would
    import for seconds first."""
    return lambda tensor: tensor if tensor.is_meta else change(tensor)


def unstacked(tensors: Tensors, stacked: Mapping[str, Sequence[str]]) -> Tensors:
    """Return the tensors with one for each matrix of each expert, in place of those that hold all (see `Layout`).

    Raise GencliError for one whose shape is no stack of such matrices.
    """
    if not any(name.endswith(f".{end}") for name in tensors for end in stacked):
        return tensors
    pieces = dict[str, Piece]()
    for name in tensors:
        end = next((end for end in stacked if name.endswith(f".{end}")), None)
        if end is None:
            pieces[name] = Piece(name)
            continue
        shape, parts = tensors.shape(name), stacked[end]
        if len(shape) != 3 or not 0 < shape[0] <= EXPERT_LIMIT or shape[1] % len(parts):
            raise GencliError(f"{tensors.files[0]}: {name} is {list(shape)}, which are no matrices of experts")
        before = name.removesuffix(end) + end.rpartition(".")[0]
        pieces |= {
            f"{before}.{number}.{part}.weight": Piece(name, Expert(number, shape[0], i, len(parts)))
            for number in range(shape[0])
            for i, part in enumerate(parts)
        }
    return RenamedTensors(tensors, pieces)
