"""A step of the C library gives the logits of torch's layers, for every family; others go their way."""

import dataclasses

import pytest
import torch

from gencli.checkpoints.build import load
from gencli.models import linear, llama, step
from gencli.models.decoder_blocks import PreNormLayer
from tests.oracles.variants import every_variant
from tests.tiny.decoder_cases import CASES
from tests.tiny.decoders import make_decoder
from tests.tiny.text import make_gpt2

CHOSEN = ("llama-3", "smollm3", "mistral-window", "qwen2-window", "qwen3", "gemma2", "gemma3", "olmo2", "olmo3",
          "granite", "granite-biased", "glm4", "starcoder2", "starcoder2-window", "qwen2-moe", "phi3-window",
          "phi4-mini", "mixtral", "qwen3-moe", "qwen3-moe-some", "gpt-oss", "gpt-oss-plain", "qwen3.5", "qwen3.5-moe",
          "gemma4-small",
          *(pytest.param(f"gemma4-{one}", marks=pytest.mark.slow) for one in ("large", "moe", "unified")))  # fmt: skip
CASE = {case.name: case for case in CASES}


@torch.inference_mode()
def logits(model, known: int = 3, count: int = 40) -> torch.Tensor:
    """Of positions behind a prompt, each read alone."""
    ids = (torch.arange(known + count) * 7 % 96)[None]
    cache = model.new_cache(1, known + count)
    model(ids[:, :known], cache)
    return torch.cat([model(ids[:, i : i + 1], cache) for i in range(known, known + count)], 1)


@pytest.mark.parametrize("name", ["gpt2", "heads of 44", *CHOSEN])
def test_logits_are_torchs(tmp_path, monkeypatch, name):
    """In every variant: with windows, caps, heads' norms and partial rotation; the sums are in another order."""
    if name in CASE:
        folder = make_decoder(tmp_path, CASE[name])
    else:
        folder = make_gpt2(tmp_path, tokenizer=None, **({} if name == "gpt2" else {"n_embd": 88, "n_head": 2}))
    model, found = load(folder), {}
    for library in every_variant():
        monkeypatch.setattr(step, "library", lambda library=library: library)
        vars(model).pop("_made_step", None)
        found[library.variant] = logits(model)
        assert step.of(model).kernels is library
    monkeypatch.setattr(step, "can", lambda x, cache: False)
    expected = logits(model)
    for variant, ours in found.items():
        torch.testing.assert_close(ours, expected, atol=2e-5 * expected.abs().max().item(), rtol=0, msg=variant)


@torch.inference_mode()
def test_a_head_that_the_library_does_not_know(tmp_path, monkeypatch):
    """It then gives x, which it has divided by Granite's multiplier, and takes x without an embedding that it knows."""
    model = load(make_decoder(tmp_path, CASE["granite"]))
    expected = logits(model)
    parts = model.step_parts()
    for less in ({"head": None}, {"head": None, "embedding": None}, {"embedding": None}):
        monkeypatch.setattr(model, "step_parts", lambda less=less: dataclasses.replace(parts, **less))
        vars(model).pop("_made_step", None)
        torch.testing.assert_close(logits(model), expected, atol=2e-5 * expected.abs().max().item(), rtol=0)
        assert (step.of(model).outputs == 0) == ("head" in less)


@torch.inference_mode()
def test_steps_end_where_ministrals_queries_grow(tmp_path):
    """The library takes the steps before, torch's layers those after: which are as many as a step may have."""
    model = load(make_decoder(tmp_path, CASE["ministral3"]))
    cache, ids = model.new_cache(1, 40), torch.arange(40)[None]
    assert model.config.grows_from == 16
    for i in range(40):
        assert step.can(ids[:, i : i + 1], cache) == (i + step.LONGEST <= 16)
        model(ids[:, i : i + 1], cache)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "qwen3-moe", "qwen3.5", "qwen3.5-moe", "gemma4-small", "gemma4-moe"])
def test_the_number_of_threads_changes_no_bit(tmp_path, name):
    """More threads than cores wait for each other's time slices, so that some steps are one thread's alone."""
    wide = {"hidden_size": 256, "max_position_embeddings": 128}
    if name.endswith("moe"):
        wide["moe_intermediate_size"] = 160
    if name == "gemma4-small":  # pieces of the gate that are some threads' each
        wide |= {"hidden_size": 1024, "hidden_size_per_layer_input": 160}
    model = load(
        make_gpt2(tmp_path, tokenizer=None, n_embd=320, n_head=5, n_positions=128)
        if name == "gpt2"
        else make_decoder(tmp_path, CASE[name], **wide)
    )
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 4 * before):
            torch.set_num_threads(threads)
            found[threads] = logits(model, count=100)
    finally:
        torch.set_num_threads(before)
    assert step.of(model) is not None and found[1].abs().max() > 0.1
    assert all(torch.equal(one, found[1]) for one in found.values())


def test_what_the_library_does_not_know(tmp_path, monkeypatch):
    """A layer that changes the forward pass and does not say how, an activation without a row, no library."""
    model = load(make_decoder(tmp_path / "a", CASE["llama-2"]))

    class Louder(PreNormLayer):
        def forward(self, x, cos_sin, cache):
            return 2 * super().forward(x, cos_sin, cache)

    model.model.layers[1].__class__ = Louder
    assert step.of(model) is None
    assert step.of(load(make_decoder(tmp_path / "b", CASE["biased"]))) is None  # relu
    assert step.of(load(make_decoder(tmp_path / "qwen3.5", CASE["qwen3.5-yarn"]))) is None  # gelu behind a convolution
    monkeypatch.setattr(step, "library", lambda: None)
    assert step.of(load(make_decoder(tmp_path / "c", CASE["llama-2"]))) is None


