"""Qwen 3.5 in GGUF files: names and keys, and what llama.cpp's converter makes of its linear layers. No torch before a
tensor is read.

Where a head of keys serves several of values, these are in turns there: the first one of each head of keys, then the
second ones. A model that is read keeps that order (`value_heads_in_turns`), as columns of packed matrices cannot move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gencli.checkpoints.gguf_file import metadata_get
from gencli.checkpoints.tensors import TensorFile, elementwise
from gencli.errors import GencliError

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.models.qwen3_5 import Qwen35Config

NAMES = {
    "attn_qkv": "linear_attn.in_proj_qkv", "attn_gate": "linear_attn.in_proj_z", "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a", "ssm_conv1d": "linear_attn.conv1d", "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj", "post_attention_norm": "post_attention_layernorm",
}  # fmt: skip
SHARED = {
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}  # fmt: skip
WHOLE = {"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"}
KEYS = {
    "full_attention_interval": "full_attention_interval", "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim", "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
}  # fmt: skip
SHARED_KEYS = {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}
INNER, AHEAD = "ssm.inner_size", "nextn_predict_layers"
SECTIONS = [11, 11, 10, 0]  # how its RoPE shares pairs among axes, which of text are one
READ: Mapping[str, Callable[[Tensor], Tensor]] = {  # tensors that are stored otherwise → the way back
    "ssm_a": elementwise(lambda tensor: tensor.neg().log()),
    "ssm_conv1d": lambda tensor: tensor.unsqueeze(1),
    "ffn_gate_inp_shexp": lambda tensor: tensor.reshape(1, -1),
}


def complete(file: TensorFile, given: Mapping[str, object], config: dict[str, object]) -> None:
    """Say what follows from several keys. Layers that predict further tokens come last, and are not read."""
    heads, inner = config["linear_num_value_heads"], metadata_get(given, INNER, int, 0)
    assert isinstance(heads, int)
    if inner <= 0 or inner % heads:
        raise GencliError(f"{INNER} = {inner} for {heads} heads")
    config["linear_value_head_dim"] = inner // heads
    layers, ahead = config["num_hidden_layers"], metadata_get(given, AHEAD, int, 0)
    assert isinstance(layers, int)
    if not 0 <= ahead < layers:
        raise GencliError(f"{AHEAD} = {ahead} of {layers} layers")
    config["num_hidden_layers"] = layers - ahead
    size = config.get("head_dim", 256)
    config["partial_rotary_factor"] = metadata_get(given, "rope.dimension_count", int, 64) / float(str(size))
    config["value_heads_in_turns"] = True


def metadata(config: Qwen35Config) -> dict[str, object]:
    """Return the keys that are not another name of a config's."""
    inner = config.linear_num_value_heads * config.linear_value_head_dim
    return {INNER: inner, "rope.dimension_sections": SECTIONS}


def shape_of(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in the file of a parameter in a layer."""
    return (shape[0], shape[2]) if name.startswith("linear_attn.conv1d") else shape


def written(name: str, value: Tensor, config: Qwen35Config) -> Tensor:
    """Return a parameter of a layer as the file has it. Raise GencliError for a packed one that would have to be
    packed anew."""
    import torch

    from gencli.kernels.packed import Packed

    value = value.detach()
    part, keys, heads = name.split(".")[1], config.linear_num_key_heads, config.linear_num_value_heads
    if name.startswith("linear_attn.") and part != "norm" and keys < heads and not config.value_heads_in_turns:
        order, size = torch.arange(heads).view(keys, -1).t().flatten(), config.linear_value_head_dim
        if part not in ("in_proj_a", "in_proj_b", "A_log", "dt_bias"):
            order = (order[:, None] * size + torch.arange(size)).flatten()
        before = 2 * keys * config.linear_key_head_dim if part in ("in_proj_qkv", "conv1d") else 0
        order = torch.cat((torch.arange(before), before + order))
        if isinstance(value, Packed):
            raise GencliError(f"{name} is packed in another order than GGUF's", "convert the model without --quantize")
        value = value[:, order] if part == "out_proj" else value[order]
    if part == "A_log":
        return -value.float().exp()
    return value.flatten(1) if part == "conv1d" else value
