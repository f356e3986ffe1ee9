"""The parts of systems of several stages against diffusers and transformers: UNets with residual blocks that change the
size and attention with added keys, T5; small, and by name and shape in the sizes of the hub."""

import pytest
import torch

from gencli.checkpoints.build import load
from gencli.models import architecture
from tests.oracles.libraries import diffusers, transformers
from tests.tiny.systems import IF, RESNETS, T5, make_t5, make_unet

TOLERANCE = {"atol": 5e-5, "rtol": 1e-5}
KARLO = RESNETS | {"class_embed_type": "identity"}
X4 = RESNETS | {
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "block_out_channels": [16, 32, 32],
    "in_channels": 7,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": 1000,
    "only_cross_attention": [True, True, False],
    "out_channels": 4,
    "resnet_time_scale_shift": "default",
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
UNCLIP = X4 | {
    "class_embed_type": "projection",
    "in_channels": 4,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": 24,
}
KANDINSKY = RESNETS | {
    "addition_embed_type": "image",
    "encoder_hid_dim": 24,
    "encoder_hid_dim_type": "image_proj",
    "in_channels": 4,
    "out_channels": 8,
}
LABELS = {
    "karlo": torch.randn(2, 64, generator=torch.Generator().manual_seed(5)),
    "II": torch.tensor([250, 90]),
    "x4": torch.tensor([20, 350]),
    "unclip": torch.randn(2, 24, generator=torch.Generator().manual_seed(6)),
}


@pytest.mark.parametrize("size", [(16, 24), (8, 8)])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("karlo", KARLO),
        ("I", IF["I"]),
        ("II", IF["II"]),
        ("x4", X4),
        ("unclip", UNCLIP),
        ("kandinsky", KANDINSKY),
        ("mixed", KARLO | {"class_embed_type": None, "only_cross_attention": [False, True]}),
        ("mid", IF["II"] | {"mid_block_only_cross_attention": False, "class_embed_type": None}),
    ],
)
@torch.no_grad()
def test_unet_equals_diffusers(tmp_path, kind, config, size):
    reference, model = make_unet(tmp_path, config), load(tmp_path)
    torch.manual_seed(1)
    x, t = torch.randn(2, config["in_channels"], *size), torch.tensor([981.0, 20.0])
    context = torch.randn(2, 9, config.get("encoder_hid_dim") or config["cross_attention_dim"])
    labels = LABELS.get(kind)
    made_from = {"class_labels": labels} if labels is not None else {}
    given, theirs = {**made_from, "encoder_hidden_states": context}, {**made_from, "encoder_hidden_states": context}
    if kind == "kandinsky":
        given, theirs = {"image_embeds": context[:, 0]}, {"added_cond_kwargs": {"image_embeds": context[:, 0]}}
        theirs["encoder_hidden_states"] = None
    if kind == "karlo":
        given["attention_mask"] = theirs["encoder_attention_mask"] = torch.arange(9) < torch.tensor([[9], [4]])
    expected = reference(x, t, **theirs).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(model(x, t, **given), expected, **TOLERANCE)
    for name, value in given.items():  # each of them tells
        assert (model(x, t, **given | {name: value.flip(0)}) - expected).abs().max() > 1e-3, name


@torch.no_grad()
def test_unet_of_odd_sizes(tmp_path):
    """Residual blocks that go up reach the size that was halved, where the reference fails."""
    make_unet(tmp_path, KARLO)
    model, labels = load(tmp_path), LABELS["karlo"]
    x, context = torch.randn(2, 3, 9, 13), torch.randn(2, 5, 32)
    assert model(x, torch.tensor([5.0]), context, class_labels=labels).shape == (2, 6, 9, 13)


