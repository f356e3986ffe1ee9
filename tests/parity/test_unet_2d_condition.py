"""UNet2DConditionModel against diffusers' own: Stable Diffusion 1 and 2, small."""

import pytest
import torch

from gencli.checkpoints.build import load
from gencli.errors import GencliError
from gencli.models.unet_2d_condition import UNet2DConditionConfig, UNet2DConditionModel
from tests.tiny.image import UNET, make_unet

TOLERANCE = {"atol": 2e-5, "rtol": 0}


@torch.no_grad()
def check(reference, model, height=16, width=16, tokens=9):
    torch.manual_seed(1)
    x = torch.randn(2, reference.config.in_channels, height, width)
    context = torch.randn(2, tokens, reference.config.cross_attention_dim)
    t = torch.tensor([981.0, 20.0])
    made = model(x, t, context)
    expected = reference(x, t, encoder_hidden_states=context).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(made, expected, **TOLERANCE)
    return made


@pytest.mark.parametrize("kind", ["sd15", "sd21"])
def test_equals_diffusers(tmp_path, kind):
    reference, model = make_unet(tmp_path, kind), load(tmp_path)
    made = check(reference, model)
    check(reference, model, height=8, width=24, tokens=77)
    check(reference, model.to(memory_format=torch.channels_last))
    # timesteps may be fractions, and the text must matter
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 5, reference.config.cross_attention_dim)
    with torch.no_grad():
        made = model(x, torch.tensor([500.25]), context)
        expected = reference(x, torch.tensor([500.25]), encoder_hidden_states=context).sample
        torch.testing.assert_close(made, expected, **TOLERANCE)
        assert (model(x, torch.tensor([500.25]), context.flip(0) + 1) - made).abs().max() > 1e-3


@pytest.mark.parametrize(("height", "width"), [(15, 16), (9, 13), (17, 31), (1, 3)])
def test_odd_sizes(tmp_path, height, width):
    reference = make_unet(tmp_path, "sd15")
    check(reference, load(tmp_path), height, width)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_linear_projection": True, "attention_head_dim": [2, 4, 8, 8]},
        {"downsample_padding": 0, "freq_shift": 1, "flip_sin_to_cos": False, "center_input_sample": True},
        {"mid_block_scale_factor": 1.5, "resnet_time_scale_shift": "scale_shift", "time_embedding_dim": 48},
        {"layers_per_block": 1, "transformer_layers_per_block": 2, "norm_eps": 1e-3, "act_fn": "swish"},
        {"layers_per_block": [1, 2, 1, 2], "transformer_layers_per_block": [1, 2, 3, 1]},
        {"only_cross_attention": [False] * 4, "cross_attention_dim": 40},
        {"mid_block_type": None, "in_channels": 9, "sample_size": [8, 16]},
        {"mid_block_type": "UNetMidBlock2D"},
        {
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "block_out_channels": [16, 40],
        },
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_configs(tmp_path, changes):
    reference = make_unet(tmp_path, "sd15", changes)
    check(reference, load(tmp_path))


def test_odd_sizes_with_padding_on_one_side(tmp_path):
    reference = make_unet(tmp_path, "sd15", {"downsample_padding": 0})
    check(reference, load(tmp_path), 18, 21)


def test_number_of_heads_by_its_later_name():
    raw = UNET["sd21"] | {"attention_head_dim": 8, "num_attention_heads": [1, 2, 4, 4]}
    assert UNet2DConditionConfig.from_dict(raw).heads == (1, 2, 4, 4)


def test_half_precision_variant(tmp_path):
    reference = make_unet(tmp_path, "sd15", variant="fp16")
    check(reference, load(tmp_path, dtype=torch.float32))


def test_sharded(tmp_path):
    reference = make_unet(tmp_path, "sd21", shards="1MB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    check(reference, load(tmp_path))


def test_bfloat16_runs(tmp_path):
    """Time is embedded in float32 first: a bfloat16 981 would be 980."""
    reference, model = make_unet(tmp_path, "sd15").bfloat16(), load(tmp_path, dtype=torch.bfloat16)
    torch.manual_seed(1)
    x, context = torch.randn(1, 4, 8, 8).bfloat16(), torch.randn(1, 5, 24).bfloat16()
    with torch.no_grad():
        made = model(x, torch.tensor([981.0]), context)
        expected = reference(x, torch.tensor([981]), encoder_hidden_states=context).sample
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made, expected, atol=0.05, rtol=0.05)


