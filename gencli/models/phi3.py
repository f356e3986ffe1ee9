"""Phi 3, 3.5 and 4 (Abdin et al. 2024, arXiv 2404.14219; 2412.08905): fused projections, LongRoPE for long contexts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gencli.models import decoder
from gencli.models.activations import ACTIVATIONS
from gencli.models.base import check_ints, read_config
from gencli.models.decoder import (
    AttentionCore,
    Decoder,
    DecoderConfig,
    PreNormLayer,
    RMSNorm,
)
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import with_rope


@dataclass(frozen=True, kw_only=True)
class Phi3Config(DecoderConfig):
    """config.json of a Phi 3 checkpoint (Phi 3.5, Phi 4 and Phi 4 mini name the same architecture)."""

    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Phi3Config:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        original = raw.get("original_max_position_embeddings") or cls.original_max_position_embeddings
        raw = with_rope(_named_longrope(raw, original), ("default", "longrope"), partial=True)
        only = {
            "attention_bias": (False,), "mlp_bias": (False,), "lm_head_bias": (False,),
            "full_attn_mod": (1,), "interpolate_factor": (1,),
        }  # fmt: skip
        config = read_config(cls, raw, inert=decoder.DECODER_INERT, only=only)
        config.check()
        check_ints(config, {"original_max_position_embeddings": 2**26})
        return config

    def window(self, layer: int) -> int | None:
        return self.sliding_window


def _named_longrope(raw: Mapping[str, Any], original: Any) -> dict[str, Any]:
    """The config with `su` and `yarn`, as early files call LongRoPE, under its name, and with its original length."""
    parameters = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(parameters, dict) or parameters.get("rope_type", parameters.get("type", "default")) == "default":
        return dict(raw)
    kind = parameters.get("rope_type", parameters.get("type"))
    named = {"rope_type": "longrope" if kind in ("su", "yarn") else kind, "original_max_position_embeddings": original}
    return {**raw, "rope_scaling": {**parameters, **named}}


class Attention(AttentionCore):
    """One projection gives q, k and v."""

    def __init__(self, config: Phi3Config, layer: int):
        super().__init__(config, layer)
        self.qkv_proj = nn.Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv_proj(x).view(*x.shape[:2], -1, self.head_dim)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        return q, k, v


class MLP(nn.Module):
    """One projection gives gate and values."""

    def __init__(self, config: Phi3Config):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(self.activation(gate) * up)


class Cache(KeyValueCache):
    """Remembers the ids as well: LongRoPE turns everything anew when a text outgrows its original length."""

    def __init__(self, *shape: int, device: torch.device, dtype: torch.dtype):
        super().__init__(*shape, device=device, dtype=dtype)
        _, batch, _, positions, _ = shape
        self.ids = torch.empty((batch, positions), device=device, dtype=torch.long)
        self.long = False  # whether what is in it was turned as in a long text

    def repeat(self, batch: int) -> None:
        super().repeat(batch)
        self.ids = self.ids.repeat(batch, 1)

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.ids = self.ids[rows]


class Phi3(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: Phi3Config):
        layers = [
            PreNormLayer(config, Attention(config, layer), MLP(config)) for layer in range(config.num_hidden_layers)
        ]
        super().__init__(config, layers, RMSNorm(config.hidden_size, config.rms_norm_eps))

    def new_cache(self, batch: int, positions: int) -> KeyValueCache:
        """A cache for `batch` sequences of at most `positions` tokens."""
        config = self.config
        shape = (config.num_hidden_layers, batch, config.kv_heads, positions, config.head_size)
        return Cache(*shape, device=self.device, dtype=self.compute_dtype)

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None, *, last_only: bool = False) -> Tensor:
        """As every decoder's; the step at which a text becomes a long one reads the whole text again."""
        new = ids.shape[1]
        if isinstance(cache, Cache):
            start, stop = cache.length, cache.length + new
            cache.ids[:, start:stop] = ids
            if self.rotary.is_long(stop) != cache.long:
                cache.long = not cache.long
                cache.length = 0
                ids = cache.ids[:, :stop]
        return super().forward(ids, cache, last_only=last_only)[:, -new:]


LAYOUT = decoder.LAYOUT
Config, Model = Phi3Config, Phi3
