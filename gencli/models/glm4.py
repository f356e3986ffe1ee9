"""GLM-4-0414, the dense models of 2025 (GLM Team 2024, arXiv 2406.12793): norms around attention and feed-forward, and
half of each head rotated, in pairs of neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gencli.models import decoder, decoder_blocks, phi3
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import RMSNorm
from gencli.models.decoder_config import DecoderConfig
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import COMMON_KINDS, CosSin, with_rope


@dataclass(frozen=True, kw_only=True)
class Glm4Config(DecoderConfig):
    """config.json of a GLM-4 checkpoint."""

    vocab_size: int = 151552
    hidden_size: int = 4096
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 2
    head_dim: int | None = 128
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1.5625e-7
    attention_bias: bool = True

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        rotated = raw.get("partial_rotary_factor")
        given = {**raw, "partial_rotary_factor": 0.5 if rotated is None else rotated}
        return with_rope(given, COMMON_KINDS, partial=True)


class Attention(decoder_blocks.Attention):
    """bias: of q, k and v alone."""

    STEP = decoder_blocks.Attention.STEP
    neighbours = True

    def __init__(self, config: Glm4Config, layer: int):
        super().__init__(config, layer, bias=config.attention_bias)


class Layer(nn.Module):
    """Norms before and after attention and feed-forward, inside the residual branches."""

    STEP = ("self_attn", "mlp")
    NORMS = ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")

    def __init__(self, config: Glm4Config, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = phi3.MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_self_attn_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_mlp_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        x = x + self.post_self_attn_layernorm(self.self_attn(self.input_layernorm(x), cos_sin, cache))
        return x + self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(x)))


class Glm4(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: Glm4Config):
        super().__init__(config, lambda layer: Layer(config, layer))


LAYOUT = decoder.LAYOUT
Config, Model = Glm4Config, Glm4
