"""Llama 2 and 3 (Touvron et al. 2023, arXiv 2307.09288; 2407.21783), and what has their shape: SmolLM2, TinyLlama, …"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gencli.models import decoder
from gencli.models.base import read_config
from gencli.models.decoder import MLP, Attention, Decoder, DecoderConfig, PreNormLayer, RMSNorm
from gencli.models.rope import COMMON_KINDS, with_rope


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """config.json of a Llama checkpoint; defaults are Llama 1 7B's, as in the reference."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 2048
    attention_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> LlamaConfig:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        raw = with_rope(raw, COMMON_KINDS)
        config = read_config(cls, raw, inert=decoder.DECODER_INERT, only={"rope_interleaved": (False,)})
        config.check()
        return config


class Llama(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: LlamaConfig):
        layers = []
        for layer in range(config.num_hidden_layers):
            attention = Attention(config, layer, bias=config.attention_bias, out_bias=config.attention_bias)
            layers.append(PreNormLayer(config, attention, MLP(config, bias=config.mlp_bias)))
        super().__init__(config, layers, RMSNorm(config.hidden_size, config.rms_norm_eps))


LAYOUT = decoder.LAYOUT
Config, Model = LlamaConfig, Llama
