"""The decoder checkpoints that tests write: each family's variants, their config in the hub's old form and the new."""

from __future__ import annotations

from typing import Any

from tests.tiny.decoders import (
    Case,
    Config,
    cohere2_shapes,
    deepseek_shapes,
    gemma2_shapes,
    gemma3_shapes,
    gemma4_shapes,
    glm4_shapes,
    gpt_neox_shapes,
    gpt_oss_shapes,
    lfm2_shapes,
    llama_shapes,
    mistral_shapes,
    mixtral_shapes,
    olmo2_shapes,
    phi3_shapes,
    phi_shapes,
    qwen2_moe_shapes,
    qwen2_shapes,
    qwen3_5_shapes,
    qwen3_moe_shapes,
    qwen3_shapes,
    starcoder2_shapes,
)

WINDOW = 8  # of every case that has one
RANGE = 16  # the original RoPE range of every stretched case: tests go past both


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
LINEAR = "linear_attention"
FACTORS = {"short_factor": [1.0, 1.05, 1.1, 1.2], "long_factor": [1.0, 2.0, 5.0, 9.0]}
SMOLLM2 = {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}}


def mistral(name: str, keys: Config, old: Config, new: Config) -> Case:
    keys = {"hidden_act": "silu", **keys}
    return Case("Mistral", name, "mistral", "MistralForCausalLM", mistral_shapes, keys, old, new)


def qwen2(name: str, keys: Config, old: Config, new: Config) -> Case:
    windows = {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21, "use_mrope": False}
    keys = {"hidden_act": "silu", "num_hidden_layers": 4, **windows, **keys}
    return Case("Qwen 2 and 2.5", name, "qwen2", "Qwen2ForCausalLM", qwen2_shapes, keys, old, new)


def mixtral(name: str, keys: Config, old: Config, new: Config) -> Case:
    training = {"output_router_logits": False, "router_aux_loss_coef": 0.02}
    keys = {"hidden_act": "silu", "num_local_experts": 4, "num_experts_per_tok": 2, **training, **keys}
    return Case("Mixtral", name, "mixtral", "MixtralForCausalLM", mixtral_shapes, keys, old, new)


def qwen3_moe(name: str, keys: Config, old: Config, new: Config) -> Case:
    training = {"output_router_logits": False, "router_aux_loss_coef": 0.001}
    keys = {
        "hidden_act": "silu", "head_dim": 16, "attention_bias": False, "num_hidden_layers": 3, "num_experts": 8,
        "num_experts_per_tok": 3, "moe_intermediate_size": 24, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "use_sliding_window": False, "sliding_window": None, "max_window_layers": 28,
        **training, **keys,
    }  # fmt: skip
    return Case("Qwen 3 with experts", name, "qwen3_moe", "Qwen3MoeForCausalLM", qwen3_moe_shapes, keys, old, new)


def gpt_oss(name: str, keys: Config, old: Config, new: Config) -> Case:
    same = {"initial_context_length": 4096, "experts_per_token": 2}
    keys = {
        "hidden_act": "silu", "head_dim": 16, "attention_bias": True, "num_hidden_layers": 4, "num_local_experts": 4,
        "num_experts_per_tok": 2, "sliding_window": WINDOW, "swiglu_limit": 0.9, "output_router_logits": False,
        "router_aux_loss_coef": 0.9, **keys,
    }  # fmt: skip
    return Case("gpt-oss", name, "gpt_oss", "GptOssForCausalLM", gpt_oss_shapes, keys, {**same, **old}, new)


def qwen3(name: str, keys: Config, old: Config, new: Config) -> Case:
    windows = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 28}
    keys = {"hidden_act": "silu", "head_dim": 16, "attention_bias": False, "num_hidden_layers": 3, **windows, **keys}
    return Case("Qwen 3", name, "qwen3", "Qwen3ForCausalLM", qwen3_shapes, keys, old, new)


