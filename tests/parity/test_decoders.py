"""Decoders equal transformers: logits within 1e-4 (fp32) and greedy text exactly, with and without a cache, past the
sliding window and past the original RoPE range. `measure` is also what the README's table of families is made of."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gencli.checkpoints.build import load
from gencli.checkpoints.find import find
from gencli.checkpoints.report import check
from gencli.errors import GencliError
from gencli.json_files import read_json
from gencli.models import ARCHITECTURES, architecture
from gencli.models.granite import MULTIPLIERS
from tests.oracles.decoders import NEW, PROMPT, continue_greedily, measure, reference, token_ids
from tests.tiny.decoder_cases import CASES, FULL, RANGE, SLIDING, WINDOW
from tests.tiny.decoders import Case, Form, make_decoder
from tests.tiny.text import random_model, write_json

TOLERANCE = 1e-4  # absolute, on fp32 logits of size 3 to 5
FORMS: tuple[Form, ...] = ("old", "new")
BY_NAME = {case.name: case for case in CASES}
assert PROMPT < RANGE < 2 * RANGE < PROMPT + NEW and PROMPT > WINDOW


def gemma4_ropes(**changes: dict[str, Any]) -> dict[str, Any]:
    """Gemma 4's rope_parameters with these changes of the full or the sliding layers."""
    ropes = BY_NAME["gemma4-small"].keys["rope_parameters"]
    return {kind: ropes[kind] | changes.get(kind.partition("_")[0], {}) for kind in (FULL, SLIDING)}


cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@cases
def test_old_form_equals_the_reference(case: Case, tmp_path: Path) -> None:
    measured = measure(case, tmp_path)
    assert measured.difference < TOLERANCE
    assert measured.equal == measured.tokens


@cases
@torch.inference_mode()
def test_new_form_is_the_same_model(case: Case, tmp_path: Path) -> None:
    for form in FORMS:
        make_decoder(tmp_path / form, case, form)
    old, new = load(tmp_path / "old"), load(tmp_path / "new")
    ids = token_ids(1, 40)
    torch.testing.assert_close(new(ids), old(ids), atol=0, rtol=0)
    torch.testing.assert_close(new(ids), reference(tmp_path / "new")(ids).logits, atol=TOLERANCE, rtol=0)


