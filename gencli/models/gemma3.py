"""Gemma 3 (Gemma Team 2025, arXiv 2503.19786), the text model: Gemma 2's layers with a norm over each head of q and k
instead of soft-capped scores, five windowed layers per full one, and a rotary base for each kind.

Of files with a vision tower (`model_type` gemma3) only the text model is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from gencli.errors import GencliError
from gencli.models import decoder, decoder_blocks, gemma2
from gencli.models.base import Layout, Rename, check_ints
from gencli.models.decoder import TwoRopes
from gencli.models.gemma2 import RMSNorm
from gencli.models.rope import Rope, Rotary, with_two_ropes

# Keys of a config with a vision tower that do not concern its text model.
VISION_KEYS = {
    "text_config", "vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index",
    "boi_token_id", "eoi_token_id", "image_token_id",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(gemma2.Gemma2Config):
    """config.json of a Gemma 3 checkpoint. Without `layer_types` every `sliding_window_pattern`th layer is full.

    rope_parameters: of the full layers. sliding_rope: of the windowed layers.
    """

    vocab_size: int = 262208
    max_position_embeddings: int = 131072
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    sliding_window_pattern: int = 6
    sliding_rope: Rope

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        if isinstance(text := raw.get("text_config"), dict):
            around = {key: value for key, value in raw.items() if key not in VISION_KEYS}
            raw = {**around, **text, "final_logit_softcapping": None}  # which the reference does not cap either
        given = gemma2.with_activation(raw)
        local = {"rope_theta": given.pop("rope_local_base_freq", None)}
        raw = with_two_ropes(given, theta=1000000.0, local=local)
        if (cap := raw.get("attn_logit_softcapping")) is not None:  # the reference reads the key and does not apply it
            raise GencliError(f"config.json: attn_logit_softcapping = {cap!r} is not supported")
        return raw

    def check(self) -> None:
        check_ints(self, {"sliding_window_pattern": 2**20})
        super().check()

    def slides(self, layer: int) -> bool:
        return (layer + 1) % self.sliding_window_pattern != 0


class Attention(decoder_blocks.Attention):
    """q and k are normed head by head, before RoPE."""

    STEP = decoder_blocks.Attention.STEP

    def __init__(self, config: Gemma3Config, layer: int):
        super().__init__(config, layer, bias=config.attention_bias, out_bias=config.attention_bias)
        self.scale = config.query_pre_attn_scalar**-0.5
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v


class Gemma3(TwoRopes):
    """The decoder with its language-model head."""

    config: Gemma3Config

    def __init__(self, config: Gemma3Config):
        super().__init__(config, lambda layer: gemma2.Layer(config, Attention(config, layer)), RMSNorm)
        self.sliding_rotary = Rotary(config.sliding_rope, config.head_size, config.max_position_embeddings)
        self.types = config.types
        self.embedding_scale, self.logit_cap = config.hidden_size**0.5, config.final_logit_softcapping


LAYOUT = Layout(
    # Files with a vision tower: the first form is the hub's, the second was saved by transformers for a while.
    renames=(
        Rename(r"language_model\.(model\..*|lm_head\..*)", r"\1"),
        Rename(r"model\.language_model\.(.*)", r"model.\1"),
    ),
    drops=(*decoder.LAYOUT.drops, r"(model\.)?(vision_tower|multi_modal_projector)\..*"),
    tied=decoder.LAYOUT.tied,
)
Config, Model = Gemma3Config, Gemma3