def qwen3_5(name: str, keys: Config, old: Config, new: Config, *, experts: bool = False) -> Case:
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    linear |= {"linear_value_head_dim": 12, "linear_conv_kernel_dim": 4}
    unused = {"attn_output_gate": True, "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False}
    unused |= {"mlp_only_layers": [], "mamba_ssm_dtype": "float32"}
    keys = {"hidden_act": "silu", "head_dim": 16, "num_hidden_layers": 5, **linear, **unused, **keys}
    if not experts:
        return Case("Qwen 3.5", name, "qwen3_5_text", "Qwen3_5ForCausalLM", qwen3_5_shapes, keys, old, new)
    sizes = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    keys = {**sizes, "shared_expert_intermediate_size": 20, **keys}
    kind = ("Qwen 3.5 with experts", name, "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM")
    return Case(*kind, qwen3_5_shapes, keys, old, new)


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


def gemma4(name: str, keys: Config, *, unified: bool = False) -> Case:
    """Its first form is that of the hub's files, its second that of later versions of transformers."""
    model, made = ("gemma4_unified", "Gemma4Unified") if unified else ("gemma4", "Gemma4")
    base = {
        "hidden_activation": "gelu_pytorch_tanh", "head_dim": 16, "num_hidden_layers": 4, "sliding_window": WINDOW,
        "layer_types": [SLIDING, FULL, SLIDING, FULL], "num_kv_shared_layers": 0, "use_double_wide_mlp": False,
        "attention_k_eq_v": False, "attention_bias": False, "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 96, "enable_moe_block": False, "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "use_bidirectional_attention": None,
        "global_head_dim": 24, "num_global_key_value_heads": None, **GEMMA4_ROPES,
    }  # fmt: skip
    keys = {**base, **keys}
    sizes = {"head_dim": keys["global_head_dim"]}
    if keys["attention_k_eq_v"]:
        sizes["num_key_value_heads"] = keys["num_global_key_value_heads"]
    full = [i for i, kind in enumerate(keys["layer_types"]) if kind == FULL]
    new = {"per_layer_config": {str(i): sizes for i in full}}
    return Case(
        "Gemma 4 12B (text)" if unified else "Gemma 4 (text)",
        name,
        f"{model}_text",
        f"{made}ForCausalLM",
        gemma4_shapes,
        keys,
        {},
        new,
    )


def olmo3(name: str, keys: Config, old: Config, new: Config) -> Case:
    keys = {"hidden_act": "silu", "num_hidden_layers": 4, "sliding_window": WINDOW, "attention_bias": False, **keys}
    return Case("OLMo 3", name, "olmo3", "Olmo3ForCausalLM", olmo2_shapes, keys, old, new)


def granite(name: str, keys: Config, old: Config, new: Config) -> Case:
    multipliers = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0625}
    keys = {"hidden_act": "silu", "mlp_bias": False, "attention_bias": False, "logits_scaling": 2.5, **keys}
    keys = {**multipliers, **keys}
    return Case("Granite 3", name, "granite", "GraniteForCausalLM", llama_shapes, keys, old, new)


def ministral3(name: str, keys: Config, new: Config) -> Case:
    keys = {"hidden_act": "silu", "head_dim": 16, "sliding_window": None, **keys}
    return Case("Ministral 3", name, "ministral3", "Ministral3ForCausalLM", mistral_shapes, keys, new, new)


def glm4(name: str, keys: Config, old: Config, new: Config) -> Case:
    keys = {"hidden_act": "silu", "head_dim": 16, "attention_bias": True, **keys}
    return Case("GLM-4 (dense)", name, "glm4", "Glm4ForCausalLM", glm4_shapes, keys, old, new)


def gpt_neox(name: str, keys: Config, old: Config, new: Config) -> Case:
    keys = {
        "hidden_act": "gelu", "layer_norm_eps": 1e-5, "num_key_value_heads": None, "hidden_size": 64, **keys,
    }  # fmt: skip
    new = {"rope_parameters": {"rope_type": "default", **new}}
    return Case("GPT-NeoX, Pythia", name, "gpt_neox", "GPTNeoXForCausalLM", gpt_neox_shapes, keys, old, new)


