"""SmolLM3 (Bakouch et al. 2025): Llama whose every fourth layer has no RoPE (NoPE, 2501.18795)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gencli.errors import GencliError
from gencli.models import decoder
from gencli.models.base import check_ints, read_config
from gencli.models.decoder import (
    MLP,
    Attention,
    Decoder,
    DecoderConfig,
    PreNormLayer,
    RMSNorm,
    check_layer_types,
)
from gencli.models.rope import COMMON_KINDS, CosSin, with_rope


@dataclass(frozen=True, kw_only=True)
class SmolLM3Config(DecoderConfig):
    """config.json of a SmolLM3 checkpoint.

    `no_rope_layers` has 1 for a layer with RoPE and 0 for one without; without it, every
    `no_rope_layer_interval`th has none. With `use_sliding_window` the layers without RoPE have a window.
    """

    vocab_size: int = 128256
    hidden_size: int = 2048
    intermediate_size: int = 11008
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = None
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: int = 4
    layer_types: tuple[str, ...] | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> SmolLM3Config:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        raw = with_rope(raw, COMMON_KINDS, theta=2000000.0)
        inert = decoder.DECODER_INERT | {"max_window_layers"}  # Qwen2's; SmolLM3 does not read it
        config = read_config(cls, raw, inert=inert)
        config.check()
        check_ints(config, {"no_rope_layer_interval": 2**20})
        given = config.no_rope_layers
        if given is not None and not (isinstance(given, tuple) and len(given) >= config.num_hidden_layers):
            raise GencliError(f"config.json: no_rope_layers = {str(given)[:60]} does not name every layer")
        check_layer_types(config.types, config.num_hidden_layers, config.used_window)
        return config

    @property
    def used_window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    @property
    def rope_layers(self) -> tuple[bool, ...]:
        """For each layer, whether it applies RoPE."""
        if self.no_rope_layers is not None:
            return tuple(bool(rope) for rope in self.no_rope_layers[: self.num_hidden_layers])
        return tuple((i + 1) % self.no_rope_layer_interval != 0 for i in range(self.num_hidden_layers))

    @property
    def types(self) -> tuple[str, ...]:
        """Each layer's kind of attention."""
        if self.layer_types is not None:
            return self.layer_types
        windowed = self.used_window is not None
        return tuple("sliding_attention" if windowed and not rope else "full_attention" for rope in self.rope_layers)

    def window(self, layer: int) -> int | None:
        return self.used_window if self.types[layer] == "sliding_attention" else None


class SmolLM3(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: SmolLM3Config):
        layers = []
        for layer in range(config.num_hidden_layers):
            attention = Attention(config, layer, bias=config.attention_bias, out_bias=config.attention_bias)
            layers.append(PreNormLayer(config, attention, MLP(config, bias=config.mlp_bias)))
        super().__init__(config, layers, RMSNorm(config.hidden_size, config.rms_norm_eps))
        self.rope_layers = config.rope_layers

    def cos_sin_per_layer(self, start: int, stop: int, like: Tensor) -> Sequence[CosSin | None]:
        cos_sin = self.rotary(start, stop, like)
        return [cos_sin if rope else None for rope in self.rope_layers]


LAYOUT = decoder.LAYOUT
Config, Model = SmolLM3Config, SmolLM3
