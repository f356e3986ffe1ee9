"""Phi 3, 3.5 and 4 (Abdin et al. 2024, arXiv 2404.14219; 2412.08905): fused projections, LongRoPE for long contexts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gencli.models import decoder, step
from gencli.models.activations import ACTIVATIONS
from gencli.models.base import check_ints
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import PreNormLayer, ProjectedAttention
from gencli.models.decoder_config import DecoderConfig
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import with_rope


@dataclass(frozen=True, kw_only=True)
class Phi3Config(DecoderConfig):
    """config.json of a Phi 3 checkpoint (Phi 3.5, Phi 4 and Phi 4 mini name the same architecture)."""

    ONLY: ClassVar = {
        "attention_bias": (False,), "mlp_bias": (False,), "lm_head_bias": (False,),
        "full_attn_mod": (1,), "interpolate_factor": (1,),
    }  # fmt: skip

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
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        original = raw.get("original_max_position_embeddings") or cls.original_max_position_embeddings
        return with_rope(_named_longrope(raw, original), ("default", "longrope"), partial=True)

    def check(self) -> None:
        super().check()
        check_ints(self, {"original_max_position_embeddings": 2**26})

    def window(self, layer: int) -> int | None:
        return self.sliding_window


def _named_longrope(raw: Mapping[str, object], original: object) -> dict[str, object]:
    """Return the values with LongRoPE, `su` or `yarn` in early files, under its name and with its original length."""
    parameters = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(parameters, dict) or parameters.get("rope_type", parameters.get("type", "default")) == "default":
        return dict(raw)
    kind = parameters.get("rope_type", parameters.get("type"))
    named = {"rope_type": "longrope" if kind in ("su", "yarn") else kind, "original_max_position_embeddings": original}
    return {**raw, "rope_scaling": {**parameters, **named}}


class Attention(ProjectedAttention):
    """One projection makes q, k and v."""

    STEP = ("qkv_proj",)

    def __init__(self, config: Phi3Config, layer: int):
        super().__init__(config, layer)
        self.qkv_proj = nn.Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv_proj(x).view(*x.shape[:2], -1, self.head_dim)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        return q, k, v


class MLP(nn.Module):
    """One projection makes the gate and the values."""

    STEP, gated = ("gate_up_proj", "down_proj"), True

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.step_activation = step.ACTIVATIONS.get(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(self.activation(gate) * up)


class Cache(KeyValueCache):
    """Keeps the ids as well: LongRoPE rotates all keys anew when a text outgrows its original length.

    long (B,): whether a row's keys were rotated as in a long text.
    """

    ROWS, POSITIONS = ("lengths", "long", "ids"), ("ids",)

    def __init__(self, *shape: int, device: torch.device, dtype: torch.dtype):
        super().__init__(*shape, device=device, dtype=dtype)
        _, batch, _, positions, _ = shape
        self.ids = torch.zeros((batch, positions), dtype=torch.long)
        self.long = torch.zeros(batch, dtype=torch.bool)


class Phi3(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: Phi3Config):
        super().__init__(config, lambda layer: PreNormLayer(config, Attention(config, layer), MLP(config)))

    def new_cache(self, batch: int, positions: int) -> KeyValueCache:
        config = self.config
        shape = (config.num_hidden_layers, batch, config.kv_heads, positions, config.head_size)
        return Cache(*shape, device=self.device, dtype=self.compute_dtype)

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None, *, last_only: bool = False) -> Tensor:
        """As of every decoder; the step at which a text becomes a long one reads the whole text again."""
        if not isinstance(cache, Cache):
            return super().forward(ids, cache, last_only=last_only)
        B, T = ids.shape
        stops = (cache.lengths[:B] + T).tolist()
        turned = [self.rotary.is_long(stop) for stop in stops] != cache.long[:B].tolist()
        if turned and B > 1:
            parts = [self(ids[i : i + 1], cache.row(i), last_only=last_only) for i in range(B)]
            return torch.cat(parts)
        for row, stop in enumerate(stops):
            cache.ids[row, stop - T : stop] = ids[row]
        if turned:
            cache.long[0], cache.lengths[0] = not cache.long[0], 0
            ids = cache.ids[:1, : stops[0]].to(ids.device)
        return super().forward(ids, cache, last_only=last_only)[:, -T:]


LAYOUT = decoder.LAYOUT
Config, Model = Phi3Config, Phi3
