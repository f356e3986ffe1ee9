"""OLMo 2 (OLMo Team 2024, arXiv 2501.00656): norms after attention and feed-forward, and over all of q and k."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models import decoder, decoder_blocks
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP
from gencli.models.decoder_config import DecoderConfig
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import CosSin


@dataclass(frozen=True, kw_only=True)
class Olmo2Config(DecoderConfig):
    """config.json of an OLMo 2 checkpoint."""

    vocab_size: int = 50304
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False


class RMSNorm(decoder_blocks.RMSNorm):
    """The product with the weight comes before rounding to a half precision, not after it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Attention(decoder_blocks.Attention):
    """q and k are normed over all their heads, before RoPE."""

    STEP = decoder_blocks.Attention.STEP

    def __init__(self, config: Olmo2Config, layer: int):
        super().__init__(config, layer, bias=config.attention_bias, out_bias=config.attention_bias)
        self.q_norm = RMSNorm(self.heads * self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.kv_heads * self.head_dim, config.rms_norm_eps)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k = self.q_norm(self.q_proj(x)), self.k_norm(self.k_proj(x))
        return q.view(shape), k.view(shape), self.v_proj(x).view(shape)


class Layer(nn.Module):
    """The outputs of attention and feed-forward are normed before they are added."""

    STEP = ("self_attn", "mlp")
    NORMS = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")

    def __init__(self, config: Olmo2Config, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(x, cos_sin, cache))
        return x + self.post_feedforward_layernorm(self.mlp(x))


class Olmo2(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: Olmo2Config):
        super().__init__(config, lambda layer: Layer(config, layer), RMSNorm)


LAYOUT = decoder.LAYOUT
Config, Model = Olmo2Config, Olmo2
