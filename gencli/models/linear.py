"""How layers with large weights compute: the one policy, a table of rows that `checkpoints.build.load` applies.

Architectures are built from plain `nn.Linear`, `nn.Conv2d`, `nn.Embedding` and `Conv1D`, and know nothing of it. Once
the weights are assigned, each of these layers becomes the class of the first row in LAYERS that applies to it; without
such a row it stays as it is.

The contract of a row's class: it has the same parameters under the same names, and `forward` takes and returns tensors
of the compute dtype, whatever its weight is stored as: in another precision, or packed as in a GGUF file. So another
kind of weight is one more row here. The key/value cache, the norms and the biases are in the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.kernels import library
from gencli.kernels.packed import FLOATS, Packed, fits, product, some_rows
from gencli.models.module import LanguageModel

SMALL = 2**20  # bytes of a weight from which on it is not copied, whatever its layout
TILE = 2**21  # numbers of a weight that are cast or unpacked together for a product of many positions


class Conv1D(nn.Module):
    """A linear layer whose weight is stored (in, out), as GPT-2's checkpoints hold it."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight: Tensor = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class CastBuffer:
    """Memory for the cast weight of the layer that is computing, one for all layers of a model.

    It is as large as the largest cast so far; fresh memory for each would cost three times the time of filling it.
    """

    def __init__(self, dtype: torch.dtype):
        self.memory = torch.empty(0, dtype=dtype)

    def take(self, count: int) -> Tensor:
        """Return memory for so many numbers, valid until the next call."""
        if count > len(self.memory):
            self.memory = torch.empty(count, dtype=self.memory.dtype)
        return self.memory

    def cast(self, weight: Tensor, x: Tensor) -> Tensor:
        """Return the weight in the dtype of `x`, valid until the next call. For a gradient it is a copy of its own."""
        if weight.dtype == x.dtype or x.dtype != self.memory.dtype or x.requires_grad:
            return weight.to(x.dtype)
        return self.take(weight.numel())[: weight.numel()].view(weight.shape).copy_(weight)

    def linear(self, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """Return x (..., in) @ matrix (out, in).T + bias, for a matrix that is cast or unpacked some rows at a time."""
        if x.requires_grad or x.dtype != self.memory.dtype or matrix.device != self.memory.device:
            return F.linear(x, matrix.to(x.dtype), bias)
        outputs, inputs = matrix.shape
        memory = self.take(min(outputs * inputs, max(TILE, inputs)))
        flat, step = x.reshape(-1, inputs), max(TILE // inputs, 1)
        y = x.new_empty(len(flat), outputs)
        for first in range(0, outputs, step):
            last = min(first + step, outputs)
            torch.mm(flat, some_rows(matrix, first, last, memory).T, out=y[:, first:last])
        if isinstance(matrix, Packed) and matrix.order is not None:
            y = y[:, matrix.order]
        y = y if bias is None else y.add_(bias)
        return y.view(*x.shape[:-1], outputs)


class Buffered:
    """Mixin of layers whose weight is cast when it is used."""

    buffer: CastBuffer


class Stored(Buffered):
    """Mixin of layers whose weight stays as the file stores it. Packed weights, and others for few positions as in a
    decode step, are multiplied by the library of `gencli.kernels`. Else they are cast or unpacked, by tiles, for
    torch's product. beside: pairs (r, in), (out, r) whose products are added to the weight's, as LoRAs have them."""

    weight: Tensor
    bias: nn.Parameter
    beside: Sequence[tuple[Tensor, Tensor]] = ()
    _made: tuple[Tensor, Callable[[Tensor], Tensor] | None] | None = None

    @property
    def matrix(self) -> Tensor:
        """The weight as (out, in)."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self._multiplied(x)
        for down, up in self.beside:
            y = y + F.linear(F.linear(x, down.to(x)), up.to(x))
        return y

    def _multiplied(self, x: Tensor) -> Tensor:
        ours = x.dtype is torch.float32 and fits(x, self.weight) and not x.requires_grad
        if ours and (multiply := self._product()) is not None:
            return multiply(x)
        matrix, bias = self.matrix, self.bias
        if matrix.dtype == x.dtype and not isinstance(matrix, Packed):
            return F.linear(x, matrix, bias)
        return self.buffer.linear(x, matrix, bias)

    def _product(self) -> Callable[[Tensor], Tensor] | None:
        weight = self.weight
        if self._made is None or self._made[0] is not weight:
            self._made = weight, product(self.matrix, self.bias)
        return self._made[1]


class StoredLinear(Stored, nn.Linear):
    pass


class StoredConv1D(Stored, Conv1D):
    @property
    def matrix(self) -> Tensor:
        weight = self.weight
        return weight.transposed() if isinstance(weight, Packed) else weight.t()

    def turn(self) -> None:
        """Let the inputs of an output lie side by side, as the library multiplies them quickest, in a small weight."""
        if not isinstance(self.weight, Packed) and self.weight.is_cpu and self.weight.nbytes <= SMALL:
            self.weight = nn.Parameter(self.weight.detach().t().contiguous().t(), requires_grad=False)


class CastLinear(Buffered, nn.Linear):
    """Layerwise casting: the weight stays in the storage dtype of the file and is cast when it is used."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.buffer.cast(self.weight, x), self.bias)


class CastConv2d(Buffered, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.buffer.cast(self.weight, x), self.bias)


class StoredEmbedding(Buffered, nn.Embedding):
    """An embedding whose weight stays as the file stores it: the rows of the ids are cast or unpacked."""

    def forward(self, ids: Tensor) -> Tensor:
        weight = self.weight
        rows = weight.rows(ids) if isinstance(weight, Packed) else super().forward(ids)
        return rows.to(self.buffer.memory.dtype)


def _differs(weight: Tensor, compute_dtype: torch.dtype) -> bool:
    return weight.is_floating_point() and weight.dtype != compute_dtype


def _is_stored(layer: nn.Module, compute_dtype: torch.dtype) -> bool:
    return _is_packed(layer, compute_dtype) or _differs(layer.get_parameter("weight"), compute_dtype)


def _is_packed(layer: nn.Module, compute_dtype: torch.dtype) -> bool:
    return isinstance(layer.get_parameter("weight"), Packed)


def _has_kernel(layer: nn.Module, compute_dtype: torch.dtype) -> bool:
    weight = layer.get_parameter("weight")
    known = isinstance(weight, Packed) or weight.dtype in FLOATS
    return known and weight.is_cpu and compute_dtype is torch.float32 and library() is not None


class Row(NamedTuple):
    """`plain` layers whose weight satisfies `applies(layer, compute_dtype)` become `layer`; those of language models
    alone, where `language` is set."""

    plain: type[nn.Module]
    layer: type[nn.Module]
    applies: Callable[[nn.Module, torch.dtype], bool]
    language: bool = False


LAYERS = (
    Row(nn.Linear, StoredLinear, _has_kernel, language=True),
    Row(Conv1D, StoredConv1D, _has_kernel, language=True),
    Row(nn.Linear, StoredLinear, _is_stored, language=True),
    Row(Conv1D, StoredConv1D, _is_stored, language=True),
    Row(nn.Embedding, StoredEmbedding, _is_stored),
    Row(nn.Linear, StoredLinear, _is_packed),
    Row(nn.Linear, CastLinear, _is_stored),
    Row(nn.Conv2d, CastConv2d, _is_stored),
)


def apply_policy(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Let a model whose weights are assigned compute in `compute_dtype`.

    What no row leaves in its storage dtype is converted now: norms and biases, which are small.
    """
    buffer, language = CastBuffer(compute_dtype), isinstance(model, LanguageModel)
    for module in model.modules():
        rows = (row for row in LAYERS if type(module) is row.plain and row.language <= language)
        row = next((row for row in rows if row.applies(module, compute_dtype)), None)
        if row is not None:
            module.__class__ = row.layer
            if isinstance(module, Buffered):
                module.buffer = buffer
            if isinstance(module, StoredConv1D):
                module.turn()
        for name, parameter in module.named_parameters(recurse=False):
            if (row is None or name != "weight") and _differs(parameter, compute_dtype):
                setattr(module, name, nn.Parameter(parameter.to(compute_dtype), requires_grad=False))


def step_weights(module: nn.Module) -> Iterator[Tensor]:
    """Yield the weights that a step multiplies with; one that two layers share comes twice, and embeddings do not."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | Conv1D):
            yield layer.weight.data


def step_bytes(module: nn.Module) -> int:
    """Return how many bytes of weights one step of a model reads, for one text: of experts those that compute."""
    idle = 0
    for layer in module.modules():
        experts, chosen = getattr(layer, "experts", None), getattr(layer, "chosen", None)
        if isinstance(experts, nn.ModuleList) and isinstance(chosen, int):
            idle += _stored_bytes(experts) * (len(experts) - chosen) // len(experts)
    return _stored_bytes(module) - idle


def _stored_bytes(module: nn.Module) -> int:
    return sum((one.data_rows if isinstance(one, Packed) else one).nbytes for one in step_weights(module))
