"""Gemma 4's keys in GGUF files, several of which hold a value for each layer, and its config: both ways. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gencli.checkpoints.gguf_file import metadata_get
from gencli.checkpoints.tensors import TensorFile
from gencli.errors import GencliError

if TYPE_CHECKING:
    from gencli.models.gemma4_config import Gemma4Config

# tensors of layers that no other architecture has, and those of the model
NAMES = {
    "per_layer_token_embd": "model.embed_tokens_per_layer", "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm", "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection", "post_norm": "post_per_layer_input_norm", "ffn_gate_inp": "router.proj",
    "ffn_gate_up_exps": "experts.gate_up_proj", "ffn_gate_exps": "experts.gate_proj", "ffn_up_exps": "experts.up_proj",
    "ffn_down_exps": "experts.down_proj", "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_1": "post_feedforward_layernorm_1", "post_ffw_norm_2": "post_feedforward_layernorm_2",
}  # fmt: skip
WHOLE = {
    "layer_output_scale.weight": "layer_scalar", "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
}  # fmt: skip
KEYS = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length_swa": "head_dim", "attention.sliding_window": "sliding_window",
    "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
PATTERN, HEADS, INNER = "attention.sliding_window_pattern", "attention.head_count_kv", "feed_forward_length"
SHARED, OWN, THETA = (
    "attention.shared_kv_layers",
    "embedding_length_per_layer_input",
    ("rope.freq_base", "rope.freq_base_swa"),
)
SIZES = {  # of heads: key → other keys that must say the same
    "attention.key_length": ("attention.value_length", "rope.dimension_count"),
    "attention.key_length_swa": ("attention.value_length_swa", "rope.dimension_count_swa"),
}
EXPERTS = {
    "expert_count": "num_experts", "expert_used_count": "top_k_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
}  # fmt: skip
BY_LAYER = frozenset({PATTERN, HEADS, INNER, SHARED, OWN, *THETA, *EXPERTS, *SIZES, *sum(SIZES.values(), ())})
MOST = 1024  # layers
STILL = 1e30  # what divides the angle of a pair that is not turned


def complete(file: TensorFile, given: Mapping[str, object], config: dict[str, object]) -> None:
    """Add to the config what the keys in BY_LAYER and the shapes say.

    Raise GencliError for keys that are missing, do not fit each other, or say what no Gemma 4 has.
    """
    layers = metadata_get(config, "num_hidden_layers", int, 0)
    if layers > MOST:
        raise GencliError(f"gemma4.block_count = {layers} is out of range (1 to {MOST})")
    if given.get("rope.scaling.type", "none") != "none":
        raise GencliError(f"gemma4.rope.scaling.type = {given['rope.scaling.type']!r:.40} is not supported")
    needed = (PATTERN, INNER, *THETA, *SIZES)
    if lost := [key for key in needed if key not in given]:
        raise GencliError(f"the metadata lacks {', '.join(f'gemma4.{key}' for key in lost)}")
    for key, others in SIZES.items():
        for other in others:
            if given.get(other, given[key]) != given[key]:
                raise GencliError(
                    f"gemma4.{other} = {given[other]!r:.40} with heads of {given[key]!r:.40} is not supported"
                )
    slides = _each(given, PATTERN, layers)
    full = [i for i, one in enumerate(slides) if not one]
    heads = _each(given, HEADS, layers) if HEADS in given else [config["num_attention_heads"]] * layers
    config["layer_types"] = ["sliding_attention" if one else "full_attention" for one in slides]
    config["num_key_value_heads"] = next((heads[i] for i, one in enumerate(slides) if one), heads[0])
    sizes = [{"head_dim": given["attention.key_length"], "num_key_value_heads": heads[i]} for i in full]
    config["per_layer_config"] = {str(i): one for i, one in zip(full, sizes, strict=True)}
    config["num_kv_shared_layers"] = shared = metadata_get(given, SHARED, int, 0)
    config["intermediate_size"], config["use_double_wide_mlp"] = _inner(given, layers, shared)
    config["attention_k_eq_v"] = bool(full) and f"blk.{full[0]}.attn_v.weight" not in file.shapes
    config["rope_parameters"] = _ropes(file, given)
    config["hidden_size_per_layer_input"] = metadata_get(given, OWN, int, 0)
    if (shape := file.shapes.get("per_layer_token_embd.weight")) is not None:
        config["vocab_size_per_layer_input"] = shape[0]
    if metadata_get(given, "expert_count", int, 0):
        config |= {"enable_moe_block": True, **{new: given.get(key) for key, new in EXPERTS.items()}}


def _each(given: Mapping[str, object], key: str, layers: int) -> list[object]:
    """Return the value of a key for each layer: it has one, or one for all. Raise GencliError for others."""
    value = given[key]
    if isinstance(value, list) and len(value) == layers:
        return value
    if isinstance(value, (int, bool)):
        return [value] * layers
    raise GencliError(f"gemma4.{key} = {str(value)[:60]} does not fit {layers} layers")


def _inner(given: Mapping[str, object], layers: int, shared: int) -> tuple[object, bool]:
    """Return the width of feed-forward networks, and whether it is twice that in layers that reuse keys and values."""
    widths = _each(given, INNER, layers)
    first, last = widths[0], widths[-1]
    fits = widths == [first if layer < layers - shared else last for layer in range(layers)]
    if not isinstance(first, int) or not fits or last not in (first, 2 * first):
        raise GencliError(f"gemma4.{INNER} = {str(given[INNER])[:60]} is not supported")
    return first, last != first


def _ropes(file: TensorFile, given: Mapping[str, object]) -> dict[str, object]:
    """Return the rotations of both kinds of layers. Raise GencliError for divisors of angles but 1 and STILL."""
    divisors = file.numbers("rope_freqs.weight") if "rope_freqs.weight" in file.shapes else None
    size = max(metadata_get(given, "attention.key_length", int, 0), 1)
    turned = sum(one == 1 for one in divisors or ())
    expected = [1.0] * turned + [STILL] * (size // 2 - turned)
    if divisors is None or not turned or any(abs(a / b - 1) > 1e-6 for a, b in zip(divisors, expected, strict=False)):
        raise GencliError("rope_freqs.weight is not Gemma 4's, and is not supported")
    if len(divisors) != len(expected):
        raise GencliError(f"rope_freqs.weight has {len(divisors)} numbers for heads of {size}")
    part = (2 * turned + 0.5) / size if int(2 * turned / size * size // 2) != turned else 2 * turned / size
    full = {"rope_type": "proportional", "partial_rotary_factor": part, "rope_theta": given[THETA[0]]}
    return {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": given[THETA[1]]}}


def _alike(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values


def metadata(config: Gemma4Config) -> dict[str, object]:
    """Return the keys of an architecture, without its name."""
    layers = range(config.num_hidden_layers)
    inner, heads = _alike(list(map(config.inner, layers))), _alike(list(map(config.kv_heads_of, layers)))
    found: dict[str, object] = {
        key: float(value) if isinstance(value, float) else value
        for key, own in KEYS.items()
        if (value := getattr(config, own)) is not None
    }
    found |= {
        PATTERN: [kind == "sliding_attention" for kind in config.types], HEADS: heads, INNER: inner,
        "vocab_size": config.vocab_size, SHARED: config.num_kv_shared_layers, OWN: config.hidden_size_per_layer_input,
        "attention.key_length": config.global_head_dim,
        THETA[0]: float(config.rope_parameters.rope_theta), THETA[1]: float(config.sliding_rope.rope_theta),
    }  # fmt: skip
    found |= {other: found[key] for key, others in SIZES.items() for other in others}
    if config.enable_moe_block:
        found |= {key: getattr(config, own) for key, own in EXPERTS.items()}
    return found


def effects(config: Gemma4Config) -> dict[str, object]:
    """Return what a config says in other words, that are equal where the models are."""
    layers = range(config.num_hidden_layers)
    found: dict[str, object] = {
        "num_global_key_value_heads": [config.kv_heads_of(layer) for layer in layers],
        "global_head_dim": [config.head_size_of(layer) for layer in layers],
        "use_double_wide_mlp": [config.inner(layer) for layer in layers],
    }
    if not config.hidden_size_per_layer_input:
        found["vocab_size_per_layer_input"] = None
    if not config.enable_moe_block:
        found |= dict.fromkeys(EXPERTS.values())
    return found
