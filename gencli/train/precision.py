"""Where a recipe runs, and in which precision it multiplies: one path for the CPU, CUDA and Apple's GPUs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gencli import devices


@dataclass(frozen=True)
class Precision:
    """A device, and the dtype of products there. Weights, sums, losses and the optimizer's state stay in float32."""

    device: torch.device
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """The dtype's name."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> torch.autocast:
        """Return the context for the forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)


def pick_precision(device: str, dtype: str) -> Precision:
    """Return the precision for names that `gencli.devices.check_names` passed; auto is bfloat16 on CUDA, else float32.

    CPUs without AMX multiply bfloat16 more slowly than float32. With AMX (one core, a step forward and back) the GPT-2
    behind `weights/stories` takes 0.63 of float32's time in bfloat16, the UNet behind `weights/emoji` 0.93; float32
    stays the default there too, so that a command gives the same result on every CPU. On CUDA and on Apple's GPUs this
    has not been run. Raise GencliError for a device that is not here.
    """
    where = devices.pick_device(device)
    if dtype == "auto":
        dtype = "bfloat16" if where.type == "cuda" else "float32"
    return Precision(where, getattr(torch, dtype))


def make_trainable(module: nn.Module) -> None:
    """Let all weights be trained, in float32: as copies, for they may be views of the file that they were read from."""
    for param in module.parameters():
        param.data = param.data.to(torch.float32, copy=True)
        param.requires_grad_(True)
