"""AutoencoderKL against diffusers' own, from files in every layout that the hub has."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.build import load
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.models.autoencoder_blocks import _fade, _spans
from gencli.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from tests.tiny.image import make_vae, old_attention_names

TOLERANCE = {"atol": 2e-5, "rtol": 0}
SHAPE = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [16, 32, 32],
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "sample_size": 64,
}


def make(folder, **changes):
    return make_vae(folder, SHAPE | changes)


@torch.no_grad()
def check(reference, model, height=40, width=64):
    torch.manual_seed(1)
    x = torch.randn(2, 3, height, width)
    mean, logvar = model.encode(x)
    expected = reference.encode(x).latent_dist
    torch.testing.assert_close(mean, expected.mean, **TOLERANCE)
    torch.testing.assert_close(logvar, expected.logvar, **TOLERANCE)
    z = torch.randn_like(mean)
    torch.testing.assert_close(model.decode(z), reference.decode(z).sample, **TOLERANCE)
    torch.testing.assert_close(model(x), reference(x).sample, **TOLERANCE)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16, "shift_factor": 0.1},
        {"mid_block_add_attention": False},
        {
            "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D", "AttnUpDecoderBlock2D"],
        },
        {"layers_per_block": 1, "act_fn": "swish", "latents_mean": None, "latents_std": None},
        {"block_out_channels": [8, 16, 24], "in_channels": 1, "out_channels": 1},
    ],
)
def test_equals_diffusers(tmp_path, changes):
    reference = make(tmp_path, **changes)
    model = load(tmp_path)
    assert model.config.scaling_factor == 0.18215
    if changes.get("in_channels") == 1:
        x = torch.randn(1, 1, 16, 24)
        with torch.no_grad():
            torch.testing.assert_close(model(x), reference(x).sample, **TOLERANCE)
    else:
        check(reference, model)


def test_sizes_that_do_not_divide(tmp_path):
    check(make(tmp_path), load(tmp_path), height=41, width=50)


def test_old_attention_names(tmp_path):
    reference = make_vae(tmp_path, SHAPE, names=old_attention_names)
    assert any(".proj_attn." in name for name in load_file(tmp_path / "diffusion_pytorch_model.safetensors"))
    check(reference, load(tmp_path))


@pytest.mark.parametrize("old", [True, False], ids=["old", "new"])
def test_attention_as_convolutions(tmp_path, old):
    """Latent Diffusion's own autoencoders hold the projections as 1×1 convolutions."""

    def names(name, tensor):
        conv = ".attentions." in name and tensor.ndim == 2
        return old_attention_names(name, tensor)[0] if old else name, tensor[:, :, None, None] if conv else tensor

    check(make_vae(tmp_path, SHAPE, names=names), load(tmp_path))


