"""Qwen 1.5, 2 and 2.5 (Yang et al. 2024, arXiv 2407.10671): biases of q, k and v; windows in the upper layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gencli.models import decoder
from gencli.models.base import check_ints
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, Attention, PreNormLayer
from gencli.models.decoder_config import WindowedConfig


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(WindowedConfig):
    """config.json of a Qwen2 checkpoint.

    With `use_sliding_window`, layers from `max_window_layers` on see `sliding_window` positions, unless `layer_types`
    says which do.
    """

    ONLY: ClassVar = {"use_mrope": (False,)}

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

    def check(self) -> None:
        check_ints(self, {"max_window_layers": 2**20}, least=0)
        super().check()

    @property
    def used_window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    def slides(self, layer: int) -> bool:
        return self.used_window is not None and layer >= self.max_window_layers


class Qwen2(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: Qwen2Config):
        super().__init__(config, lambda layer: PreNormLayer(config, Attention(config, layer, bias=True), MLP(config)))


LAYOUT = decoder.LAYOUT
Config, Model = Qwen2Config, Qwen2