def test_a_replaced_weight_counts(tmp_path):
    model = load(make_decoder(tmp_path, CASE["llama-2"]))
    before = logits(model)
    projection = model.model.layers[0].self_attn.v_proj
    assert isinstance(projection, linear.StoredLinear) and isinstance(model, llama.Llama)
    projection.weight = torch.nn.Parameter(2 * projection.weight, requires_grad=False)
    after = logits(model)
    assert not torch.allclose(after, before)
    fresh = load(tmp_path)
    fresh.model.layers[0].self_attn.v_proj.weight.mul_(2)
    torch.testing.assert_close(after, logits(fresh), atol=1e-6, rtol=0)


@torch.inference_mode()
def test_replaced_scales_count(tmp_path, monkeypatch):
    """Those of Gemma 4's layers, routers and experts, which are no weights of matrices and norms."""
    model = load(make_decoder(tmp_path, CASE["gemma4-moe"]))
    layer, before = model.model.layers[1], logits(model, count=4)
    for module, name in ((layer, "layer_scalar"), (layer.router, "scale"), (layer.router, "per_expert_scale")):
        scale = 3 * getattr(module, name)
        setattr(module, name, scale if name == "layer_scalar" else torch.nn.Parameter(scale, requires_grad=False))
        after = logits(model, count=4)
        assert step.of(model) is not None and not torch.allclose(after, before)
        with monkeypatch.context() as patch:
            patch.setattr(step, "can", lambda x, cache: False)
            torch.testing.assert_close(after, logits(model, count=4), atol=1e-5, rtol=0)
        before = after


@pytest.mark.parametrize(
    "name",
    [
        "gpt2", "mistral-window", "olmo2", "glm4", "granite", "ministral3", "phi3-long",
        "qwen3-moe", "gpt-oss", "qwen3.5",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("smollm3", "gemma2", "gemma3", "qwen3.5-moe", "gemma4-small", "gemma4-large", "gemma4-moe")
        ),
    ],
)  # fmt: skip
@torch.inference_mode()
def test_rows_of_any_length_are_what_they_are_alone(tmp_path, monkeypatch, name):
    """Texts at other positions in one step, by the library and by torch; and several new positions of one text."""
    folder = make_gpt2(tmp_path, tokenizer=None) if name == "gpt2" else make_decoder(tmp_path, CASE[name])
    model = load(folder)
    texts = [(torch.arange(40) * step % 96)[None] for step in (5, 7, 11)]
    known = (3, 21, 9)
    for by in ("library", "torch"):
        if by == "torch":
            monkeypatch.setattr(step, "can", lambda x, cache: False)
        alone, together = [], model.new_cache(4, 50)
        for row, (ids, count) in enumerate(zip(texts, known, strict=True)):
            cache = model.new_cache(1, 40)
            for one in (cache, together.row(row)):
                model(ids[:, :count], one)
            alone.append(torch.cat([model(ids[:, i : i + 1], cache) for i in range(count, count + 19)], 1))
            if by == "library" and model.rope_regime(count) == model.rope_regime(count + 16):
                if (left := cache.truncate(count)) < count:  # of states, which cannot be cut back
                    model(ids[:, left:count], cache)
                some = torch.cat([model(ids[:, i : i + 4], cache) for i in range(count, count + 16, 4)], 1)
                torch.testing.assert_close(some, alone[-1][:, :16], atol=2e-5 * some.abs().max().item(), rtol=0)
        for i in range(19):
            new = torch.cat([ids[:, count + i : count + i + 1] for ids, count in zip(texts, known, strict=True)])
            got = model(new, together)
            expected = torch.cat([one[:, i : i + 1] for one in alone])
            torch.testing.assert_close(got, expected, atol=2e-5 * expected.abs().max().item(), rtol=0)
        assert together.lengths.tolist() == [22, 40, 28, 0]


@pytest.mark.parametrize(
    "name", ["llama-2", "mixtral", "qwen3-moe", "qwen3.5", "qwen3.5-moe", "gemma4-small", "gemma4-moe"]
)
@pytest.mark.parametrize("last_only", [False, True])
@torch.inference_mode()
def test_more_rows_than_go_at_once(tmp_path, name, last_only):
    """24 texts of eight new positions: 192 rows, of which 128 are computed together, or 42 with three experts each."""
    model = load(make_decoder(tmp_path, CASE[name]))
    ids = torch.randint(3, 96, (24, 19), generator=torch.Generator().manual_seed(1))
    expected, cache = model(ids), model.new_cache(24, 19)
    model(ids[:, :3], cache)
    for start in (3, 11):
        got = model(ids[:, start : start + 8], cache, last_only=last_only)
        wanted = expected[:, start + 7 : start + 8] if last_only else expected[:, start : start + 8]
        most = 5e-5 if name.startswith("qwen3.5") else 2e-5  # torch's chunks are 2e-5 off from float64 themselves there
        torch.testing.assert_close(got, wanted, atol=most * expected.abs().max().item(), rtol=0)
    assert step.of(model) is not None


def test_a_step_reads_the_experts_that_compute(tmp_path):
    model = load(make_decoder(tmp_path, CASE["mixtral"]))  # two of four
    sizes = {name: one.nbytes for name, one in model.named_parameters() if one.ndim == 2 and "embed" not in name}
    idle = sum(size for name, size in sizes.items() if ".experts." in name) // 2
    assert linear.step_bytes(model) == sum(sizes.values()) - idle