@cases
@torch.inference_mode()
def test_cache_filled_in_pieces(case: Case, tmp_path: Path) -> None:
    """Several prefills, single steps, one prompt for several rows and rows that leave: as the reference's cache."""
    make_decoder(tmp_path, case)
    ours, theirs = load(tmp_path), reference(tmp_path)
    ids = token_ids(3, 40)
    ids[:, :PROMPT] = ids[0, :PROMPT]
    cache: Any = ours.new_cache(1, 40)  # type: ignore[operator]
    ours(ids[:1, :PROMPT], cache)
    cache.grow(batch=3)
    for row in (1, 2):
        cache.copy_row(0, row, PROMPT)
    got = [ours(ids[:, 9:14], cache), ours(ids[:, 14:15], cache), ours(ids[:, 15:38], cache)]
    cache.copy_row(2, 1, 38)
    got.append(ours(ids[::2, 38:39], cache))
    got.append(ours(ids[::2, 39:], cache, last_only=True))
    assert cache.length == 40
    if case.name in ("phi3-long", "phi4-mini"):  # the reference turns the cache anew only within `generate`
        wanted = [theirs(ids[:, :stop]).logits[:, start:] for start, stop in ((9, 14), (14, 15), (15, 38))]
        wanted += [theirs(ids[::2, :39]).logits[:, 38:], theirs(ids[::2]).logits[:, 39:]]
    else:
        past = theirs(ids[:, :PROMPT], use_cache=True).past_key_values
        parts = [theirs(ids[:, a:b], past_key_values=past).logits for a, b in ((9, 14), (14, 15), (15, 38), (38, 39))]
        wanted = [*parts[:3], parts[3][::2], theirs(ids[:, 39:], past_key_values=past).logits[::2]]
    for mine, reference_logits in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, reference_logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama-3", {"rope_scaling": None}),
        ("linear", {"rope_scaling": None}),
        ("dynamic", {"rope_scaling": None}),
        ("yarn", {"rope_scaling": None}),
        ("yarn-scaled", {"rope_scaling": {**BY_NAME["yarn-scaled"].old["rope_scaling"], "truncate": True}}),
        ("yarn-scaled", {"rope_scaling": {**BY_NAME["yarn-scaled"].old["rope_scaling"], "mscale": None}}),
        ("smollm2", {"rope_theta": 10000.0}),
        ("mistral-window", {"sliding_window": None}),
        ("qwen2-window", {"use_sliding_window": False}),
        ("qwen2-window", {"max_window_layers": 3}),
        ("qwen3-window", {"max_window_layers": 3}),
        ("mixtral", {"num_experts_per_tok": 1}),
        ("qwen3-moe", {"norm_topk_prob": False}),
        ("qwen3-moe", {"num_experts_per_tok": 2}),
        ("olmo3", {"sliding_window": 64}),
        ("olmo3", {"rope_scaling": None}),
        ("olmo3", {"rope_theta": 100.0}),
        ("olmo3", {"layer_types": [FULL] * 4}),
        *(("granite", {key: 2.0}) for key in MULTIPLIERS),
        ("ministral3", {"rope_parameters": None}),
        ("ministral3", {"llama_4_scaling_beta": 0.0}),
        ("glm4", {"partial_rotary_factor": 1.0}),
        ("deepseek-v2-lite", {"rope_scaling": None}),
        ("deepseek-v2-lite", {"rope_scaling": {**BY_NAME["deepseek-v2-lite"].old["rope_scaling"], "mscale": 2.0}}),
        (
            "deepseek-v2-lite",
            {"rope_scaling": {**BY_NAME["deepseek-v2-lite"].old["rope_scaling"], "mscale_all_dim": 0}},
        ),
        ("deepseek-v2-lite", {"num_experts_per_tok": 1}),
        ("deepseek-v2-lite", {"routed_scaling_factor": 2.0}),
        ("deepseek-v2", {"topk_method": "greedy"}),
        ("deepseek-v2", {"topk_group": 3}),
        ("deepseek-v3", {"topk_group": 4}),
        ("deepseek-v3", {"norm_topk_prob": False}),
        ("deepseek-v3", {"rope_interleave": False}),
        ("starcoder2-window", {"sliding_window": None}),
        ("starcoder2", {"norm_epsilon": 0.1}),
        ("cohere2", {"logit_scale": 1.0}),
        ("cohere2", {"sliding_window_pattern": 2}),
        ("cohere2", {"sliding_window": 64}),
        ("cohere2", {"layer_norm_eps": 0.1}),
        ("qwen2-moe", {"norm_topk_prob": True}),
        ("qwen2-moe", {"num_experts_per_tok": 1}),
        ("phi", {"partial_rotary_factor": 0.25}),
        ("phi", {"layer_norm_eps": 0.1}),
        ("lfm2", {"rope_theta": 100.0}),
        ("lfm2", {"norm_eps": 0.1}),
        ("gpt-neox", {"rotary_pct": 0.5}),
        ("gpt-neox", {"rotary_emb_base": 100}),
        ("gpt-neox", {"use_parallel_residual": False}),
        ("gpt-neox", {"layer_norm_eps": 0.1}),
        ("gpt-oss", {"swiglu_limit": 7.0}),
        ("gpt-oss", {"swiglu_alpha": 1.0}),
        ("gpt-oss", {"num_experts_per_tok": 1}),
        ("gpt-oss", {"sliding_window": WINDOW + 1}),
        ("gpt-oss", {"layer_types": ["full_attention", "sliding_attention"] * 2}),
        ("gpt-oss", {"rope_scaling": {**BY_NAME["gpt-oss"].old["rope_scaling"], "factor": 8.0}}),
        ("qwen3.5", {"partial_rotary_factor": 0.25}),
        ("qwen3.5", {"rope_theta": 100.0}),
        ("qwen3.5", {"hidden_act": "gelu"}),
        ("qwen3.5-yarn", {"rope_scaling": None}),
        ("qwen3.5-moe", {"num_experts_per_tok": 1}),
        ("smollm3", {"no_rope_layer_interval": 3}),
        ("smollm3-window", {"no_rope_layers": [1, 1, 1, 0]}),
        ("smollm3-window", {"sliding_window": WINDOW + 1}),
        ("phi3-window", {"sliding_window": None}),
        ("phi3-long", {"rope_scaling": None}),
        ("phi3-long", {"original_max_position_embeddings": 40}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma2", {"query_pre_attn_scalar": 16}),
        ("gemma2", {"sliding_window": 64}),
        ("gemma3", {"sliding_window": 64}),
        ("gemma3", {"sliding_window_pattern": 2}),
        ("gemma3", {"rope_local_base_freq": 1000.0}),
        ("gemma3-linear", {"rope_scaling": None}),
        ("gemma4-small", {"sliding_window": 64}),
        ("gemma4-small", {"final_logit_softcapping": None}),
        ("gemma4-small", {"rms_norm_eps": 0.1}),
        ("gemma4-small", {"hidden_activation": "silu"}),
        ("gemma4-small", {"rope_parameters": gemma4_ropes(full={"partial_rotary_factor": 1.0})}),
        ("gemma4-small", {"rope_parameters": gemma4_ropes(full={"rope_type": "default", "partial_rotary_factor": 1})}),
        ("gemma4-small", {"rope_parameters": gemma4_ropes(full={"rope_theta": 100.0})}),
        ("gemma4-small", {"rope_parameters": gemma4_ropes(full={"factor": 2.0})}),
        ("gemma4-small", {"rope_parameters": gemma4_ropes(sliding={"rope_theta": 1000.0})}),
        ("gemma4-small", {"rope_parameters": gemma4_ropes(sliding={"rope_type": "linear", "factor": 2.0})}),
        ("gemma4-moe", {"top_k_experts": 1}),
    ],
)
@torch.inference_mode()
def test_each_key_of_the_cases_matters(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Were a key not read, the comparisons above could not tell: at 40 tokens each moves the logits visibly."""
    raw = read_json(make_decoder(tmp_path, BY_NAME[name]) / "config.json")
    ids = token_ids(2, 40)
    difference = load(tmp_path)(ids) - load(tmp_path, config={**raw, **changes})(ids)
    assert difference.abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "llama-3",
        "qwen2-window",
        "olmo2",
        "deepseek-v2-lite",
        "lfm2",
        "gemma3",
        "gpt-oss",
        "gemma4-small",
        "gemma4-moe",
        "qwen3.5",
    ],
)
@torch.inference_mode()
def test_sharded_bf16_file(name: str, tmp_path: Path) -> None:
    make_decoder(tmp_path, BY_NAME[name], dtype=torch.bfloat16, shards=3)
    ids = token_ids(2, 40)
    exact = reference(tmp_path)(ids).logits
    torch.testing.assert_close(load(tmp_path, dtype=torch.float32)(ids), exact, atol=TOLERANCE, rtol=0)
    # In bfloat16 itself roundings differ with the order of sums: ours are no worse than twice the reference's.
    bound = 2 * (reference(tmp_path, torch.bfloat16)(ids).logits.float() - exact).abs().mean()
    half = load(tmp_path)
    assert (half(ids).float() - exact).abs().mean() < bound
    cache: Any = half.new_cache(1, 40)  # type: ignore[operator]
    steps = torch.cat([half(ids[:1, i : i + 1], cache) for i in range(40)], dim=1)
    assert (steps.float() - exact[:1]).abs().mean() < bound


@pytest.mark.parametrize("name", ["llama-2", "gemma4-small", "qwen3.5", "gpt-oss"])
@torch.inference_mode()
def test_states_of_earlier_layers_are_let_go(name: str, tmp_path: Path) -> None:
    """A long prompt's states are large: those of one layer and of the next are there, and no others."""
    model, made = load(make_decoder(tmp_path, BY_NAME[name])), list[weakref.ref[Tensor]]()
    most = []
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.register_forward_hook(lambda module, given, x: made.append(weakref.ref(x)))
        layer.register_forward_hook(lambda module, given, x: most.append(sum(one() is not None for one in made)))
    model(token_ids(1, 40))
    assert len(most) > 1 and max(most) <= 2


def rewrite(folder: Path, **tensors: Tensor | None) -> None:
    """Add tensors to a checkpoint's file, or take them out (None). Dots in names are written as `__`."""
    file = folder / "model.safetensors"
    held = load_file(file)
    for name, tensor in tensors.items():
        held.pop(name.replace("__", "."), None)
        if tensor is not None:
            held[name.replace("__", ".")] = tensor
    save_file(held, file, metadata={"format": "pt"})


@torch.inference_mode()
def test_heads_tied_and_untied(tmp_path: Path) -> None:
    ids = token_ids(1, 12)
    folder = make_decoder(tmp_path / "tied", BY_NAME["llama-3"])
    tied = load(folder)(ids)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(folder, lm_head__weight=embedding)  # both there
    torch.testing.assert_close(load(folder)(ids), tied, atol=0, rtol=0)
    rewrite(folder, model__embed_tokens__weight=None)  # the head alone
    torch.testing.assert_close(load(folder)(ids), tied, atol=0, rtol=0)
    torch.testing.assert_close(reference(folder)(ids).logits, tied, atol=TOLERANCE, rtol=0)
    untied = make_decoder(tmp_path / "untied", BY_NAME["llama-2"])
    rewrite(untied, lm_head__weight=None)
    with pytest.raises(GencliError, match=r"lacks tensors: lm_head\.weight"):
        load(untied)


@torch.inference_mode()
def test_rotary_buffers_of_old_files_are_dropped(tmp_path: Path) -> None:
    folder = make_decoder(tmp_path, BY_NAME["llama-2"])
    wanted = load(folder)(token_ids(1, 12))
    rewrite(folder, **{f"model__layers__{i}__self_attn__rotary_emb__inv_freq": torch.zeros(4) for i in range(2)})
    torch.testing.assert_close(load(folder)(token_ids(1, 12)), wanted, atol=0, rtol=0)
    rewrite(folder, model__layers__0__self_attn__rotary_emb__other=torch.zeros(4))
    with pytest.raises(GencliError, match="does not explain"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama-2", {"num_hidden_layers": 1_000_000}, "num_hidden_layers = 1000000 is out of range"),
        ("llama-2", {"vocab_size": 2**40}, "vocab_size = 1099511627776 is out of range"),
        ("llama-2", {"hidden_size": "32"}, "hidden_size = '32' is out of range"),
        ("llama-2", {"head_dim": -8}, "head_dim = -8 is out of range"),
        ("llama-2", {"head_dim": 7}, "7 of 7 numbers of a head cannot be turned in pairs"),
        ("llama-2", {"num_key_value_heads": 3}, "num_attention_heads = 4 is not a multiple of num_key_value_heads = 3"),
        (
            "llama-2",
            {"num_attention_heads": 5, "num_key_value_heads": 5},
            "is not a multiple of num_attention_heads = 5",
        ),
        ("llama-2", {"hidden_act": "mystery"}, "hidden_act = 'mystery' is not supported"),
        ("llama-2", {"rms_norm_eps": None}, "rms_norm_eps = None is out of range"),
        ("llama-2", {"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no' is neither true nor false"),
        ("llama-2", {"quantization_config": {"bits": 4}}, "not supported: quantization_config"),
        ("llama-2", {"rope_interleaved": True}, "rope_interleaved = True is not supported"),
        ("llama-2", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0\.5 is not supported"),
        ("llama-2", {"rope_scaling": {"type": "mrope", "mrope_section": [2]}}, "rope_type = 'mrope' is not supported"),
        ("llama-2", {"rope_scaling": {"type": "longrope"}}, "rope_type = 'longrope' is not supported"),
        ("llama-2", {"rope_scaling": {"type": "linear"}}, "rope_type = 'linear' lacks factor"),
        ("llama-2", {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor = '2' is out of range"),
        ("llama-2", {"rope_scaling": {"type": "linear", "factor": 2.0, "soft": 1}}, "not supported: soft = 1"),
        ("llama-2", {"rope_scaling": [2]}, "rope parameters are no object"),
        ("llama-2", {"rope_theta": -1}, "rope_theta = -1 is out of range"),
        ("llama-3", {"rope_scaling": {"type": "llama3", "factor": 2.0}}, "lacks low_freq_factor, high_freq_factor"),
        ("mistral-window", {"sliding_window": 0}, "sliding_window = 0 is out of range"),
        ("mistral-window", {"layer_types": ["full_attention"] * 2}, "not supported: layer_types"),
        ("qwen2", {"use_mrope": True}, "use_mrope = True is not supported"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "there is no sliding window"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types = .* does not fit"),
        ("qwen3.5", {"layer_types": ["full_attention"] * 4}, "layer_types = .* does not fit"),
        ("qwen3.5", {"layer_types": ["linear_attention"] * 5}, "none of 5 layers is of the type full_attention"),
        ("qwen3.5", {"layer_types": ["sliding_attention"] * 5}, "layer_types = .* does not fit"),
        ("qwen3.5", {"attn_output_gate": False}, "attn_output_gate = False is not supported"),
        ("qwen3.5", {"linear_num_value_heads": 3}, "linear_num_value_heads = 3 is not a multiple of linear_num_key"),
        ("qwen3.5", {"linear_conv_kernel_dim": 0}, "linear_conv_kernel_dim = 0 is out of range"),
        ("qwen3.5", {"full_attention_interval": 0}, "full_attention_interval = 0 is out of range"),
        ("qwen3.5", {"sliding_window": 8}, "not supported: sliding_window = 8"),
        ("qwen3.5-moe", {"norm_topk_prob": False}, "norm_topk_prob = False is not supported"),
        ("qwen3.5-moe", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2 is not supported"),
        ("qwen3.5-moe", {"num_experts_per_tok": 7}, "num_experts_per_tok = 7 of num_experts = 6"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers = .* does not name every layer"),
        ("phi3-long", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "lacks long_factor"),
        ("phi3-long", {"hidden_size": 64}, "short_factor is not a list of 8 factors"),
        ("phi3-long", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear' is not supported"),
        ("phi4-mini", {"lm_head_bias": True}, "lm_head_bias = True is not supported"),
        ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping = 0 is out of range"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported"),
        ("olmo3", {"layer_types": ["full_attention"]}, "layer_types = .* does not fit"),
        ("olmo3", {"sliding_window": None}, "there is no sliding window"),
        ("olmo3", {"rope_parameters": {"rope_theta": 1.0}}, "does not have full_attention and sliding_attention"),
        *(("granite", {key: 0}, f"{key} = 0 is out of range") for key in MULTIPLIERS),
        ("ministral3", {"llama_4_scaling_beta": -1}, "llama_4_scaling_beta = -1 is out of range"),
        (
            "ministral3",
            {"rope_parameters": {"rope_type": "default"}, "llama_4_scaling_beta": 0.1},
            "llama_4_scaling_beta without original_max_position_embeddings",
        ),
        ("ministral3", {"model_type": "mistral3", "text_config": {"model_type": "mamba"}}, "text_config = .*mamba"),
        ("glm4", {"rope_interleaved": False, "mlp_bias": True}, "not supported: mlp_bias = True"),
        ("deepseek-v2", {"num_key_value_heads": 2}, "num_key_value_heads = 2 is not supported"),
        ("deepseek-v2", {"topk_method": "noaux_tc"}, "topk_method = 'noaux_tc' is not supported"),
        ("deepseek-v2", {"norm_topk_prob": True}, "norm_topk_prob = True is not supported"),
        ("deepseek-v2", {"scoring_func": "sigmoid"}, "scoring_func = 'sigmoid' is not supported"),
        ("deepseek-v2", {"moe_layer_freq": 2}, "moe_layer_freq = 2 is not supported"),
        ("deepseek-v2", {"n_group": 3}, "n_routed_experts = 8 is not a multiple of n_group = 3"),
        ("deepseek-v2", {"topk_group": 5}, "topk_group = 5 of n_group = 4"),
        ("deepseek-v2", {"topk_group": 1}, "topk_group = 1 of n_group = 4"),
        ("deepseek-v2", {"kv_lora_rank": 0}, "kv_lora_rank = 0 is out of range"),
        ("deepseek-v2", {"num_experts_per_tok": None}, "num_experts_per_tok = None is out of range"),
        ("deepseek-v3", {"n_group": 8, "topk_group": 8}, "n_group = 8 of n_routed_experts = 8"),
        ("lfm2", {"layer_types": ["conv"] * 5}, "none of 5 layers is of the type full_attention"),
        ("lfm2", {"layer_types": ["full_attention"]}, "layer_types = .* does not fit"),
        ("lfm2", {"full_attn_idxs": ["x"]}, "full_attn_idxs = .* is no list of layers"),
        ("starcoder2", {"use_bias": 1}, "use_bias = 1 is neither true nor false"),
        ("cohere2", {"logit_scale": 0}, "logit_scale = 0 is out of range"),
        ("cohere2", {"use_parallel_block": False}, "use_parallel_block = False is not supported"),
        ("cohere2", {"use_qk_norm": True}, "use_qk_norm = True is not supported"),
        ("cohere2", {"rotary_pct": 0.5}, r"rotary_pct = 0\.5 is not supported"),
        ("qwen2-moe", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window = True is not supported"),
        ("qwen2-moe", {"num_experts_per_tok": 7}, "num_experts_per_tok = 7 of num_experts = 6"),
        ("phi", {"qk_layernorm": 1}, "qk_layernorm = 1 is neither true nor false"),
        ("lfm2", {"conv_L_cache": 0}, "conv_L_cache = 0 is out of range"),
        ("lfm2", {"block_ff_dim": 0}, "block_ff_dim = 0 is out of range"),
        ("lfm2", {"block_multiple_of": 0}, "block_multiple_of = 0 is out of range"),
        ("lfm2", {"block_ffn_dim_multiplier": -1}, "block_ffn_dim_multiplier = -1 is out of range"),
        ("lfm2", {"block_use_swiglu": False}, "block_use_swiglu = False is not supported"),
        ("gpt-neox", {"layer_norm_eps": 2}, "rms_norm_eps = 2 is out of range"),
        ("gpt-neox", {"use_parallel_residual": "x"}, "use_parallel_residual = 'x' is neither true nor false"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping = 50\.0 is not supported"),
        ("gemma3", {"rope_parameters": {"rope_theta": 1.0}}, "does not have full_attention and sliding_attention"),
        ("gemma3", {"sliding_window_pattern": 0}, "sliding_window_pattern = 0 is out of range"),
        ("gemma4-small", {"num_kv_shared_layers": 6}, "num_kv_shared_layers = 6 leaves no layer of some kind"),
        ("gemma4-small", {"num_kv_shared_layers": 7}, "num_kv_shared_layers = 7 is out of range"),
        (
            "gemma4-small",
            {"use_bidirectional_attention": "all"},
            "use_bidirectional_attention = 'all' is not supported",
        ),
        ("gemma4-small", {"global_head_dim": None}, "global_head_dim = None is out of range"),
        ("gemma4-small", {"global_head_dim": 7}, "7 of 7 numbers of a head cannot be turned in pairs"),
        ("gemma4-small", {"vocab_size_per_layer_input": 95}, "vocab_size_per_layer_input = 95 is out of range"),
        ("gemma4-small", {"final_logit_softcapping": 0}, "final_logit_softcapping = 0 is out of range"),
        ("gemma4-small", {"attn_logit_softcapping": 50.0}, "not supported: attn_logit_softcapping"),
        ("gemma4-small", {"rope_parameters": {FULL: {}}}, "does not have full_attention and sliding_attention"),
        ("gemma4-small", {"rope_parameters": {FULL: {}, SLIDING: 1}}, "are no objects"),
        (
            "gemma4-small",
            {"rope_parameters": gemma4_ropes(full={"rope_type": "linear", "factor": 2.0})},
            r"partial_rotary_factor = 0\.5 is not supported with rope_type = 'linear'",
        ),
        ("gemma4-small", {"per_layer_config": {"2": {"head_dim": 24}}}, "per_layer_config = .* is not supported"),
        ("gemma4-small", {"per_layer_config": {"2": {"head_dim": 24}, "5": {"head_dim": 16}}}, "is not supported"),
        ("gemma4-small", {"per_layer_config": {"2": {"width": 1}, "5": {"width": 1}}}, "is not supported"),
        ("gemma4-large", {"num_global_key_value_heads": 3}, "is not a multiple of num_global_key_value_heads = 3"),
        ("gemma4-moe", {"expert_intermediate_size": 25}, "not supported: expert_intermediate_size = 25"),
        ("gemma4-moe", {"num_experts": None}, "num_experts = None is out of range"),
        ("gemma4-moe", {"top_k_experts": 7}, "top_k_experts = 7 of num_experts = 6"),
        ("gemma4-moe", {"moe_intermediate_size": 0}, "moe_intermediate_size = 0 is out of range"),
    ],
)
def test_unsupported_configs_are_refused_by_name(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    raw = {**BY_NAME[name].config("old"), **changes}
    with pytest.raises(GencliError, match=message):
        architecture(raw["model_type"]).Config.from_dict(raw)


@cases
def test_no_value_of_a_config_ends_in_a_traceback(case: Case) -> None:
    """Any key with any kind of value is read or refused by name."""
    junk = [None, True, -1, 0, 2**60, 0.5, 1e308, float("nan"), "x", [], [1], ["x"] * 4, {}, {"type": []}]
    module = architecture(case.model_type)
    for raw in map(case.config, FORMS):
        ropes = [key for key, value in raw.items() if isinstance(value, dict) and key.startswith("rope")]
        changed = [{**raw, key: value} for key in raw.keys() - {"model_type"} for value in junk]
        changed += [{**raw, r: {**raw[r], key: value}} for r in ropes for key in raw[r] for value in junk]
        for config in changed:
            with contextlib.suppress(GencliError):
                module.Config.from_dict(config)


def test_early_names_of_longrope() -> None:
    """`su` in the first Phi 3 files, with the original length beside it; the reference of today stumbles over it."""
    config = BY_NAME["phi3-long"].config("old")
    early = {**config, "rope_scaling": {**config["rope_scaling"], "type": "su"}}
    parse = architecture("phi3").Config.from_dict
    assert parse(early) == parse(config)


def test_unknown_model_type_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    folder = make_decoder(tmp_path, BY_NAME["llama-2"], model_type="mamba")
    with pytest.raises(GencliError, match="unknown architecture 'mamba'") as caught:
        load(folder)
    assert all(case.model_type in str(caught.value.hint) for case in CASES)


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("llama-2", 64),
        ("linear", 3 * RANGE),
        ("dynamic", 3 * RANGE),
        ("yarn", 4 * RANGE),
        ("gemma3-linear", 64),
        ("gemma4-small", 64),
    ],
)
def test_max_positions(name: str, positions: int, tmp_path: Path) -> None:
    """How far a model reads, where the config gives the length before stretching, and where after."""
    assert load(make_decoder(tmp_path, BY_NAME[name])).max_length == positions


@pytest.mark.parametrize(("layout", "cap"), [("hub", None), ("saved", None), ("hub", 0.5)])
@torch.inference_mode()
def test_text_model_of_a_gemma_with_a_vision_tower(layout: str, cap: float | None, tmp_path: Path) -> None:
    import transformers

    text = {**BY_NAME["gemma3-linear"].config("old"), "architectures": None, "final_logit_softcapping": cap}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"}
    raw = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "mm_tokens_per_image": 4}
    raw |= {"text_config": text, "vision_config": vision, "image_token_index": 95, "boi_token_index": 94}
    theirs = random_model(transformers.Gemma3ForConditionalGeneration, transformers.Gemma3Config(**raw), seed=0)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("language_model.model.layers") for name in tensors)  # as the hub has them
    if layout == "saved":  # as versions 4.52 to 4.56 wrote them
        tensors = {saved_name(name): tensor for name, tensor in tensors.items()}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    write_json(tmp_path / "config.json", {**raw, "eoi_token_index": 93})
    ids = token_ids(2, 40) % 90
    torch.testing.assert_close(load(tmp_path)(ids), theirs(ids).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["mistral", "ministral3"])
@pytest.mark.parametrize("layout", ["hub", "saved"])
@torch.inference_mode()
def test_text_model_of_a_mistral_with_a_vision_tower(layout: str, kind: str, tmp_path: Path) -> None:
    """Mistral Small 3.1, and Ministral 3; keys that the text model's config leaves out have the reference's values."""
    import transformers

    case = BY_NAME["ministral3" if kind == "ministral3" else "mistral-window"]
    text = {key: value for key, value in case.config("new").items() if key not in ("architectures", "sliding_window")}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "head_dim": 8, "model_type": "pixtral"}
    raw = {"model_type": "mistral3", "text_config": text, "vision_config": vision, "image_token_index": 95}
    config = transformers.Mistral3Config(**raw, tie_word_embeddings=False)
    theirs = random_model(transformers.Mistral3ForConditionalGeneration, config, seed=0)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert any("vision_tower" in name for name in tensors)
    if layout == "saved":
        tensors = {saved_name(name): tensor for name, tensor in tensors.items()}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids = token_ids(2, 40) % 90
    saved = read_json(tmp_path / "config.json")
    for written in (saved, {**raw, "architectures": ["Mistral3ForConditionalGeneration"]}):
        write_json(tmp_path / "config.json", written)
        torch.testing.assert_close(load(tmp_path)(ids), theirs(ids).logits, atol=TOLERANCE, rtol=0)
    assert check(find(str(tmp_path))).problems == ()


@pytest.mark.parametrize("text", [None, {"model_type": "mistral"}, {"model_type": "ministral3"}])
def test_what_configs_of_mistral3_leave_out(text: dict[str, Any] | None) -> None:
    """Each key has the reference's value."""
    import transformers

    theirs = transformers.Mistral3Config(**({} if text is None else {"text_config": text})).text_config
    raw = {"model_type": "mistral3"} | ({} if text is None else {"text_config": text})
    ours = architecture("mistral3").Config.from_dict(raw)
    for field in dataclasses.fields(ours):
        if hasattr(theirs, field.name) and field.name not in ("rope_parameters", "tie_word_embeddings"):
            got, wanted = getattr(ours, field.name), getattr(theirs, field.name)
            assert got == wanted or (field.name == "head_dim" and ours.head_size == wanted), field.name
    given = {key: value for key, value in theirs.rope_parameters.items() if hasattr(ours.rope_parameters, key)}
    assert {key: getattr(ours.rope_parameters, key) for key in given} == given
    assert ours.llama_4_scaling_beta == theirs.rope_parameters.get("llama_4_scaling_beta")


def saved_name(name: str) -> str:
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.")
    name = name.removeprefix("language_model.") if "lm_head" in name else name
    return name if name.startswith("lm_head") else f"model.{name}"


@pytest.mark.parametrize("shared", [0, 3])
@torch.inference_mode()
def test_gemma4_files_with_keys_and_values_that_no_layer_reads(shared: int, tmp_path: Path) -> None:
    """The hub's files have them for every layer: the config says which count, the reference reads no others."""
    changes = {"num_kv_shared_layers": shared, "use_double_wide_mlp": False}
    folder = make_decoder(tmp_path, BY_NAME["gemma4-small"], **{**changes, "num_kv_shared_layers": 0})
    raw, ids = read_json(folder / "config.json"), token_ids(2, 40)
    whole = load(folder)(ids)
    write_json(folder / "config.json", {**raw, **changes})
    torch.testing.assert_close(load(folder)(ids), reference_of_more(folder)(ids).logits, atol=TOLERANCE, rtol=0)
    assert bool((load(folder)(ids) - whole).abs().max() > 100 * TOLERANCE) == bool(shared)
    rewrite(folder, model__layers__4__self_attn__z_proj__weight=torch.zeros(4))
    with pytest.raises(GencliError, match=r"does not explain: model\.layers\.4\.self_attn\.z_proj"):
        load(folder)


@pytest.mark.parametrize("stacked", [False, True])
@torch.inference_mode()
def test_files_of_deepseek_with_layers_that_predict_further_tokens(stacked: bool, tmp_path: Path) -> None:
    """They come last, and are not read; and a file that has all experts of a layer in one tensor."""
    folder = make_decoder(tmp_path, BY_NAME["deepseek-v3"])
    wanted, held = load(folder)(token_ids(1, 12)), load_file(folder / "model.safetensors")
    ahead = {name.replace("layers.2.", "layers.3."): one for name, one in held.items() if ".layers.2." in name}
    ahead |= {f"model.layers.3.{name}.weight": torch.zeros(4) for name in ("enorm", "eh_proj", "shared_head.head")}
    rewrite(folder, **{name.replace(".", "__"): one.clone() for name, one in ahead.items()})
    if stacked:
        for layer in (1, 2):
            before = f"model.layers.{layer}.mlp.experts"
            gate, up, down = (
                torch.stack([held[f"{before}.{i}.{name}_proj.weight"] for i in range(8)])
                for name in ("gate", "up", "down")
            )
            alone = {name.replace(".", "__"): None for name in held if name.startswith(f"{before}.")}
            rewrite(folder, **alone)
            both = {f"{before}.gate_up_proj": torch.cat((gate, up), 1), f"{before}.down_proj": down}
            rewrite(folder, **{name.replace(".", "__"): one for name, one in both.items()})
    torch.testing.assert_close(load(folder)(token_ids(1, 12)), wanted, atol=1e-6, rtol=0)
    rewrite(folder, model__layers__3__other__weight=torch.zeros(4))
    with pytest.raises(GencliError, match=r"does not explain: model\.layers\.3\.other"):
        load(folder)


def reference_of_more(folder: Path) -> Any:
    """The checkpoint in transformers, which need not use every tensor of the file."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "towers"),
    [
        ("Gemma4", {"audio_config": {"num_hidden_layers": 1, "hidden_size": 32}}),
        ("Gemma4Unified", {"audio_config": {"audio_embed_dim": 16}}),
    ],
)
@torch.inference_mode()
def test_text_model_of_a_gemma4_that_reads_images_and_sounds(name: str, towers: dict[str, Any], tmp_path: Path) -> None:
    import transformers

    case = BY_NAME["gemma4-unified" if "Unified" in name else "gemma4-moe"]
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    vision = {"mm_embed_dim": 32, "mm_posemb_size": 8} if "Unified" in name else vision
    raw = {"text_config": case.config("old"), "vision_config": vision, "image_token_id": 95, "audio_token_id": 94}
    config = getattr(transformers, f"{name}Config")(**raw, **towers)
    theirs = random_model(getattr(transformers, f"{name}ForConditionalGeneration"), config, seed=0)
    theirs.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert any(one.startswith("model.language_model.layers") for one in names)
    assert any("vision" in one for one in names) and any("embed_audio" in one for one in names)
    assert check(find(str(tmp_path))).problems == ()  # though towers have bounds that are infinite
    saved = read_json(tmp_path / "config.json")
    ids = token_ids(2, 40) % 90
    hub = {**raw["text_config"], "expert_intermediate_size": case.keys.get("moe_intermediate_size")}
    more = {"text_config": hub, "vision_soft_tokens_per_image": 280, "eoa_token_id": 93}
    for written in (saved, {**saved, **raw, **more}):
        write_json(tmp_path / "config.json", written)
        torch.testing.assert_close(load(tmp_path)(ids), theirs(ids).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["Gemma4", "Gemma4Unified"])
def test_what_gemma4_configs_leave_out(name: str) -> None:
    """Each key has the reference's value, and so have the heads of each layer."""
    import transformers

    theirs = getattr(transformers, f"{name}TextConfig")()
    ours, written = (architecture(theirs.model_type).Config.from_dict(raw) for raw in ({}, theirs.to_dict()))
    theirs.allow_global_per_layer_attribute_access = True
    called = {"hidden_act": "hidden_activation"}
    for field in dataclasses.fields(ours):
        own = called.get(field.name, field.name)
        if hasattr(theirs, own) and own not in ("rope_parameters", "layer_types"):
            assert getattr(ours, field.name) == getattr(theirs, own), own
    assert list(ours.types) == theirs.layer_types
    assert written == dataclasses.replace(ours, layer_types=ours.types)
    for layer in range(ours.num_hidden_layers):
        one = theirs.per_layer_config[layer]
        assert (ours.head_size_of(layer), ours.kv_heads_of(layer)) == (one.head_dim, one.num_key_value_heads)
    ropes = {FULL: ours.rope_parameters, SLIDING: ours.sliding_rope}
    for kind, rope in ropes.items():
        given = {"partial_rotary_factor": 1.0, **theirs.rope_parameters[kind]}
        assert {key: getattr(rope, key) for key in given} == given


@pytest.mark.parametrize(
    "name",
    [
        "dynamic",
        "qwen2-window",
        "phi4-mini",
        "gemma2",
        "gemma3",
        "gemma4-small",
        "gemma4-large",
        "gemma4-moe",
        "qwen3.5",
        "deepseek-v2",
        "lfm2-biased",
    ],
)
def test_training_reaches_every_parameter(name: str, tmp_path: Path) -> None:
    """Also after a run in inference mode, which must leave nothing behind that autograd refuses."""
    model = load(make_decoder(tmp_path, BY_NAME[name]))
    ids = token_ids(2, 40)
    with torch.inference_mode():
        model(ids)
    model.requires_grad_(True)
    model(ids).logsumexp(-1).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


TOY = '''
"""A family of its own: Llama whose residual grows by halves."""
from dataclasses import dataclass
from gencli.models import decoder
from gencli.models.decoder import Decoder
from gencli.models.decoder_blocks import MLP, Attention, PreNormLayer
from gencli.models.decoder_config import DecoderConfig

@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    residual: float = 1.0

class Layer(PreNormLayer):
    def __init__(self, config, layer):
        super().__init__(config, Attention(config, layer), MLP(config))
        self.residual = config.residual

    def forward(self, x, turn, cache):
        x = x + self.residual * self.self_attn(self.input_layernorm(x), turn, cache)
        return x + self.residual * self.mlp(self.post_attention_layernorm(x))

class Model(Decoder):
    def __init__(self, config):
        super().__init__(config, lambda layer: Layer(config, layer))

LAYOUT = decoder.LAYOUT
'''


@torch.inference_mode()
def test_a_family_is_one_file_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gencli.models

    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(gencli.models, "__path__", [*gencli.models.__path__, str(tmp_path)])
    monkeypatch.setitem(ARCHITECTURES, "toy", "toy")
    folder = make_decoder(tmp_path / "checkpoint", BY_NAME["llama-2"], model_type="toy", pretraining_tp=1, residual=1.0)
    toy = load(folder)
    ids = token_ids(2, 20)
    llama = load(folder, config=BY_NAME["llama-2"].config("old"))
    torch.testing.assert_close(toy(ids), llama(ids), atol=0, rtol=0)
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "residual": 0.5})
    assert (load(folder)(ids) - llama(ids)).abs().max() > 100 * TOLERANCE
    cached = continue_greedily(toy, ids, 8, cached=True)
    assert torch.equal(cached, continue_greedily(toy, ids, 8, cached=False))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 4, 64])
@pytest.mark.parametrize(("new", "all_"), [(1, 1), (1, 17), (17, 17), (6, 17), (5, 5)])
def test_attention_in_blocks(
    new: int, all_: int, window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long prompts go through in blocks of queries; every length, window and cap equals the formula written out."""
    from gencli.models import attention

    monkeypatch.setattr(attention, "BLOCK", 5)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, new, 6, 8, generator=generator)
    k, v = torch.randn(2, 2, 3, all_, 8, generator=generator).repeat_interleave(2, dim=2)
    scores = q.transpose(1, 2) @ k.transpose(-1, -2) * 0.3
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    distance = torch.arange(all_ - new, all_)[:, None] - torch.arange(all_)
    seen = (distance >= 0) & (distance < (window or all_))
    wanted = (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2).reshape(2, new, 48)
    got = attention.attend(q, k[:, ::2], v[:, ::2], scale=0.3, window=window, softcap=softcap)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)
