"""GPT-NeoX (Black et al. 2022, arXiv 2204.06745), and Pythia (Biderman et al. 2023, arXiv 2304.01373): attention and
feed-forward side by side, and a part of each head rotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from gencli.models import decoder
from gencli.models.activations import ACTIVATIONS
from gencli.models.base import Rename
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import ProjectedAttention
from gencli.models.decoder_config import DECODER_INERT, DecoderConfig
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import COMMON_KINDS, CosSin, with_rope


@dataclass(frozen=True, kw_only=True)
class GPTNeoXConfig(DecoderConfig):
    """config.json of a GPT-NeoX checkpoint. rms_norm_eps: its `layer_norm_eps`. Its `rotary_pct` is the part of each
    head that is rotated, by the base `rotary_emb_base`."""

    INERT = DECODER_INERT | {"hidden_dropout", "classifier_dropout"}  # of training

    vocab_size: int = 50432
    hidden_size: int = 6144
    intermediate_size: int = 24576
    num_hidden_layers: int = 44
    num_attention_heads: int = 64
    hidden_act: str = "gelu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    attention_bias: bool = True
    use_parallel_residual: bool = True

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        names = {
            "rotary_emb_base": "rope_theta",
            "rotary_pct": "partial_rotary_factor",
            "layer_norm_eps": "rms_norm_eps",
        }
        named = {names.get(key, key): value for key, value in raw.items()}
        return with_rope({"partial_rotary_factor": 0.25, **named}, COMMON_KINDS, partial=True)


class Attention(ProjectedAttention):
    """One projection makes queries, keys and values, head by head."""

    def __init__(self, config: GPTNeoXConfig, layer: int):
        super().__init__(config, layer)
        hidden, bias = config.hidden_size, config.attention_bias
        self.query_key_value = nn.Linear(hidden, 3 * hidden, bias=bias)
        self.o_proj = nn.Linear(hidden, hidden, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.query_key_value(x).unflatten(-1, (self.heads, 3, -1)).unbind(-2)
        return q, k, v


class MLP(nn.Module):
    """A feed-forward network without a gate."""

    def __init__(self, config: GPTNeoXConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.activation(self.dense_h_to_4h(x)))


class Layer(nn.Module):
    """Both branches read x, each behind its norm; or, without `use_parallel_residual`, one after the other."""

    def __init__(self, config: GPTNeoXConfig, layer: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)
        self.is_parallel = config.use_parallel_residual

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        after = x + self.attention(self.input_layernorm(x), cos_sin, cache)
        return after + self.mlp(self.post_attention_layernorm(x if self.is_parallel else after))


class GPTNeoX(Decoder):
    """The decoder with its language-model head. Its files say `gpt_neox` for `model`, and `embed_out` for the head."""

    def __init__(self, config: GPTNeoXConfig):
        super().__init__(config, lambda layer: Layer(config, layer), nn.LayerNorm)


LAYOUT = replace(
    decoder.LAYOUT,
    renames=(
        Rename(r"gpt_neox\.embed_in\.(.*)", r"model.embed_tokens.\1"),
        Rename(r"gpt_neox\.final_layer_norm\.(.*)", r"model.norm.\1"),
        Rename(r"gpt_neox\.layers\.(\d+)\.attention\.dense\.(.*)", r"model.layers.\1.attention.o_proj.\2"),
        Rename(r"gpt_neox\.layers\.(.*)", r"model.layers.\1"),
        Rename(r"embed_out\.(.*)", r"lm_head.\1"),
    ),
    drops=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
)
Config, Model = GPTNeoXConfig, GPTNeoX
