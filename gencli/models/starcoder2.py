"""StarCoder 2 (Lozhkov et al. 2024, arXiv 2402.19173): Mistral with LayerNorm, biases, and a feed-forward network
without a gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gencli.models import decoder, step
from gencli.models.activations import ACTIVATIONS
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import Attention
from gencli.models.decoder_config import DECODER_INERT, DecoderConfig
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import COMMON_KINDS, CosSin, with_rope


@dataclass(frozen=True, kw_only=True)
class Starcoder2Config(DecoderConfig):
    """config.json of a StarCoder 2 checkpoint. rms_norm_eps: its `norm_epsilon`."""

    INERT = DECODER_INERT | {"embedding_dropout"}  # of training

    vocab_size: int = 49152
    hidden_size: int = 3072
    intermediate_size: int = 12288
    num_hidden_layers: int = 30
    num_attention_heads: int = 24
    num_key_value_heads: int | None = 2
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    sliding_window: int | None = None
    use_bias: bool = True

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        named = {"rms_norm_eps" if key == "norm_epsilon" else key: value for key, value in raw.items()}
        return with_rope(named, COMMON_KINDS)

    def window(self, layer: int) -> int | None:
        return self.sliding_window


class MLP(nn.Module):
    """A feed-forward network without a gate."""

    STEP, gated = ("c_fc", "c_proj"), False

    def __init__(self, config: Starcoder2Config):
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.use_bias)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.step_activation = step.ACTIVATIONS.get(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class Layer(nn.Module):
    """A layer with a norm before the attention and one before the feed-forward network."""

    STEP = ("self_attn", "mlp")
    NORMS = ("input_layernorm", None, "post_attention_layernorm", None)

    def __init__(self, config: Starcoder2Config, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer, bias=config.use_bias, out_bias=config.use_bias)
        self.mlp = MLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos_sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Starcoder2(Decoder):
    """The decoder with its language-model head."""

    def __init__(self, config: Starcoder2Config):
        super().__init__(config, lambda layer: Layer(config, layer), nn.LayerNorm)


LAYOUT = decoder.LAYOUT
Config, Model = Starcoder2Config, Starcoder2
