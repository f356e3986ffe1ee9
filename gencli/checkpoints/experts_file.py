"""gpt-oss's own files, in which one tensor has all experts of a layer, under the names that each expert's layers have.

`gate_up_proj` (experts, in, 2 · inner), gate and up in turns, `down_proj` (experts, inner, out), and a bias of each.
Or, in MXFP4 (Open Compute Project, "Microscaling Formats", 2023), `…_blocks` (experts, out, in / 32, 16): two numbers a
byte, neighbours, and `…_scales` (experts, out, in / 32). No torch before a tensor is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gencli.checkpoints.tensors import Piece, RenamedTensors, TensorFile, Tensors
from gencli.errors import GencliError
from gencli.models.base import EXPERT_LIMIT

if TYPE_CHECKING:
    from torch import Tensor

ALL = re.compile(r"(.*\.mlp\.experts)\.(gate_up|down)_proj(_bias|_blocks|_scales|)")
KIND, BLOCK = "MXFP4", 32
ONES = {"gate_up": (("gate_proj", 0, 2), ("up_proj", 1, 2)), "down": (("down_proj", 0, 1),)}  # name, first row, step


def with_each_expert(tensors: Tensors) -> Tensors:
    """Return tensors as they are, or with those of each expert in place of gpt-oss's of all, which have biases. Raise
    GencliError for shapes that are no experts'."""
    is_ours = any((found := ALL.fullmatch(name)) and found[3] for name in tensors)
    return ExpertTensors(tensors) if is_ours else tensors


@dataclass(frozen=True)
class Cut:
    """Takes every `step`th row of one expert from `first` on, of all experts' (experts, rows, …). turned: the tensor
    has (experts, in, rows), and the matrix is to have (rows, in)."""

    number: int
    first: int
    step: int
    turned: bool = False

    def __call__(self, tensor: Tensor) -> Tensor:
        one = tensor[self.number].t() if self.turned else tensor[self.number]
        return one[self.first :: self.step].contiguous() if self.step > 1 else one

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of what is taken of a tensor of this shape."""
        rows, *rest = reversed(shape[1:]) if self.turned else shape[1:]
        return (rows // self.step, *rest)


class ExpertTensors(RenamedTensors):
    """Tensors of which those of all experts are cut into those of each."""

    def __init__(self, tensors: Tensors):
        """Raise GencliError as `with_each_expert`."""
        self._scales: dict[str, str] = {}  # name of a packed matrix → the tensor of its scales
        super().__init__(tensors, dict(self._each(tensors)))

    def _each(self, tensors: Tensors) -> Iterator[tuple[str, Piece]]:
        for name in tensors:
            if (found := ALL.fullmatch(name)) is None:
                yield name, Piece(name)
                continue
            before, of, ending = found.groups()
            if ending == "_scales":
                continue
            _check(tensors, name, ending)
            for number in range(tensors.shape(name)[0]):
                for part, first, step in ONES[of]:
                    new = f"{before}.{number}.{part}.{'bias' if ending == '_bias' else 'weight'}"
                    if ending == "_blocks":
                        self._scales[new] = _scales(name)
                    yield new, Piece(name, Cut(number, first, step, turned=not ending))

    @property
    def path(self) -> Path:
        """Return the path of the first file."""
        return self.files[0]

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of all tensors."""
        return {name: self.shape(name) for name in self}

    @cached_property
    def dtypes(self) -> Mapping[str, str]:
        """Return the dtypes of all tensors."""
        return {name: self.dtype(name) for name in self}

    def stored(self) -> dict[str, TensorFile]:
        """Return the tensors as they are cut, as what counts them would have it."""
        return dict.fromkeys(self, self)

    def numbers(self, name: str) -> Sequence[float] | None:
        """Return the numbers of a small tensor of floats."""
        return self.get(name).flatten().tolist()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, without reading it."""
        piece = self._pieces[name]
        stored = self._tensors.shape(piece.source)
        cut = piece.transform.shape(stored) if isinstance(piece.transform, Cut) else stored
        return (cut[0], BLOCK * cut[1]) if name in self._scales else cut

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors writes it, or GGUF's name of its type."""
        return KIND if name in self._scales else super().dtype(name)

    def get(self, name: str) -> Tensor:
        """Return a tensor on the CPU, in the file's own memory where it lies there as it is wanted."""
        if name not in self._scales:
            return super().get(name)
        from gencli.kernels.packed import Packed

        scales = self._changed(self._pieces[name], self._tensors.get(self._scales[name]))
        return Packed(KIND, _as_gguf(super().get(name), scales))


def _scales(blocks: str) -> str:
    return blocks.removesuffix("_blocks") + "_scales"


def _check(tensors: Tensors, name: str, ending: str) -> None:
    """Raise GencliError for a tensor that does not hold experts, or has no scales that fit."""
    shape, dimensions = tensors.shape(name), {"_bias": 2, "_blocks": 4}.get(ending, 3)
    fits = len(shape) == dimensions and 0 < shape[0] <= EXPERT_LIMIT
    if fits and ending == "_blocks":
        scales = _scales(name)
        fits = scales in tensors and tensors.shape(scales) == shape[:3] and shape[3] == BLOCK // 2
        fits = fits and tensors.dtype(name) == tensors.dtype(scales) == "U8"
    if not fits:
        raise GencliError(f"{tensors.files[0]}: {name} is {list(shape)}, which are no experts")


def _as_gguf(blocks: Tensor, scales: Tensor) -> Tensor:
    """Return blocks (rows, groups, 16) and scales (rows, groups) as GGUF has rows: of each group the scale, then the
    numbers i and i + 16 in a byte."""
    import torch

    numbers = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(2)  # (rows, groups, 32)
    codes = numbers[..., : BLOCK // 2] | numbers[..., BLOCK // 2 :] << 4
    return torch.cat((scales[..., None], codes), dim=-1).flatten(1)
