"""Where a recipe runs, and in which precision it multiplies: one path for the CPU, CUDA and Apple's GPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gencli import devices

_AS_IT_IS = contextlib.nullcontext()


class _Function(Protocol):
    def __call__(self, *args: object, **named: object) -> Tensor: ...


class _Float32Attention(TorchFunctionMode):
    """Attention in float32, whatever is around it: on a CPU without AMX it takes bfloat16's gradients one by one."""

    def __torch_function__(
        self,
        func: _Function,
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Tensor:
        named = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_float, args), **{name: _float(one) for name, one in named.items()})


def _float(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@dataclass(frozen=True)
class Precision:
    """A device, and the dtype of products there. Weights, sums, losses and the optimizer's state stay in float32."""

    device: torch.device
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """The dtype's name."""
        return str(self.dtype).removeprefix("torch.")

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Be in this precision, for a forward pass."""
        enabled = self.dtype is not torch.float32
        slow = enabled and self.device.type == "cpu" and not devices.has_amx()
        with torch.autocast(self.device.type, self.dtype, enabled=enabled), _Float32Attention() if slow else _AS_IT_IS:
            yield


def pick_precision(device: str, dtype: str) -> Precision:
    """Return the precision for names that `gencli.devices.check_names` passed; auto is bfloat16 on CUDA, else float32.

    CPUs that have no instructions for bfloat16 multiply it more slowly than float32. On one with those of AVX-512 a
    step, forward and back, of the UNet behind `weights/emoji` takes 0.66 of float32's time, and of the GPT-2 behind
    `weights/stories` 0.67 (two cores, `python -m benchmarks.bench_train`); with AMX it was 0.93 and 0.63 (one core).
    float32 stays the default there too, so that a command gives the same result on every CPU. On CUDA and on Apple's
    GPUs this has not been run. Raise GencliError for a device that is not here.
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