def test_gradients_reach_every_weight():
    torch.manual_seed(0)
    model = UNet2DConditionModel(UNet2DConditionConfig.from_dict(UNET["sd15"]))
    x = torch.randn(1, 4, 16, 16)  # so that the inmost attention has more than one place, which needs no query
    model(x, torch.tensor([500.0]), torch.randn(1, 5, 24)).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dual_cross_attention": True}, "dual_cross_attention = True"),
        ({"addition_embed_type": "text_image"}, "addition_embed_type = 'text_image'"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim = None"),
        ({"num_class_embeds": 2**20}, "num_class_embeds = 1048576"),
        ({"class_embed_type": "simple_projection"}, "class_embed_type = 'simple_projection'"),
        ({"class_embed_type": "projection"}, "projection_class_embeddings_input_dim = None"),
        ({"encoder_hid_dim_type": "text_image_proj"}, "encoder_hid_dim_type = 'text_image_proj'"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim = None"),
        ({"encoder_hid_dim": 40, "cross_attention_dim": [24] * 4}, "cross_attention_dim"),
        ({"addition_embed_type": "text", "addition_embed_type_num_heads": 5}, "addition_embed_type_num_heads"),
        ({"addition_embed_type": "image"}, "encoder_hid_dim = None"),
        ({"only_cross_attention": "yes"}, "only_cross_attention = 'yes'"),
        ({"only_cross_attention": [True, False, False]}, "only_cross_attention has 3 entries"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier'"),
        ({"time_cond_proj_dim": 2**20}, "time_cond_proj_dim = 1048576"),
        ({"timestep_post_act": "silu"}, "timestep_post_act"),
        ({"conv_in_kernel": 1}, "conv_in_kernel = 1"),
        ({"attention_type": "gated"}, "attention_type = 'gated'"),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift = 'ada_group'"),
        ({"resnet_skip_time_act": 1}, "resnet_skip_time_act"),
        ({"resnet_out_scale_factor": 0}, "resnet_out_scale_factor"),
        ({"time_embedding_act_fn": "sine"}, "time_embedding_act_fn"),
        ({"down_block_types": ["KDownBlock2D"] * 4}, "KDownBlock2D"),
        (
            {
                "down_block_types": ["SimpleCrossAttnDownBlock2D"] * 4,
                "attention_head_dim": 24,
                "num_attention_heads": 8,
            },
            "heads' size 24",
        ),
        ({"reverse_transformer_layers_per_block": [1, 1, 1]}, "reverse_transformer_layers_per_block has 3 entries"),
        ({"reverse_transformer_layers_per_block": [[1, 1], 1, 1, 1]}, "reverse_transformer_layers_per_block has .1"),
        ({"transformer_layers_per_block": [[1, 1], 1, 1, 1]}, "transformer_layers_per_block has .1, 1. for level 1"),
        ({"cross_attention_norm": "layer_norm"}, "cross_attention_norm = 'layer_norm'"),
        ({"cross_attention_norm": "group_norm"}, "cross_attention_dim = 24 is not a multiple of 32"),
        ({"act_fn": "mish"}, "act_fn = 'mish'"),
        ({"attention_head_dim": 3}, "no multiple of its 3 heads"),
        ({"attention_head_dim": [1, 2]}, "attention_head_dim has 2 entries"),
        ({"attention_head_dim": 0}, "attention_head_dim = 0"),
        ({"norm_num_groups": None}, "norm_num_groups"),
        ({"cross_attention_dim": 10**9}, "cross_attention_dim"),
        ({"transformer_layers_per_block": 10**6}, "transformer_layers_per_block"),
        ({"transformer_layers_per_block": [[1], 1, 1, 1]}, "transformer_layers_per_block"),
        ({"in_channels": [4, 4]}, "in_channels"),
        ({"time_embedding_dim": [4]}, "time_embedding_dim"),
        ({"mid_block_type": ["UNetMidBlock2D"]}, "mid_block_type"),
        ({"norm_eps": "small"}, "norm_eps"),
        ({"mid_block_scale_factor": 0}, "mid_block_scale_factor"),
        ({"down_block_types": None}, "down_block_types"),
    ],
)  # fmt: skip
def test_refused_by_name(changes, message):
    with pytest.raises(GencliError, match=message):
        UNet2DConditionConfig.from_dict({**UNET["sd15"], **changes})
