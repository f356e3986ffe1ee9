"""The key/value cache of a decoder: keys and values of all positions so far, so that a new token costs one step."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Cache = TypeVar("Cache", bound="KeyValueCache")


class KeyValueCache:
    """Keys and values of every layer, allocated once: (B, K, S, D) each, a text in each row.

    B: batch, K: key/value heads, S: positions, D: size of a head. lengths (B,): how many positions of each row are
    filled. dtype: that of the cache, whatever the weights are stored as. seen: how many positions are attended to,
    where those after them are padding; None: all. A subclass with more tensors that begin with B names them in ROWS,
    and in POSITIONS those that have S next.
    """

    ROWS: tuple[str, ...] = ("lengths",)
    POSITIONS: tuple[str, ...] = ()
    seen: int | None = None
    moved: int = 0  # how often the tensors were replaced by others

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int | Sequence[int],
        positions: int,
        head_dim: int | Sequence[int],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ):
        """heads, head_dim: of all layers, or of each."""
        of_each = zip(*([one] * layers if isinstance(one, int) else one for one in (heads, head_dim)), strict=True)
        shapes = [(batch, heads, positions, head_dim) for heads, head_dim in of_each]
        self.keys = [zeros(shape, device, dtype) for shape in shapes]
        self.values = [zeros(shape, device, dtype) for shape in shapes]
        self.lengths = torch.zeros(batch, dtype=torch.long)  # on the CPU, whatever the device

    @property
    def batch(self) -> int:
        """The number of rows."""
        return len(self.lengths)

    @property
    def positions(self) -> int:
        """The number of positions that there is room for."""
        return self.keys[0].shape[2]

    @property
    def halts(self) -> bool:
        """Whether something is kept on the way through the positions that are read now."""
        return False

    @property
    def state_steps(self) -> tuple[int, int]:
        """How many numbers lie from a row's window of inputs to the next one's, and so of its states: of subclasses."""
        return 0, 0

    @property
    def length(self) -> int:
        """The filled positions of the first row: of all rows, where they are alike."""
        return int(self.lengths[0])

    def starts(self, batch: int) -> list[int]:
        """Return the lengths of the first `batch` rows: a single number if they are alike."""
        lengths = self.lengths[:batch].tolist()
        return lengths[:1] if lengths.count(lengths[0]) == batch else lengths

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new positions (B, K, T, D) of a layer, behind the first B rows; T is 1 where their lengths differ.

        Return views of all positions of these rows up to the longest, (B, K, length + T, D).
        """
        B, _, T, _ = key.shape
        starts = self.starts(B)
        end = max(starts) + T
        for to, new in ((self.keys[layer], key), (self.values[layer], value)):
            if len(starts) == 1:
                to[:B, :, starts[0] : end] = new
            else:
                to[torch.arange(B, device=to.device), :, self.lengths[:B].to(to.device)] = new[:, :, 0]
        return self.keys[layer][:B, :, :end], self.values[layer][:B, :, :end]

    def visible(self, batch: int, window: int | None = None) -> Tensor | None:
        """Return which positions a new one of each row attends to, (B, 1, 1, S); None where the rows are alike.

        window: how many at most, its own included.
        """
        if len(self.starts(batch)) == 1:
            return None
        lengths = self.lengths[:batch, None].to(self.keys[0].device)
        at = torch.arange(int(lengths.max()) + 1, device=lengths.device)
        seen = at <= lengths if window is None else (at <= lengths) & (at > lengths - window)
        return seen[:, None, None]

    def row(self: Cache, number: int) -> Cache:
        """Return a cache of one row, in the same memory: this one, if it has no other."""
        if self.batch == 1:
            return self
        one = copy.copy(self)
        one.keys, one.values = ([tensor[number : number + 1] for tensor in many] for many in (self.keys, self.values))
        for name in self.ROWS:
            setattr(one, name, getattr(self, name)[number : number + 1])
        return one

    def reachable(self, length: int, row: int) -> int:
        """Return the longest length that a row, which has `length` positions or more, can be cut back to: all of it,
        unless a subclass says less."""
        return length

    def copy_row(self, source: int, to: int, length: int) -> int:
        """Make the first `length` positions of a row those of another one, and all that it has. Return how many these
        are: fewer, where `reachable` says so."""
        for tensor in (*self.keys, *self.values):
            tensor[to, :, :length] = tensor[source, :, :length]
        for name in self.ROWS:
            tensor = getattr(self, name)
            tensor[to] = tensor[source]
        self.lengths[to] = length
        return length

    def truncate(self, length: int, row: int | None = None) -> int:
        """Forget all positions from `length` on, of all rows or of one. Return how many are left: fewer, where
        `reachable` says so. Raises ValueError for a length that a row does not have.

        Nothing before it was lost: sliding windows are cut by the attention, not here.
        """
        lengths = self.lengths if row is None else self.lengths[row : row + 1]
        if not 0 <= length <= int(lengths.min()):
            raise ValueError(f"length {length} of {lengths.tolist()}")
        lengths.fill_(length)
        return length

    def grow(self, positions: int = 0, batch: int = 0) -> None:
        """Make room for so many positions and rows in all, and keep what is filled."""
        positions, batch = max(positions, self.positions), max(batch, self.batch)
        if (positions, batch) == (self.positions, self.batch):
            return
        self.moved += 1
        filled = int(self.lengths.max())
        for name in ("keys", "values"):
            setattr(self, name, [_grown(old, (batch, old.shape[1], positions), filled) for old in getattr(self, name)])
        for name in self.ROWS:
            old = getattr(self, name)
            setattr(
                self, name, _grown(old, (batch, positions) if name in self.POSITIONS else (batch, *old.shape[1:]), None)
            )


def zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return zeros, as what a mask hides must be numbers; on a CPU they take no memory until more is written there."""
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def _grown(old: Tensor, shape: tuple[int, ...], filled: int | None) -> Tensor:
    new = zeros(shape if filled is None else (*shape, old.shape[-1]), old.device, old.dtype)
    kept = (*(slice(size) for size in old.shape[:2]), slice(filled))[: old.dim()]
    new[kept] = old[kept]
    return new
