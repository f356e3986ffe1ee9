"""GPT-2 equals transformers' in logits and in greedy text, for every layout, option and way to run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.build import load
from gencli.errors import GencliError
from gencli.models.activations import ACTIVATIONS
from gencli.models.gpt2 import GPT2, GPT2Config
from gencli.tokens import load_tokenizer
from tests.oracles.libraries import transformers
from tests.tiny.text import TEXTS, make_gpt2

# name → (layout and storage, config)
CASES: dict[str, tuple[dict, dict]] = {
    "hub": ({"tokenizer": "vocab"}, {}),
    "saved": ({"layout": "saved"}, {}),
    "hub, sharded": ({"sharded": True, "tokenizer": "vocab"}, {"n_layer": 3}),
    "saved, sharded": ({"layout": "saved", "sharded": True, "tokenizer": "vocab"}, {"n_layer": 3}),
    "one layer, one head": ({}, {"n_layer": 1, "n_head": 1, "n_embd": 24}),
    "odd head size": ({"layout": "saved"}, {"n_head": 3, "n_embd": 21}),
    "heads of one": ({}, {"n_head": 8, "n_embd": 8}),
    "half precision file": ({"dtype": torch.float16}, {}),
    "bfloat16 file": ({"dtype": torch.bfloat16, "layout": "saved"}, {}),
    "n_inner, relu": ({}, {"n_inner": 50, "activation_function": "relu"}),
    "gelu, coarse epsilon": ({"layout": "saved"}, {"activation_function": "gelu", "layer_norm_epsilon": 1e-2}),
    "scaled by layer": ({}, {"scale_attn_by_inverse_layer_idx": True, "n_layer": 4}),
    "not scaled": ({}, {"scale_attn_weights": False}),
    "neither scaled": ({}, {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "n_layer": 3}),
    "head not tied": ({"layout": "saved"}, {"tie_word_embeddings": False}),
    "head not tied, hub": ({}, {"tie_word_embeddings": False}),
    "vocabulary larger than the tokenizer's": ({}, {"vocab_size": 400}),
}


def make(folder: Path, name: str) -> Path:
    storage, config = CASES[name]
    return make_gpt2(folder, seed=len(name), **storage, **config)


def reference(folder: Path):
    return transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def some_ids(batch: int, length: int, vocab_size: int = 384) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(batch + length))


@torch.inference_mode()
def continue_greedily(model, ids: torch.Tensor, count: int, *, cached: bool) -> torch.Tensor:
    """(B, T) → (B, T + count)."""
    cache = model.new_cache(len(ids), ids.shape[1] + count) if cached else None
    fresh = ids
    for _ in range(count):
        best = model(fresh if cached else ids, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)
        ids, fresh = torch.cat([ids, best], dim=1), best
    return ids


def greedy_by_transformers(model, ids: torch.Tensor, count: int) -> torch.Tensor:
    settings = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count, "pad_token_id": 0}
    model.generation_config.eos_token_id = None
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_text(tmp_path, name):
    folder = make(tmp_path, name)
    ours, theirs = load(folder, dtype=torch.float32), reference(folder)
    ids = some_ids(4, 40)
    with torch.inference_mode():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours(ids, last_only=True), expected[:, -1:], atol=1e-5, rtol=0)
    assert expected.std() > 0.3  # a model whose logits are all alike would show nothing
    for batch in (1, 4):
        prompt = some_ids(batch, 11)
        text = greedy_by_transformers(theirs, prompt, 24)
        assert text.shape == (batch, 35)
        for cached in (True, False):
            assert torch.equal(continue_greedily(ours, prompt, 24, cached=cached), text)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_the_references(activation):
    x = torch.linspace(-6, 6, 1001)
    expected = transformers.activations.ACT2FN[activation](x)
    torch.testing.assert_close(ACTIVATIONS[activation](x), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("lengths", [(1, 1, 1), (7, 1, 5, 1, 1, 3), (2, 30), (40,)])
@torch.inference_mode()
def test_a_cache_filled_in_any_steps_gives_the_same_logits(tmp_path, batch, lengths):
    model = load(make_gpt2(tmp_path))
    ids = some_ids(batch, sum(lengths))
    cache = model.new_cache(batch, 64)
    parts = [model(part, cache) for part in ids.split(lengths, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-5, rtol=0)
    assert cache.length == sum(lengths)


@torch.inference_mode()
def test_samples_from_one_prefill_and_rows_that_leave(tmp_path):
    """Four continuations of one prompt, of which two end early, equal four runs alone."""
    model = load(make_gpt2(tmp_path))
    prompt, tails = some_ids(1, 9), some_ids(4, 12)
    cache = model.new_cache(1, 30)
    model(prompt, cache, last_only=True)
    cache.grow(batch=4)
    for row in (1, 2, 3):
        cache.copy_row(0, row, 9)
    rows = torch.arange(4)
    for step in range(12):
        if step == 6:
            rows = torch.tensor([1, 3])
            cache.copy_row(1, 0, cache.length)
            cache.copy_row(3, 1, cache.length)
        logits = model(tails[rows, step : step + 1], cache)[:, -1]
        for row, found in zip(rows.tolist(), logits, strict=True):
            alone = torch.cat([prompt, tails[row : row + 1, : step + 1]], dim=1)
            torch.testing.assert_close(found, model(alone)[0, -1], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_whole_context_can_be_used(tmp_path):
    folder = make_gpt2(tmp_path, n_positions=16)
    model = load(folder)
    ids = some_ids(2, 16)
    torch.testing.assert_close(model(ids), reference(folder)(ids).logits, atol=1e-5, rtol=0)
    assert model.max_length == 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_low_precision_is_near(tmp_path, dtype):
    folder = make_gpt2(tmp_path)
    ids = some_ids(2, 20)
    logits = load(folder, dtype=dtype)(ids)
    assert logits.dtype == dtype
    exact = load(folder)(ids)
    assert (logits.float() - exact).abs().max() < 0.1 * exact.std()


def test_gradients_flow(tmp_path):
    """The training recipe uses this module: with gradients on, they equal the reference's."""
    folder = make_gpt2(tmp_path)
    ours, theirs = load(folder).requires_grad_(True), reference(folder)
    ids = some_ids(2, 20)
    ours(ids).square().mean().backward()
    theirs(ids).logits.square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("has", ["wte alone", "head alone", "both, unequal"])
