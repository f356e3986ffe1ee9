"""Gated DeltaNet for a step of the C library (see `models.step`), in place of a layer's attention."""

from __future__ import annotations

import ctypes
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from gencli.kernels import Delta, Layer, Norm
from gencli.models.kv_cache import KeyValueCache
from gencli.models.state_cache import Sizes
from gencli.models.step_weights import Holder, said

TAPS = 64  # inputs of a convolution that the library has room for
SILU = 0  # as kernels.h counts activations


@runtime_checkable
class HasState(Protocol):
    """A layer's mixer with a state. sizes: of one layer. in_turns: as of the config's `value_heads_in_turns`.
    step_state: the last inputs of the convolution (B, inputs, width) and the state (B, heads, key, value) in a cache.
    step_activation: that of the convolution, as kernels.h counts them; None: it has no number."""

    sizes: Sizes
    key_heads: int
    in_turns: bool
    conv1d: nn.Conv1d
    A_log: Tensor
    dt_bias: Tensor
    norm: nn.Module
    step_activation: int | None

    def step_state(self, cache: KeyValueCache) -> tuple[Tensor, Tensor]: ...


def add(to: Holder, made: Layer, parts: HasState) -> int:
    """Fill in a layer's gated DeltaNet, a module. Return how many numbers of memory it wants for a
    position, besides C. Raise TypeError for one that the library cannot do."""
    net = cast("nn.Module", parts)
    qkv, z, b, a, out = (getattr(net, name) for name in said(net, "forward", "STEP"))
    sizes, convolution = parts.sizes, parts.conv1d.weight.detach().float()
    if parts.step_activation != SILU or sizes.inputs >= TAPS:
        raise TypeError
    for module in (net, parts.conv1d):
        to.watch(module._parameters)
    delta = Delta(
        *map(to.matrix, (z, b, a)),
        to.numbers(convolution[:, 0].t().contiguous()),
        to.numbers(-parts.A_log.detach().float().exp()),
        to.numbers(parts.dt_bias.detach().float()),
        to.norm(parts.norm),
        *(sizes.heads, parts.key_heads, sizes.key, sizes.value, sizes.inputs + 1, parts.in_turns),
    )
    to.kept.append(delta)
    made.delta, made.qkv[0], made.o = ctypes.pointer(delta), to.matrix(qkv), to.matrix(out)
    made.hidden, length = out.matrix.shape[0], sizes.key**-0.5
    made.q_norm, made.k_norm = (_unit(to, sizes.key, one) for one in (length, 1.0))
    return 2 * sizes.width + sizes.heads * (sizes.value + 2)


def _unit(to: Holder, size: int, length: float) -> Norm:
    """A norm after which vectors have this length: x / sqrt(sum(x²) + 1e-6), times it."""
    return Norm(to.numbers(torch.full((size,), length * size**-0.5)), None, size, False, 1e-6 / size)
