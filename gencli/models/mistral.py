"""Mistral 7B and Nemo (Jiang et al. 2023, arXiv 2310.06825): Llama with a sliding window over all layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gencli.models import decoder
from gencli.models.base import read_config
from gencli.models.decoder import MLP, Attention, Decoder, DecoderConfig, PreNormLayer, RMSNorm
from gencli.models.rope import COMMON_KINDS, with_rope


@dataclass(frozen=True, kw_only=True)
class MistralConfig(DecoderConfig):
    """config.json of a Mistral checkpoint; a null `sliding_window` (version 0.2 and later) means none."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 4096 * 32
    sliding_window: int | None = 4096

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> MistralConfig:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        raw = with_rope(raw, COMMON_KINDS)
        only = {"attention_bias": (False,), "mlp_bias": (False,)}
        config = read_config(cls, raw, inert=decoder.DECODER_INERT, only=only)
        config.check()
        return config

    def window(self, layer: int) -> int | None:
        return self.sliding_window


class Mistral(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: MistralConfig):
        layers = [
            PreNormLayer(config, Attention(config, layer), MLP(config)) for layer in range(config.num_hidden_layers)
        ]
        super().__init__(config, layers, RMSNorm(config.hidden_size, config.rms_norm_eps))


LAYOUT = decoder.LAYOUT
Config, Model = MistralConfig, Mistral
