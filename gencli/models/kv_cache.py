"""The key/value cache of a decoder: keys and values of all positions so far, so that a new token costs one step."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of every layer, allocated once: (B, K, S, D) each. `length` positions are filled.

    B: batch, K: key/value heads, S: positions, D: size of a head. dtype: that of the cache, whatever the weights are
    stored as. seen: how many positions are attended to, where those after them are padding; None: all.
    """

    seen: int | None = None

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        positions: int,
        head_dim: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ):
        shape = (batch, heads, positions, head_dim)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new positions (B, K, T, D) of a layer; return views of all its positions, (B, K, length + T, D)."""
        end = self.length + key.shape[2]
        self.keys[layer][:, :, self.length : end] = key
        self.values[layer][:, :, self.length : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def repeat(self, batch: int) -> None:
        """Make a batch of `batch` sequences from a prefill of one."""
        self.keys = [tensor.repeat(batch, 1, 1, 1) for tensor in self.keys]
        self.values = [tensor.repeat(batch, 1, 1, 1) for tensor in self.values]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        self.keys = [tensor[rows] for tensor in self.keys]
        self.values = [tensor[rows] for tensor in self.values]

    @property
    def positions(self) -> int:
        """The number of positions that there is room for."""
        return self.keys[0].shape[2]

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on. Raises ValueError for a length that the cache does not have.

        Nothing before it was lost: sliding windows are cut by the attention, not here.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"length {length} of {self.length}")
        self.length = length

    def grow(self, positions: int) -> None:
        """Make room for `positions` in all, and keep what is filled."""
        if positions <= self.positions:
            return
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                B, K, _, D = old.shape
                tensors[layer] = old.new_empty(B, K, positions, D)
                tensors[layer][:, :, : self.length] = old[:, :, : self.length]
