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

from tests.tiny.text import write_json, write_weights

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
Form = Literal["old", "new"]

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


def mixtral_shapes(c: Config) -> Shapes:
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    experts = [
        (f"block_sparse_moe.experts.{i}.{name}.weight", shape)
        for i in range(c["num_local_experts"])
        for name, shape in {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}.items()
    ]
    gate = ("block_sparse_moe.gate.weight", (c["num_local_experts"], hidden))
    return stack(c, [*attention(c), gate, *experts, *norms(c, *PRE_NORMS)])


def qwen3_moe_shapes(c: Config) -> Shapes:
    """The layers in `mlp_only_layers` have a feed-forward network of the usual shape."""
    of_one = mlp({**c, "intermediate_size": c["moe_intermediate_size"]})
    experts = [
        (name.replace("mlp.", f"mlp.experts.{i}."), shape) for i in range(c["num_experts"]) for name, shape in of_one
    ]
    experts += [("mlp.gate.weight", (c["num_experts"], c["hidden_size"]))]
    found: Shapes = {}
    for name, shape in qwen3_shapes(c).items():
        before, is_mlp, _ = name.partition(".mlp.")
        if is_mlp and int(before.rpartition(".")[2]) not in (c.get("mlp_only_layers") or ()):
            found |= {f"{before}.{own}": of_it for own, of_it in experts}
        else:
            found[name] = shape
    return found


def gpt_oss_shapes(c: Config) -> Shapes:
    """Matrices of all experts have inputs first; gate and up projection are one, in turns."""
    hidden, inner, count, bias = c["hidden_size"], c["intermediate_size"], c["num_local_experts"], c["attention_bias"]
    experts = [
        ("mlp.router.weight", (count, hidden)),
        ("mlp.router.bias", (count,)),
        ("mlp.experts.gate_up_proj", (count, hidden, 2 * inner)),
        ("mlp.experts.gate_up_proj_bias", (count, 2 * inner)),
        ("mlp.experts.down_proj", (count, inner, hidden)),
        ("mlp.experts.down_proj_bias", (count, hidden)),
    ]
    sinks = ("self_attn.sinks", (c["num_attention_heads"],))
    return stack(c, [*attention(c, bias, bias), sinks, *experts, *norms(c, *PRE_NORMS)])


def qwen2_shapes(c: Config) -> Shapes:
    return stack(c, [*attention(c, True), *mlp(c), *norms(c, *PRE_NORMS)])


def qwen3_shapes(c: Config) -> Shapes:
    bias, head = c.get("attention_bias", False), head_dim(c)
    heads = [("self_attn.q_norm.weight", (head,)), ("self_attn.k_norm.weight", (head,))]
    return stack(c, [*attention(c, bias, bias), *heads, *mlp(c), *norms(c, *PRE_NORMS)])


def qwen3_5_shapes(c: Config) -> Shapes:
    """Each layer has either attention, whose queries come with a gate, or gated DeltaNet."""
    bias, head, hidden = c.get("attention_bias", False), head_dim(c), c["hidden_size"]
    keys, values = (c[f"linear_num_{of}_heads"] * c[f"linear_{of}_head_dim"] for of in ("key", "value"))
    heads, width = c["linear_num_value_heads"], 2 * keys + values
    linear = [
        ("linear_attn.in_proj_qkv.weight", (width, hidden)),
        ("linear_attn.in_proj_z.weight", (values, hidden)),
        ("linear_attn.in_proj_b.weight", (heads, hidden)),
        ("linear_attn.in_proj_a.weight", (heads, hidden)),
        ("linear_attn.conv1d.weight", (width, 1, c["linear_conv_kernel_dim"])),
        ("linear_attn.dt_bias", (heads,)),
        ("linear_attn.A_log", (heads,)),
        ("linear_attn.norm.weight", (c["linear_value_head_dim"],)),
        ("linear_attn.out_proj.weight", (hidden, values)),
    ]
    normed = [("self_attn.q_norm.weight", (head,)), ("self_attn.k_norm.weight", (head,))]
    gated = {"self_attn.q_proj.weight", "self_attn.q_proj.bias"}
    full = [(n, (2 * s[0], *s[1:]) if n in gated else s) for n, s in attention(c, bias, bias)] + normed
    rest = [*(qwen3_5_experts(c) if "num_experts" in c else mlp(c)), *norms(c, *PRE_NORMS)]
    every, layers = c.get("full_attention_interval", 4), range(c["num_hidden_layers"])
    types = c.get("layer_types") or ["linear_attention" if (i + 1) % every else "full_attention" for i in layers]
    shapes: Shapes = {}
    for i, kind in enumerate(types):
        of_one = stack({**c, "num_hidden_layers": 1}, [*(full if kind == "full_attention" else linear), *rest])
        shapes |= {name.replace("layers.0.", f"layers.{i}."): shape for name, shape in of_one.items()}
    return shapes