def deepseek(version: int, name: str, keys: Config, old: Config, new: Config) -> Case:
    latent = {"kv_lora_rank": 24, "q_lora_rank": None, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}
    experts = {"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
    experts |= {"first_k_dense_replace": 1, "moe_layer_freq": 1, "aux_loss_alpha": 0.001, "seq_aux": True}
    keys = {"hidden_act": "silu", "num_key_value_heads": 4, "num_hidden_layers": 3, **latent, **experts, **keys}
    kind = (f"DeepSeek V{version}", name, f"deepseek_v{version}", f"DeepseekV{version}ForCausalLM")
    return Case(*kind, deepseek_shapes, keys, old, new)


GROUPS = {"q_lora_rank": 20, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
DEEPSEEK_YARN: Config = {
    "type": "yarn", "factor": 4.0, "original_max_position_embeddings": RANGE, "beta_fast": 32, "beta_slow": 1,
    "mscale": 0.707, "mscale_all_dim": 0.5,
}  # fmt: skip


def lfm2(name: str, keys: Config, old: Config, new: Config) -> Case:
    unused = {"block_use_swiglu": True, "use_pos_enc": True, "num_heads": 4, "conv_dim": 32, "block_dim": 32}
    keys = {
        "num_hidden_layers": 5,
        "norm_eps": 1e-5,
        "conv_L_cache": 3,
        "conv_bias": False,
        "block_multiple_of": 16,
        **keys,
    }
    old = {"block_ff_dim": 60, "tie_embedding": True, **unused, **old}
    new = {"intermediate_size": 60, **new}
    keys = {"tie_word_embeddings": True, **keys}
    return Case("LFM2", name, "lfm2", "Lfm2ForCausalLM", lfm2_shapes, keys, old, new)


def starcoder2(name: str, keys: Config, old: Config, new: Config) -> Case:
    keys = {"hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "use_bias": True, "sliding_window": None, **keys}
    keys = {"embedding_dropout": 0.0, "residual_dropout": 0.0, "norm_type": "layer_norm", **keys}
    return Case("StarCoder 2", name, "starcoder2", "Starcoder2ForCausalLM", starcoder2_shapes, keys, old, new)


def cohere2(name: str, keys: Config, old: Config, new: Config) -> Case:
    keys = {"hidden_act": "silu", "num_hidden_layers": 5, "layer_norm_eps": 1e-5, "logit_scale": 0.25, **keys}
    keys = {"tie_word_embeddings": True, "sliding_window": WINDOW, "attention_bias": False, **keys}
    old = {"use_parallel_block": True, "use_gated_activation": True, "rotary_pct": 1.0, "layer_switch": 4, **old}
    return Case("Command R7B, Command A", name, "cohere2", "Cohere2ForCausalLM", cohere2_shapes, keys, old, new)


def qwen2_moe(name: str, keys: Config, old: Config, new: Config) -> Case:
    sizes = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": False}
    sizes |= {"shared_expert_intermediate_size": 20, "decoder_sparse_step": 1, "use_sliding_window": False}
    keys = {"hidden_act": "silu", "router_aux_loss_coef": 0.001, "output_router_logits": False, **sizes, **keys}
    kind = ("Qwen 1.5 and 2 with experts", name, "qwen2_moe", "Qwen2MoeForCausalLM")
    return Case(*kind, qwen2_moe_shapes, keys, old, new)


def phi(name: str, keys: Config, old: Config, new: Config) -> Case:
    keys = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "qk_layernorm": False, "embd_pdrop": 0.0, **keys}
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **new}}
    return Case("Phi 1, 1.5 and 2", name, "phi", "PhiForCausalLM", phi_shapes, {"hidden_size": 64, **keys}, old, new)


