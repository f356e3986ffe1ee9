"""The parts of SDXL and of distilled models against diffusers' and transformers' own."""

import pytest
import torch
from safetensors.torch import load_file

from gencli.checkpoints.build import load
from tests.tiny.image import UNET, make_unet, make_vae
from tests.tiny.sdxl import POOLED, make_text_encoder_2

TOLERANCE = {"atol": 2e-5, "rtol": 0}
BOS, EOS = 542, 543


def told(reference, batch=2, tokens=9):
    """What an SDXL UNet is told beside x and t."""
    torch.manual_seed(2)
    context = torch.randn(batch, tokens, reference.config.cross_attention_dim)
    ids = torch.tensor([[1024.0, 768.0, 0.0, 16.0, 1024.0, 1024.0], [64.0, 64.0, 0.0, 0.0, 64.0, 96.0]])[:batch]
    return context, {"text_embeds": torch.randn(batch, POOLED), "time_ids": ids}


@pytest.mark.parametrize("kind", ["sdxl", "ssd1b"])
@torch.no_grad()
def test_unet(tmp_path, kind):
    reference, model = make_unet(tmp_path, kind), load(tmp_path)
    context, more = told(reference)
    for height, width in ((16, 16), (9, 20)):
        x, t = torch.randn(2, 4, height, width), torch.tensor([981.0, 20.0])
        made = model(x, t, context, **more)
        expected = reference(x, t, encoder_hidden_states=context, added_cond_kwargs=more).sample
        assert expected.std() > 0.1
        torch.testing.assert_close(made, expected, **TOLERANCE)
    # each of the two more matters, and one row of numbers does for all of a batch
    for name in more:
        assert (model(x, t, context, **{**more, name: more[name] + 1}) - made).abs().max() > 1e-3
    shared = more | {"time_ids": more["time_ids"][:1].expand(2, -1)}
    once = more | {"time_ids": more["time_ids"][:1]}
    assert torch.equal(model(x, t, context, **once), model(x, t, context, **shared))


@torch.no_grad()
def test_unet_that_is_told_its_guidance(tmp_path):
    reference, model = make_unet(tmp_path, "sd15", {"time_cond_proj_dim": 24}), load(tmp_path)
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([999.0, 499.0]), torch.randn(2, 5, 24)
    cond = torch.randn(2, 24)
    made = model(x, t, context, timestep_cond=cond)
    expected = reference(x, t, encoder_hidden_states=context, timestep_cond=cond).sample
    torch.testing.assert_close(made, expected, **TOLERANCE)
    assert (model(x, t, context, timestep_cond=cond + 1) - made).abs().max() > 1e-3


def test_layers_of_each_attention(tmp_path):
    make_unet(tmp_path, "ssd1b")
    model = load(tmp_path)
    assert [[len(a.transformer_blocks) for a in block.attentions or []] for block in model.down_blocks] == [
        [],
        [2, 2],
        [1, 3],
    ]
    assert [[len(a.transformer_blocks) for a in block.attentions or []] for block in model.up_blocks] == [
        [1, 2, 3],
        [2, 1, 1],
        [],
    ]
    assert model.mid_block.attentions is None
    assert UNET["sdxl"]["cross_attention_dim"] == 56


@pytest.mark.parametrize("hub_names", [True, False], ids=["hub", "today"])
@pytest.mark.parametrize("eos", [2, EOS])
@torch.no_grad()
def test_text_encoder_with_projection(tmp_path, hub_names, eos):
    """Tokens after the end token in the vocabulary are larger: the old configs (eos 2) pool there."""
    reference = make_text_encoder_2(tmp_path, {"vocab_size": 560, "eos_token_id": eos}, hub_names=hub_names)
    names = load_file(tmp_path / "model.safetensors")
    assert "text_projection.weight" in names
    assert ("text_model.final_layer_norm.weight" in names) is hub_names
    ids = torch.tensor([[BOS, 5, 550, 6, EOS, 0, 0], [BOS, 9, 8, 7, 6, EOS, 0]])
    made, expected = load(tmp_path)(ids), reference(ids, output_hidden_states=True)
    assert made.text_embeds.shape == (2, POOLED)
    torch.testing.assert_close(made.text_embeds, expected.text_embeds, **TOLERANCE)
    torch.testing.assert_close(made.last_hidden_state, expected.last_hidden_state, **TOLERANCE)
    torch.testing.assert_close(made.hidden_states[-2], expected.hidden_states[-2], **TOLERANCE)


def test_mean_and_deviation_of_latents_are_read(tmp_path):
    make_vae(tmp_path, {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [2.0, 1.0, 0.5, 3.0]})
    assert load(tmp_path).config.latents_std == (2.0, 1.0, 0.5, 3.0)