def qwen3_5_experts(c: Config) -> Rows:
    """One tensor has the matrices of all experts."""
    hidden, inner, count = c["hidden_size"], c["moe_intermediate_size"], c["num_experts"]
    shared = mlp({**c, "intermediate_size": c["shared_expert_intermediate_size"]})
    return [
        ("mlp.gate.weight", (count, hidden)),
        ("mlp.experts.gate_up_proj", (count, 2 * inner, hidden)),
        ("mlp.experts.down_proj", (count, hidden, inner)),
        *((name.replace("mlp.", "mlp.shared_expert."), shape) for name, shape in shared),
        ("mlp.shared_expert_gate.weight", (1, hidden)),
    ]


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


def gpt_neox_shapes(c: Config) -> Shapes:
    hidden, inner, vocabulary = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    layer = {
        "attention.query_key_value": (3 * hidden, hidden),
        "attention.dense": (hidden, hidden),
        "mlp.dense_h_to_4h": (inner, hidden),
        "mlp.dense_4h_to_h": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    layers = [f"gpt_neox.layers.{i}" for i in range(c["num_hidden_layers"])]
    matrices = {f"{before}.{name}": shape for before in layers for name, shape in layer.items()}
    matrices["gpt_neox.final_layer_norm"] = (hidden,)
    shapes = {f"{name}.weight": shape for name, shape in matrices.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in matrices.items()}
    ends = {"gpt_neox.embed_in.weight": (vocabulary, hidden), "embed_out.weight": (vocabulary, hidden)}
    return {**shapes, **ends}


def deepseek_shapes(c: Config) -> Shapes:
    """Latent attention; the first layers have a feed-forward network, the others experts and shared ones."""
    hidden, heads, inner = c["hidden_size"], c["num_attention_heads"], c["moe_intermediate_size"]
    rope, nope, v, rank, q_rank = (
        c[f"{key}"] for key in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank")
    )
    latent: Rows = [
        ("self_attn.kv_a_proj_with_mqa.weight", (rank + rope, hidden)),
        ("self_attn.kv_a_layernorm.weight", (rank,)),
        ("self_attn.kv_b_proj.weight", (heads * (nope + v), rank)),
        ("self_attn.o_proj.weight", (hidden, heads * v)),
    ]
    if q_rank:
        latent += [("self_attn.q_a_proj.weight", (q_rank, hidden)), ("self_attn.q_a_layernorm.weight", (q_rank,))]
    query = "q_b_proj" if q_rank else "q_proj"
    latent += [(f"self_attn.{query}.weight", (heads * (nope + rope), q_rank or hidden))]
    experts: Rows = [
        (name.replace("mlp.", f"mlp.experts.{i}."), shape)
        for i in range(c["n_routed_experts"])
        for name, shape in mlp({**c, "intermediate_size": inner})
    ]
    shared = mlp({**c, "intermediate_size": inner * c["n_shared_experts"]})
    experts += [(name.replace("mlp.", "mlp.shared_experts."), shape) for name, shape in shared]
    experts += [("mlp.gate.weight", (c["n_routed_experts"], hidden))]
    if c["model_type"] == "deepseek_v3":
        experts += [("mlp.gate.e_score_correction_bias", (c["n_routed_experts"],))]
    shapes = stack(c, [*latent, *norms(c, *PRE_NORMS)])
    for i in range(c["num_hidden_layers"]):
        rows = mlp(c) if i < c["first_k_dense_replace"] else experts
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in rows}
    return shapes


