"""OLMo 3 (OLMo Team 2025, arXiv 2512.13961): OLMo 2 with a sliding window in three of four layers, which no scaling of
RoPE is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gencli.models import decoder
from gencli.models.decoder import TwoRopes
from gencli.models.decoder_config import WindowedConfig
from gencli.models.olmo2 import Layer, Olmo2Config, RMSNorm
from gencli.models.rope import Rope, Rotary, with_two_ropes


@dataclass(frozen=True, kw_only=True)
class Olmo3Config(Olmo2Config, WindowedConfig):
    """config.json of an OLMo 3 checkpoint. Without `layer_types` every fourth layer is full.

    rope_parameters: of the full layers. sliding_rope: of the windowed layers.
    """

    sliding_window: int | None = 4096
    sliding_rope: Rope

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        theta = 500000.0
        return with_two_ropes(raw, theta=theta, local={"rope_theta": raw.get("rope_theta", theta)})

    def slides(self, layer: int) -> bool:
        return (layer + 1) % 4 != 0


class Olmo3(TwoRopes):
    """The decoder with its language-model head."""

    def __init__(self, config: Olmo3Config):
        super().__init__(config, lambda layer: Layer(config, layer), RMSNorm)
        self.sliding_rotary = Rotary(config.sliding_rope, config.head_size, config.max_position_embeddings)
        self.types = config.types


LAYOUT = decoder.LAYOUT
Config, Model = Olmo3Config, Olmo3