def test_two_names_of_one_tensor(tmp_path):
    make(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    same = "encoder.mid_block.attentions.0.{}.weight"
    save_file(tensors | {same.format("query"): tensors[same.format("to_q")].clone()}, file)
    with pytest.raises(GencliError, match="two tensors"):
        load(tmp_path)


def test_sharded(tmp_path):
    reference = make_vae(tmp_path, SHAPE, shards="300KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    check(reference, load(tmp_path))


def test_half_precision_variant(tmp_path):
    reference = make_vae(tmp_path, SHAPE, variant="fp16", names=old_attention_names)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["diffusion_pytorch_model.fp16.safetensors"]
    check(reference, load(tmp_path, dtype=torch.float32))
    assert load(tmp_path, tensors=open_tensors(tmp_path, "fp16")).decoder.conv_in.weight.dtype == torch.float16


def test_channels_last(tmp_path):
    reference = make(tmp_path)
    check(reference, load(tmp_path).to(memory_format=torch.channels_last))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    return make(folder), load(folder)


@torch.no_grad()
def test_tiles_of_one_row_equal_diffusers(pair):
    """Along one side diffusers' fading is the same; at corners it lets one tile in twice."""
    reference, model = pair
    torch.manual_seed(2)
    z = torch.randn(1, 4, 12, 28)  # tiles of 16 that share 4: ours are two, diffusers adds one of the last 4 alone
    reference.enable_tiling()
    reference.tile_latent_min_size, reference.tile_sample_min_size = 16, 64
    expected = reference.tiled_decode(z).sample[..., : 24 * 4]
    reference.disable_tiling()
    torch.testing.assert_close(model.decode_tiled(z, 16, 4)[..., : 24 * 4], expected, **TOLERANCE)


@torch.no_grad()
def test_tiles_are_the_mean_of_their_pictures(pair):
    _, model = pair
    z = torch.randn(2, 4, 18, 27)
    torch.testing.assert_close(model.decode_tiled(z, 32, 8), model.decode(z), atol=0, rtol=0)
    whole = model.decode_tiled(z, 12, 4)
    assert whole.shape == (2, 3, 72, 108)
    # a place that only the first tile covers, and one in the middle of what two tiles share
    first, second = model.decode(z[:, :, :12, :12]), model.decode(z[:, :, :12, 8:20])
    torch.testing.assert_close(whole[:, :, :32, :32], first[:, :, :32, :32], **TOLERANCE)
    middle = (first[:, :, :32, 40] + second[:, :, :32, 8]) / 2
    torch.testing.assert_close(whole[:, :, :32, 40], middle, **TOLERANCE)
    four = [model.decode(z[:, :, y : y + 12, x : x + 12])[:, :, 40 - 4 * y, 40 - 4 * x] for y in (0, 8) for x in (0, 8)]
    corner = sum(four) / 4
    torch.testing.assert_close(whole[:, :, 40, 40], corner, **TOLERANCE)
    for tile, overlap in ((16, 9), (16, -1), (0, 0)):
        with pytest.raises(ValueError, match="overlap"):
            model.decode_tiled(z, tile, overlap)


@pytest.mark.parametrize("size", [1, 5, 16, 17, 28, 29, 100])
@pytest.mark.parametrize("overlap", [0, 4, 8])
def test_weights_of_tiles_sum_to_one(size, overlap):
    total = torch.zeros(size * 2)
    for start, end in _spans(size, 16, overlap):
        total[start * 2 : end * 2] += _fade(start, end, size, overlap, 2)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_gradients_reach_every_weight():
    torch.manual_seed(0)
    model = AutoencoderKL(AutoencoderKLConfig.from_dict(SHAPE))
    x = torch.randn(1, 3, 16, 16)
    mean, logvar = model.encode(x)
    (model.decode(mean + torch.exp(0.5 * logvar)) - x).square().mean().backward()
    # softmax does not see what all keys share
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if not name.endswith("to_k.bias"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents_mean": [0.0] * 4}, "latents_std = None"),
        ({"act_fn": "relu"}, "act_fn = 'relu'"),
        ({"norm_type": "spatial"}, "norm_type = 'spatial'"),
        ({"down_block_types": ["DownBlock2D"] * 3}, "DownBlock2D"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 2}, "up_block_types has 2"),
        ({"block_out_channels": [16, 32, 36]}, "36"),
        ({"block_out_channels": [16, 32, 2**40]}, "out of range"),
        ({"layers_per_block": 10**9}, "layers_per_block"),
        ({"latent_channels": None}, "latent_channels"),
        ({"use_quant_conv": "no"}, "use_quant_conv"),
        ({"scaling_factor": "big"}, "scaling_factor"),
        ({"scaling_factor": float("nan")}, "scaling_factor"),
        ({"sample_size": [1, 2, 3]}, "sample_size"),
        ({"block_out_channels": 16}, "block_out_channels"),
        ({"block_out_channels": []}, "block_out_channels"),
    ],
)
def test_refused_by_name(changes, message):
    with pytest.raises(GencliError, match=message):
        AutoencoderKLConfig.from_dict({**SHAPE, **changes})


def test_config_of_another_shape(tmp_path):
    make(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "latent_channels": 8}))
    with pytest.raises(GencliError, match="does not fit its config"):
        load(tmp_path)
