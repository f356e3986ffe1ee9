"""What follows for config.json from several keys and tensors of a GGUF file, by its architecture, and what such a file
says of a config beside its keys' other names. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from gencli.checkpoints.formats.gguf_tables import KV_HEADS, PATTERN, ROPE
from gencli.checkpoints.gguf_file import metadata_get
from gencli.checkpoints.tensors import TensorFile
from gencli.errors import GencliError

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.models.decoder_config import DecoderConfig
    from gencli.models.lfm2 import Lfm2Config

Given = Mapping[str, object]  # the architecture's keys without its name
Complete = Callable[[TensorFile, Given, dict[str, object]], None]


def llama(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    """With experts it is Mixtral."""
    if "num_local_experts" in config:
        config["model_type"] = "mixtral"
        return
    biased(file, given, config)


def biased(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    config["attention_bias"] = "blk.0.attn_q.bias" in file.shapes
    config["mlp_bias"] = "blk.0.ffn_up.bias" in file.shapes


def olmo2(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    """With windows it is OLMo 3, whose layers have them that a list says; YaRN's factor of attention is told."""
    if "sliding_window" not in config:
        return
    slides = given.get(PATTERN)
    if not isinstance(slides, list) or not all(isinstance(one, bool) for one in slides):
        raise GencliError(f"olmo2.{PATTERN} = {str(slides)[:40]} is no list that says of each layer whether it has one")
    config["model_type"] = "olmo3"
    config["layer_types"] = ["sliding_attention" if one else "full_attention" for one in slides]


def olmo3_said(config: DecoderConfig) -> dict[str, object]:
    """Return the list of windowed layers, of a model that has them."""
    windows = [bool(config.window(layer)) for layer in range(config.num_hidden_layers)]
    return {PATTERN: windows} if any(windows) else {}


def yarn_said(config: DecoderConfig) -> dict[str, object]:
    """Return what else is said of YaRN: how the factor of cos and sin follows from that of lengths."""
    rope = config.rope_parameters
    said = {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
    if rope.mscale == 1:
        said["log_multiplier"] = rope.mscale_all_dim
    is_yarn = rope.rope_type == "yarn"
    return {f"rope.scaling.yarn_{key}": float(value) for key, value in said.items() if is_yarn and value is not None}


def qwen3_experts(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    config["norm_topk_prob"] = True  # as llama.cpp has it


def gpt_oss(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    config["attention_bias"] = "blk.0.attn_q.bias" in file.shapes
    config.setdefault("rope_scaling", {"rope_type": "default"})  # which a config that says nothing does not mean


def glm4(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    config["attention_bias"] = "blk.0.attn_q.bias" in file.shapes
    part(file, given, config)


def part(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    """A part of each head is rotated."""
    size = metadata_get(config, "head_dim", int, 0) or head_size(config)
    config["partial_rotary_factor"] = metadata_get(given, "rope.dimension_count", int, size) / max(size, 1)


def lfm2(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    """Layers without heads of keys are convolutions. The width of the feed-forward networks is told as it is."""
    heads = given.get(KV_HEADS)
    counts = set(heads) - {0} if isinstance(heads, list) and all(type(one) is int for one in heads) else set()
    if not isinstance(heads, list) or len(counts) != 1:
        raise GencliError(f"lfm2.{KV_HEADS} = {str(heads)[:40]} does not say which layers have how many heads")
    config["num_key_value_heads"] = counts.pop()
    config["layer_types"] = ["full_attention" if one else "conv" for one in heads]
    config["block_auto_adjust_ff_dim"] = False
    config["conv_bias"] = any(name.endswith("shortconv.conv.bias") for name in file.shapes)


def lfm2_said(config: DecoderConfig) -> dict[str, object]:
    """Return the heads of keys of each layer."""
    kinds = cast("Lfm2Config", config).types
    return {KV_HEADS: [config.kv_heads if kind == "full_attention" else 0 for kind in kinds]}


def with_row(tensor: Tensor) -> Tensor:
    """(C, W) → (C, 1, W), as a convolution's weight is."""
    return tensor.unsqueeze(1)


def starcoder2(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    config["use_bias"] = "blk.0.attn_q.bias" in file.shapes


def cohere2(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    config["attention_bias"] = "blk.0.attn_q.bias" in file.shapes
    config["sliding_window"] = config.get("sliding_window") or None


def qwen2_experts(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    """Files do not say that shares of the chosen experts are not made to sum to one, which llama.cpp knows."""
    config["norm_topk_prob"] = False
    config["qkv_bias"] = "blk.0.attn_q.bias" in file.shapes


def mistral3(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    config.setdefault("head_dim", head_size(config))
    config.setdefault("rope_scaling", {"rope_type": "default", "rope_theta": config.get("rope_theta")})


def gemma(large: int) -> Complete:
    """GGUF lacks the scale of queries: of the models of `large` layers it is that of heads C / H wide."""

    def complete(file: TensorFile, given: Given, config: dict[str, object]) -> None:
        size = head_size(config)
        config["query_pre_attn_scalar"] = size if config["num_hidden_layers"] == large else config.get("head_dim", size)
        if config["model_type"] == "gemma3_text":
            config["attn_logit_softcapping"] = None

    return complete


def phi3(file: TensorFile, given: Given, config: dict[str, object]) -> None:
    """A part of each head may be rotated, by LongRoPE; a window of 0 is none."""
    head = head_size(config)
    rotated = metadata_get(given, "rope.dimension_count", int, head)
    config["partial_rotary_factor"] = rotated / head if head else 1.0
    config["sliding_window"] = config.get("sliding_window") or None
    config["original_max_position_embeddings"] = metadata_get(
        given, "rope.scaling.original_context_length", int, config.get("max_position_embeddings")
    )
    if ROPE[1] in file.shapes and ROPE[2] in file.shapes:
        long, short = (list(file.numbers(name) or ()) for name in ROPE[1:])
        scaling: dict[str, object] = {"type": "longrope", "long_factor": long, "short_factor": short}
        if (factor := metadata_get(given, "rope.scaling.attn_factor", (int, float))) is not None:
            scaling["attention_factor"] = factor
        config["rope_scaling"] = scaling


def head_size(config: Mapping[str, object]) -> int:
    """The numbers of each head, by sizes that `read_config` has checked."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    assert isinstance(width, int) and isinstance(heads, int)
    return width // heads
