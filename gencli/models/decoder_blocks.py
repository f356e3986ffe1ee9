"""What the layers of decoders are made of: norm, feed-forward, grouped-query attention.

B: batch, T: new positions, S: all positions, C: hidden_size, H: query heads, K: key/value heads, D: size of a head.
"""

from __future__ import annotations

import abc

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models import step
from gencli.models.activations import ACTIVATIONS
from gencli.models.attention import attend
from gencli.models.decoder_config import DecoderConfig
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import CosSin, apply_rotary_emb, halves


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight (Zhang & Sennrich 2019, arXiv 1910.07467); the quotient is in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, eps=self.eps) * self.weight  # rounded before the product

    def norm_weights(self) -> tuple[Tensor, Tensor | None, float, bool]:
        """Return weight and bias in float32, eps, and whether the mean is taken away, for `models.step`."""
        return self.weight.float(), None, self.eps, False


class MLP(nn.Module):
    """The gated feed-forward network (Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202). inner: its
    width, where it is not the config's."""

    STEP, gated = ("gate_proj", "up_proj", "down_proj"), True

    def __init__(self, config: DecoderConfig, *, bias: bool = False, inner: int | None = None):
        super().__init__()
        hidden, inner = config.hidden_size, inner or config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.step_activation = step.ACTIVATIONS.get(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class AttentionCore(nn.Module):
    """What causal attention with rotary positions and a cache consists of. Subclasses define `forward` and `o_proj`.

    neighbours: whether pairs that are rotated lie side by side in the checkpoint; in the cache none do.
    """

    neighbours = False
    o_proj: nn.Linear

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, config.kv_heads, config.head_size
        self.window = config.window(layer)
        self.rotated = config.rope_parameters.width(self.head_dim)
        self.scale = self.head_dim**-0.5
        self.softcap: float | None = None
        self.sinks: Tensor | None = None

    def placed(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos_sin: CosSin | None,
        cache: KeyValueCache | None,
        gate: Tensor | None = None,
    ) -> Tensor:
        """Give queries (B, T, H, D), keys and values (B, T, K, D) their positions, and return what is `attended`."""
        if self.neighbours:
            q, k = halves(q, self.rotated), halves(k, self.rotated)
        if cos_sin is not None:
            q, k = apply_rotary_emb(q, cos_sin), apply_rotary_emb(k, cos_sin)
        k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B, K, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        return self.attended(q, k, v, cache, gate)

    def attended(
        self, q: Tensor, k: Tensor, v: Tensor, cache: KeyValueCache | None, gate: Tensor | None = None
    ) -> Tensor:
        """Return what queries (B, T, H, D) find in all keys and values (B, K, S, D), projected: (B, T, C). gate
        (B, T, H * D): the part of it that counts, before a sigmoid."""
        ways = {"scale": self.scale, "window": self.window, "softcap": self.softcap, "sinks": self.sinks}
        if cache is not None:
            ways |= {"seen": cache.seen, "visible": cache.visible(len(q), self.window)}
        found = attend(q, k, v, **ways)
        return self.o_proj(found if gate is None else found * gate.sigmoid())


class ProjectedAttention(AttentionCore, abc.ABC):
    """Attention whose queries, keys and values are all made of the layer's own input. Subclasses define `project`."""

    STEP: tuple[str, ...] = ("o_proj",)

    @abc.abstractmethod
    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, T, H, D), keys and values (B, T, K, D) of x (B, T, C)."""

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        return self.placed(*self.project(x), cos_sin, cache)


class Attention(ProjectedAttention):
    """Attention with four projections. bias: of q, k and v. out_bias: of the output."""

    STEP: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: DecoderConfig, layer: int, *, bias: bool = False, out_bias: bool = False):
        super().__init__(config, layer)
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=out_bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (*x.shape[:2], -1, self.head_dim)
        return self.q_proj(x).view(shape), self.k_proj(x).view(shape), self.v_proj(x).view(shape)


class PreNormLayer(nn.Module):
    """A layer with a norm before the attention and one before the feed-forward network."""

    STEP = ("self_attn", "mlp")  # as `models.step` runs it; NORMS: before and after each of them
    NORMS = ("input_layernorm", None, "post_attention_layernorm", None)

    def __init__(self, config: DecoderConfig, self_attn: nn.Module, mlp: nn.Module):
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos_sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))
