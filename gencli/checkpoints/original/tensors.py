"""The tensors of one part of an original file, lazily, under the names and in the shapes that diffusers' folders have.

All that is done to them are views of the file's memory map, but for one small matrix that has to be turned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gencli.checkpoints.original.rows import Piece
from gencli.checkpoints.tensors import Tensors
from gencli.errors import GencliError


def _third(index: int) -> Callable[[Tensor], Tensor]:
    """Rows of q, k or v in (3 C, …) → (C, …)."""

    def cut(tensor: Tensor) -> Tensor:
        rows = tensor.shape[0] // 3 if tensor.ndim else 0
        if not rows or tensor.shape[0] % 3:
            raise GencliError(f"{list(tensor.shape)} does not split into q, k and v")
        return tensor[index * rows : (index + 1) * rows]

    return cut


def _linear(tensor: Tensor) -> Tensor:
    """A 1×1 convolution's weight (out, in, 1, 1) as a linear layer's (out, in); that itself stays as it is."""
    return tensor.flatten(1) if tensor.shape[2:] == (1, 1) else tensor


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda tensor: tensor,
    "linear": _linear,
    "transposed": lambda tensor: tensor.T.contiguous() if tensor.ndim == 2 else tensor,
    "q of 3": _third(0),
    "k of 3": _third(1),
    "v of 3": _third(2),
}


class OriginalTensors(Tensors):
    """A part of the file `tensors`, in which `pieces` says where each tensor lies; `prefix` stands before them all."""

    def __init__(self, tensors: Tensors, prefix: str, pieces: Mapping[str, Piece]):
        self.files = tensors.files
        self.tensors = tensors
        self._where = {name: (prefix + piece.source, CHANGES[piece.change]) for name, piece in pieces.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        source, _ = self._where[name]
        return tuple(self._changed(name, torch.empty(self.tensors.shape(source), device="meta")).shape)

    def dtype(self, name: str) -> str:
        return self.tensors.dtype(self._where[name][0])

    def get(self, name: str) -> Tensor:
        return self._changed(name, self.tensors.get(self._where[name][0]))

    def _changed(self, name: str, tensor: Tensor) -> Tensor:
        source, change = self._where[name]
        try:
            return change(tensor)
        except GencliError as error:
            raise GencliError(f"{self.files[0]}: {source}: {error.message}") from None
