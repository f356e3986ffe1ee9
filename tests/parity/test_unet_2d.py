"""UNet2DModel against diffusers' own: DDPM checkpoints, small."""

import pytest
import torch
from safetensors.torch import load_file

from gencli.checkpoints.build import load
from gencli.errors import GencliError
from gencli.models.unet_2d import UNet2DConfig, UNet2DModel
from tests.tiny.image import DDPM, make_ddpm, make_unet_2d, old_attention_names

TOLERANCE = {"atol": 2e-5, "rtol": 0}


@torch.no_grad()
def check(reference, model, height=32, width=32):
    torch.manual_seed(1)
    x = torch.randn(2, reference.config.in_channels, height, width)
    t = torch.tensor([981.0, 20.0])
    made, expected = model(x, t), reference(x, t).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(made, expected, **TOLERANCE)


@pytest.mark.parametrize("old_names", [True, False], ids=["old", "new"])
def test_equals_diffusers_at_the_root(tmp_path, old_names):
    reference = make_ddpm(tmp_path, old_names=old_names, unet=DDPM).unet
    assert any(".proj_attn." in name for name in load_file(max(tmp_path.glob("*.safetensors")))) is old_names
    model = load(tmp_path)
    check(reference, model)
    check(reference, model, height=16, width=40)
    check(reference, model.to(memory_format=torch.channels_last))


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_head_dim": 8, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0},
        {"attention_head_dim": 16, "add_attention": False, "center_input_sample": True, "act_fn": "swish"},
        {"resnet_time_scale_shift": "scale_shift", "mid_block_scale_factor": 1.4142135623730951},
        {"attn_norm_num_groups": 4, "time_embedding_dim": 24, "dropout": 0.1, "num_train_timesteps": 1000},
        {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 16, "layers_per_block": 1},
        {"mid_block_type": None, "in_channels": 1, "out_channels": 2, "sample_size": [16, 32]},
        {
            "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D"],
            "block_out_channels": [24, 16],
        },
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_configs(tmp_path, changes):
    reference = make_unet_2d(tmp_path, changes)
    check(reference, load(tmp_path))


def test_half_precision_variant(tmp_path):
    reference = make_unet_2d(tmp_path, variant="fp16", names=old_attention_names)
    check(reference, load(tmp_path, dtype=torch.float32))


def test_sharded(tmp_path):
    reference = make_unet_2d(tmp_path, shards="200KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    check(reference, load(tmp_path))


def test_odd_sizes_keep_their_size(tmp_path):
    """diffusers cannot: its way up gives an even height to a level that had an odd one."""
    reference, model = make_unet_2d(tmp_path, {"downsample_padding": 1}), load(tmp_path)
    x = torch.randn(1, 3, 17, 30)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"), torch.no_grad():
        reference(x, 5)
    with torch.no_grad():
        assert model(x, torch.tensor([5.0])).shape == x.shape


def test_dropout_in_training_alone():
    torch.manual_seed(0)
    model = UNet2DModel(UNet2DConfig.from_dict(DDPM | {"dropout": 0.5}))
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([5.0])
    with torch.no_grad():
        assert not torch.equal(model.train()(x, t), model(x, t))
        assert torch.equal(model.eval()(x, t), model(x, t))


def test_gradients_reach_every_weight():
    torch.manual_seed(0)
    model = UNet2DModel(UNet2DConfig.from_dict(DDPM))
    model(torch.randn(1, 3, 16, 16), torch.tensor([500.0])).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert name.endswith("to_k.bias") or parameter.grad.abs().sum() > 0, name  # softmax cancels that one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_class_embeds": 10**6}, "num_class_embeds = 1000000"),
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier'"),
        ({"time_embedding_type": "learned"}, "time_embedding_type = 'learned'"),
        ({"downsample_type": "resnet"}, "downsample_type = 'resnet'"),
        ({"upsample_type": "resnet"}, "upsample_type = 'resnet'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift = 'spatial'"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "UNetMidBlock2DCrossAttn"),
        ({"down_block_types": ["SkipDownBlock2D"] * 4}, "SkipDownBlock2D"),
        ({"up_block_types": ["SkipUpBlock2D"] * 4}, "SkipUpBlock2D"),
        ({"act_fn": "mish"}, "act_fn = 'mish'"),
        ({"attention_head_dim": 5}, "attention_head_dim = 5"),
        ({"attention_head_dim": [8, 8, 8, 8]}, "attention_head_dim"),
        ({"attn_norm_num_groups": 5}, "attn_norm_num_groups = 5"),
        ({"layers_per_block": 10**6}, "layers_per_block"),
        ({"block_out_channels": [2**30] * 4}, "block_out_channels"),
        ({"norm_num_groups": None}, "norm_num_groups"),
        ({"dropout": 2.0}, "dropout"),
        ({"add_attention": 1}, "add_attention"),
    ],
)
def test_refused_by_name(changes, message):
    with pytest.raises(GencliError, match=message):
        UNet2DConfig.from_dict({**DDPM, **changes})
