"""What the decoders of the Llama line share: norm, feed-forward, grouped-query attention, and the forward pass.

Each family has a file of its own that combines these and holds what only it does. Attributes are named as the
checkpoints name them. B: batch, T: new positions, S: all positions, C: hidden_size, H: query heads, K: key/value
heads, D: size of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models import step
from gencli.models.activations import ACTIVATIONS, check_activation
from gencli.models.attention import attend
from gencli.models.base import (
    TRANSFORMERS_INERT,
    BaseConfig,
    Layout,
    check_flags,
    check_ints,
    check_multiple,
    check_numbers,
)
from gencli.models.kv_cache import KeyValueCache
from gencli.models.module import LanguageModel
from gencli.models.rope import COMMON_KINDS, CosSin, Rope, Rotary, apply_rotary_emb, check_pairs, of_rows, with_rope

IGNORE = "; --ignore-config KEY says that one does not"
# Keys beside TRANSFORMERS_INERT that configs of decoders have and that change nothing in a forward pass.
# `pretraining_tp` slices products; code named by `auto_map` is never run, as model_type says what a file is.
DECODER_INERT = TRANSFORMERS_INERT | {
    "pretraining_tp", "auto_map", "cache_implementation", "attn_implementation", "max_sequence_length",
    "is_llama_config", "transformers.js_config", "neftune_noise_alpha", "flash_attn", "use_flash_attn", "max_seq_len",
    "seq_length", "model_max_length", "pad_token", "keys_to_ignore_at_inference", "internal_version",
    "num_logits_to_keep", "residual_dropout", "attn_dropout", "unsloth_fixed", "unsloth_version",
    "max_window_layers",  # where it is no field
}  # fmt: skip

LAYOUT = Layout(
    drops=(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
    tied={"lm_head.weight": "model.embed_tokens.weight"},
)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(BaseConfig):
    """The keys that all families have, under their names in config.json. Families add theirs, and their defaults."""

    IGNORE = IGNORE
    INERT = DECODER_INERT
    OFF_IS_INERT = True

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_parameters: Rope

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        return with_rope(raw, COMMON_KINDS)

    def window(self, layer: int) -> int | None:
        """Return how many positions, its own included, a token of a layer attends to; None for all."""
        return None

    def check(self) -> None:
        bounds = {
            "vocab_size": 2**22, "hidden_size": 2**16, "intermediate_size": 2**20, "num_hidden_layers": 1024,
            "num_attention_heads": 1024, "num_key_value_heads": 1024, "head_dim": 2**12,
            "max_position_embeddings": 2**26, "sliding_window": 2**26,
        }  # fmt: skip
        may_be_none = {"num_key_value_heads", "head_dim", "sliding_window"}
        absent = {key for key in may_be_none if getattr(self, key, None) is None}
        check_ints(self, {key: top for key, top in bounds.items() if key not in absent})
        check_numbers(self, {"rms_norm_eps": (0.0, 1.0)})
        check_flags(self)
        if self.num_key_value_heads is not None:
            check_multiple(self, "num_attention_heads", "num_key_value_heads")
        if self.head_dim is None:
            check_multiple(self, "hidden_size", "num_attention_heads")
        check_pairs(self.rope_parameters, self.head_size)
        check_activation("hidden_act", self.hidden_act)


@dataclass(frozen=True, kw_only=True)
class WindowedConfig(DecoderConfig):
    """A config in which some layers attend to a sliding window, and `layer_types` may say which."""

    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None

    def check(self) -> None:
        super().check()
        known, types, layers = ("full_attention", "sliding_attention"), self.types, self.num_hidden_layers
        if not isinstance(types, tuple) or len(types) != layers or any(kind not in known for kind in types):
            raise GencliError(
                f"config.json: layer_types = {types!r:.80} does not fit",
                f"it names {' or '.join(known)} for each of {layers} layers",
            )
        if "sliding_attention" in types and self.used_window is None:
            raise GencliError("config.json: layer_types has sliding_attention, but there is no sliding window")

    @property
    def used_window(self) -> int | None:
        return self.sliding_window

    @property
    def types(self) -> tuple[str, ...]:
        """The kind of attention of each layer."""
        if self.layer_types is not None:
            return self.layer_types
        return tuple("sliding_attention" if self.slides(i) else "full_attention" for i in range(self.num_hidden_layers))

    def slides(self, layer: int) -> bool:
        """Return whether a layer has the window if `layer_types` does not say it."""
        raise NotImplementedError

    def window(self, layer: int) -> int | None:
        return self.used_window if self.types[layer] == "sliding_attention" else None


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight (Zhang & Sennrich 2019, arXiv 1910.07467); the quotient is in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, eps=self.eps) * self.weight  # rounded before the product

    def norm_weights(self) -> tuple[Tensor, Tensor | None, float, bool]:
        """Return weight and bias in float32, eps, and whether the mean is taken away, for `models.step`."""
        return self.weight.float(), None, self.eps, False


class MLP(nn.Module):
    """The gated feed-forward network (Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202)."""

    STEP, gated = ("gate_proj", "up_proj", "down_proj"), True

    def __init__(self, config: DecoderConfig, *, bias: bool = False):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.step_activation = step.ACTIVATIONS.get(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class AttentionCore(nn.Module):
    """Causal attention with rotary positions and a cache. Subclasses define `project` and `o_proj`."""

    STEP: tuple[str, ...] = ("o_proj",)
    o_proj: nn.Linear

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, config.kv_heads, config.head_size
        self.window = config.window(layer)
        self.rotated = int(self.head_dim * config.rope_parameters.partial_rotary_factor)
        self.scale = self.head_dim**-0.5
        self.softcap: float | None = None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, T, H, D), keys and values (B, T, K, D) of x (B, T, C)."""
        raise NotImplementedError

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        q, k, v = self.project(x)
        if cos_sin is not None:
            q, k = apply_rotary_emb(q, cos_sin), apply_rotary_emb(k, cos_sin)
        k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B, K, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        ways = {"scale": self.scale, "window": self.window, "softcap": self.softcap}
        if cache is not None:
            ways |= {"seen": cache.seen, "visible": cache.visible(len(x), self.window)}
        return self.o_proj(attend(q, k, v, **ways))


