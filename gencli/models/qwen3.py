"""Qwen 3 (Yang et al. 2025, arXiv 2505.09388): Qwen 2 with normed heads of q and k, of a size of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gencli.models import decoder
from gencli.models.base import check_ints, read_config
from gencli.models.decoder import MLP, Decoder, PreNormLayer, RMSNorm, check_layer_types
from gencli.models.qwen2 import Qwen2Config
from gencli.models.rope import COMMON_KINDS, with_rope


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(Qwen2Config):
    """config.json of a Qwen3 checkpoint; windows are told as in Qwen2's."""

    head_dim: int | None = 128
    attention_bias: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Qwen3Config:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        config = read_config(cls, with_rope(raw, COMMON_KINDS), inert=decoder.DECODER_INERT)
        config.check()
        check_ints(config, {"max_window_layers": 2**20}, least=0)
        check_layer_types(config.types, config.num_hidden_layers, config.used_window)
        return config


class Attention(decoder.Attention):
    """q and k are normed head by head, before RoPE."""

    def __init__(self, config: Qwen3Config, layer: int):
        super().__init__(config, layer, bias=config.attention_bias, out_bias=config.attention_bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v


class Qwen3(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: Qwen3Config):
        layers = [
            PreNormLayer(config, Attention(config, layer), MLP(config)) for layer in range(config.num_hidden_layers)
        ]
        super().__init__(config, layers, RMSNorm(config.hidden_size, config.rms_norm_eps))


LAYOUT = decoder.LAYOUT
Config, Model = Qwen3Config, Qwen3
