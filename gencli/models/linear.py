"""How layers with large weights compute: the one policy, a table of rows that `checkpoints.build.load` applies.

Architectures are built from plain `nn.Linear`, `nn.Conv2d` and `nn.Embedding` and know nothing of it. Once the weights
are assigned, each of these layers becomes the class of the first row in LAYERS that applies to its weight as it is
stored and to the dtype that the model computes in; without such a row it stays as it is.

The contract of a row's class: it has the same parameters under the same names, and `forward` takes and returns tensors
of the compute dtype, whatever its weight is stored as. So a quantised weight (int8, int4, with its scales) is one more
row here: a class whose `forward` multiplies by the packed weight, and the test that recognises such a weight. The
key/value cache, the norms and the biases stay in the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAST_MV = torch.__version__ >= "2.7"  # before that the kernel may be a plain loop


class VectorLinear(nn.Linear):
    """A linear layer that reads bfloat16 weights faster on a CPU for a single position, as in every decode step.

    torch's matrix-vector kernel sums in float32 too, and takes three quarters of the time of the matrix product. A bias
    is not for it: added afterwards, it would round twice.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == self.in_features and x.dtype is torch.bfloat16:
            return torch.mv(self.weight, x.reshape(-1)).view(*x.shape[:-1], -1)
        return F.linear(x, self.weight)


class CastBuffer:
    """Memory for the cast weight of the layer that is computing, one for all layers of a model.

    It is as large as the largest weight so far; fresh memory for each would cost three times the time of filling it.
    """

    def __init__(self, dtype: torch.dtype):
        self.memory = torch.empty(0, dtype=dtype)

    def cast(self, weight: Tensor, x: Tensor) -> Tensor:
        """Return the weight in the dtype of `x`, valid until the next call. For a gradient it is a copy of its own."""
        if weight.dtype == x.dtype or x.dtype != self.memory.dtype or x.requires_grad:
            return weight.to(x.dtype)
        if weight.numel() > len(self.memory):
            self.memory = torch.empty(weight.numel(), dtype=x.dtype)
        return self.memory[: weight.numel()].view(weight.shape).copy_(weight)


class CastLinear(nn.Linear):
    """Layerwise casting: the weight stays in the storage dtype of the file and is cast when it is used."""

    buffer: CastBuffer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.buffer.cast(self.weight, x), self.bias)


class CastConv2d(nn.Conv2d):
    buffer: CastBuffer

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.buffer.cast(self.weight, x), self.bias)


class CastEmbedding(nn.Embedding):
    buffer: CastBuffer

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).to(self.buffer.memory.dtype)


def _differs(weight: Tensor, compute_dtype: torch.dtype) -> bool:
    return weight.is_floating_point() and weight.dtype != compute_dtype


def _needs_cast(layer: Any, compute_dtype: torch.dtype) -> bool:
    return _differs(layer.weight, compute_dtype)


def _has_vector_kernel(layer: Any, compute_dtype: torch.dtype) -> bool:
    return FAST_MV and layer.weight.dtype is torch.bfloat16 and layer.weight.is_cpu and layer.bias is None


class Row(NamedTuple):
    """`plain` layers whose weight satisfies `applies(layer, compute_dtype)` become `layer`."""

    plain: type[nn.Module]
    layer: type[nn.Module]
    applies: Callable[[nn.Module, torch.dtype], bool]


LAYERS = (
    Row(nn.Linear, CastLinear, _needs_cast),
    Row(nn.Conv2d, CastConv2d, _needs_cast),
    Row(nn.Embedding, CastEmbedding, _needs_cast),
    Row(nn.Linear, VectorLinear, _has_vector_kernel),
)


def apply_policy(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Let a model whose weights are assigned compute in `compute_dtype`.

    What no row leaves in its storage dtype is converted now: norms and biases, which are small.
    """
    buffer = CastBuffer(compute_dtype)
    for module in model.modules():
        row = next((row for row in LAYERS if type(module) is row.plain and row.applies(module, compute_dtype)), None)
        if row is not None:
            module.__class__ = row.layer
        cast = isinstance(module, CastLinear | CastConv2d | CastEmbedding)
        if cast:
            module.buffer = buffer  # type: ignore[assignment]
        for name, parameter in module.named_parameters(recurse=False):
            if not (cast and name == "weight") and _differs(parameter, compute_dtype):
                setattr(module, name, nn.Parameter(parameter.to(compute_dtype), requires_grad=False))
