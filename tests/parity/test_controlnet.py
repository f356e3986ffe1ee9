"""ControlNets against diffusers' own: the model, and whole pictures drawn with it."""

import pytest
import torch

from gencli.checkpoints.build import load
from gencli.errors import GencliError
from gencli.models.controlnet import ControlNetConfig
from tests.tiny_control import CONTROLNET, make_controlnet
from tests.tiny_image import make_unet

TOLERANCE = {"atol": 2e-5, "rtol": 0}


@torch.no_grad()
def check(reference, model, unet=None, height=16, width=16):
    """Everything that a ControlNet says, and what a UNet makes of it."""
    torch.manual_seed(1)
    x = torch.randn(2, reference.config.in_channels, height, width)
    context = torch.randn(2, 9, reference.config.cross_attention_dim)
    factor = 2 ** (len(reference.config.conditioning_embedding_out_channels) - 1)
    picture = torch.rand(2, reference.config.conditioning_channels, height * factor, width * factor)
    t = torch.tensor([981.0, 20.0])
    down, middle = model(x, t, context, model.embed(picture))
    expected = reference(x, t, encoder_hidden_states=context, controlnet_cond=picture)
    assert all(state.std() > 0.1 for state in expected.down_block_res_samples)
    torch.testing.assert_close(down, expected.down_block_res_samples, **TOLERANCE)
    torch.testing.assert_close(middle, expected.mid_block_res_sample, **TOLERANCE)
    assert len(down) == len(model.config.skip_channels)
    if unet is None:
        return
    theirs, ours = unet
    made = ours(x, t, context, down, middle)
    wanted = theirs(
        x,
        t,
        encoder_hidden_states=context,
        down_block_additional_residuals=expected.down_block_res_samples,
        mid_block_additional_residual=expected.mid_block_res_sample,
    ).sample
    torch.testing.assert_close(made, wanted, **TOLERANCE)
    assert (made - ours(x, t, context)).abs().max() > 0.1
    without = [ours(x, t, context, down_residuals=down), ours(x, t, context, mid_residual=middle)]
    assert all((made - other).abs().max() > 1e-3 for other in without)


def test_equals_diffusers(tmp_path):
    reference, model = make_controlnet(tmp_path / "c"), load(tmp_path / "c")
    unet = make_unet(tmp_path / "u"), load(tmp_path / "u")
    check(reference, model, unet)
    check(reference, model, unet, height=9, width=13)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_linear_projection": True, "attention_head_dim": [1, 2, 4, 4], "cross_attention_dim": 32},  # SD 2.1
        {"controlnet_conditioning_channel_order": "bgr", "flip_sin_to_cos": False, "freq_shift": 1},
        {"global_pool_conditions": True, "addition_embed_type_num_heads": 64, "mid_block_type": "UNetMidBlock2D"},
        {"conditioning_embedding_out_channels": [8, 16], "conditioning_channels": 1, "layers_per_block": 1},
        {"resnet_time_scale_shift": "scale_shift", "transformer_layers_per_block": 2, "mid_block_scale_factor": 1.5},
        {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "block_out_channels": [16, 40]},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_configs(tmp_path, changes):
    reference = make_controlnet(tmp_path, changes)
    check(reference, load(tmp_path))


def test_half_precision_file(tmp_path):
    reference = make_controlnet(tmp_path, variant="fp16")
    check(reference, load(tmp_path, dtype=torch.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"addition_embed_type": "text_image"}, "addition_embed_type = 'text_image'"),
        ({"encoder_hid_dim": 4096}, "encoder_hid_dim = 4096"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"only_cross_attention": True}, "only_cross_attention = True"),
        ({"controlnet_conditioning_channel_order": "hsv"}, "channel_order = 'hsv'"),
        ({"conditioning_embedding_out_channels": 16}, "conditioning_embedding_out_channels"),
        ({"conditioning_embedding_out_channels": [16, 10**6]}, "conditioning_embedding_out_channels"),
        ({"conditioning_channels": 10**6}, "conditioning_channels"),
        ({"global_pool_conditions": "yes"}, "neither true nor false"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types"),
        ({"center_input_sample": True}, "center_input_sample"),
        ({"down_block_types": 4}, "down_block_types"),
        ({"strange": 1}, "strange = 1"),
    ],
)  # fmt: skip
def test_refused_by_name(changes, message):
    with pytest.raises(GencliError, match=message):
        ControlNetConfig.from_dict({**CONTROLNET, **changes})
