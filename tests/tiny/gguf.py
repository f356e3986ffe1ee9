"""Tiny decoders as GGUF files, as llama.cpp's converter writes them, and their weights as a folder for transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value
from safetensors.torch import load_file, save_file

# config.json's model_type → GGUF's architecture, and its own names of tensors beside the common ones
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "smollm3": "smollm3", "gpt_oss": "gpt-oss", "olmo2": "olmo2",
    "olmo3": "olmo2", "granite": "granite", "glm4": "glm4", "lfm2": "lfm2", "starcoder2": "starcoder2",
    "cohere2": "cohere2", "phi": "phi2", "ministral3": "mistral3", "phi3": "phi3", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "gemma4_text": "gemma4", "qwen3_5_text": "qwen35", "qwen3_5_moe_text": "qwen35moe",
}  # fmt: skip
COMMON = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp", "mlp.experts.gate_proj": "ffn_gate_exps", "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "block_sparse_moe.gate": "ffn_gate_inp", "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w3": "ffn_up_exps", "block_sparse_moe.experts.w2": "ffn_down_exps",
    "mlp.router": "ffn_gate_inp", "self_attn.sinks": "attn_sinks",
}  # fmt: skip
AFTER = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm",
         "pre_feedforward_layernorm": "ffn_norm"}  # fmt: skip
GEMMA4 = {
    **AFTER, "model.embed_tokens_per_layer": "per_layer_token_embd",
    "model.per_layer_projection_norm": "per_layer_proj_norm",
    "model.per_layer_model_projection": "per_layer_model_proj", "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj", "post_per_layer_input_norm": "post_norm", "router.proj": "ffn_gate_inp",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2", "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
}  # fmt: skip
GEMMA4_WHOLE = {"layer_scalar": "layer_output_scale.weight", "router.scale": "ffn_gate_inp.scale",
                "router.per_expert_scale": "ffn_down_exps.scale", "experts.gate_up_proj": "ffn_gate_up_exps.weight",
                "experts.down_proj": "ffn_down_exps.weight"}  # fmt: skip
QWEN35 = {
    "post_attention_layernorm": "post_attention_norm", "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate", "linear_attn.in_proj_b": "ssm_beta", "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.conv1d": "ssm_conv1d", "linear_attn.norm": "ssm_norm", "linear_attn.out_proj": "ssm_out",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}  # fmt: skip
QWEN35_SHARED = {name: new for name, new in QWEN35.items() if "shared_expert" in name}
QWEN35_WHOLE = {"linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias"}
OWN = {"gpt-oss": {"post_attention_layernorm": "post_attention_norm"},
       "qwen35": QWEN35, "qwen35moe": QWEN35, "olmo2": AFTER, "gemma2": AFTER, "gemma3": AFTER, "gemma4": GEMMA4,
       "glm4": {"post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm",
                "mlp.gate_up_proj": "ffn_up"},
       "lfm2": {"model.embedding_norm": "token_embd_norm", "operator_norm": "attn_norm", "ffn_norm": "ffn_norm",
                "conv.conv": "shortconv.conv", "conv.in_proj": "shortconv.in_proj",
                "conv.out_proj": "shortconv.out_proj", "feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down",
                "feed_forward.w3": "ffn_up", "self_attn.out_proj": "attn_output",
                "self_attn.q_layernorm": "attn_q_norm", "self_attn.k_layernorm": "attn_k_norm"},
       "starcoder2": {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}, "qwen2moe": QWEN35_SHARED,
       "phi2": {"mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down", "self_attn.dense": "attn_output",
                "model.final_layernorm": "output_norm"},
       "phi3": {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}}  # fmt: skip
KEYS = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.value_length": "head_dim", "attention.sliding_window": "sliding_window", "vocab_size": "vocab_size",
    "expert_count": ("num_experts", "num_local_experts"), "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": ("moe_intermediate_size", "swiglu_limit"),
}  # fmt: skip
NUMBERS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps", "rope.freq_base": "rope_theta",
           "embedding_scale": "embedding_multiplier", "attention.scale": "attention_multiplier",
           "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
           "attn_logit_softcapping": "attn_logit_softcapping",
           "final_logit_softcapping": "final_logit_softcapping"}  # fmt: skip
TURNED = ("llama", "smollm3", "granite", "mistral3")  # whose rows of q and k are in the order that rotates neighbours
WINDOWED = ("olmo2", "cohere2", "gemma2", "gemma3", "gemma4", "phi3", "gpt-oss")


def add_gemma4(writer: gguf.GGUFWriter, c: dict[str, Any]) -> None:
    """What llama.cpp's converter says of Gemma 4 beside the common keys."""
    slides = [kind == "sliding_attention" for kind in c["layer_types"]]
    layers, shared = c["num_hidden_layers"], c["num_kv_shared_layers"]
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(c["hidden_size_per_layer_input"])
    writer.add_sliding_window_pattern(slides)
    for length, swa in ((writer.add_key_length, writer.add_key_length_swa),
                        (writer.add_value_length, writer.add_value_length_swa),
                        (writer.add_rope_dimension_count, writer.add_rope_dimension_count_swa)):  # fmt: skip
        length(c["global_head_dim"])
        swa(c["head_dim"])
    inner = [c["intermediate_size"] * (1 + (c["use_double_wide_mlp"] and i >= layers - shared)) for i in range(layers)]
    writer.add_feed_forward_length(inner if c["use_double_wide_mlp"] else inner[0])
    wide = c["num_global_key_value_heads"]
    writer.add_head_count_kv(
        [c["num_key_value_heads"] if one else wide for one in slides] if wide else c["num_key_value_heads"]
    )
    ropes = c["rope_parameters"]
    writer.add_rope_freq_base(ropes["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    if c["enable_moe_block"]:
        writer.add_expert_used_count(c["top_k_experts"])
    half = c["global_head_dim"] // 2
    turned = int(half * ropes["full_attention"]["partial_rotary_factor"])
    writer.add_tensor("rope_freqs.weight", np.array([1.0] * turned + [1e30] * (half - turned), dtype=np.float32))


def add_qwen35(writer: gguf.GGUFWriter, c: dict[str, Any]) -> None:
    """What llama.cpp's converter says of Qwen 3.5 beside the common keys."""
    writer.add_ssm_conv_kernel(c["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(c["linear_key_head_dim"])
    writer.add_ssm_group_count(c["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(c["linear_num_value_heads"])
    writer.add_ssm_inner_size(c["linear_value_head_dim"] * c["linear_num_value_heads"])
    writer.add_full_attention_interval(c["full_attention_interval"])
    writer.add_rope_dimension_count(int(c["head_dim"] * c.get("partial_rotary_factor", 0.25)))
    writer.add_rope_dimension_sections([11, 11, 10, 0])
    if "num_experts" in c:
        writer.add_expert_shared_feed_forward_length(c["shared_expert_intermediate_size"])


def value_heads(value: np.ndarray, name: str, c: dict[str, Any], *, back: bool = False) -> np.ndarray:
    """A tensor of Qwen 3.5's linear layers, with the value heads of each head of keys in turns, or `back`."""
    part, keys = name.split(".")[1], c["linear_num_key_heads"]
    each = c["linear_num_value_heads"] // keys
    size = 1 if part in ("in_proj_a", "in_proj_b", "A_log", "dt_bias") else c["linear_value_head_dim"]
    if part == "norm":
        return value
    axis, before = int(part == "out_proj"), 0
    if part in ("in_proj_qkv", "conv1d"):
        before = 2 * keys * c["linear_key_head_dim"]
    first, heads = np.split(value, [before], axis)
    shape, groups = heads.shape, (each, keys) if back else (keys, each)
    heads = heads.reshape(*shape[:axis], *groups, size, *shape[axis + 1 :]).swapaxes(axis, axis + 1).reshape(shape)
    return np.concatenate((first, heads), axis)


def add_stack(writer: gguf.GGUFWriter, new: str, tensor: torch.Tensor, kind: str) -> torch.Tensor:
    """Add what holds gate and up of all experts as two tensors; return the numbers that the file then holds."""
    gate, up = tensor.chunk(2, dim=1)
    parts = [add_whole(writer, new.format(name), one, kind) for name, one in (("gate", gate), ("up", up))]
    return torch.cat(parts, dim=1)


def add_whole(writer: gguf.GGUFWriter, new: str, tensor: torch.Tensor, kind: str) -> torch.Tensor:
    """Add a vector, or the matrices of all experts; return the numbers that the file then holds."""
    value = tensor.float().numpy()
    if value.ndim == 1:
        writer.add_tensor(new, value)
        return tensor
    rows = packed(value.reshape(-1, value.shape[-1]), kind)
    writer.add_tensor(new, rows.reshape(*value.shape[:2], -1), raw_dtype=Type[kind])
    return torch.from_numpy(np.ascontiguousarray(unpacked(rows, kind).reshape(value.shape)))


def packed(values: np.ndarray, kind: str) -> np.ndarray:
    """Rows of a type. The package cannot write Q4_K: each 32 values become 16 steps from their least to their most,
    of one scale and one min, which eight sub-blocks of a block share."""
    if kind != "Q4_K":
        return gguf.quants.quantize(values, Type[kind])
    blocks = values.reshape(len(values), -1, 256)
    low, high = blocks.min(-1, keepdims=True).clip(max=0), blocks.max(-1, keepdims=True)
    d, m = ((high - low) / 15).astype(np.float16), (-low).astype(np.float16)
    codes = ((blocks - low) / np.maximum(d.astype(np.float32), 1e-8)).round().clip(0, 15).astype(np.uint8)
    codes = codes.reshape(*codes.shape[:2], 4, 2, 32)
    halves = (codes[..., 0, :] | codes[..., 1, :] << 4).reshape(*blocks.shape[:2], 128)
    ones = np.broadcast_to(np.array([1] * 8 + [0x11] * 4, np.uint8), (*blocks.shape[:2], 12))  # scales and mins of 1
    return np.concatenate((d.view(np.uint8), m.view(np.uint8), ones, halves), -1).reshape(len(values), -1)


def unpacked(rows: np.ndarray, kind: str) -> np.ndarray:
    return gguf.quants.dequantize(rows, Type[kind])


def turned(value: np.ndarray, heads: int, *, back: bool = False) -> np.ndarray:
    """Rows of q or k for rotating neighbours, or `back` for rotating halves."""
    shape = (heads, -1, 2) if back else (heads, 2, len(value) // heads // 2)
    return value.reshape(*shape, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """gpt-oss's experts under the names of Qwen's, which have a tensor for each matrix; its sinks with an ending."""
    found = {}
    for name, tensor in tensors.items():
        before, is_all, which = name.partition(".experts.")
        if name.endswith(".sinks"):
            found[f"{name}.weight"] = tensor
        elif not is_all or which[:1].isdigit():
            found[name] = tensor
        else:
            ending = "bias" if which.endswith("bias") else "weight"
            for i, one in enumerate(tensor if ending == "bias" else tensor.mT):
                parts = {"gate_proj": one[::2], "up_proj": one[1::2]} if "gate_up" in which else {"down_proj": one}
                found |= {f"{before}.experts.{i}.{part}.{ending}": value for part, value in parts.items()}
    return found


def together(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What was taken `apart`, as gpt-oss's files have it."""
    found, experts = {}, {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)_proj\.(\w+)", name)
        if match is None:
            found[name.removesuffix(".weight") if ".sinks" in name else name] = tensor
        else:
            experts.setdefault((match[1], match[4]), {}).setdefault(match[3], []).append(tensor)
    for (before, ending), parts in experts.items():
        tail = "_bias" if ending == "bias" else ""
        fused = torch.stack((torch.stack(parts["gate"]), torch.stack(parts["up"])), 2).flatten(1, 2)
        for name, value in (("gate_up", fused), ("down", torch.stack(parts["down"]))):
            found[f"{before}.{name}_proj{tail}"] = (value if tail else value.mT).contiguous()
    return found


def write_decoder(folder: Path, file: Path, kind: str, reference: Path, **more: Any) -> Path:
    """Write the checkpoint in `folder` as a GGUF file whose matrices are of a type, and the weights that it holds into
    the folder `reference`. more: metadata."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(file, name)
    for key, owns in KEYS.items():
        own = next((own for own in owns if own in config), "") if isinstance(owns, tuple) else owns
        differs = name == "qwen35moe" and own == "intermediate_size"
        differs |= name == "lfm2" and own in ("intermediate_size", "num_key_value_heads")
        differs |= name == "gemma4" and own in ("intermediate_size", "num_key_value_heads", "head_dim")
        own = "intermediate_size" if own == "swiglu_limit" else own
        if config.get(own) is not None and (own != "sliding_window" or name in WINDOWED) and not differs:
            writer.add_key_value(f"{name}.{key}", config[own], Value.UINT32)
    for key, own in NUMBERS.items():
        if config.get(own) is not None:
            writer.add_key_value(f"{name}.{key}", float(config[own]), Value.FLOAT32)
    if name == "gemma4":
        add_gemma4(writer, config)
    if name.startswith("qwen35"):
        add_qwen35(writer, config)
    if name == "lfm2":
        writer.add_shortconv_l_cache(config["conv_L_cache"])
        writer.add_feed_forward_length(2 * config["block_ff_dim"] // 3)
        full, layers = config["full_attn_idxs"], range(config["num_hidden_layers"])
        writer.add_head_count_kv([config["num_key_value_heads"] * (i in full) for i in layers])
        writer.add_layer_norm_rms_eps(config["norm_eps"])
    if name in ("starcoder2", "cohere2", "phi2"):
        writer.add_layer_norm_eps(config.get("norm_epsilon", config.get("layer_norm_eps")))
    if name == "cohere2":
        writer.add_logit_scale(config["logit_scale"])
    if name == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if config["model_type"] == "olmo3":
        writer.add_sliding_window_pattern([(i + 1) % 4 != 0 for i in range(config["num_hidden_layers"])])
    for key, value in more.items():
        writer.add_key_value(f"{name}.{key.replace('__', '.')}", *value)
    names, kept, experts = {**COMMON, **OWN.get(name, {})}, {}, {}
    is_oss = name == "gpt-oss"
    stored = load_file(folder / "model.safetensors")
    for full, tensor in (apart(stored) if is_oss else stored).items():
        layer = re.match(r"model\.layers\.(\d+)\.", full)
        inner = full[layer.end() :] if layer else ""
        if name.startswith("qwen35") and inner in QWEN35_WHOLE:
            value = value_heads(tensor.float().numpy(), inner, config)
            value = -np.exp(value) if inner.endswith("A_log") else value
            writer.add_tensor(f"blk.{layer[1]}.{QWEN35_WHOLE[inner]}", value)
            kept[full] = tensor
            continue
        if inner == "mlp.experts.gate_up_proj":
            kept[full] = add_stack(writer, f"blk.{layer[1]}.ffn_{{}}_exps.weight", tensor, kind)
            continue
        if inner == "mlp.experts.down_proj":
            kept[full] = add_whole(writer, f"blk.{layer[1]}.ffn_down_exps.weight", tensor, kind)
            continue
        if layer and inner in GEMMA4_WHOLE:
            kept[full] = add_whole(writer, f"blk.{layer[1]}.{GEMMA4_WHOLE[inner]}", tensor, kind)
            continue
        stem, _, ending = full[layer.end() if layer else 0 :].rpartition(".")
        stem, is_expert = re.sub(r"experts\.\d+", "experts", stem), ".experts." in stem
        new = f"blk.{layer[1]}.{names[stem]}.{ending}" if layer else f"{names[stem]}.{ending}"
        value = tensor.float().numpy()
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(names[stem], "")
        heads = config[heads] if heads and name in TURNED else 0
        value = turned(value, heads) if heads else value
        if name in ("gemma2", "gemma3", "qwen35", "qwen35moe") and stem.endswith("norm") and "linear" not in stem:
            value = value + 1
        if is_linear := name.startswith("qwen35") and stem.startswith("linear_attn."):
            value = value_heads(value, stem, config)
        value = value.squeeze(1) if stem.endswith(("conv1d", "conv.conv")) else value
        floats = ("ffn_gate_inp", "ffn_gate_inp_shexp", "ssm_conv1d", "shortconv.conv")
        wanted = kind if value.ndim > 1 and names[stem] not in floats else "F32"
        rows = packed(value, wanted) if value.ndim > 1 and wanted != "F32" else value
        if is_expert:
            experts.setdefault(new, {})[int(re.search(r"experts\.(\d+)", full)[1])] = rows
        else:
            writer.add_tensor(new, rows, raw_dtype=Type[wanted])
        if value.ndim > 1 and wanted != "F32":
            back = unpacked(rows, wanted)
            back = value_heads(back, stem, config, back=True) if is_linear else back
            tensor = torch.from_numpy(np.ascontiguousarray(turned(back, heads, back=True) if heads else back))
        kept[full] = tensor.contiguous()
    for new, all_of_them in experts.items():
        wanted = "F32" if new.endswith("bias") else kind
        writer.add_tensor(new, np.stack([all_of_them[i] for i in sorted(all_of_them)]), raw_dtype=Type[wanted])
    for which in ("long", "short"):
        if factors := (config.get("rope_scaling") or {}).get(f"{which}_factor"):
            writer.add_tensor(f"rope_factors_{which}.weight", np.array(factors, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reference.mkdir()
    (reference / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    kept = together(kept) if is_oss else kept
    save_file(kept, reference / "model.safetensors", metadata={"format": "pt"})
    return file
