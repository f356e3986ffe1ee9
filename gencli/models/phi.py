"""Phi 1, 1.5 and 2 (Li et al. 2023, arXiv 2309.05463): attention and feed-forward side by side behind one norm, biases
everywhere, and a part of each head rotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from gencli.models import decoder, decoder_blocks
from gencli.models.activations import ACTIVATIONS
from gencli.models.base import Rename
from gencli.models.decoder import Decoder
from gencli.models.decoder_config import DecoderConfig
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import COMMON_KINDS, CosSin, with_rope


@dataclass(frozen=True, kw_only=True)
class PhiConfig(DecoderConfig):
    """config.json of a Phi 1 or 2 checkpoint. rms_norm_eps: its `layer_norm_eps`. qk_layernorm: whether q and k are
    normed head by head."""

    vocab_size: int = 51200
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    hidden_act: str = "gelu_new"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    qk_layernorm: bool = False

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        named = {"rms_norm_eps" if key == "layer_norm_eps" else key: value for key, value in raw.items()}
        return with_rope({"partial_rotary_factor": 0.5, **named}, COMMON_KINDS, partial=True)


class Attention(decoder_blocks.Attention):
    """q and k may be normed head by head, before RoPE."""

    def __init__(self, config: PhiConfig, layer: int):
        super().__init__(config, layer, bias=True, out_bias=True)
        if config.qk_layernorm:
            self.q_layernorm = nn.LayerNorm(self.head_dim, config.rms_norm_eps)
            self.k_layernorm = nn.LayerNorm(self.head_dim, config.rms_norm_eps)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x)
        return (self.q_layernorm(q), self.k_layernorm(k), v) if hasattr(self, "q_layernorm") else (q, k, v)


class MLP(nn.Module):
    """A feed-forward network without a gate."""

    def __init__(self, config: PhiConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """Both branches read x behind the one norm."""

    def __init__(self, config: PhiConfig, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        h = self.input_layernorm(x)
        return x + self.self_attn(h, cos_sin, cache) + self.mlp(h)


class Phi(Decoder):
    """The decoder with its language-model head, which has a bias."""

    def __init__(self, config: PhiConfig):
        super().__init__(config, lambda layer: Layer(config, layer), nn.LayerNorm)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight


LAYOUT = replace(
    decoder.LAYOUT,
    renames=(
        Rename(r"model\.final_layernorm\.(.*)", r"model.norm.\1"),
        Rename(r"(model\.layers\.\d+\.self_attn)\.dense\.(.*)", r"\1.o_proj.\2"),
    ),
)
Config, Model = PhiConfig, Phi