@torch.inference_mode()
def test_tied_weights(tmp_path, has):
    """The file may hold either of two tied tensors; of both, unequal, transformers believes the file."""
    folder = make_gpt2(tmp_path, layout="saved")
    tensors = load_file(folder / "model.safetensors")
    if has != "wte alone":
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] * (1 if has == "head alone" else 2)
    if has == "head alone":
        del tensors["transformer.wte.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ours = load(folder)
    ids = some_ids(2, 9)
    torch.testing.assert_close(ours(ids), reference(folder)(ids).logits, atol=1e-5, rtol=0)
    assert (ours.lm_head.weight is ours.transformer.wte.weight) == (has != "both, unequal")


@pytest.mark.parametrize("layout", ["json", "vocab"])
def test_a_prompt_goes_the_same_way_through_tokenizer_and_model(tmp_path, layout):
    folder = make_gpt2(tmp_path, tokenizer=layout)
    ours, theirs = load(folder), reference(folder)
    tokenizer, their_tokenizer = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in filter(None, TEXTS):
        ids = torch.tensor([tokenizer.encode(text)])
        expected = greedy_by_transformers(theirs, torch.tensor([their_tokenizer(text)["input_ids"]]), 8)
        found = continue_greedily(ours, ids, 8, cached=True)
        assert tokenizer.decode(found[0].tolist()) == their_tokenizer.decode(expected[0], skip_special_tokens=True)


# --- configs ---------------------------------------------------------------------------------------------------------


def test_defaults_are_the_references():
    assert GPT2Config.from_dict({}) == GPT2Config.from_dict(transformers.GPT2Config().to_dict())


@pytest.mark.parametrize("size", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_all_four_sizes(size):
    """The hub's own configs, and the known numbers of parameters."""
    shapes = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20)}
    n_layer, n_embd, n_head = shapes.get(size, (48, 1600, 25))
    raw = {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": n_embd, "n_head": n_head,
        "n_layer": n_layer, "n_positions": 1024, "n_special": 0, "predict_special_tokens": True,
        "output_past": True, "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
    }  # fmt: skip
    with torch.device("meta"):
        model = GPT2(GPT2Config.from_dict(raw))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == {
        "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200
    }[size]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("add_cross_attention", True, "add_cross_attention = True is not supported"),
        ("rotary_dim", 32, "not supported: rotary_dim = 32"),
        ("quantization_config", {"bits": 4}, r"not supported: quantization_config = \{'bits': 4\}"),
        ("activation_function", "gelu_42", "activation_function = 'gelu_42' is not supported"),
        ("activation_function", "x" * 10**6, "activation_function = 'xxx"),
        ("x" * 10**6, 1, "not supported: xxx"),
        ("activation_function", {"a": 1}, "activation_function = .* is not supported"),
        ("activation_function", ["gelu"], "activation_function = .* is not supported"),
        ("n_embd", 33, "n_embd = 33 is not a multiple of n_head = 4"),
        ("n_embd", 2**40, "n_embd = 1099511627776 is out of range"),
        ("n_layer", 10**9, "n_layer = 1000000000 is out of range"),
        ("n_layer", 0, "n_layer = 0 is out of range"),
        ("n_head", -4, "n_head = -4 is out of range"),
        ("n_head", 4.0, "n_head = 4.0 is out of range"),
        ("n_positions", None, "n_positions = None is out of range"),
        ("n_positions", True, "n_positions = True is out of range"),
        ("n_inner", 2**60, "n_inner = 1152921504606846976 is out of range"),
        ("n_inner", "many", "n_inner = 'many' is out of range"),
        ("vocab_size", "50257", "vocab_size = '50257' is out of range"),
        ("vocab_size", [384], r"vocab_size = \(384,\) is out of range"),
        ("layer_norm_epsilon", float("nan"), "layer_norm_epsilon = nan is out of range"),
        ("layer_norm_epsilon", -1.0, "layer_norm_epsilon = -1.0 is out of range"),
        ("layer_norm_epsilon", "small", "layer_norm_epsilon = 'small' is out of range"),
        ("scale_attn_weights", "no", "scale_attn_weights = 'no' is neither true nor false"),
        ("tie_word_embeddings", 1, "tie_word_embeddings = 1 is neither true nor false"),
    ],
)
def test_a_config_that_is_not_supported_is_refused_by_name(tmp_path, key, value, says):
    folder = make_gpt2(tmp_path, tokenizer=None)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**raw, key: value}), encoding="utf-8")
    with pytest.raises(GencliError, match=says) as caught:
        load(folder)
    message = caught.value.message
    assert message.startswith(str(folder)) and "\n" not in message and len(message) < 500
