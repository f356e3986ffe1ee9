"""What GGUF calls the tensors of layers and the keys of architectures, and what the checkpoints call them. No torch."""

from __future__ import annotations

from gencli.checkpoints.formats import gguf_qwen35

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
EXPERTS = {  # of a layer: those that end in _exps hold all of them, (experts, out, in)
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.gate_proj", "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}  # fmt: skip
AFTER_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
GEMMA_NAMES = {**NAMES, **AFTER_NORMS, "ffn_norm": "pre_feedforward_layernorm"}
OLMO2_NAMES = {name: new for name, new in NAMES.items() if name not in ("attn_norm", "ffn_norm")} | AFTER_NORMS
QWEN35_NAMES = {name: new for name, new in NAMES.items() if name != "ffn_norm"} | gguf_qwen35.NAMES
GPT_OSS_NAMES = {
    **NAMES, **EXPERTS, "attn_sinks": "self_attn.sinks", "post_attention_norm": "post_attention_layernorm",
}  # fmt: skip
del GPT_OSS_NAMES["ffn_norm"]
GLM4_NAMES = {
    **NAMES, "post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm",
    "ffn_up": "mlp.gate_up_proj",
}  # fmt: skip
LFM2_NAMES = {
    **NAMES, "token_embd_norm": "model.norm", "attn_norm": "operator_norm", "ffn_norm": "ffn_norm",
    "shortconv.in_proj": "conv.in_proj", "shortconv.conv": "conv.conv", "shortconv.out_proj": "conv.out_proj",
}  # fmt: skip
del LFM2_NAMES["output_norm"]
STARCODER2_NAMES = {**NAMES, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
del STARCODER2_NAMES["ffn_gate"]
PHI2_NAMES = {**NAMES, "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
del PHI2_NAMES["ffn_gate"], PHI2_NAMES["ffn_norm"]
PHI3_NAMES = {**NAMES, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
GPT2_NAMES = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
    "output": "lm_head", "attn_norm": "ln_1", "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
KEYS = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim", "rope.freq_base": "rope_theta",
}  # fmt: skip
GPT2_KEYS = {
    "context_length": "n_positions", "embedding_length": "n_embd", "block_count": "n_layer",
    "feed_forward_length": "n_inner", "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}  # fmt: skip
EXPERT_KEYS = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
QWEN3_EXPERT_KEYS = {
    **EXPERT_KEYS, "expert_count": "num_experts", "expert_feed_forward_length": "moe_intermediate_size",
}  # fmt: skip
QWEN35_MOE_KEYS = {key: own for key, own in KEYS.items() if key != "feed_forward_length"} | {
    **gguf_qwen35.KEYS,
    **gguf_qwen35.SHARED_KEYS,
}
GPT_OSS_KEYS = {**EXPERT_KEYS, "expert_feed_forward_length": "intermediate_size"}
CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
WINDOW = {"attention.sliding_window": "sliding_window"}
MULTIPLIERS = {
    "embedding_scale": "embedding_multiplier", "attention.scale": "attention_multiplier",
    "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
}  # fmt: skip
BETA = {"attention.temperature_scale": "llama_4_scaling_beta"}
KV_HEADS = "attention.head_count_kv"
LFM2_KEYS = {key: own for key, own in KEYS.items() if key != KV_HEADS} | {"shortconv.l_cache": "conv_L_cache"}
QWEN2_MOE_KEYS = {**KEYS, **QWEN3_EXPERT_KEYS, **gguf_qwen35.SHARED_KEYS}
LAYER_NORM = "attention.layer_norm_epsilon"
LAYER_NORM_KEYS = {key: own for key, own in KEYS.items() if own != "rms_norm_eps"} | {LAYER_NORM: "rms_norm_eps"}
PATTERN = "attention.sliding_window_pattern"
REALS = {  # all other keys are whole numbers
    "rms_norm_eps", "layer_norm_epsilon", "rope_theta", "logit_scale", *CAPS.values(), *MULTIPLIERS.values(),
    *BETA.values(),
}  # fmt: skip
SEEN = {  # told by other keys, or by none that counts
    "vocab_size", "rope.dimension_count", "rope.dimension_sections", "attention.value_length", "tensor_data_layout",
    "feed_forward_length", gguf_qwen35.INNER, gguf_qwen35.AHEAD,
}  # fmt: skip
NOTHING = {"expert_count": 0, "expert_used_count": 0, "rope.scaling.type": "none"}  # accepted at these values
SCALING = (
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_log_multiplier",
)  # fmt: skip
ROPE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # tensors that are settings
