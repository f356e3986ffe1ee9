"""A step of the C library gives the logits of torch's layers, for every family; others go their way."""

import pytest
import torch

from gencli.checkpoints.build import load
from gencli.models import linear, llama, step
from gencli.models.decoder import PreNormLayer
from tests.tiny.decoder_cases import CASES
from tests.tiny.decoders import make_decoder
from tests.tiny.text import make_gpt2

CHOSEN = ("llama-3", "smollm3", "mistral-window", "qwen2-window", "qwen3", "gemma2", "gemma3", "olmo2", "phi3-window",
          "phi4-mini")  # fmt: skip
CASE = {case.name: case for case in CASES}


def stepped(model) -> step.Step | None:
    return step.of(model, model.transformer.h if hasattr(model, "transformer") else model.model.layers)


@torch.inference_mode()
def logits(model, known: int = 3, count: int = 40) -> torch.Tensor:
    """Of positions behind a prompt, each read alone."""
    ids = (torch.arange(known + count) * 7 % 96)[None]
    cache = model.new_cache(1, known + count)
    model(ids[:, :known], cache)
    return torch.cat([model(ids[:, i : i + 1], cache) for i in range(known, known + count)], 1)


@pytest.mark.parametrize("name", ["gpt2", *CHOSEN])
def test_logits_are_torchs(tmp_path, monkeypatch, name):
    """With windows, caps, heads' norms and partial rotation; the sums are in another order."""
    folder = make_gpt2(tmp_path, tokenizer=None) if name == "gpt2" else make_decoder(tmp_path, CASE[name])
    model = load(folder)
    ours = logits(model)
    assert stepped(model) is not None
    monkeypatch.setattr(step, "can", lambda x, cache: False)
    expected = logits(model)
    torch.testing.assert_close(ours, expected, atol=2e-5 * expected.abs().max().item(), rtol=0)


def test_what_the_library_does_not_know(tmp_path, monkeypatch):
    """A layer that changes the forward pass and does not say how, an activation without a row, no library."""
    model = load(make_decoder(tmp_path / "a", CASE["llama-2"]))

    class Louder(PreNormLayer):
        def forward(self, x, cos_sin, cache):
            return 2 * super().forward(x, cos_sin, cache)

    model.model.layers[1].__class__ = Louder
    assert stepped(model) is None
    assert stepped(load(make_decoder(tmp_path / "b", CASE["biased"]))) is None  # relu
    monkeypatch.setattr(step, "library", lambda: None)
    assert stepped(load(make_decoder(tmp_path / "c", CASE["llama-2"]))) is None


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
