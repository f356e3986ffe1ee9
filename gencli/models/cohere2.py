"""Command R7B and Command A (Cohere 2024; 2025, arXiv 2504.00698): attention and feed-forward side by side behind one
norm, windows with RoPE in three of four layers, and no positions in the fourth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models import decoder, decoder_blocks
from gencli.models.base import check_ints, check_numbers
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP
from gencli.models.decoder_config import DECODER_INERT, WindowedConfig
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import COMMON_KINDS, CosSin, with_rope


@dataclass(frozen=True, kw_only=True)
class Cohere2Config(WindowedConfig):
    """config.json of a Cohere 2 checkpoint. rms_norm_eps: its `layer_norm_eps`. Without `layer_types` every
    `sliding_window_pattern`th layer is full. logit_scale: the factor of logits."""

    INERT = DECODER_INERT | {  # of other programs
        "layer_switch", "order_of_interleaved_layers", "position_embedding_type", "use_embedding_sharing",
        "use_parallel_embedding",
    }  # fmt: skip
    ONLY: ClassVar = {
        "use_parallel_block": (True,), "use_gated_activation": (True,), "use_qk_norm": (False,), "rotary_pct": (1.0,),
    }  # fmt: skip

    vocab_size: int = 256000
    hidden_size: int = 8192
    intermediate_size: int = 22528
    num_hidden_layers: int = 40
    num_attention_heads: int = 64
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    sliding_window: int | None = 4096
    sliding_window_pattern: int = 4
    logit_scale: float = 0.0625

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        named = {"rms_norm_eps" if key == "layer_norm_eps" else key: value for key, value in raw.items()}
        return with_rope(named, COMMON_KINDS)

    def check(self) -> None:
        check_ints(self, {"sliding_window_pattern": 2**20})
        super().check()
        check_numbers(self, {"logit_scale": (1e-6, 1e6)})

    def slides(self, layer: int) -> bool:
        return (layer + 1) % self.sliding_window_pattern != 0


class LayerNorm(nn.Module):
    """LayerNorm without a bias, in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight.float(), None, self.eps).to(x.dtype)


class Attention(decoder_blocks.Attention):
    """Pairs that are rotated lie side by side."""

    neighbours = True

    def __init__(self, config: Cohere2Config, layer: int):
        super().__init__(config, layer, bias=config.attention_bias, out_bias=config.attention_bias)


class Layer(nn.Module):
    """Both branches read x behind the one norm."""

    def __init__(self, config: Cohere2Config, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = LayerNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        h = self.input_layernorm(x)
        return x + self.self_attn(h, cos_sin, cache) + self.mlp(h)


class Cohere2(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: Cohere2Config):
        super().__init__(config, lambda layer: Layer(config, layer), LayerNorm)
        self.logit_scale, self.types = config.logit_scale, config.types

    def cos_sin_per_layer(self, start: int, stop: int, like: Tensor) -> Sequence[CosSin | None]:
        cos_sin = self.rotary(start, stop, like)
        return [cos_sin if kind == "sliding_attention" else None for kind in self.types]


LAYOUT = decoder.LAYOUT
Config, Model = Cohere2Config, Cohere2
