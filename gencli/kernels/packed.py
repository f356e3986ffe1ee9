"""Matrices as files hold them: products with them by the library, rows of them as floats by it or by torch.

A matrix has outputs as rows and inputs as columns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gencli.kernels import TYPES, Weights, library
from gencli.kernels.unpack import unpack

FEW = 8  # positions for which the library is quicker than torch with weights that are no packed ones
FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
META = torch.device("meta")
aten = torch.ops.aten


class Packed(Tensor):
    """A matrix that a GGUF file packs, in the file's own memory. To all else it is a float32 tensor of its shape: an
    operation that does not know it works on its values, which are unpacked for it.

    kind: GGUF's name of its type. data_rows (rows, bytes of a row), uint8. order (rows,): row i of the matrix is row
    order[i] of the data; None: i. turned: the tensor is the matrix transposed, (columns, rows).
    """

    kind: str
    data_rows: Tensor
    order: Tensor | None
    turned: bool

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, kind: str, data: Tensor, order: Tensor | None = None, turned: bool = False) -> Packed:
        _, block, size = TYPES[kind]
        shape = (len(data), data.shape[1] // size * block)
        made = torch.Tensor._make_wrapper_subclass(cls, shape[::-1] if turned else shape, dtype=torch.float32)
        made.kind, made.data_rows, made.order, made.turned = kind, data, order, turned
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Packed({self.kind}, {list(self.shape)})"

    @property
    def matrix(self) -> Packed:
        """The matrix, whatever the tensor is."""
        return Packed(self.kind, self.data_rows, self.order) if self.turned else self

    def transposed(self) -> Packed:
        """Return the transposed tensor, in the same memory."""
        return Packed(self.kind, self.data_rows, self.order, not self.turned)

    def ordered(self, order: Tensor) -> Packed:
        """Return a tensor whose row i is this one's row order[i], in the same memory."""
        return Packed(self.kind, self.data_rows, order if self.order is None else self.order[order], self.turned)

    def data_of(self, ids: Tensor) -> Tensor:
        """Return rows (R,) of the matrix as they are packed, (R, bytes) uint8."""
        return self.data_rows[ids if self.order is None else self.order[ids]]

    def rows(self, ids: Tensor) -> Tensor:
        """Return rows of the matrix as float32, (*ids.shape, columns)."""
        return _dequantise(self.kind, self.data_of(ids.reshape(-1))).reshape(*ids.shape, -1)

    def values(self) -> Tensor:
        """Return the tensor as float32."""
        values = _dequantise(self.kind, self.data_rows)
        values = values if self.order is None else values[self.order]
        return values.T.contiguous() if self.turned else values

    def parts(self, count: int) -> Iterator[Tensor]:
        """Yield all values as float32, some rows of about `count` values at a time, in the order of the data."""
        for rows in self.data_rows.split(max(count // max(self.shape), 1)):
            yield _dequantise(self.kind, rows)

    def detach(self) -> Packed:
        """Return the same tensor anew, as parameters want it: torch's own way here imports its distributed package."""
        return Packed(self.kind, self.data_rows, self.order, self.turned)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func in (aten.detach.default, aten.alias.default):
            return args[0].detach()
        if func is aten.t.default:
            return args[0].transposed()
        if func is aten._to_copy.default and (kwargs or {}).get("device") == META:  # it is let go
            return torch.empty(args[0].shape, dtype=torch.float32, device=META)
        if func._schema.is_mutable:
            raise TypeError(f"{func} would change a packed matrix")
        args, kwargs = torch.utils._pytree.tree_map_only(Packed, Packed.values, (args, kwargs or {}))
        return func(*args, **kwargs)


def _dequantise(kind: str, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Return packed rows as float32, in the memory of `out` if it is given."""
    number, block, size = TYPES[kind]
    columns = rows.shape[1] // size * block
    out = torch.empty(len(rows), columns) if out is None else out[: len(rows) * columns].view(len(rows), columns)
    if (kernels := library()) is None:
        return out.copy_(unpack(kind, rows))
    weights = Weights(rows.data_ptr(), len(rows), columns, rows.stride(0), None, None, number, 0)
    kernels.dequantise(ctypes.addressof(weights), 0, len(rows), out.data_ptr(), 0)
    return out


def some_rows(matrix: Tensor, first: int, last: int, memory: Tensor) -> Tensor:
    """Return rows `first` to `last` - 1 of a matrix in the dtype of `memory`, which is used for them: valid until the
    next call. Rows of a packed matrix come as the data has them, without its order."""
    if isinstance(matrix, Packed):
        if memory.dtype == torch.float32:
            return _dequantise(matrix.kind, matrix.data_rows[first:last], memory)
        return _dequantise(matrix.kind, matrix.data_rows[first:last]).to(memory.dtype)
    rows = matrix[first:last]
    return rows if rows.dtype == memory.dtype else memory[: rows.numel()].view(rows.shape).copy_(rows)


def as_weights(
    matrix: Tensor, bias: Tensor | None, order: Tensor | None = None
) -> tuple[Weights, tuple[object, ...]] | None:
    """Return a matrix and the bias of its outputs as the library has them, and what must be kept while it is used.

    order (outputs,): output i is row order[i], with its bias; None: i. None where the library cannot multiply with it.
    """
    kernels = library()
    bias = bias if bias is None or order is None else bias[order]
    if isinstance(matrix, Packed):
        matrix = matrix if order is None else matrix.ordered(order)
        kind, data, order = matrix.kind, matrix.data_rows, matrix.order
    else:
        kind, data = FLOATS.get(matrix.dtype, ""), matrix.detach()
    order = None if order is None else order.argsort().int()
    if kernels is None or not kind or not data.is_cpu or (bias is not None and bias.dtype != torch.float32):
        return None
    outputs, inputs = matrix.shape
    sideways = data.stride(1) != 1
    if sideways and (data.stride(0) != 1 or order is not None):
        return None
    size = data.element_size() * (data.stride(1) if sideways else data.stride(0))
    shape = (inputs, outputs) if sideways else (outputs, inputs)
    pointers = [None if one is None else one.data_ptr() for one in (order, bias)]
    return Weights(data.data_ptr(), *shape, size, *pointers, TYPES[kind][0], int(sideways)), (data, order, bias)


def product(matrix: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor] | None:
    """Return what multiplies x (..., columns), float32, with a matrix: x @ matrix.T + bias.

    None where the library cannot. The matrix and the bias must stay where they are in memory.
    """
    made, kernels = as_weights(matrix, bias), library()
    if made is None or kernels is None:
        return None
    outputs, inputs = matrix.shape
    address, call, empty = ctypes.addressof(made[0]), kernels.product, torch.empty

    def multiply(x: Tensor, _keep: object = made) -> Tensor:
        x = x.contiguous()
        y = empty((*x.shape[:-1], outputs))
        if call(address, x.data_ptr(), x.numel() // inputs, y.data_ptr(), 0):
            raise MemoryError
        return y

    return multiply


def fits(x: Tensor, matrix: Tensor) -> bool:
    """Return whether `product` is the quickest for x (..., inputs)."""
    return isinstance(matrix, Packed) or x.numel() <= FEW * x.shape[-1]
