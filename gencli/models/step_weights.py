"""What a step of the C library (see `models.step`) points to: matrices, norms and numbers of modules, and whether the
modules still have them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from gencli.kernels import Norm, Weights
from gencli.kernels.packed import as_weights
from gencli.models.linear import Stored

if TYPE_CHECKING:
    Pointer = ctypes._Pointer[Weights]
Tensors = Mapping[str, Tensor | None]


@runtime_checkable
class Normed(Protocol):
    """A norm that says its weight, its bias, its epsilon, and whether it takes the mean away."""

    def norm_weights(self) -> tuple[Tensor, Tensor | None, float, bool]: ...


class Holder:
    """The library's structures of a model's modules. Its methods raise TypeError for what the library cannot do."""

    def __init__(self) -> None:
        self.kept: list[object] = []  # what the structures point to
        self.weights: list[tuple[Tensors, dict[str, Tensor]]] = []  # those of modules, and what was taken from them

    def matrix(self, module: nn.Module, order: Tensor | None = None) -> Pointer:
        """Return a pointer to a linear layer's weight, with outputs in an order (`as_weights`). Raise TypeError for one
        that the library cannot multiply."""
        if not isinstance(module, Stored) or module.beside:
            raise TypeError
        if (made := as_weights(module.matrix, module.bias, order)) is None:
            raise TypeError
        return self.keep(module, made)

    def rows(self, module: nn.Module) -> Pointer:
        """Return a pointer to an embedding's weight. Raise TypeError for one whose rows the library cannot read."""
        made = as_weights(module.weight.detach(), None) if isinstance(module, nn.Embedding) else None
        if made is None or made[0].sideways or made[0].order:
            raise TypeError
        return self.keep(module, made)

    def keep(self, module: nn.Module, made: tuple[Weights, object]) -> Pointer:
        self.kept.append(made)
        self.watch(module._parameters)
        return ctypes.pointer(made[0])

    def watch(self, tensors: Tensors) -> None:
        """Know what a module has now."""
        self.weights.append((tensors, {name: one for name, one in tensors.items() if one is not None}))

    @property
    def trained(self) -> bool:
        """Whether a gradient is wanted of any of them."""
        return any(one.requires_grad for _, taken in self.weights for one in taken.values())

    def norm(self, module: nn.Module | None) -> Norm:
        """Return a norm, of heads or of all; None: no norm. Raise TypeError for one of another kind."""
        if module is None:
            return Norm()
        weight: Tensor
        bias: Tensor | None
        if isinstance(module, nn.LayerNorm):
            weight, bias, eps, centred = module.weight, module.bias, module.eps, True
        elif isinstance(module, Normed):
            weight, bias, eps, centred = module.norm_weights()
        else:
            raise TypeError
        if any(one is not None and one.dtype != torch.float32 for one in (weight, bias)):
            raise TypeError
        self.kept.append((weight, bias))
        self.watch(module._parameters)
        pointers = (None if one is None else one.data_ptr() for one in (weight, bias))
        return Norm(*pointers, weight.numel(), centred, eps)

    def numbers(self, tensor: Tensor | None) -> int | None:
        """Return the address of numbers. Raise TypeError for some that are not in float32."""
        if tensor is not None and (tensor.dtype != torch.float32 or not tensor.is_contiguous()):
            raise TypeError
        self.kept.append(tensor)
        return None if tensor is None else tensor.data_ptr()

    def is_current(self) -> bool:
        """Return whether the modules still have the tensors that they had."""
        return all(have.get(name) is one for have, taken in self.weights for name, one in taken.items())


def said(module: nn.Module, forward: str, name: str) -> Sequence[str]:
    """The attribute `name` of the class that defines the method `forward`. Raises TypeError if it has none."""
    for kind in type(module).__mro__:
        if forward in vars(kind):
            if name in vars(kind):
                return cast("Sequence[str]", vars(kind)[name])
            break
    raise TypeError