class Attention(AttentionCore):
    """Attention with four projections. bias: of q, k and v. out_bias: of the output."""

    STEP = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: DecoderConfig, layer: int, *, bias: bool = False, out_bias: bool = False):
        super().__init__(config, layer)
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=out_bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (*x.shape[:2], -1, self.head_dim)
        return self.q_proj(x).view(shape), self.k_proj(x).view(shape), self.v_proj(x).view(shape)


class PreNormLayer(nn.Module):
    """A layer with a norm before the attention and one before the feed-forward network."""

    STEP = ("self_attn", "mlp")  # as `models.step` runs it; NORMS: before and after each of them
    NORMS = ("input_layernorm", None, "post_attention_layernorm", None)

    def __init__(self, config: DecoderConfig, self_attn: nn.Module, mlp: nn.Module):
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos_sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Stack(nn.Module):
    """What checkpoints call `model`: everything except the head."""

    def __init__(self, config: DecoderConfig, layers: Sequence[nn.Module], norm: nn.Module):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = norm


@functools.cache
def rounded(value: float, dtype: torch.dtype) -> float:
    """Round a number to a dtype: sqrt(3072) = 55.4256 is 55.5 in bfloat16."""
    return torch.tensor(value, device="cpu").to(dtype).item()


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """Return cap * tanh(x / cap), which keeps the order and every value within ± cap; x itself without a cap."""
    return x if cap is None else torch.tanh(x / cap) * cap


