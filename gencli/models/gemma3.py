"""Gemma 3 (Gemma Team 2025, arXiv 2503.19786), the text model: Gemma 2's layers with a norm over each head of q and k
in place of soft-capped scores, five windowed layers to each full one, and a rotary base of its own for either kind.

Files that hold a vision tower as well (`model_type` gemma3) are read for their text model alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gencli.errors import GencliError
from gencli.models import decoder, gemma2
from gencli.models.base import Layout, Rename, check_ints, read_config
from gencli.models.decoder import Decoder, check_layer_types
from gencli.models.gemma2 import RMSNorm
from gencli.models.rope import COMMON_KINDS, CosSin, Rope, Rotary, read_rope

# Keys of a config with a vision tower that say nothing about its text model.
VISION_KEYS = {
    "text_config", "vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index",
    "boi_token_id", "eoi_token_id", "image_token_id",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(gemma2.Gemma2Config):
    """config.json of a Gemma 3 checkpoint. Without `layer_types` every `sliding_window_pattern`th layer is full.

    `rope_parameters` are the full layers', `sliding_rope` the windowed ones'.
    """

    vocab_size: int = 262208
    max_position_embeddings: int = 131072
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    sliding_window_pattern: int = 6
    sliding_rope: Rope

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Gemma3Config:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        if isinstance(text := raw.get("text_config"), dict):
            raw = {**{key: value for key, value in raw.items() if key not in VISION_KEYS}, **text}
        raw = _with_ropes(gemma2.with_activation(raw))
        only = {"use_bidirectional_attention": (None, False)}
        if (cap := raw.get("attn_logit_softcapping")) is not None:  # the reference reads the key and does not apply it
            raise GencliError(f"config.json: attn_logit_softcapping = {cap!r} is not supported")
        config = read_config(cls, raw, inert=decoder.DECODER_INERT, only=only)
        config.check()
        check_ints(config, {"sliding_window_pattern": 2**20})
        check_layer_types(config.types, config.num_hidden_layers, config.sliding_window)
        return config

    @property
    def types(self) -> tuple[str, ...]:
        """Each layer's kind of attention."""
        if self.layer_types is not None:
            return self.layer_types
        pattern = self.sliding_window_pattern
        count = self.num_hidden_layers
        return tuple("sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(count))


def _with_ropes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config with its rope keys, in the old form or the new, as `rope_parameters` and `sliding_rope`."""
    old = ("rope_theta", "rope_local_base_freq", "rope_scaling")
    rest = {key: value for key, value in raw.items() if key not in (*old, "rope_parameters", "sliding_rope")}
    parameters = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or {}
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(parameters, dict) or not isinstance(scaling, dict) or not parameters.keys() <= set(kinds):
        raise GencliError(f"config.json: rope_parameters = {str(parameters)[:60]} does not have {' and '.join(kinds)}")
    full, sliding = (parameters.get(kind) or {} for kind in kinds)
    if not isinstance(full, dict) or not isinstance(sliding, dict):
        raise GencliError(f"config.json: rope_parameters = {str(parameters)[:60]} are no objects")
    full = {"rope_theta": raw.get("rope_theta"), **full, **scaling}  # only full layers are stretched
    sliding = {"rope_theta": raw.get("rope_local_base_freq"), **sliding}
    return {
        **rest,
        "rope_parameters": read_rope(full, COMMON_KINDS, theta=1000000.0),
        "sliding_rope": read_rope(sliding, COMMON_KINDS, theta=10000.0),
    }


class Attention(decoder.Attention):
    """q and k are normed head by head, before RoPE."""

    def __init__(self, config: Gemma3Config, layer: int):
        super().__init__(config, layer, bias=config.attention_bias, out_bias=config.attention_bias)
        self.scale = config.query_pre_attn_scalar**-0.5
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v


class Gemma3(Decoder):
    """The decoder with its language-model head."""

    config: Gemma3Config

    def __init__(self, config: Gemma3Config):
        layers = [gemma2.Layer(config, Attention(config, layer)) for layer in range(config.num_hidden_layers)]
        super().__init__(config, layers, RMSNorm(config.hidden_size, config.rms_norm_eps))
        self.sliding_rotary = Rotary(config.sliding_rope, config.head_size, config.max_position_embeddings)
        self.types = config.types

    @property
    def max_length(self) -> int:
        """The longest sequence the model can read, in tokens: here the config says it after stretching."""
        return self.config.max_position_embeddings

    def embed(self, ids: Tensor) -> Tensor:
        x = super().embed(ids)
        return x * gemma2.rounded(self.config.hidden_size**0.5, x.dtype)

    def cos_sin_per_layer(self, start: int, stop: int, like: Tensor) -> Sequence[CosSin | None]:
        full, sliding = self.rotary(start, stop, like), self.sliding_rotary(start, stop, like)
        return [sliding if kind == "sliding_attention" else full for kind in self.types]

    def head(self, x: Tensor) -> Tensor:
        return gemma2.soft_cap(super().head(x), self.config.final_logit_softcapping)


LAYOUT = Layout(
    # Of files with a vision tower: as the hub has them, and as transformers saved them for a while.
    renames=(
        Rename(r"language_model\.(model\..*|lm_head\..*)", r"\1"),
        Rename(r"model\.language_model\.(.*)", r"model.\1"),
    ),
    drops=(*decoder.LAYOUT.drops, r"(model\.)?(vision_tower|multi_modal_projector)\..*"),
    tied=decoder.LAYOUT.tied,
)
Config, Model = Gemma3Config, Gemma3
