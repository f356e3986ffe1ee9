"""The encoder of T5 v1.1 (Raffel et al. 2019, arXiv 1910.10683; Shazeer 2020, arXiv 2002.05202), which reads prompts
for Imagen and others.

Attributes are named as the checkpoint names them. B: batch, T: tokens, C: d_model, H: heads, D: d_kv.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from gencli.models.activations import gelu_tanh
from gencli.models.attention import multi_head_attention
from gencli.models.base import TRANSFORMERS_INERT, BaseConfig, Layout, check_flags, check_ints, check_numbers
from gencli.models.module import BaseModel


@dataclass(frozen=True)
class T5Config(BaseConfig):
    """config.json of T5, of which the encoder is read; defaults are those of the class in transformers.

    relative_attention_num_buckets, …_max_distance: distances between positions count exactly up to a quarter of the
    buckets, then in logarithms up to the maximum.
    """

    INERT = TRANSFORMERS_INERT | {
        "num_decoder_layers", "dropout_rate", "classifier_dropout", "decoder_start_token_id", "n_positions",
        "output_past", "tie_word_embeddings", "scale_decoder_outputs",
    }  # fmt: skip
    ONLY: ClassVar = {
        "feed_forward_proj": ("gated-gelu",),
        "dense_act_fn": ("gelu_new",),
        "is_gated_act": (True,),
        "is_encoder_decoder": (True, False),
    }

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        return {"feed_forward_proj": "relu", **raw}  # the default there, of T5 v1.0

    def check(self) -> None:
        check_ints(self, {"vocab_size": 2**22, "d_model": 2**14, "d_kv": 2**10, "d_ff": 2**17, "num_layers": 2**10})
        check_ints(self, {"num_heads": 2**10})
        check_ints(self, {"relative_attention_num_buckets": 2**10}, least=4)
        check_ints(self, {"relative_attention_max_distance": 2**14}, least=self.relative_attention_num_buckets)
        check_numbers(self, {"layer_norm_epsilon": (0.0, 1.0)})
        check_flags(self)

    @property
    def hidden_size(self) -> int:
        """The name of d_model in other configs."""
        return self.d_model


class T5LayerNorm(nn.Module):
    """Root mean square norm (Zhang & Sennrich 2019): no mean, no bias; in float32 for any dtype."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.d_model))
        self.eps = config.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class T5Attention(nn.Module):
    def __init__(self, config: T5Config, *, has_bias: bool):
        super().__init__()
        width = config.num_heads * config.d_kv
        self.config = config
        self.q = nn.Linear(config.d_model, width, bias=False)
        self.k = nn.Linear(config.d_model, width, bias=False)
        self.v = nn.Linear(config.d_model, width, bias=False)
        self.o = nn.Linear(width, config.d_model, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def position_bias(self, length: int, device: torch.device) -> Tensor:
        """What is added to the scores of all layers, (1, H, T, T)."""
        places = torch.arange(length, device=device)
        buckets = relative_buckets(places[None] - places[:, None], self.config)
        return self.relative_attention_bias(buckets).permute(2, 0, 1)[None]

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.o(multi_head_attention(q, k, v, self.config.num_heads, mask=bias, scale=1.0))  # scores unscaled


def relative_buckets(distance: Tensor, config: T5Config) -> Tensor:
    """Bucket of each distance (key − query), any shape: half of them for keys after the query."""
    half = config.relative_attention_num_buckets // 2
    exact, size = half // 2, distance.abs()
    # in the order of the reference's roundings: powers of two lie on the borders of buckets
    octaves = (size.clamp(min=1).float() / exact).log() / math.log(config.relative_attention_max_distance / exact)
    far = exact + (octaves * (half - exact)).long()
    return half * (distance > 0) + torch.where(size < exact, size, far.clamp(max=half - 1))


class T5SelfAttentionLayer(nn.Module):
    def __init__(self, config: T5Config, *, has_bias: bool):
        super().__init__()
        self.SelfAttention = T5Attention(config, has_bias=has_bias)
        self.layer_norm = T5LayerNorm(config)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class T5DenseGatedActDense(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(gelu_tanh(self.wi_0(x)) * self.wi_1(x))


class T5FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.DenseReluDense = T5DenseGatedActDense(config)
        self.layer_norm = T5LayerNorm(config)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class T5Block(nn.Module):
    def __init__(self, config: T5Config, *, has_bias: bool):
        super().__init__()
        self.layer = nn.ModuleList([T5SelfAttentionLayer(config, has_bias=has_bias), T5FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return the next states (B, T, C) of x (B, T, C). bias (B, H, T, T) is added to the attention."""
        for layer in self.layer:
            x = layer(x, bias)
        return x


class T5Stack(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.block = nn.ModuleList(T5Block(config, has_bias=i == 0) for i in range(config.num_layers))
        self.final_layer_norm = T5LayerNorm(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return states (B, T, C) of embeddings x (B, T, C); mask (B, T) is true for tokens that are read."""
        first = cast("T5SelfAttentionLayer", cast("T5Block", self.block[0]).layer[0])
        bias = first.SelfAttention.position_bias(x.shape[1], x.device).to(x.dtype)
        bias = bias.masked_fill(~mask[:, None, None], torch.finfo(x.dtype).min)
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class T5EncoderModel(BaseModel):
    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last states (B, T, C) for token ids (B, T) and a mask (B, T), false for padding."""
        return self.encoder(self.shared(ids).to(self.compute_dtype), mask)


OVERFLOWS_IN_HALF = True
LAYOUT = Layout(drops=(r"decoder\..*", r"lm_head\.weight", r"encoder\.embed_tokens\.weight"))  # the last is `shared`
Config, Model = T5Config, T5EncoderModel