def lfm2_shapes(c: Config) -> Shapes:
    """Each layer has either attention or a short convolution."""
    hidden, head, bias = c["hidden_size"], head_dim(c), c["conv_bias"]
    adjusted = int(2 * (c.get("block_ff_dim") or c["intermediate_size"]) / 3)
    inner = -(-adjusted // c["block_multiple_of"]) * c["block_multiple_of"]
    conv = {"in_proj": (3 * hidden, hidden), "conv": (hidden, 1, c["conv_L_cache"]), "out_proj": (hidden, hidden)}
    short: Rows = [(f"conv.{name}.weight", shape) for name, shape in conv.items()]
    short += [(f"conv.{name}.bias", shape[:1]) for name, shape in conv.items() if bias]
    full = [(name.replace("o_proj", "out_proj"), shape) for name, shape in attention(c)]
    full += [(f"self_attn.{name}_layernorm.weight", (head,)) for name in "qk"]
    network = {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}
    rest: Rows = [(f"feed_forward.{name}.weight", shape) for name, shape in network.items()]
    rest += norms(c, "operator_norm", "ffn_norm")
    shapes: Shapes = {}
    for i in range(c["num_hidden_layers"]):
        attends = c["layer_types"][i] == "full_attention" if c.get("layer_types") else i in c["full_attn_idxs"]
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in (full if attends else short) + rest}
    ends = stack({**c, "num_hidden_layers": 0}, [])
    return shapes | {name.replace("model.norm", "model.embedding_norm"): shape for name, shape in ends.items()}


def starcoder2_shapes(c: Config) -> Shapes:
    hidden, inner, bias = c["hidden_size"], c["intermediate_size"], c["use_bias"]
    both = [f"{name}.{end}" for name in PRE_NORMS for end in ("weight", "bias")]
    network: Rows = [("mlp.c_fc.weight", (inner, hidden)), ("mlp.c_proj.weight", (hidden, inner))]
    network += [("mlp.c_fc.bias", (inner,)), ("mlp.c_proj.bias", (hidden,))] if bias else []
    layer = [*attention(c, bias, bias), *network, *((name, (hidden,)) for name in both)]
    return stack(c, layer) | {"model.norm.bias": (hidden,)}


def cohere2_shapes(c: Config) -> Shapes:
    bias = c.get("attention_bias", False)
    return stack(c, [*attention(c, bias, bias), *mlp(c), *norms(c, "input_layernorm")])


def qwen2_moe_shapes(c: Config) -> Shapes:
    """Experts have tensors of their own; one computes for every position."""
    experts = [row for row in qwen3_5_experts(c) if ".experts." not in row[0]]
    of_one = mlp({**c, "intermediate_size": c["moe_intermediate_size"]})
    experts += [(n.replace("mlp.", f"mlp.experts.{i}."), s) for i in range(c["num_experts"]) for n, s in of_one]
    return stack(c, [*attention(c, True), *experts, *norms(c, *PRE_NORMS)])


def phi_shapes(c: Config) -> Shapes:
    hidden, inner, head = c["hidden_size"], c["intermediate_size"], head_dim(c)
    layer = [(name.replace("o_proj", "dense"), shape) for name, shape in attention(c, True, True)]
    layer += [("mlp.fc1.weight", (inner, hidden)), ("mlp.fc1.bias", (inner,))]
    layer += [("mlp.fc2.weight", (hidden, inner)), ("mlp.fc2.bias", (hidden,))]
    layer += [(f"input_layernorm.{end}", (hidden,)) for end in ("weight", "bias")]
    if c["qk_layernorm"]:
        layer += [(f"self_attn.{name}_layernorm.{end}", (head,)) for name in "qk" for end in ("weight", "bias")]
    shapes = {name.replace("model.norm", "model.final_layernorm"): shape for name, shape in stack(c, layer).items()}
    return shapes | {"model.final_layernorm.bias": (hidden,), "lm_head.bias": (c["vocab_size"],)}


def glm4_shapes(c: Config) -> Shapes:
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    fused = [("mlp.gate_up_proj.weight", (2 * inner, hidden)), ("mlp.down_proj.weight", (hidden, inner))]
    around = norms(c, *PRE_NORMS, "post_self_attn_layernorm", "post_mlp_layernorm")
    return stack(c, [*attention(c, c["attention_bias"]), *fused, *around])


def gemma2_shapes(c: Config) -> Shapes:
    return stack(c, [*attention(c), *mlp(c), *norms(c, *GEMMA_NORMS)])


def gemma3_shapes(c: Config) -> Shapes:
    heads = [("self_attn.q_norm.weight", (head_dim(c),)), ("self_attn.k_norm.weight", (head_dim(c),))]
    return stack(c, [*attention(c), *heads, *mlp(c), *norms(c, *GEMMA_NORMS)])


