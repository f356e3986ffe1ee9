"""Qwen 3 (Yang et al. 2025, arXiv 2505.09388): Qwen 2 with norms of q and k and a head size of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gencli.models import decoder, decoder_blocks
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, PreNormLayer, RMSNorm
from gencli.models.qwen2 import Qwen2Config


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(Qwen2Config):
    """config.json of a Qwen3 checkpoint; its windows are those of Qwen2."""

    ONLY: ClassVar = {}

    head_dim: int | None = 128
    attention_bias: bool = False


class Attention(decoder_blocks.Attention):
    """q and k are normed head by head, before RoPE."""

    STEP = decoder_blocks.Attention.STEP

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
        super().__init__(config, lambda layer: PreNormLayer(config, Attention(config, layer), MLP(config)))


LAYOUT = decoder.LAYOUT
Config, Model = Qwen3Config, Qwen3
