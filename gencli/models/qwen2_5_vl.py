"""Qwen 2.5 VL (Bai et al. 2025, arXiv 2502.13923), the text model: Qwen 2, whose RoPE turns pairs by the time, the row
and the column of a token, which are one and the same in a text. The vision tower is known and not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from gencli.models import decoder
from gencli.models.base import Layout, Rename
from gencli.models.qwen2 import Qwen2, Qwen2Config
from gencli.models.qwen3_5 import VISION_KEYS
from gencli.models.rope import COMMON_KINDS, with_rope

SECTIONS, KIND = "mrope_section", "mrope"  # how RoPE shares pairs among the axes, and what older files call that


@dataclass(frozen=True, kw_only=True)
class Qwen25VLConfig(Qwen2Config):
    """config.json of a checkpoint of Qwen 2.5 VL. Older files have the text model's keys beside those of the vision
    tower, newer ones in `text_config`."""

    INERT = Qwen2Config.INERT | {"vision_token_id"}
    ONLY: ClassVar = {}

    vocab_size: int = 152064
    hidden_size: int = 8192
    intermediate_size: int = 29568
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int | None = 8
    rms_norm_eps: float = 1e-5
    max_window_layers: int = 80

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        """Return the values of the text model, with its RoPE. Raises GencliError."""
        around = {key: value for key, value in raw.items() if key not in VISION_KEYS}
        if isinstance(text := raw.get("text_config"), dict):
            tied = raw.get("tie_word_embeddings", text.get("tie_word_embeddings"))
            around |= {**text, "tie_word_embeddings": tied or False}
        for key in ("rope_scaling", "rope_parameters"):
            if isinstance(rope := around.get(key), dict):
                kinds = {name: "default" for name in ("type", "rope_type") if rope.get(name) == KIND}
                around[key] = {name: value for name, value in rope.items() if name != SECTIONS} | kinds
        return with_rope(around, COMMON_KINDS, theta=1e6)


class Qwen25VL(Qwen2):
    """The decoder with its language-model head."""


LAYOUT = Layout(
    renames=(Rename(r"model\.language_model\.(.*)", r"model.\1"),),
    drops=(*decoder.LAYOUT.drops, r"(model\.)?visual\..*"),
    tied=decoder.LAYOUT.tied,
)
Config, Model = Qwen25VLConfig, Qwen25VL
