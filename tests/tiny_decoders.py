"""Tiny seeded decoder checkpoints in the hub's true layouts: config.json written out in the old form and the new,
tensors by the names that real files have. The reference library must find every one of them and miss none."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tests.tiny_text import write_json, write_weights

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
Form = Literal["old", "new"]

WINDOW = 8  # of every case that has one
RANGE = 16  # the original RoPE range of every stretched case: tests go past both

COMMON: Config = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "use_cache": True,
}
OLD: Config = {"torch_dtype": "float32", "transformers_version": "4.45.0"}
NEW: Config = {"dtype": "float32", "transformers_version": "5.0.0"}


def llama_shapes(c: Config) -> Shapes:
    bias = c.get("attention_bias", False)
    return stack(c, [*attention(c, bias, bias), *mlp(c, c.get("mlp_bias", False)), *norms(c, *PRE_NORMS)])


def mistral_shapes(c: Config) -> Shapes:
    return stack(c, [*attention(c), *mlp(c), *norms(c, *PRE_NORMS)])


def qwen2_shapes(c: Config) -> Shapes:
    return stack(c, [*attention(c, True), *mlp(c), *norms(c, *PRE_NORMS)])


def qwen3_shapes(c: Config) -> Shapes:
    bias, head = c.get("attention_bias", False), head_dim(c)
    heads = [("self_attn.q_norm.weight", (head,)), ("self_attn.k_norm.weight", (head,))]
    return stack(c, [*attention(c, bias, bias), *heads, *mlp(c), *norms(c, *PRE_NORMS)])


def olmo2_shapes(c: Config) -> Shapes:
    queries, keys = c["num_attention_heads"] * head_dim(c), c["num_key_value_heads"] * head_dim(c)
    heads = [("self_attn.q_norm.weight", (queries,)), ("self_attn.k_norm.weight", (keys,))]
    after = norms(c, "post_attention_layernorm", "post_feedforward_layernorm")
    return stack(c, [*attention(c), *heads, *mlp(c), *after])


def phi3_shapes(c: Config) -> Shapes:
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    heads, kv, head = c["num_attention_heads"], c["num_key_value_heads"], head_dim(c)
    fused = [
        ("self_attn.qkv_proj.weight", ((heads + 2 * kv) * head, hidden)),
        ("self_attn.o_proj.weight", (hidden, heads * head)),
        ("mlp.gate_up_proj.weight", (2 * inner, hidden)),
        ("mlp.down_proj.weight", (hidden, inner)),
    ]
    return stack(c, [*fused, *norms(c, *PRE_NORMS)])


def gemma2_shapes(c: Config) -> Shapes:
    return stack(c, [*attention(c), *mlp(c), *norms(c, *GEMMA_NORMS)])


def gemma3_shapes(c: Config) -> Shapes:
    heads = [("self_attn.q_norm.weight", (head_dim(c),)), ("self_attn.k_norm.weight", (head_dim(c),))]
    return stack(c, [*attention(c), *heads, *mlp(c), *norms(c, *GEMMA_NORMS)])


PRE_NORMS = ("input_layernorm", "post_attention_layernorm")
GEMMA_NORMS = (*PRE_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
Rows = list[tuple[str, tuple[int, ...]]]


def head_dim(c: Config) -> int:
    return c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]


def attention(c: Config, bias: bool = False, out_bias: bool = False) -> Rows:
    hidden, head = c["hidden_size"], head_dim(c)
    outs = {"q_proj": c["num_attention_heads"] * head, "k_proj": c["num_key_value_heads"] * head}
    outs["v_proj"] = outs["k_proj"]
    rows: Rows = [(f"self_attn.{name}.weight", (out, hidden)) for name, out in outs.items()]
    rows += [(f"self_attn.{name}.bias", (out,)) for name, out in outs.items() if bias]
    rows += [("self_attn.o_proj.weight", (hidden, outs["q_proj"]))]
    return rows + ([("self_attn.o_proj.bias", (hidden,))] if out_bias else [])


def mlp(c: Config, bias: bool = False) -> Rows:
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    rows: Rows = [(f"mlp.{name}.weight", shape) for name, shape in shapes.items()]
    return rows + ([(f"mlp.{name}.bias", shape[:1]) for name, shape in shapes.items()] if bias else [])


def norms(c: Config, *names: str) -> Rows:
    return [(f"{name}.weight", (c["hidden_size"],)) for name in names]


def stack(c: Config, layer: Rows) -> Shapes:
    """All tensors of a file: embedding, every layer, last norm, and the head where it is not tied."""
    shapes: Shapes = {"model.embed_tokens.weight": (c["vocab_size"], c["hidden_size"])}
    for i in range(c["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer}
    shapes["model.norm.weight"] = (c["hidden_size"],)
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], c["hidden_size"])
    return shapes


@dataclass(frozen=True)
class Case:
    """One checkpoint. `keys` are in both forms of its config; `old` and `new` are what differs between them."""

    family: str
    name: str
    model_type: str
    architecture: str
    shapes: Callable[[Config], Shapes]
    keys: Config
    old: Config = field(default_factory=dict)
    new: Config = field(default_factory=dict)

    def config(self, form: Form) -> Config:
        changes = {**OLD, **self.old} if form == "old" else {**NEW, **self.new}
        names = {"model_type": self.model_type, "architectures": [self.architecture]}
        return {**COMMON, "tie_word_embeddings": False, **names, **self.keys, **changes}


def llama(name: str, keys: Config, old: Config | None = None, new: Config | None = None) -> Case:
    keys = {"hidden_act": "silu", "pretraining_tp": 1, **keys}
    rope = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    old = old or {"rope_theta": 10000.0, "rope_scaling": None}
    return Case("Llama 2 and 3, SmolLM2", name, "llama", "LlamaForCausalLM", llama_shapes, keys, old, new or rope)


def rope(theta: float, **scaling: Any) -> tuple[Config, Config]:
    """The same stretching in the old form and in the new."""
    old = {"rope_theta": theta, "rope_scaling": scaling}
    kind = scaling.get("rope_type", scaling.get("type"))
    rest = {key: value for key, value in scaling.items() if key not in ("type", "rope_type")}
    return old, {"rope_parameters": {**rest, "rope_theta": theta, "rope_type": kind}}


def plain(theta: float, **more: Any) -> tuple[Config, Config]:
    new = {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}}
    return {"rope_theta": theta, "rope_scaling": None}, {**new, **more}


LLAMA3 = {"factor": 4.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": RANGE}
FULL, SLIDING = "full_attention", "sliding_attention"
FACTORS = {"short_factor": [1.0, 1.05, 1.1, 1.2], "long_factor": [1.0, 2.0, 5.0, 9.0]}
SMOLLM2 = {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}}


def qwen2(name: str, keys: Config, old: Config, new: Config) -> Case:
    windows = {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21, "use_mrope": False}
    keys = {"hidden_act": "silu", "num_hidden_layers": 4, **windows, **keys}
    return Case("Qwen 2 and 2.5", name, "qwen2", "Qwen2ForCausalLM", qwen2_shapes, keys, old, new)


def qwen3(name: str, keys: Config, old: Config, new: Config) -> Case:
    windows = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 28}
    keys = {"hidden_act": "silu", "head_dim": 16, "attention_bias": False, "num_hidden_layers": 3, **windows, **keys}
    return Case("Qwen 3", name, "qwen3", "Qwen3ForCausalLM", qwen3_shapes, keys, old, new)


def smollm3(name: str, keys: Config, old: Config, new: Config) -> Case:
    keys = {"hidden_act": "silu", "num_hidden_layers": 4, "tie_word_embeddings": True, "mlp_bias": False, **keys}
    keys = {"pretraining_tp": 2, "max_window_layers": 28, "attention_bias": False, **keys}
    return Case("SmolLM3", name, "smollm3", "SmolLM3ForCausalLM", llama_shapes, keys, old, new)


def phi3(name: str, keys: Config, old: Config, new: Config) -> Case:
    keys = {"hidden_act": "silu", "embd_pdrop": 0.0, "resid_pdrop": 0.0, **keys}
    old = {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "attention_bias": False, **old}
    return Case("Phi 3, 3.5 and 4", name, "phi3", "Phi3ForCausalLM", phi3_shapes, keys, old, new)


def gemma2(name: str, keys: Config, new: Config) -> Case:
    base = {
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "num_hidden_layers": 4,
    }
    base |= {"sliding_window": WINDOW, "attention_bias": False, "attn_logit_softcapping": 3.0}
    keys = {**base, "final_logit_softcapping": 5.0, "tie_word_embeddings": True, **keys}
    old = {"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid", "rope_theta": 10000.0}
    rope = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    return Case("Gemma 2", name, "gemma2", "Gemma2ForCausalLM", gemma2_shapes, keys, old, {**rope, **new})


def gemma3(name: str, keys: Config, old: Config, new: Config) -> Case:
    base = {
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "num_hidden_layers": 5,
    }
    base |= {"sliding_window": WINDOW, "attention_bias": False, "attn_logit_softcapping": None}
    keys = {**base, "final_logit_softcapping": None, "tie_word_embeddings": True, **keys}
    old = {"cache_implementation": "hybrid", "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, **old}
    return Case("Gemma 3 (text)", name, "gemma3_text", "Gemma3ForCausalLM", gemma3_shapes, keys, old, new)


def gemma3_ropes(**full: Any) -> Config:
    local = {"rope_type": "default", "rope_theta": 10000.0}
    return {"rope_parameters": {SLIDING: local, FULL: {"rope_theta": 1000000.0, "rope_type": "default", **full}}}


MISTRAL = ("Mistral", "mistral", "MistralForCausalLM", mistral_shapes)
CASES = [
    llama("llama-2", {"num_key_value_heads": 4}),
    llama("llama-3", {"head_dim": 16, "tie_word_embeddings": True}, *rope(500000.0, **LLAMA3, rope_type="llama3")),
    llama("linear", {"max_position_embeddings": RANGE}, *rope(10000.0, type="linear", factor=3.0)),
    llama("dynamic", {"max_position_embeddings": RANGE}, *rope(10000.0, type="dynamic", factor=3.0)),
    llama(
        "yarn",
        {"max_position_embeddings": RANGE},
        *rope(10000.0, type="yarn", factor=4.0, original_max_position_embeddings=RANGE, finetuned=True),
    ),
    llama(
        "yarn-scaled",
        {"max_position_embeddings": 64, "hidden_act": "gelu"},
        *rope(
            10000.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=RANGE,
            beta_fast=4.0, beta_slow=0.5, mscale=0.7, mscale_all_dim=0.4, truncate=False,
        ),
    ),  # fmt: skip
    llama("smollm2", {"tie_word_embeddings": True, **SMOLLM2}, *plain(100000.0)),
    llama("biased", {"attention_bias": True, "mlp_bias": True, "hidden_act": "relu"}),
    Case(*MISTRAL[:1], "mistral-window", *MISTRAL[1:], {"hidden_act": "silu", "sliding_window": WINDOW}, *plain(10000.0)),
    Case(
        *MISTRAL[:1], "mistral-nemo", *MISTRAL[1:],
        {"hidden_act": "silu", "sliding_window": None, "head_dim": 12}, *plain(1000000.0),
    ),  # fmt: skip
    qwen2("qwen2", {"tie_word_embeddings": True}, *plain(1000000.0)),
    qwen2(
        "qwen2-window",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        *plain(1000000.0, layer_types=[FULL, SLIDING, SLIDING, SLIDING]),
    ),
    qwen2(
        "qwen2-yarn", {}, *rope(1000000.0, type="yarn", factor=4.0, original_max_position_embeddings=RANGE)
    ),
    qwen3("qwen3", {"tie_word_embeddings": True}, *plain(1000000.0, layer_types=[FULL] * 3)),
    qwen3(
        "qwen3-window",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2, "attention_bias": True},
        *plain(1000000.0, layer_types=[FULL, FULL, SLIDING]),
    ),
    smollm3("smollm3", {"no_rope_layer_interval": 2}, *plain(5000000.0)),
    smollm3(
        "smollm3-window",
        {"no_rope_layers": [1, 0, 1, 0], "use_sliding_window": True, "sliding_window": WINDOW, "attention_bias": True},
        *plain(5000000.0, layer_types=[FULL, SLIDING, FULL, SLIDING]),
    ),
    Case("OLMo 2", "olmo2", "olmo2", "Olmo2ForCausalLM", olmo2_shapes, {"hidden_act": "silu"}, *plain(500000.0)),
    phi3("phi3-window", {"sliding_window": WINDOW, "original_max_position_embeddings": 64}, *plain(10000.0)),
    phi3(
        "phi3-long",
        {"sliding_window": 262144, "original_max_position_embeddings": RANGE},
        *rope(10000.0, type="longrope", **FACTORS),
    ),
    phi3(
        "phi4-mini",
        {
            "original_max_position_embeddings": RANGE, "tie_word_embeddings": True, "full_attn_mod": 1,
            "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False, "hidden_size": 64,
        },
        {
            "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
            "rope_scaling": {"type": "longrope", **FACTORS},
        },
        {
            "rope_parameters": {
                "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "rope_type": "longrope", **FACTORS,
            }
        },
    ),  # fmt: skip
    gemma2("gemma2", {}, {"layer_types": [SLIDING, FULL, SLIDING, FULL]}),
    gemma2("gemma2-uncapped", {"attn_logit_softcapping": None, "final_logit_softcapping": None}, {}),
    gemma3("gemma3", {}, {"sliding_window_pattern": 3}, {"layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING], **gemma3_ropes()}),
    gemma3(
        "gemma3-linear",
        {"final_logit_softcapping": 5.0},
        {"sliding_window_pattern": 2, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        {"layer_types": [SLIDING, FULL, SLIDING, FULL, SLIDING], **gemma3_ropes(rope_type="linear", factor=8.0)},
    ),
]  # fmt: skip


def random_tensors(shapes: Shapes, seed: str, *, zero_centred: bool = False) -> dict[str, torch.Tensor]:
    """Seeded values: norms near one (or near zero, where the file stores the distance from one), the rest in scale."""
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    tensors = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator)
        if "norm" in name:
            tensor = 0.2 * tensor + (0 if zero_centred else 1)
        else:
            tensor *= 0.2 if len(shape) == 1 else 1 / math.sqrt(shape[-1])
        tensors[name] = tensor
    return tensors


def make_decoder(
    folder: Path, case: Case, form: Form = "old", *, dtype: torch.dtype = torch.float32, shards: int = 1, **changes: Any
) -> Path:
    """Write a case's checkpoint and return its folder. `changes` go into config.json; shapes follow them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**case.config(form), **changes}
    config["torch_dtype" if form == "old" else "dtype"] = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", config)
    tensors = random_tensors(case.shapes(config), case.name, zero_centred=case.model_type.startswith("gemma"))
    write_weights(folder, {name: tensor.to(dtype) for name, tensor in tensors.items()}, "model", shards=shards)
    return folder
