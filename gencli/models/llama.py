"""Llama 2 and 3 (Touvron et al. 2023, arXiv 2307.09288; 2407.21783), and models of its shape: SmolLM2, TinyLlama, …"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gencli.models import decoder
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, Attention, PreNormLayer
from gencli.models.decoder_config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """config.json of a Llama checkpoint; defaults are those of Llama 1 7B, as in the reference."""

    ONLY: ClassVar = {"rope_interleaved": (False,)}

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 2048
    attention_bias: bool = False
    mlp_bias: bool = False


class Llama(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: LlamaConfig):
        def make_layer(layer: int) -> PreNormLayer:
            attention = Attention(config, layer, bias=config.attention_bias, out_bias=config.attention_bias)
            return PreNormLayer(config, attention, MLP(config, bias=config.mlp_bias))

        super().__init__(config, make_layer)


LAYOUT = decoder.LAYOUT
Config, Model = LlamaConfig, Llama
