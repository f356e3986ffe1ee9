"""The policy of linear layers. Layerwise casting: the same numbers as converted weights, in the memory of the file."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gencli.checkpoints.build import bytes_as, load
from gencli.checkpoints.weights import open_tensors
from gencli.image import load as loading
from gencli.models import linear
from gencli.models.clip_text import CLIPTextConfig, CLIPTextModel
from tests.oracles.pipelines import PROMPT, SIZE, draw, opened
from tests.tiny.image import TEXT, make_unet
from tests.tiny.sdxl import make_sdxl, make_text_encoder_2


def both(folder):
    return load(folder, dtype=torch.float32), load(folder, dtype=torch.float32, layerwise_casting=True)


@pytest.mark.slow
@torch.no_grad()
def test_same_numbers(tmp_path):
    make_unet(tmp_path / "unet", "sd15", variant="fp16")
    converted, stored = both(tmp_path / "unet")
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([900.0, 3.0]), torch.randn(2, 5, 24)
    for _ in range(2):
        assert torch.equal(stored(x, t, context), converted(x, t, context))
    make_text_encoder_2(tmp_path / "text", variant="fp16")
    converted, stored = both(tmp_path / "text")
    ids = torch.tensor([[542, 5, 6, 543]])
    assert torch.equal(stored(ids).text_embeds, converted(ids).text_embeds)
    assert torch.equal(stored(ids).hidden_states[-2], converted(ids).hidden_states[-2])


@pytest.mark.slow
def test_what_stays_and_what_is_converted(tmp_path):
    make_unet(tmp_path, "sd15", variant="fp16")
    _, stored = both(tmp_path)
    assert stored.compute_dtype == torch.float32
    kinds = {name: parameter.dtype for name, parameter in stored.named_parameters()}
    large = {name for name, module in stored.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert {name for name, dtype in kinds.items() if dtype == torch.float16} == {f"{name}.weight" for name in large}
    assert set(kinds.values()) == {torch.float16, torch.float32}
    buffers = {id(module.buffer) for module in stored.modules() if hasattr(module, "buffer")}
    assert len(buffers) == 1  # one for all
    count = sum(parameter.numel() for parameter in stored.parameters())
    assert bytes_as(open_tensors(tmp_path), torch.float32) == 4 * count


@pytest.mark.slow
def test_a_kind_of_weight_is_one_row(tmp_path, monkeypatch):
    """A toy: int8 weights with one scale. They stay as they are, and the model computes as with float32 weights."""

    class Int8Linear(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)

    row = linear.Row(nn.Linear, Int8Linear, lambda layer, dtype: layer.weight.dtype is torch.int8)
    monkeypatch.setattr(linear, "LAYERS", (row, *linear.LAYERS))
    make_unet(tmp_path, "sd15")
    plain, packed = load(tmp_path), load(tmp_path)
    for one, other in zip(plain.modules(), packed.modules(), strict=True):
        if type(one) is nn.Linear:
            other.scale = one.weight.abs().max() / 127
            whole = (one.weight / other.scale).round()
            one.weight = nn.Parameter(whole * other.scale, requires_grad=False)
            other.weight = nn.Parameter(whole.to(torch.int8), requires_grad=False)
    linear.apply_policy(packed, packed.compute_dtype)
    assert {module.weight.dtype for module in packed.modules() if isinstance(module, Int8Linear)} == {torch.int8}
    told = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.ones(1, 5, 24)
    assert torch.equal(packed(*told), plain(*told))


@pytest.mark.slow
def test_gradients_are_not_lost(tmp_path):
    """The buffer is used again by the next layer: what a gradient needs is not left in it."""
    make_unet(tmp_path, "sd15", variant="fp16")
    results = []
    for model in both(tmp_path):
        x = torch.full((1, 4, 8, 8), 0.5, requires_grad=True)
        model(x, torch.tensor([500.0]), torch.ones(1, 5, 24)).sum().backward()
        results.append(x.grad)
    assert torch.equal(*results)


@pytest.mark.slow
def test_pictures_are_the_same(tmp_path, monkeypatch):
    """On a CPU large parts stay stored, which the request does not tell: it says float32 either way."""
    make_sdxl(tmp_path, variant="fp16")
    made = {}
    for limit in (0, 1 << 40):
        monkeypatch.setattr(loading, "NETWORK_LIMIT", limit)
        monkeypatch.setattr(loading, "OTHERS_LIMIT", limit)
        pipeline = opened(tmp_path)
        assert (next(pipeline.main.network.parameters()).dtype == torch.float16) is (limit == 0)
        assert pipeline.dtype == pipeline.vae.compute_dtype == torch.float32
        made[limit] = draw(tmp_path, pipeline=pipeline, prompt=PROMPT, steps=2, **SIZE)[0]
        assert made[limit].request.dtype == "float32"
    assert made[0].image.tobytes() == made[1 << 40].image.tobytes()


MEMORY = """
import sys
from pathlib import Path
import torch
from gencli.checkpoints.build import load
from gencli.devices import peak_memory

before = peak_memory()
model = load(Path(sys.argv[1]), dtype=torch.float32, layerwise_casting=True)
with torch.no_grad():
    assert model(torch.tensor([[0, 5, 6, 7]])).pooled.isfinite().all()
print(peak_memory() - before)
"""


@pytest.mark.slow
def test_memory_is_that_of_the_file(tmp_path):
    """A load and a run take the file's size in memory and little more; converted they would take three times as much,
    the file's pages and weights of twice their size."""
    config = TEXT["sd15"] | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        names = CLIPTextModel(CLIPTextConfig.from_dict(config)).state_dict()
    file = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(tensor.shape, dtype=torch.float16) for name, tensor in names.items()}, file)
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True)
    grown = int(done.stdout) / file.stat().st_size
    assert 0.9 < grown < 1.5
