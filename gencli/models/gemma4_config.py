"""The keys of a Gemma 4 checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from gencli.errors import GencliError
from gencli.models import experts, gemma2, gemma3
from gencli.models.base import check_ints, check_numbers
from gencli.models.decoder_config import WindowedConfig
from gencli.models.rope import Rope, check_pairs, read_rope

FULL, SLIDING = "full_attention", "sliding_attention"
KINDS = ("default", "linear", "proportional")  # of RoPE
# Keys of a config with towers that do not concern its text model.
TOWER_KEYS = gemma3.VISION_KEYS | {
    "audio_config", "audio_token_id", "boa_token_id", "eoa_token_id", "eoa_token_index", "video_token_id",
    "vision_soft_tokens_per_image",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gemma4Config(WindowedConfig):
    """config.json of a Gemma 4 checkpoint. Without `layer_types` every sixth layer is full, and the last one always is.

    rope_parameters, global_head_dim, num_global_key_value_heads: of full layers. sliding_rope: of windowed ones.
    num_kv_shared_layers: how many layers, at the end, reuse keys and values.
    """

    ONLY: ClassVar = {"use_bidirectional_attention": (None, "vision")}  # which text does not feel

    vocab_size: int = 262144
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 30
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    hidden_act: str = "gelu_pytorch_tanh"  # the file's `hidden_activation`
    max_position_embeddings: int = 131072
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    sliding_window: int | None = 512
    final_logit_softcapping: float | None = None
    sliding_rope: Rope
    global_head_dim: int = 512
    num_global_key_value_heads: int | None = None
    attention_k_eq_v: bool = False
    num_kv_shared_layers: int = 0
    use_double_wide_mlp: bool = False
    hidden_size_per_layer_input: int = 256
    vocab_size_per_layer_input: int = 262144
    enable_moe_block: bool = False
    num_experts: int | None = None
    top_k_experts: int | None = None
    moe_intermediate_size: int | None = None

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        if isinstance(text := raw.get("text_config"), dict):
            raw = {**{key: value for key, value in raw.items() if key not in TOWER_KEYS}, **text}
        raw = _with_sizes(_with_ropes(gemma2.with_activation(raw)))
        if raw.get("expert_intermediate_size") == raw.get("moe_intermediate_size"):  # its name in the hub's files, too
            raw.pop("expert_intermediate_size", None)
        if raw.get("hidden_size_per_layer_input", 0) is None:
            raw["hidden_size_per_layer_input"] = 0
        return raw

    def check(self) -> None:
        super().check()
        check_ints(self, {"global_head_dim": 2**12})
        check_ints(
            self, {"hidden_size_per_layer_input": 2**12, "num_kv_shared_layers": self.num_hidden_layers}, least=0
        )
        check_pairs(self.rope_parameters, self.global_head_dim)
        check_pairs(self.sliding_rope, self.head_size)
        if self.num_global_key_value_heads is not None:
            check_ints(self, {"num_global_key_value_heads": 1024})
        if self.num_attention_heads % self.kv_heads_of(self.num_hidden_layers - 1):
            raise GencliError(
                f"config.json: num_attention_heads = {self.num_attention_heads} is not a multiple of "
                f"num_global_key_value_heads = {self.num_global_key_value_heads}"
            )
        if self.final_logit_softcapping is not None:
            check_numbers(self, {"final_logit_softcapping": (1e-6, 1e6)})
        if set(self.types[: self.own_layers]) != set(self.types):
            raise GencliError(
                f"config.json: num_kv_shared_layers = {self.num_kv_shared_layers} leaves no layer of some kind "
                "whose keys and values could be reused"
            )
        self._check_parts()

    def _check_parts(self) -> None:
        """Raise GencliError for sizes of embeddings per layer, or of experts, that no model has."""
        if self.hidden_size_per_layer_input:
            check_ints(self, {"vocab_size_per_layer_input": 2**22}, least=self.vocab_size)
        if self.enable_moe_block:
            check_ints(self, {"moe_intermediate_size": 2**20})
            experts.check_experts(self, "num_experts", "top_k_experts")

    @property
    def types(self) -> tuple[str, ...]:
        types = super().types
        return (*types[:-1], FULL) if isinstance(types, tuple) and types else types

    def slides(self, layer: int) -> bool:
        return (layer + 1) % 6 != 0

    @property
    def own_layers(self) -> int:
        """How many layers have keys and values of their own: the first ones."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    def cached(self, layer: int) -> int:
        """Return whose keys and values a layer attends to: its own, or those of the last of its kind that has some."""
        own = range(min(layer + 1, self.own_layers))
        return max(i for i in own if self.types[i] == self.types[layer])

    def head_size_of(self, layer: int) -> int:
        """Return the size of a layer's heads."""
        return self.head_size if self.types[layer] == SLIDING else self.global_head_dim

    def kv_heads_of(self, layer: int) -> int:
        """Return how many heads of keys and values a layer has."""
        return self.kv_heads if self.types[layer] == SLIDING else self.num_global_key_value_heads or self.kv_heads

    def inner(self, layer: int) -> int:
        """Return the width of a layer's feed-forward network."""
        return self.intermediate_size * (1 + (self.use_double_wide_mlp and layer >= self.own_layers))

    @property
    def expert_count(self) -> int:
        return self.num_experts or 0

    @property
    def num_experts_per_tok(self) -> int:
        return self.top_k_experts or 0


