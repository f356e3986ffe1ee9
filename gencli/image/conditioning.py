"""What a network is told beside x and the timestep. Imports nothing of gencli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Conditioning = Mapping[str, Tensor]
"""Keyword arguments of a network's forward, beside x and t; every tensor is (B, …), or (1, …) for all of a batch.

One is none: `concat` (…, K, h, w), further channels of x that some networks read, such as a mask.
"""


def join(parts: Sequence[Conditioning], batch: int) -> Conditioning:
    """N parts in one batch of N·`batch`, in their order; all have the same names."""
    return {name: torch.cat([part[name].expand(batch, *part[name].shape[1:]) for part in parts]) for name in parts[-1]}