OLMO3_YARN: Config = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": RANGE, "attention_factor": 1.2,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
MINISTRAL3_YARN: Config = {
    "type": "yarn", "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "llama_4_scaling_beta": 0.5,
    "original_max_position_embeddings": RANGE, "max_position_embeddings": 4 * RANGE, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
GEMMA4_ROPES: Config = {
    "rope_parameters": {
        SLIDING: {"rope_type": "default", "rope_theta": 100.0},
        FULL: {"rope_type": "proportional", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
    }
}
CASES = [
    llama("llama-2", {"num_key_value_heads": 4}),
    llama("llama-3", {"head_dim": 16, "tie_word_embeddings": True}, *rope(500000.0, **LLAMA3, rope_type="llama3")),
    llama("linear", {"max_position_embeddings": RANGE}, *rope(10000.0, type="linear", factor=3.0)),
    llama("dynamic", {"max_position_embeddings": RANGE}, *rope(10000.0, type="dynamic", factor=3.0)),
    llama(
        "yarn",
        {"max_position_embeddings": RANGE, "head_dim": 16},
        *rope(100.0, type="yarn", factor=4.0, original_max_position_embeddings=RANGE, finetuned=True),
    ),
    llama(
        "yarn-scaled",
        {"head_dim": 16, "hidden_act": "gelu"},
        *rope(
            100.0,
            rope_type="yarn",
            factor=4.0,
            original_max_position_embeddings=RANGE,
            beta_fast=4.0,
            beta_slow=0.5,
            mscale=0.7,
            mscale_all_dim=0.4,
            truncate=False,
        ),
    ),
    llama("smollm2", {"tie_word_embeddings": True, **SMOLLM2}, *plain(100000.0)),
    llama("biased", {"attention_bias": True, "mlp_bias": True, "hidden_act": "relu"}),
    mistral("mistral-window", {"sliding_window": WINDOW}, *plain(10000.0)),
    mistral("mistral-nemo", {"sliding_window": None, "head_dim": 12}, *plain(1000000.0)),
    qwen2("qwen2", {"tie_word_embeddings": True}, *plain(1000000.0)),
    qwen2(
        "qwen2-window",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        *plain(1000000.0, layer_types=[FULL, SLIDING, SLIDING, SLIDING]),
    ),
    qwen2("qwen2-yarn", {}, *rope(1000000.0, type="yarn", factor=4.0, original_max_position_embeddings=RANGE)),
    qwen3("qwen3", {"tie_word_embeddings": True}, *plain(1000000.0, layer_types=[FULL] * 3)),
    qwen3(
        "qwen3-window",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2, "attention_bias": True},
        *plain(1000000.0, layer_types=[FULL, FULL, SLIDING]),
    ),
    mixtral("mixtral", {}, *plain(1000000.0)),
    qwen3_moe("qwen3-moe", {}, *plain(1000000.0)),
    qwen3_moe("qwen3-moe-some", {"norm_topk_prob": False, "mlp_only_layers": [1]}, *plain(1000000.0)),
    gpt_oss(
        "gpt-oss",
        {"layer_types": [SLIDING, FULL, SLIDING, FULL]},
        *rope(
            150000.0,
            rope_type="yarn",
            factor=4.0,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=False,
            original_max_position_embeddings=RANGE,
        ),
    ),
    gpt_oss(
        "gpt-oss-plain",
        {"attention_bias": False, "swiglu_alpha": 1.2, "num_experts_per_tok": 3, "max_position_embeddings": 256},
        {"rope_theta": 10000.0},
        rope(
            10000.0,
            rope_type="yarn",
            factor=32.0,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=False,
            original_max_position_embeddings=4096,
        )[1],
    ),
    qwen3_5(
        "qwen3.5",
        {"full_attention_interval": 2},
        {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        {
            "rope_parameters": {
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "rope_type": "default",
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
            "layer_types": [LINEAR, FULL, LINEAR, FULL, LINEAR],
        },
    ),
    qwen3_5(
        "qwen3.5-yarn",
        {
            "layer_types": [FULL, LINEAR, LINEAR],
            "num_hidden_layers": 3,
            "attention_bias": True,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "linear_conv_kernel_dim": 3,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
        },
        *rope(100.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=RANGE),
    ),
    qwen3_5("qwen3.5-moe", {"full_attention_interval": 3}, *plain(1000000.0), experts=True),
    smollm3("smollm3", {"no_rope_layer_interval": 2}, *plain(5000000.0)),
    smollm3(
        "smollm3-window",
        {"no_rope_layers": [1, 0, 1, 0], "use_sliding_window": True, "sliding_window": WINDOW, "attention_bias": True},
        *plain(5000000.0, layer_types=[FULL, SLIDING, FULL, SLIDING]),
    ),
    Case("OLMo 2", "olmo2", "olmo2", "Olmo2ForCausalLM", olmo2_shapes, {"hidden_act": "silu"}, *plain(500000.0)),
    olmo3(
        "olmo3",
        {},
        {"rope_theta": 500000.0, "rope_scaling": OLMO3_YARN},
        {
            "rope_parameters": {
                FULL: {**OLMO3_YARN, "rope_theta": 500000.0},
                SLIDING: {"rope_type": "default", "rope_theta": 500000.0},
            },
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
        },
    ),
    ministral3("ministral3", {"max_position_embeddings": 4 * RANGE}, {"rope_parameters": MINISTRAL3_YARN}),
    glm4(
        "glm4",
        {},
        {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
    gpt_neox("gpt-neox", {}, {"rotary_emb_base": 10000}, {"rope_theta": 10000.0, "partial_rotary_factor": 0.25}),
    gpt_neox(
        "gpt-neox-serial",
        {"use_parallel_residual": False},
        {"rotary_emb_base": 1000, "rotary_pct": 0.5},
        {"rope_theta": 1000.0, "partial_rotary_factor": 0.5},
    ),
    deepseek(2, "deepseek-v2-lite", {"topk_method": "greedy"}, *rope(10000.0, **DEEPSEEK_YARN)),
    deepseek(2, "deepseek-v2", {**GROUPS, "topk_method": "group_limited_greedy"}, *plain(10000.0)),
    deepseek(
        3,
        "deepseek-v3",
        {**GROUPS, "norm_topk_prob": True, "n_shared_experts": 1, "num_nextn_predict_layers": 1},
        *rope(10000.0, **DEEPSEEK_YARN),
    ),
    lfm2(
        "lfm2",
        {},
        {"full_attn_idxs": [1, 3], "rope_theta": 1000000.0},
        {
            "layer_types": ["conv", FULL, "conv", FULL, "conv"],
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        },
    ),
    lfm2(
        "lfm2-biased",
        {"conv_bias": True, "conv_L_cache": 4, "num_hidden_layers": 3, "layer_types": [FULL, "conv", "conv"]},
        *plain(10000.0),
    ),
    starcoder2("starcoder2", {"tie_word_embeddings": True}, *plain(100000.0)),
    starcoder2("starcoder2-window", {"use_bias": False, "sliding_window": WINDOW}, *plain(100000.0)),
    cohere2("cohere2", {}, *plain(50000.0, layer_types=[SLIDING, SLIDING, SLIDING, FULL, SLIDING])),
    qwen2_moe("qwen2-moe", {}, *plain(1000000.0)),
    phi("phi", {}, {"rope_theta": 10000.0}, {"partial_rotary_factor": 0.5}),
    phi("phi-normed", {"qk_layernorm": True}, {"partial_rotary_factor": 0.25}, {"partial_rotary_factor": 0.25}),
    granite("granite", {"tie_word_embeddings": True}, *plain(10000000.0)),
    granite("granite-biased", {"attention_bias": True, "mlp_bias": True}, *plain(10000.0)),
    phi3("phi3-window", {"sliding_window": WINDOW, "original_max_position_embeddings": 64}, *plain(10000.0)),
    phi3(
        "phi3-long",
        {"sliding_window": 262144, "original_max_position_embeddings": RANGE},
        *rope(10000.0, type="longrope", **FACTORS),
    ),
    phi3(
        "phi4-mini",
        {
            "original_max_position_embeddings": RANGE,
            "tie_word_embeddings": True,
            "full_attn_mod": 1,
            "interpolate_factor": 1,
            "lm_head_bias": False,
            "mlp_bias": False,
            "hidden_size": 64,
        },
        {
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "rope_scaling": {"type": "longrope", **FACTORS},
        },
        {
            "rope_parameters": {
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "rope_type": "longrope",
                **FACTORS,
            }
        },
    ),
    gemma2("gemma2", {}, {"layer_types": [SLIDING, FULL, SLIDING, FULL]}),
    gemma2("gemma2-uncapped", {"attn_logit_softcapping": None, "final_logit_softcapping": None}, {}),
    gemma3(
        "gemma3",
        {},
        {"sliding_window_pattern": 3},
        {"layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING], **gemma3_ropes()},
    ),
    gemma3(
        "gemma3-linear",
        {"final_logit_softcapping": 5.0},
        {"sliding_window_pattern": 2, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        {"layer_types": [SLIDING, FULL, SLIDING, FULL, SLIDING], **gemma3_ropes(rope_type="linear", factor=8.0)},
    ),
    gemma4(
        "gemma4-small",  # as E2B and E4B are
        {
            "num_hidden_layers": 6,
            "layer_types": [SLIDING, SLIDING, FULL] * 2,
            "num_kv_shared_layers": 3,
            "num_key_value_heads": 1,
            "hidden_size_per_layer_input": 8,
            "use_double_wide_mlp": True,
        },
    ),
    gemma4(
        "gemma4-large",  # as 31B is
        {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "use_bidirectional_attention": "vision"},
    ),
    gemma4(
        "gemma4-moe",  # as 26B-A4B is
        {
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 2,
            "moe_intermediate_size": 24,
        },
    ),
    gemma4(
        "gemma4-unified",
        {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "attention_bias": True},
        unified=True,
    ),
]
