"""SmolLM3 (Bakouch et al. 2025): Llama in which every fourth layer has no RoPE (NoPE, arXiv 2501.18795)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from gencli.errors import GencliError
from gencli.models import decoder
from gencli.models.base import check_ints
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, Attention, PreNormLayer
from gencli.models.decoder_config import WindowedConfig
from gencli.models.rope import COMMON_KINDS, CosSin, with_rope


@dataclass(frozen=True, kw_only=True)
class SmolLM3Config(WindowedConfig):
    """config.json of a SmolLM3 checkpoint.

    `no_rope_layers` has 1 for a layer with RoPE and 0 for one without; if it is absent, every
    `no_rope_layer_interval`th layer has none. With `use_sliding_window` the layers without RoPE have a window.
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
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: int = 4

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        return with_rope(raw, COMMON_KINDS, theta=2000000.0)

    def check(self) -> None:
        check_ints(self, {"no_rope_layer_interval": 2**20, "num_hidden_layers": 1024})
        given = self.no_rope_layers
        if given is not None and not (isinstance(given, tuple) and len(given) >= self.num_hidden_layers):
            raise GencliError(f"config.json: no_rope_layers = {str(given)[:60]} does not name every layer")
        super().check()

    @property
    def used_window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    @property
    def rope_layers(self) -> tuple[bool, ...]:
        """For each layer, whether it has RoPE."""
        if self.no_rope_layers is not None:
            return tuple(bool(rope) for rope in self.no_rope_layers[: self.num_hidden_layers])
        return tuple((i + 1) % self.no_rope_layer_interval != 0 for i in range(self.num_hidden_layers))

    def slides(self, layer: int) -> bool:
        return self.used_window is not None and not self.rope_layers[layer]


class SmolLM3(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: SmolLM3Config):
        def make_layer(layer: int) -> PreNormLayer:
            attention = Attention(config, layer, bias=config.attention_bias, out_bias=config.attention_bias)
            return PreNormLayer(config, attention, MLP(config, bias=config.mlp_bias))

        super().__init__(config, make_layer)
        self.rope_layers = config.rope_layers

    def cos_sin_per_layer(self, start: int, stop: int, like: Tensor) -> Sequence[CosSin | None]:
        cos_sin = self.rotary(start, stop, like)
        return [cos_sin if rope else None for rope in self.rope_layers]


LAYOUT = decoder.LAYOUT
Config, Model = SmolLM3Config, SmolLM3