def _with_ropes(raw: Mapping[str, object]) -> dict[str, object]:
    """Return the values with `rope_parameters`, which has both kinds or is not there, as that and `sliding_rope`."""
    parameters = raw.get("rope_parameters")
    if parameters is None:
        parameters = {SLIDING: {}, FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25}}
        parameters[FULL]["rope_theta"] = 1000000.0
    if not isinstance(parameters, dict) or parameters.keys() != {FULL, SLIDING}:
        raise GencliError(f"config.json: rope_parameters = {str(parameters)[:60]} does not have {FULL} and {SLIDING}")
    ropes = []
    for kind in (FULL, SLIDING):
        if not isinstance(parameters[kind], dict):
            raise GencliError(f"config.json: rope_parameters = {str(parameters)[:60]} are no objects")
        rope = read_rope(parameters[kind], KINDS)
        if rope.partial_rotary_factor != 1 and rope.rope_type != "proportional":
            raise GencliError(
                f"config.json: partial_rotary_factor = {rope.partial_rotary_factor} is not supported "
                f"with rope_type = {rope.rope_type!r}"
            )
        ropes.append(rope)
    rest = {key: value for key, value in raw.items() if key not in ("rope_parameters", "sliding_rope")}
    return {**rest, "rope_parameters": ropes[0], "sliding_rope": ropes[1]}


def _with_sizes(raw: Mapping[str, object]) -> dict[str, object]:
    """Return the values with the heads of full layers under the names that the hub's files have: later versions of
    transformers write those that differ layer by layer, as `per_layer_config`."""
    raw = dict(raw)
    if (own := raw.pop("per_layer_config", None)) is None:
        if not raw.get("attention_k_eq_v"):  # the reference does not look at it then
            raw["num_global_key_value_heads"] = None
        return raw
    types = raw.get("layer_types")
    full = [i for i, kind in enumerate(types) if kind == FULL] if isinstance(types, list) else []
    table = {key.lstrip("0") or "0": sizes for key, sizes in own.items()} if isinstance(own, dict) else None
    sizes: object = next(iter(table.values()), {}) if table is not None else None
    alike = table in ({}, {str(i): sizes for i in full})
    if not isinstance(sizes, dict) or not alike or not sizes.keys() <= {"head_dim", "num_key_value_heads"}:
        raise GencliError(
            f"config.json: per_layer_config = {str(own)[:60]} is not supported",
            "gencli knows one head_dim and num_key_value_heads of all layers that layer_types calls full_attention",
        )
    raw["global_head_dim"] = sizes.get("head_dim", raw.get("head_dim", 256))
    raw["num_global_key_value_heads"] = sizes.get("num_key_value_heads")
    return raw
