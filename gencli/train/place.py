"""Where a recipe runs, and in which precision it multiplies: one path for the CPU, CUDA and Apple's GPUs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gencli import devices


@dataclass(frozen=True)
class Place:
    """A device, and the dtype of products there. Weights, sums, losses and the optimizer's state stay in float32."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """The context for the forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)


def pick_place(device: str, dtype: str) -> Place:
    """For names that `gencli.devices.check_names` let pass; dtype auto is bfloat16 on CUDA, else float32.

    CPUs without AMX multiply bfloat16 more slowly than float32. With AMX (one core, a step forward and back) the GPT-2
    behind `weights/stories` takes 0.63 of float32's time in bfloat16, the UNet behind `weights/emoji` 0.93; float32
    stays the default there too, so that a command makes the same on every CPU. On CUDA and on Apple's GPUs this has
    not been run. Raises GencliError for a device that is not here.
    """
    where = devices.pick_device(device)
    if dtype == "auto":
        dtype = "bfloat16" if where.type == "cuda" else "float32"
    return Place(where, getattr(torch, dtype))
