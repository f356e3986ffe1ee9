"""What a network reads beside x and the timestep. Imports nothing of gencli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Conditions for B images; every tensor is (B, …), or (1, …) for all of a batch.

    inputs: keyword arguments of the network's forward. concat (…, K, h, w): further channels of x that some networks
    read, such as a mask. is_cond (B,): 1 for the images asked for, 0 for those that guidance leads away from.
    down_residuals, mid_residual: what ControlNets add to the states of a UNet.
    """

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    concat: Tensor | None = None
    is_cond: Tensor | None = None
    down_residuals: Sequence[Tensor] = ()
    mid_residual: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.inputs[name]

    def with_inputs(self, **inputs: Tensor) -> Conditioning:
        """A copy with these inputs added or replaced."""
        return replace(self, inputs={**self.inputs, **inputs})

    def keywords(self) -> dict[str, object]:
        """All keyword arguments of the network's forward."""
        if self.mid_residual is None:
            return dict(self.inputs)
        return {**self.inputs, "down_residuals": self.down_residuals, "mid_residual": self.mid_residual}


def join(parts: Sequence[Conditioning], batch: int) -> Conditioning:
    """Join N parts into one batch of N·`batch`, in their order. All have the same names."""

    def cat(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.expand(batch, *tensor.shape[1:]) for tensor in tensors])

    concat = [part.concat for part in parts if part.concat is not None]
    is_cond = [part.is_cond for part in parts if part.is_cond is not None]
    return Conditioning(
        {name: cat([part.inputs[name] for part in parts]) for name in parts[-1].inputs},
        concat=cat(concat) if concat else None,
        is_cond=cat(is_cond) if is_cond else None,
    )
