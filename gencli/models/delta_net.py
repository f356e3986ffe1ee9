"""Gated DeltaNet (Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464) as a layer's mixer: a short causal convolution,
and the delta rule.

B: batch, T: new positions, C: hidden_size, H: value heads, K and V: sizes of a key and a value, W: width of the
convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models import delta_rule, step
from gencli.models.activations import ACTIVATIONS
from gencli.models.decoder_blocks import RMSNorm
from gencli.models.kv_cache import KeyValueCache
from gencli.models.state_cache import Mark, Sizes, StateCache


class Linear(Protocol):
    """The keys of a config about these layers."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def rms_norm_eps(self) -> float: ...
    @property
    def linear_conv_kernel_dim(self) -> int: ...
    @property
    def linear_num_key_heads(self) -> int: ...
    @property
    def linear_num_value_heads(self) -> int: ...
    @property
    def linear_key_head_dim(self) -> int: ...
    @property
    def linear_value_head_dim(self) -> int: ...
    @property
    def value_heads_in_turns(self) -> bool: ...


def sizes_of(config: Linear, layers: int) -> Sizes:
    """Return what so many of these layers keep of a text."""
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    heads, inputs = config.linear_num_value_heads, config.linear_conv_kernel_dim - 1
    width = 2 * config.linear_num_key_heads * key + heads * value
    return Sizes(layers, inputs, width, heads, key, value)


class GatedDeltaNet(nn.Module):
    """Queries, keys and values through the convolution, then the delta rule, and a gate over each normed head.

    layer: which of the layers with a state it is. Each head of queries and keys serves several of values.
    """

    STEP = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")

    def __init__(self, config: Linear, layer: int):
        super().__init__()
        self.layer, self.sizes, self.key_heads = layer, sizes_of(config, 1), config.linear_num_key_heads
        sizes, hidden = self.sizes, config.hidden_size
        values = sizes.heads * sizes.value
        self.in_proj_qkv = nn.Linear(hidden, sizes.width, bias=False)
        self.in_proj_z = nn.Linear(hidden, values, bias=False)
        self.in_proj_b = nn.Linear(hidden, sizes.heads, bias=False)
        self.in_proj_a = nn.Linear(hidden, sizes.heads, bias=False)
        self.conv1d = nn.Conv1d(sizes.width, sizes.width, sizes.inputs + 1, groups=sizes.width, bias=False)
        self.dt_bias = nn.Parameter(torch.ones(sizes.heads))
        self.A_log = nn.Parameter(torch.zeros(sizes.heads))
        self.norm = RMSNorm(sizes.value, config.rms_norm_eps)
        self.out_proj = nn.Linear(values, hidden, bias=False)
        self.in_turns = config.value_heads_in_turns
        self.activation = ACTIVATIONS[config.hidden_act]
        self.step_activation = step.ACTIVATIONS.get(config.hidden_act)

    def forward(self, x: Tensor, cache: StateCache | None) -> Tensor:
        B, T, _ = x.shape
        mixed, kept = self.in_proj_qkv(x), self.sizes
        before = (
            mixed.new_zeros(B, kept.inputs, kept.width) if cache is None else cache.windows[:B, self.layer].to(mixed)
        )
        mixed = torch.cat((before, mixed), dim=1)  # (B, W - 1 + T, width)
        heads = self.heads(self.convolved(mixed, T), x)
        if cache is None:
            state = mixed.new_zeros(B, kept.heads, kept.key, kept.value, dtype=torch.float32)
            y, _ = delta_rule.read(state, *heads)
        else:
            y, state = self.read(heads, cache.states[:B, self.layer], mixed, cache, cache.marks)
            cache.windows[:B, self.layer] = mixed[:, T:]
            cache.states[:B, self.layer] = state
        y = self.norm(y.transpose(1, 2).to(x.dtype))  # (B, T, H, V)
        y = y * F.silu(self.in_proj_z(x).view(y.shape).float())
        return self.out_proj(y.flatten(2).to(x.dtype))

    def step_state(self, cache: KeyValueCache) -> tuple[Tensor, Tensor]:
        """Return what this layer has in a cache, for `models.step`: the convolution's last inputs (B, W - 1, width)
        and the state (B, H, K, V). Raises TypeError for a cache without states."""
        if not isinstance(cache, StateCache):
            raise TypeError
        return cache.windows[:, self.layer], cache.states[:, self.layer]

    def convolved(self, mixed: Tensor, count: int) -> Tensor:
        """Return the activation of the convolution (B, T, width) of its inputs (B, W - 1 + T, width), in float32."""
        weight = self.conv1d.weight.float()  # (width, 1, W)
        sums = mixed[:, :count].float() * weight[:, 0, 0]
        for i in range(1, self.sizes.inputs + 1):
            sums = torch.addcmul(sums, mixed[:, i : i + count].float(), weight[:, 0, i])
        return self.activation(sums)

    def heads(self, mixed: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return queries and keys (B, H, T, K), of unit length, values (B, H, T, V), and of each head (B, H, T) the
        logarithm of what it keeps, and the rate at which it learns."""
        sizes, count = self.sizes, self.key_heads
        keys = count * sizes.key
        q, k, v = mixed.split((keys, keys, sizes.heads * sizes.value), dim=-1)
        q, k = (_unit(one.unflatten(-1, (count, -1))) for one in (q, k))
        if count < sizes.heads:
            q, k = (self.spread(one, sizes.heads // count) for one in (q, k))
        q, v = q * sizes.key**-0.5, v.unflatten(-1, (sizes.heads, -1))
        g = -self.A_log.float().exp() * F.softplus(self.in_proj_a(x).float() + self.dt_bias.float())
        q, k, v, g, beta = (one.transpose(1, 2) for one in (q, k, v, g, self.in_proj_b(x).sigmoid().float()))
        return q, k, v, g, beta

    def spread(self, x: Tensor, times: int) -> Tensor:
        """Return heads (B, T, heads, K) of queries or keys, one for each head of values."""
        return x.repeat(1, 1, times, 1) if self.in_turns else x.repeat_interleave(times, dim=2)

    def read(
        self, heads: Sequence[Tensor], state: Tensor, mixed: Tensor, cache: StateCache, marks: Sequence[Mark]
    ) -> tuple[Tensor, Tensor]:
        """Return y (B, H, T, V) and the state after it. What there is at each mark on the way is kept."""
        if (count := heads[0].shape[2]) == 1:
            return delta_rule.step(state, *(one.contiguous() for one in heads))
        parts, start = list[Tensor](), 0
        for mark in (*marks, None):
            stop = count if mark is None else mark.after
            y, state = delta_rule.read(state, *(one[:, :, start:stop] for one in heads))
            parts.append(y)
            if mark is not None:
                cache.keep(mark, self.layer, mixed[:, stop : stop + self.sizes.inputs], state)
            start = stop
        return torch.cat(parts, dim=2), state


def _unit(x: Tensor) -> Tensor:
    """Return vectors (…, K) in a length of one."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)