class Decoder(LanguageModel):
    """ids → embeddings * embedding_scale → layers → norm → head, with the cap `logit_cap`. Families set these, or
    override `embed`, `cos_sin_per_layer` and `head`."""

    embedding_scale: float = 1.0
    logit_cap: float | None = None

    def __init__(
        self,
        config: DecoderConfig,
        make_layer: Callable[[int], nn.Module],
        norm: Callable[[int, float], nn.Module] = RMSNorm,
    ):
        """make_layer: number of a layer → the layer. norm: (size, eps) → the norm before the head."""
        super().__init__()
        self.config = config
        layers = [make_layer(layer) for layer in range(config.num_hidden_layers)]
        self.model = Stack(config, layers, norm(config.hidden_size, config.rms_norm_eps))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.rotary = Rotary(config.rope_parameters, config.head_size, config.max_position_embeddings)

    @property
    def max_length(self) -> int:
        return self.config.rope_parameters.max_length(self.config.max_position_embeddings)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def new_cache(self, batch: int, positions: int) -> KeyValueCache:
        config = self.config
        shape = (config.num_hidden_layers, batch, config.kv_heads, positions, config.head_size)
        return KeyValueCache(*shape, device=self.device, dtype=self.compute_dtype)

    def rope_regime(self, length: int) -> int:
        return self.rotary.regime(length)

    def embed(self, ids: Tensor) -> Tensor:
        """Return embeddings (B, T, C) of token ids (B, T)."""
        x: Tensor = self.model.embed_tokens(ids)
        return x if self.embedding_scale == 1 else x * rounded(self.embedding_scale, x.dtype)

    def cos_sin_per_layer(self, start: int, stop: int, like: Tensor) -> Sequence[CosSin | None]:
        """Return, for each layer, the cos and sin of positions start … stop - 1; None for a layer without RoPE."""
        return [self.rotary(start, stop, like)] * len(self.model.layers)

    def head(self, x: Tensor) -> Tensor:
        """Return logits (B, T, V) of hidden states (B, T, C) after the last norm."""
        return soft_cap(self.lm_head(x), self.logit_cap)

    def step_parts(self) -> step.Parts:
        """What `models.step` makes a step of."""
        own, model = type(self), self.model
        embedding = model.embed_tokens if own.embed is Decoder.embed else None
        head = self.lm_head if own.head is Decoder.head else None
        return step.Parts(model.layers, embedding, None, self.embedding_scale, model.norm, head, rotary=True)

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None, *, last_only: bool = False) -> Tensor:
        """Return logits (B, T, V) of ids (B, T) that follow those in `cache`; (B, 1, V) if `last_only`."""
        if (done := step.run(self, ids, cache, last_only)) is not None:
            x = done.result
            if done.are_logits:
                return soft_cap(x, self.logit_cap)
        else:
            x, (B, T) = self.embed(ids), ids.shape
            starts = [0] if cache is None else cache.starts(B)
            per_layer = of_rows([self.cos_sin_per_layer(start, start + T, x) for start in starts])
            for layer, cos_sin in zip(self.model.layers, per_layer, strict=True):
                x = layer(x, cos_sin, cache)
            if cache is not None:
                cache.lengths[:B] += T
        if last_only:
            x = x[:, -1:]
        return self.head(self.model.norm(x))

    def states(self, ids: Tensor, layers: Sequence[int], length: int | None = None) -> list[Tensor]:
        """Return the states (B, T, C) after so many layers, each, of token ids (B, T); no further layer is run.

        length: how many tokens there are before those that pad, which no token attends to.
        """
        cache = None if length is None else self.new_cache(*ids.shape)
        if cache is not None:
            cache.seen = length
        x = self.embed(ids)
        found = {0: x}
        per_layer = self.cos_sin_per_layer(0, ids.shape[1], x)
        for number, (layer, cos_sin) in enumerate(zip(self.model.layers, per_layer, strict=True), 1):
            if number > max(layers):
                break
            x = layer(x, cos_sin, cache)
            if number in layers:
                found[number] = x
        return [found[number] for number in layers]
