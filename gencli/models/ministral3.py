"""Ministral 3 (Mistral AI 2025), and the text model of Mistral Small 3 with its vision tower (`model_type` mistral3):
Mistral with YaRN, whose queries grow with the logarithm of their position beyond the length of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.models import decoder_blocks, gemma3, step
from gencli.models.base import check_numbers
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, PreNormLayer
from gencli.models.kv_cache import KeyValueCache
from gencli.models.mistral import MistralConfig
from gencli.models.rope import CosSin

# Keys of a config with a vision tower that do not concern its text model.
VISION_KEYS = {
    "text_config", "vision_config", "image_token_index", "image_token_id", "projector_hidden_act",
    "vision_feature_layer", "multimodal_projector_bias", "spatial_merge_size",
}  # fmt: skip
BETA = "llama_4_scaling_beta"
YARN = {
    "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, BETA: 0.1,
}  # fmt: skip
SMALL_3 = {  # what a config without a text model's means
    "model_type": "mistral", "vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 32768,
    "num_hidden_layers": 40, "head_dim": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 1000000000.0, "sliding_window": None,
}  # fmt: skip
MISTRAL = {  # values of keys that Mistral's config leaves out, where Ministral 3 has others
    "vocab_size": 32000, "num_hidden_layers": 32, "head_dim": None, "max_position_embeddings": 4096 * 32,
    "rms_norm_eps": 1e-6, "sliding_window": 4096, "rope_parameters": {"rope_type": "default"},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Ministral3Config(MistralConfig):
    """config.json of a Ministral 3 checkpoint, or of one with a vision tower.

    llama_4_scaling_beta, among the keys of RoPE: queries at position p are multiplied by 1 + beta · ln(1 + ⌊p / L⌋), L
    the original length; None: they are not.
    """

    ONLY: ClassVar = MistralConfig.ONLY

    vocab_size: int = 131072
    num_hidden_layers: int = 34
    head_dim: int | None = 128
    max_position_embeddings: int = 262144
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    llama_4_scaling_beta: float | None = None

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        if raw.get("model_type") == "mistral3":
            raw = _text_model(raw)
        raw = dict(raw)
        rope = raw.pop("rope_scaling", None) or raw.get("rope_parameters") or YARN
        if isinstance(rope, dict):
            raw.setdefault(BETA, rope.get(BETA))
            raw["rope_parameters"] = {k: v for k, v in rope.items() if k not in (BETA, "max_position_embeddings")}
        return super().prepare(raw)

    def check(self) -> None:
        super().check()
        if self.llama_4_scaling_beta is not None:
            check_numbers(self, {BETA: (0, 1e3)})
            if self.rope_parameters.original_max_position_embeddings is None:
                raise GencliError(f"config.json: {BETA} without original_max_position_embeddings")

    @property
    def grows_from(self) -> int | None:
        """The first position whose queries are multiplied; None: there is none."""
        return self.rope_parameters.original_max_position_embeddings if self.llama_4_scaling_beta else None


def _text_model(raw: Mapping[str, object]) -> dict[str, object]:
    """Return the values of the text model. Raise GencliError for one of another architecture."""
    text = raw.get("text_config") or SMALL_3
    if not isinstance(text, dict) or (kind := text.get("model_type", "mistral")) not in ("mistral", "ministral3"):
        known = "gencli knows mistral and ministral3"
        raise GencliError(f"config.json: text_config = {str(text)[:60]} is not supported", known)
    around = {key: value for key, value in raw.items() if key not in VISION_KEYS}
    tied = {"tie_word_embeddings": text.get("tie_word_embeddings", raw.get("tie_word_embeddings", True))}
    return {**around, **(MISTRAL if kind == "mistral" else {}), **text, **tied}


class Cache(KeyValueCache):
    """Says when positions come near whose queries are multiplied, which a step of the C library does not do."""

    grows_from: int = 0

    @property
    def halts(self) -> bool:
        return int(self.lengths.max()) + step.LONGEST > self.grows_from


class Attention(decoder_blocks.Attention):
    """Queries are multiplied by their position's factor."""

    STEP = ("q_proj", "k_proj", "v_proj", "o_proj")  # with the output: this forward pass is its own

    def __init__(self, config: Ministral3Config, layer: int):
        super().__init__(config, layer)
        self.beta, self.grows_from = config.llama_4_scaling_beta or 0.0, config.grows_from

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KeyValueCache | None) -> Tensor:
        q, k, v = self.project(x)
        if self.grows_from is not None:
            B, T, *_ = q.shape
            starts = torch.tensor([0] if cache is None else cache.starts(B))
            positions = starts[:, None] + torch.arange(T)  # (B or 1, T)
            factors = 1 + self.beta * (1 + positions // self.grows_from).log()
            q = q * factors[..., None, None].to(q)
        return self.placed(q, k, v, cos_sin, cache)


class Ministral3(Decoder):
    """The decoder with its language-model head."""

    config: Ministral3Config

    def __init__(self, config: Ministral3Config):
        super().__init__(config, lambda layer: PreNormLayer(config, Attention(config, layer), MLP(config)))

    def new_cache(self, batch: int, positions: int) -> KeyValueCache:
        config = self.config
        if config.grows_from is None:
            return super().new_cache(batch, positions)
        shape = (config.num_hidden_layers, batch, config.kv_heads, positions, config.head_size)
        cache = Cache(*shape, device=self.device, dtype=self.compute_dtype)
        cache.grows_from = config.grows_from
        return cache


LAYOUT = gemma3.LAYOUT
Config, Model = Ministral3Config, Ministral3
