"""Qwen 1.5, 2 and 2.5 (Yang et al. 2024, arXiv 2407.10671): biases on q, k and v; windows in the upper layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gencli.models import decoder
from gencli.models.base import check_ints, read_config
from gencli.models.decoder import MLP, Attention, Decoder, DecoderConfig, PreNormLayer, RMSNorm, check_layer_types
from gencli.models.rope import COMMON_KINDS, with_rope


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(DecoderConfig):
    """config.json of a Qwen2 checkpoint.

    With `use_sliding_window`, layers from `max_window_layers` on see `sliding_window` positions, unless `layer_types`
    says which do.
    """

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Qwen2Config:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        raw = with_rope(raw, COMMON_KINDS)
        config = read_config(cls, raw, inert=decoder.DECODER_INERT, only={"use_mrope": (False,)})
        config.check()
        check_ints(config, {"max_window_layers": 2**20}, least=0)
        check_layer_types(config.types, config.num_hidden_layers, config.used_window)
        return config

    @property
    def used_window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    @property
    def types(self) -> tuple[str, ...]:
        """Each layer's kind of attention."""
        if self.layer_types is not None:
            return self.layer_types
        full = self.num_hidden_layers if self.used_window is None else self.max_window_layers
        return tuple("sliding_attention" if i >= full else "full_attention" for i in range(self.num_hidden_layers))

    def window(self, layer: int) -> int | None:
        return self.used_window if self.types[layer] == "sliding_attention" else None


class Qwen2(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: Qwen2Config):
        layers = [
            PreNormLayer(config, Attention(config, layer, bias=True), MLP(config))
            for layer in range(config.num_hidden_layers)
        ]
        super().__init__(config, layers, RMSNorm(config.hidden_size, config.rms_norm_eps))


LAYOUT = decoder.LAYOUT
Config, Model = Qwen2Config, Qwen2
