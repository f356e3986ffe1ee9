"""A sampler is one file, an architecture one file and one row: a toy of each, drawn with from the command line."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gencli.__main__ import main
from tests.shell.process import pixels
from tests.tiny.image import SCHEDULER, make_ddpm

SAMPLER = '''
"""DDIM in other words: x moves by the change of its noise level, and a share of its x0 of the step before."""

from gencli.image.diffusion.samplers import Sample, Sampler


def toy(predict, x, steps, *, draw_noise, memory: float = 0.0):
    old = None
    for step in steps:
        said = predict(x, step.at)
        x0 = said.x0 if old is None else (1 - memory) * said.x0 + memory * old
        x = step.next.mix(x0, said.eps)
        old = said.x0
        yield Sample(step.index, len(steps), x, x0)


SAMPLER = Sampler(run=toy)
'''

ARCHITECTURE = '''
"""A network of one layer that says of every image how far it is from grey."""
from dataclasses import dataclass
from torch import nn
from gencli.models.base import Layout, check_ints, read_config

LIKE = "UNet2DModel"  # called as it is, in pixels and without a prompt

@dataclass(frozen=True)
class Config:
    in_channels: int = 3
    sample_size: int = 16
    kernel: int = 3

    @classmethod
    def from_dict(cls, raw):
        config = read_config(cls, raw)
        check_ints(config, {"in_channels": 3, "sample_size": 64, "kernel": 9})
        return config

class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.conv = nn.Conv2d(3, 3, config.kernel, padding="same")

    def forward(self, sample, timestep):
        return self.conv(sample)

LAYOUT = Layout()
'''


@pytest.fixture
def gencli(tmp_path, monkeypatch, capfdbinary):
    """Runs the command line in a folder of its own: the exit code and what it says on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        code = main(list(map(str, args)))
        return code, capfdbinary.readouterr().err.decode()

    return run


@pytest.mark.slow
def test_a_sampler_is_one_file(tmp_path, monkeypatch, gencli):
    from gencli.image.diffusion import samplers

    make_ddpm(tmp_path / "ddpm")
    common = ("image", "-m", "ddpm", "--steps", 4, "--seed", 1)
    assert gencli(*common, "--sampler", "toy")[0] == 2  # not yet

    (tmp_path / "added").mkdir()
    (tmp_path / "added" / "toy.py").write_text(SAMPLER)
    monkeypatch.setattr(samplers, "__path__", [*samplers.__path__, str(tmp_path / "added")])
    assert gencli(*common, "-o", "ddim.png") == (0, "")
    assert gencli(*common, "--sampler", "toy", "-o", "toy.png") == (0, "")
    assert np.abs(pixels("ddim.png") - pixels("toy.png")).max() <= 1
    assert gencli(*common, "--sampler", "toy", "--sampler-option", "memory=0.3", "-o", "far.png") == (0, "")
    assert np.abs(pixels("far.png") - pixels("toy.png")).max() > 10
    assert gencli("image", "--from", "far.png", "-o", "again.png") == (0, "")
    np.testing.assert_array_equal(pixels("far.png"), pixels("again.png"))
    code, said = gencli(*common, "--sampler", "toy", "--sampler-option", "memory=much")
    assert code == 2 and "option memory = 'much': expected a number" in said
    code, said = gencli(*common, "--sampler", "toy", "--eta", 1)
    assert code == 2 and "no option eta" in said


def test_an_architecture_is_one_file_and_one_row(tmp_path, monkeypatch, gencli):
    from gencli import models

    folder = tmp_path / "toy"
    folder.mkdir()
    config = {"_class_name": "ToyNet", "in_channels": 3, "sample_size": 16, "kernel": 5}
    draws = torch.Generator().manual_seed(0)
    weights = {
        "conv.weight": torch.randn(3, 3, 5, 5, generator=draws) / 5,
        "conv.bias": torch.randn(3, generator=draws),
    }
    parts = {"unet": ["toys", "ToyNet"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER["ddpm"]))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", **parts}))
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    common = ("image", "-m", "toy", "--steps", 1, "--spacing", "trailing", "--seed", 1)
    code, said = gencli(*common, "-o", "toy.png")
    assert code == 1 and "'ToyNet'" in said  # not yet

    (tmp_path / "toy_net.py").write_text(ARCHITECTURE)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    monkeypatch.setitem(models.ARCHITECTURES, "ToyNet", "toy_net")
    assert gencli(*common, "-o", "toy.png") == (0, "")
    x = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    eps = torch.nn.functional.conv2d(x, weights["conv.weight"], weights["conv.bias"], padding=2)
    alpha = float((1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)).prod())
    x0 = ((x - (1 - alpha) ** 0.5 * eps) / alpha**0.5).clamp(-1, 1)[0]
    wanted = ((x0 / 2 + 0.5) * 255).round().permute(1, 2, 0).numpy().astype(int)
    assert np.abs(pixels("toy.png") - wanted).max() <= 1
    assert gencli("models", "check", "toy")[0] == 0
    (folder / "config.json").write_text(json.dumps({**config, "kernel": 3}))
    code, said = gencli(*common, "-o", "other.png")
    assert code == 1 and "conv.weight is [3, 3, 5, 5], not [3, 3, 3, 3]" in said


@pytest.mark.slow
def test_an_architecture_stands_in_its_own_places_alone(tmp_path, gencli):
    """One that is known, and like no UNet."""
    make_ddpm(tmp_path / "ddpm")
    config = json.loads((tmp_path / "ddpm" / "config.json").read_text())
    (tmp_path / "ddpm" / "config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderKL"}))
    code, said = gencli("image", "-m", "ddpm", "-o", "a.png")
    assert code == 1 and "unet is a 'AutoencoderKL'" in said
