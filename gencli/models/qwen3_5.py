"""Qwen 3.5 (Qwen Team 2026), the text model: three layers of gated DeltaNet, then one of gated attention, and so on.

Of files with a vision tower (`model_type` qwen3_5) only the text model is read; with text alone the axes of its RoPE
are one. What predicts several tokens ahead (`mtp.…`) is dropped, as in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models import decoder, decoder_blocks
from gencli.models.base import Layout, Rename, check_ints, check_multiple
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP
from gencli.models.decoder_config import DECODER_INERT, DecoderConfig
from gencli.models.delta_net import GatedDeltaNet, sizes_of
from gencli.models.gemma2 import RMSNorm
from gencli.models.kv_cache import KeyValueCache
from gencli.models.rope import COMMON_KINDS, CosSin, with_rope
from gencli.models.state_cache import StateCache

LINEAR, FULL = "linear_attention", "full_attention"
# Keys of a config with a vision tower that do not concern its text model.
VISION_KEYS = {
    "text_config", "vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
    "language_model_only",
}  # fmt: skip
AXES = ("mrope_section", "mrope_interleaved")  # how RoPE shares pairs among the axes of an image


@dataclass(frozen=True, kw_only=True)
class Qwen35Config(DecoderConfig):
    """config.json of a Qwen 3.5 checkpoint. Without `layer_types` every `full_attention_interval`th layer attends.

    value_heads_in_turns: whether the value heads that a head of keys serves lie apart, as in GGUF files: one for each
    head of keys, then the next ones.
    """

    INERT = DECODER_INERT | {
        "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mamba_ssm_dtype", "output_router_logits",
        "router_aux_loss_coef",
    }  # fmt: skip
    ONLY: ClassVar = {"attn_output_gate": (True,)}

    vocab_size: int = 248320
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    max_position_embeddings: int = 32768
    attention_bias: bool = False
    full_attention_interval: int = 4
    layer_types: tuple[str, ...] | None = None
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    value_heads_in_turns: bool = False

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        """Return the values of the text model, with its RoPE. Raises GencliError."""
        if isinstance(text := raw.get("text_config"), dict):
            around = {key: value for key, value in raw.items() if key not in VISION_KEYS}
            tied = raw.get("tie_word_embeddings") or text.get("tie_word_embeddings")
            raw = {**around, **text, "tie_word_embeddings": tied or False}
        raw = {**raw, "partial_rotary_factor": raw.get("partial_rotary_factor") or 0.25}
        for key in ("rope_scaling", "rope_parameters"):
            if isinstance(rope := raw.get(key), dict):
                raw[key] = {name: value for name, value in rope.items() if name not in AXES}
        return with_rope(raw, COMMON_KINDS, partial=True)

    @property
    def types(self) -> tuple[str, ...]:
        """The kind of each layer."""
        if self.layer_types is not None:
            return self.layer_types
        every = self.full_attention_interval
        return tuple(LINEAR if (i + 1) % every else FULL for i in range(self.num_hidden_layers))

    def check(self) -> None:
        super().check()
        check_ints(
            self,
            {
                "full_attention_interval": 2**20, "linear_conv_kernel_dim": 64, "linear_key_head_dim": 2**12,
                "linear_value_head_dim": 2**12, "linear_num_key_heads": 1024, "linear_num_value_heads": 1024,
            },
        )  # fmt: skip
        check_multiple(self, "linear_num_value_heads", "linear_num_key_heads")
        types, layers = self.types, self.num_hidden_layers
        if not isinstance(types, tuple) or len(types) != layers or any(kind not in (LINEAR, FULL) for kind in types):
            raise GencliError(
                f"config.json: layer_types = {types!r:.80} does not fit",
                f"it names {LINEAR} or {FULL} for each of {layers} layers",
            )
        if FULL not in types:
            raise GencliError(f"config.json: none of {layers} layers is of the type {FULL}")


class Attention(decoder_blocks.AttentionCore):
    """q and k are normed head by head, before RoPE; what is attended to goes through a gate, which q_proj makes."""

    STEP = ("q_proj", "k_proj", "v_proj", "o_proj")
    head_gates = True  # for `models.step`: q_proj's outputs are each head's queries and its gate

    def __init__(self, config: Qwen35Config, layer: int):
        super().__init__(config, layer)
        self.cached = layer
        hidden, bias = config.hidden_size, config.attention_bias
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(hidden, 2 * queries, bias=bias)
        self.k_proj = nn.Linear(hidden, keys, bias=bias)
        self.v_proj = nn.Linear(hidden, keys, bias=bias)
        self.o_proj = nn.Linear(queries, hidden, bias=bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        shape = (*x.shape[:2], -1, self.head_dim)
        q, gate = self.q_proj(x).unflatten(-1, (self.heads, 2, -1)).unbind(-2)  # (B, T, H, D) each
        k, v = self.k_norm(self.k_proj(x).view(shape)), self.v_proj(x).view(shape)
        return self.placed(self.q_norm(q), k, v, cos_sin, cache, gate.flatten(2))


class Layer(nn.Module):
    """A layer with a norm before its mixer and one before its feed-forward network. number: among those of its kind."""

    STEP, NORMS = ("mixer", "mlp"), decoder_blocks.PreNormLayer.NORMS

    def __init__(self, config: Qwen35Config, kind: str, number: int, mlp: nn.Module):
        super().__init__()
        self.kind = kind
        if kind == LINEAR:
            self.linear_attn = GatedDeltaNet(config, number)
        else:
            self.self_attn = Attention(config, number)
        self.mlp = mlp
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def mixer(self) -> nn.Module:
        """What looks at other positions."""
        return self.linear_attn if self.kind == LINEAR else self.self_attn

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: StateCache | None) -> Tensor:
        h = self.input_layernorm(x)
        x = x + (self.linear_attn(h, cache) if self.kind == LINEAR else self.self_attn(h, cos_sin, cache))
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen35(Decoder):
    """The decoder with its language-model head."""

    config: Qwen35Config
    cuts_back = False

    def __init__(self, config: Qwen35Config, make_mlp: Callable[[], nn.Module] | None = None):
        """make_mlp: makes what is not the usual feed-forward network."""
        types, make_mlp = config.types, make_mlp or (lambda: MLP(config))

        def make_layer(layer: int) -> Layer:
            return Layer(config, types[layer], types[:layer].count(types[layer]), make_mlp())

        super().__init__(config, make_layer, RMSNorm)

    def new_cache(self, batch: int, positions: int) -> StateCache:
        config = self.config
        full = config.types.count(FULL)
        return StateCache(
            full,
            batch,
            config.kv_heads,
            positions,
            config.head_size,
            sizes_of(config, config.num_hidden_layers - full),
            device=self.device,
            dtype=self.compute_dtype,
        )

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None, *, last_only: bool = False) -> Tensor:
        """As of every decoder. Of a single text some states on the way are kept in the cache."""
        if not isinstance(cache, StateCache):
            return super().forward(ids, last_only=last_only)
        with cache.reading(*ids.shape):
            return super().forward(ids, cache, last_only=last_only)


LAYOUT = Layout(
    renames=(Rename(r"model\.language_model\.(.*)", r"model.\1"),),
    drops=(*decoder.LAYOUT.drops, r"mtp\..*", r"model\.visual\..*"),
    tied=decoder.LAYOUT.tied,
)
Config, Model = Qwen35Config, Qwen35
