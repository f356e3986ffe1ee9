"""Mistral 7B and Nemo (Jiang et al. 2023, arXiv 2310.06825): Llama with a sliding window in all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gencli.models import decoder
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, Attention, PreNormLayer
from gencli.models.decoder_config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class MistralConfig(DecoderConfig):
    """config.json of a Mistral checkpoint. A null `sliding_window` (version 0.2 and later) means none."""

    ONLY: ClassVar = {"attention_bias": (False,), "mlp_bias": (False,)}

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 4096 * 32
    sliding_window: int | None = 4096

    def window(self, layer: int) -> int | None:
        return self.sliding_window


class Mistral(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: MistralConfig):
        super().__init__(config, lambda layer: PreNormLayer(config, Attention(config, layer), MLP(config)))


LAYOUT = decoder.LAYOUT
Config, Model = MistralConfig, Mistral
