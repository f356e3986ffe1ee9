"""Weights that stay as they lie in the file, in half precision and memory-mapped, and are made float32 layer by layer.

A CPU computes in float32, in which a file of half precision is twice as large. Converted on use, its weights take the
memory of the file, which the system may drop and read again, and a load takes no time. The numbers are the same, bit by
bit. One buffer serves all layers: fresh memory for each would cost three times the time of filling it.
A guided step of SDXL takes a tenth longer for it at 512×512 (27.4 s of processor time, 2.5 of them for this), and a few
hundredths at 1024×1024, where four times as many places share each weight.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.checkpoints.tensors import Tensors

HALVES = {"F16", "BF16"}


class Scratch:
    """Memory for the weight of the layer that is at work."""

    def __init__(self, size: int, dtype: torch.dtype):
        self.buffer = torch.empty(size, dtype=dtype)

    def convert(self, weight: Tensor, x: Tensor) -> Tensor:
        """The weight in the dtype of `x`; it holds until the next call. For a gradient it is a copy of its own."""
        if weight.dtype == x.dtype or x.dtype != self.buffer.dtype or x.requires_grad:
            return weight.to(x.dtype)
        if weight.numel() > len(self.buffer):  # a LoRA or embedding may have put another in its place
            self.buffer = torch.empty(weight.numel(), dtype=x.dtype)
        return self.buffer[: weight.numel()].view(weight.shape).copy_(weight)


class StoredLinear(nn.Linear):
    scratch: Scratch

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.scratch.convert(self.weight, x), self.bias)


class StoredConv2d(nn.Conv2d):
    scratch: Scratch

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.scratch.convert(self.weight, x), self.bias)


class StoredEmbedding(nn.Embedding):
    scratch: Scratch

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).to(self.scratch.buffer.dtype)


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: StoredLinear,
    nn.Conv2d: StoredConv2d,
    nn.Embedding: StoredEmbedding,
}


def bytes_as(tensors: Tensors, dtype: torch.dtype) -> int:
    """What the tensors of half precision in a file take in `dtype`."""
    halves = (name for name in tensors if tensors.dtype(name) in HALVES)
    return dtype.itemsize * sum(math.prod(tensors.shape(name)) for name in halves)


def keep_stored(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Let a model that was loaded as its file has it compute in `dtype`, and leave its large weights as they are.

    The weights of linear layers, convolutions and embeddings stay; all else, which is small, is converted now.
    """
    kept: list[Any] = [module for module in model.modules() if type(module) in KINDS]
    sizes = [module.weight.numel() for module in kept if type(module) is not nn.Embedding]
    scratch = Scratch(max(sizes, default=0), dtype)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if (type(module) not in KINDS or name != "weight") and parameter.is_floating_point():
                setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
    for module in kept:
        module.__class__ = KINDS[type(module)]
        module.scratch = scratch
    model.compute_dtype = dtype  # type: ignore[assignment]
    return model


def compute_dtype(model: nn.Module) -> torch.dtype:
    """The precision that a model computes in, which need not be that of its weights."""
    own = getattr(model, "compute_dtype", None)
    return own if isinstance(own, torch.dtype) else next(model.parameters()).dtype
