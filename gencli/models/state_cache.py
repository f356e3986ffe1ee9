"""A cache for decoders some of whose layers keep a state in place of keys and values: it cannot be cut back to where it
was before, so that states of a few earlier lengths are kept beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gencli.models.kv_cache import KeyValueCache, zeros

TAIL = 16  # positions before the end of a prompt: what a chat template puts last there may change in the next turn
BRANCH, END = range(2)  # what states are kept of: where a text left another one, and TAIL before a prompt's end


class Sizes(NamedTuple):
    """Of what the layers with states keep: layers, the last inputs of a convolution (inputs, width), and a matrix for
    each head (heads, key, value)."""

    layers: int
    inputs: int
    width: int
    heads: int
    key: int
    value: int


class Mark(NamedTuple):
    """A state to keep while positions are read: after so many of them, and where."""

    after: int
    place: int


class StateCache(KeyValueCache):
    """Keys and values of the layers that attend, and of each other layer the last inputs of its convolution, `windows`
    (B, layers, inputs, width), and its `states` (B, layers, heads, key, value), these in float32.

    at (B,): the length that the states are of; -1 while they change, so that whoever is interrupted leaves none that is
    half done. kept (B, 2): the lengths that older states are kept of, 0 for none. wanted (B,): a length to keep the
    state of when it is passed, as another text shares so much.
    """

    ROWS = ("lengths", "at", "wanted", "windows", "states", "kept", "kept_windows", "kept_states")
    marks: tuple[Mark, ...] = ()

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        positions: int,
        head_dim: int,
        sizes: Sizes,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ):
        super().__init__(layers, batch, heads, positions, head_dim, device=device, dtype=dtype)
        window, state = (sizes.layers, sizes.inputs, sizes.width), (sizes.layers, sizes.heads, sizes.key, sizes.value)
        self.windows, self.states = (
            zeros((batch, *window), device, dtype),
            zeros((batch, *state), device, torch.float32),
        )
        self.kept_windows = zeros((batch, 2, *window), device, dtype)
        self.kept_states = zeros((batch, 2, *state), device, torch.float32)
        self.at, self.wanted = torch.zeros(batch, dtype=torch.long), torch.zeros(batch, dtype=torch.long)
        self.kept = torch.zeros((batch, 2), dtype=torch.long)

    @property
    def halts(self) -> bool:
        return bool(self.marks)

    @property
    def state_steps(self) -> tuple[int, int]:
        return self.windows.stride(0), self.states.stride(0)

    @contextlib.contextmanager
    def reading(self, batch: int, count: int) -> Iterator[None]:
        """While `count` positions of the first rows are read. States on the way are kept of a row that is alone.

        Raises RuntimeError for a row whose length was set without its state.
        """
        if not torch.equal(self.at[:batch], self.lengths[:batch]):
            raise RuntimeError(f"states of {self.at[:batch].tolist()} for {self.lengths[:batch].tolist()} positions")
        start = self.length
        self.marks = self._marks(start, start + count) if batch == 1 else ()
        for mark in self.marks:
            self.kept[0, mark.place] = 0
        self.at[:batch] = -1
        yield
        self.at[:batch] = self.lengths[:batch]
        for mark in self.marks:
            self.kept[0, mark.place] = start + mark.after
        self.marks = ()

    def _marks(self, start: int, end: int) -> tuple[Mark, ...]:
        """The states to keep of the first row between two lengths, in order."""
        places = {BRANCH: int(self.wanted[0]), END: end - TAIL}
        return tuple(sorted(Mark(at - start, place) for place, at in places.items() if start < at < end))

    def keep(self, mark: Mark, layer: int, window: Tensor, state: Tensor) -> None:
        """Keep what a layer has at a mark: window (1, inputs, width) and state (1, heads, key, value)."""
        self.kept_windows[0, mark.place, layer] = window[0]
        self.kept_states[0, mark.place, layer] = state[0]

    def reachable(self, length: int, row: int) -> int:
        if int(self.at[row]) == length:
            return length
        return max(at for at in (0, *self.kept[row].tolist()) if at <= length)

    def copy_row(self, source: int, to: int, length: int) -> int:
        super().copy_row(source, to, length)
        return self.truncate(length, to)

    def truncate(self, length: int, row: int | None = None) -> int:
        rows, reached = range(self.batch) if row is None else (row,), super().truncate(length, row)
        while (lower := min(self.reachable(reached, one) for one in rows)) < reached:
            reached = lower
        for one in rows:
            self._return(one, reached)
            self.wanted[one] = length if length - reached > TAIL else 0
        return reached

    def _return(self, row: int, length: int) -> None:
        """Take up the state of a length that is reachable."""
        if int(self.at[row]) != length:
            place = self.kept[row].tolist().index(length) if length else None
            self.at[row] = -1
            self.windows[row] = 0 if place is None else self.kept_windows[row, place]
            self.states[row] = 0 if place is None else self.kept_states[row, place]
        self.kept[row, self.kept[row] > length] = 0
        self.at[row] = self.lengths[row] = length