@torch.no_grad()
def test_unet_without_text_equals_diffusers(tmp_path):
    """Karlo's upscaler: residual blocks alone, no attention."""
    config = {
        "add_attention": False,
        "block_out_channels": [16, 32],
        "down_block_types": ["ResnetDownsampleBlock2D"] * 2,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 6,
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "out_channels": 3,
        "sample_size": 32,
        "up_block_types": ["ResnetUpsampleBlock2D"] * 2,
    }
    reference, model = make_unet(tmp_path, config, cls="UNet2DModel"), load(tmp_path)
    x, t = torch.randn(2, 6, 16, 24), torch.tensor([981.0, 20.0])
    torch.testing.assert_close(model(x, t), reference(x, t).sample, **TOLERANCE)


@torch.no_grad()
def test_t5_equals_transformers(tmp_path):
    reference, model = make_t5(tmp_path), load(tmp_path)
    torch.manual_seed(1)
    ids, lengths = torch.randint(0, 512, (3, 150)), torch.tensor([[150], [1], [60]])
    mask = torch.arange(150) < lengths
    expected = reference(ids, attention_mask=mask.long()).last_hidden_state
    assert expected.std() > 0.1
    torch.testing.assert_close(model(ids, mask)[mask], expected[mask], **TOLERANCE)
    make_t5(tmp_path / "half", variant="fp16")
    half = load(tmp_path / "half", dtype=torch.float32, layerwise_casting=True)
    torch.testing.assert_close(half(ids, mask)[mask], expected[mask], atol=0.05, rtol=0.05)


IF_I_XL = IF["I"] | {
    "addition_embed_type_num_heads": 64,
    "attention_head_dim": 64,
    "block_out_channels": [704, 1408, 2112, 2816],
    "cross_attention_dim": 2816,
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "layers_per_block": 3,
    "norm_num_groups": 32,
    "sample_size": 64,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
}
IF_I_M = IF_I_XL | {"block_out_channels": [192, 384, 576, 768], "cross_attention_dim": 768}
IF_II_L = IF_I_XL | {
    "block_out_channels": [160, 320, 640, 960, 1280],
    "class_embed_type": "timestep",
    "cross_attention_dim": 1536,
    "down_block_types": ["ResnetDownsampleBlock2D"] * 3 + ["SimpleCrossAttnDownBlock2D"] * 2,
    "in_channels": 6,
    "layers_per_block": [2, 2, 3, 5, 5],
    "mid_block_scale_factor": 1.4142135623730951,
    "only_cross_attention": True,
    "resnet_out_scale_factor": 1.4142135623730951,
    "resnet_skip_time_act": True,
    "sample_size": 256,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 1280,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 2 + ["ResnetUpsampleBlock2D"] * 3,
}
IF_II_M = IF_II_L | {
    "block_out_channels": [160, 320, 480, 640, 640],
    "cross_attention_dim": 768,
    "time_embedding_dim": 640,
}
T5_XXL = T5 | {"d_ff": 10240, "d_kv": 64, "d_model": 4096, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}


SIZES = {
    "if-i-xl": (IF_I_XL, 4305),
    "if-i-m": (IF_I_M, 372),
    "if-ii-l": (IF_II_L, 1198),
    "if-ii-m": (IF_II_M, 448.9),
    "t5-xxl": (T5_XXL, 4762.3),
}


@pytest.mark.parametrize(("config", "millions"), SIZES.values(), ids=SIZES)
def test_names_and_shapes(config, millions):
    """In the sizes of the hub, without a number in them: every name, every shape, and how many there are."""
    name = config.get("model_type", "UNet2DConditionModel")
    module = architecture(name)
    with torch.device("meta"):
        ours = module.Model(module.Config.from_dict(config)).state_dict()
        if name == "t5":
            theirs = transformers.T5EncoderModel(transformers.T5Config(**config)).state_dict()
            theirs.pop("encoder.embed_tokens.weight", None)  # `shared` again
        else:
            theirs = getattr(diffusers, name)(**config).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}
    assert sum(tensor.numel() for tensor in ours.values()) / 1e6 == pytest.approx(millions, rel=0.002)
