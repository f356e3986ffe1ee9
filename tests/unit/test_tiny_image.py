"""The small checkpoints of these tests are what diffusers and transformers themselves can open, odd entries and all."""

import json

import pytest
import torch

from gencli.checkpoints.build import load
from gencli.tokens import load_tokenizer
from tests.oracles.libraries import diffusers
from tests.tiny.image import make_ddpm, make_stable_diffusion

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["sd15", "sd21"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_stable_diffusion(tmp_path, kind, variant):
    pipe = make_stable_diffusion(tmp_path, kind, variant=variant)
    opened = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path, variant=variant, safety_checker=None, requires_safety_checker=False, feature_extractor=None
    ).to(torch.float32)
    opened.set_progress_bar_config(disable=True)
    pictures = []
    for p in (pipe, opened):
        generator = torch.Generator().manual_seed(3)
        made = p("a red apple", num_inference_steps=2, generator=generator, output_type="pt", height=64, width=64)
        pictures.append(made.images)
    torch.testing.assert_close(*pictures)
    assert pictures[0].std() > 0.05
    assert opened.scheduler.config.prediction_type == ("epsilon" if kind == "sd15" else "v_prediction")
    for part in ("unet", "vae", "text_encoder"):
        load(tmp_path / part, dtype=torch.float32)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["safety_checker"] == (
        ["stable_diffusion", "StableDiffusionSafetyChecker"] if kind == "sd15" else [None] * 2
    )


def test_tokenizer_is_one_that_gencli_reads_alike(tmp_path):
    pipe = make_stable_diffusion(tmp_path, "sd21")
    text = "A red  APPLE and the sun, in Käse 🍎!"
    ids = pipe.tokenizer(text).input_ids
    assert load_tokenizer(tmp_path / "tokenizer").encode(text) == ids
    assert len(ids) < len(text.encode()) < 77
    assert pipe.tokenizer.pad_token_id == 0
    assert ids[0] == 542 and ids[-1] == 543


def test_ddpm(tmp_path):
    pipe = make_ddpm(tmp_path)
    opened = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(opened.unet(x, 5).sample, pipe.unet(x, 5).sample)
    assert opened.scheduler.config.variance_type == "fixed_large"


def test_configs_as_they_are_saved_today(tmp_path):
    """A fresh save writes every key that the class has, with its default: no key of those may be a stranger."""
    parts = make_stable_diffusion(tmp_path / "sd", "sd21")
    unet_2d = make_ddpm(tmp_path / "ddpm").unet
    for name in ("unet", "vae", "text_encoder"):
        getattr(parts, name).save_pretrained(tmp_path / name)
    unet_2d.save_pretrained(tmp_path / "unet_2d")
    for name in ("unet", "vae", "text_encoder", "unet_2d"):
        saved = json.loads((tmp_path / name / "config.json").read_text())
        assert len(saved) > 15
        state = load(tmp_path / name).state_dict()
        reference = unet_2d if name == "unet_2d" else getattr(parts, name)
        assert state.keys() == reference.state_dict().keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in reference.state_dict().items())
