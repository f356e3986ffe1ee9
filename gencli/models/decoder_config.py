"""The keys of config.json that the decoders of the Llama line share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gencli.errors import GencliError
from gencli.models.activations import check_activation
from gencli.models.base import TRANSFORMERS_INERT, BaseConfig, check_flags, check_ints, check_multiple, check_numbers
from gencli.models.rope import COMMON_KINDS, Rope, check_pairs, with_rope

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
