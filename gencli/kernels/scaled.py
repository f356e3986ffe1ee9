"""Floats of 8 bits with one scale for a whole tensor, as files have them whose numbers would not fit those bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

aten = torch.ops.aten
VIEWS = (  # what they give of a scaled tensor has the same scale
    aten.detach.default, aten.alias.default, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default,
    aten.t.default, aten.view.default, aten.select.int,
)  # fmt: skip


class Operation(Protocol):
    """An operation of torch."""

    def __call__(self, *args: object, **kwargs: object) -> object: ...


class Scaled(Tensor):
    """A tensor of 8-bit floats times a scale, in the memory of a file. Where it is cast, the scale is multiplied in; an
    operation that does not know it works on its values in float32.

    codes: the floats (…). scale: what each of them is multiplied by.
    """

    codes: Tensor
    scale: float

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, codes: Tensor, scale: float) -> Scaled:
        made = torch.Tensor._make_wrapper_subclass(
            cls, codes.shape, strides=codes.stride(), dtype=codes.dtype, device=codes.device
        )
        made.codes, made.scale = codes, scale
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Scaled({list(self.shape)}, {self.scale})"

    def values(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the tensor in another dtype, rounded once."""
        return self.codes.to(dtype).mul_(self.scale)

    def detach(self) -> Scaled:
        """Return the same tensor anew, as parameters want it."""
        return Scaled(self.codes, self.scale)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Operation,
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if isinstance(first, Scaled):
            if func in VIEWS:
                return _each(func(first.codes, *args[1:], **kwargs), first.scale)
            if func is aten._to_copy.default and kwargs.get("dtype") in (None, first.dtype):  # to another device
                return _each(func(first.codes, **kwargs), first.scale)
            if func is aten._to_copy.default:
                made = func(first.codes, **kwargs)
                assert isinstance(made, Tensor)
                return made.mul_(first.scale)
        if func is aten.copy_.default and isinstance(first, Tensor) and isinstance(args[1], Scaled):
            return first.copy_(args[1].codes).mul_(args[1].scale)
        args, kwargs = torch.utils._pytree.tree_map_only(Scaled, Scaled.values, (args, kwargs))
        return func(*args, **kwargs)


def _each(made: object, scale: float) -> object:
    """Return a tensor, or several, with a scale."""
    if isinstance(made, Tensor):
        return Scaled(made, scale)
    assert isinstance(made, list | tuple)
    return [Scaled(one, scale) for one in made]