def gemma4_shapes(c: Config) -> Shapes:
    """Layers differ in their heads, in what they reuse, and in the width of their feed-forward network."""
    hidden, own, layers = c["hidden_size"], c["hidden_size_per_layer_input"], c["num_hidden_layers"]
    shapes = stack(c, norms(c, *GEMMA_NORMS))
    if own:
        shapes["model.embed_tokens_per_layer.weight"] = (c["vocab_size_per_layer_input"], layers * own)
        shapes["model.per_layer_model_projection.weight"] = (layers * own, hidden)
        shapes["model.per_layer_projection_norm.weight"] = (own,)
    for i in range(layers):
        is_full, reuses = c["layer_types"][i] == "full_attention", i >= layers - c["num_kv_shared_layers"]
        sizes = dict(c)
        if is_full:
            sizes["head_dim"] = c["global_head_dim"]
            sizes["num_key_value_heads"] = c["num_global_key_value_heads"] or c["num_key_value_heads"]
        if reuses and c["use_double_wide_mlp"]:
            sizes["intermediate_size"] *= 2
        heads = attention(sizes, c["attention_bias"], c["attention_bias"])
        heads += [(f"self_attn.{name}_norm.weight", (head_dim(sizes),)) for name in "qk"]
        absent = [f".{part}_{kind}." for part in "kv" for kind in ("proj", "norm") if reuses]
        absent += [".v_proj."] * (is_full and c["attention_k_eq_v"])
        rows = [row for row in heads if not any(name in row[0] for name in absent)] + mlp(sizes)
        rows.append(("layer_scalar", (1,)))
        if own:
            rows += [("per_layer_input_gate.weight", (own, hidden)), ("per_layer_projection.weight", (hidden, own))]
            rows += norms(c, "post_per_layer_input_norm")
        if c["enable_moe_block"]:
            count, inner = c["num_experts"], c["moe_intermediate_size"]
            rows += norms(c, *(f"{GEMMA_NORMS[3]}_{i}" for i in (1, 2)), f"{GEMMA_NORMS[2]}_2")
            rows += [("router.proj.weight", (count, hidden)), ("router.scale", (hidden,))]
            rows += [("router.per_expert_scale", (count,)), ("experts.down_proj", (count, hidden, inner))]
            rows += [("experts.gate_up_proj", (count, 2 * inner, hidden))]
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in rows}
    return shapes


PRE_NORMS = ("input_layernorm", "post_attention_layernorm")
ZERO_CENTRED = (
    "gemma2",
    "gemma3_text",
    "qwen3_5_text",
    "qwen3_5_moe_text",
)  # whose norms are stored as their distance from one
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


def random_tensors(
    shapes: Shapes, seed: str, *, zero_centred: bool = False, unscaled: bool = False
) -> dict[str, torch.Tensor]:
    """Seeded values: norms near one (or near zero, where the file stores the distance from one), the rest in scale.
    Some heads of DeltaNet forget within a few tokens, others hardly."""
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    tensors = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator)
        if "norm" in name or name.endswith(("layer_scalar", "scale")):
            tensor = 0.2 * tensor + (0 if zero_centred and "linear_attn" not in name else 1)
        elif name.endswith("A_log"):
            tensor = 2 * tensor - 2
        else:
            tensor *= 0.2 if len(shape) == 1 else 1 / math.sqrt(shape[-1])
        tensors[name] = tensor * size_of_trained(name, shape) if unscaled else tensor
    return tensors


def size_of_trained(name: str, shape: tuple[int, ...]) -> float:
    """Of Gemma 4, whose scores have no scale and whose router has a small one: its files' weights make up for both."""
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return shape[0] ** -0.25
    return shape[0] ** 0.5 if name.endswith("router.scale") else 1.0


def make_decoder(
    folder: Path, case: Case, form: Form = "old", *, dtype: torch.dtype = torch.float32, shards: int = 1, **changes: Any
) -> Path:
    """Write a case's checkpoint and return its folder. `changes` go into config.json; shapes follow them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**case.config(form), **changes}
    config["torch_dtype" if form == "old" else "dtype"] = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", config)
    tensors = random_tensors(
        case.shapes(config),
        case.name,
        zero_centred=case.model_type in ZERO_CENTRED,
        unscaled=case.model_type.startswith("gemma4"),
    )
    write_weights(folder, {name: tensor.to(dtype) for name, tensor in tensors.items()}, "model", shards=shards)
    return folder
