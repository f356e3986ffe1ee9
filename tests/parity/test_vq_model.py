"""VQModel against diffusers' own, as a part of Latent Diffusion and as a model of its own."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from gencli.checkpoints.build import load
from gencli.checkpoints.find import Source
from gencli.checkpoints.report import check as check_checkpoint
from gencli.checkpoints.report import describe
from gencli.errors import GencliError
from gencli.image.codes import open_codec, parse, to_text
from gencli.image.files.pictures import from_picture, to_picture
from gencli.models.vq_model import VQModelConfig
from tests.tiny import dvae
from tests.tiny.image import old_attention_names
from tests.tiny.ldm import VQ, make_vqvae

TOLERANCE = {"atol": 2e-5, "rtol": 0}


def pictures(height=32, width=48):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


@torch.no_grad()
def their_codes(reference, x):
    latents = reference.encode(x).latents
    return reference.quantize(latents)[2][2].view(len(x), *latents.shape[2:])


@torch.no_grad()
def check(reference, model, **size):
    x = pictures(**size)
    latents = reference.encode(x).latents
    torch.testing.assert_close(model.encode(x), latents, **TOLERANCE)
    expected = reference.decode(latents).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(model.decode(latents), expected, **TOLERANCE)
    torch.testing.assert_close(model(x), reference(x).sample, **TOLERANCE)
    assert torch.equal(model.codes(x), their_codes(reference, x))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vq")
    return folder, make_vqvae(folder, names=old_attention_names)


def test_equals_diffusers(folder):
    path, reference = folder
    assert any(".proj_attn." in name for name in load_file(max(path.glob("*.safetensors"))))
    model = load(path)
    check(reference, model)
    check(reference, model, height=41, width=50)
    check(reference, model.to(memory_format=torch.channels_last))


@pytest.mark.parametrize(
    "changes",
    [
        {"vq_embed_dim": 5},
        {"latent_channels": 4, "scaling_factor": 0.3, "force_upcast": True, "norm_type": "group"},
        {"mid_block_add_attention": False, "lookup_from_codebook": True, "num_vq_embeddings": 1},
        {
            "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        },
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_configs(tmp_path, changes):
    reference = make_vqvae(tmp_path, changes)
    model = load(tmp_path)
    check(reference, model)
    assert model.config.scaling_factor == changes.get("scaling_factor", 1.0)


@torch.no_grad()
def test_pictures_to_codes_and_back(folder):
    """The codes are whole numbers, and say of the picture all that the decoder is told."""
    path, reference = folder
    model, x = load(path), pictures()
    codes = model.codes(x)
    assert codes.dtype == torch.int64
    assert codes.shape == (2, 8, 12)
    assert len(codes.unique()) > 8
    torch.testing.assert_close(model.decode_codes(codes), model(x), atol=0, rtol=0)
    quantised = reference.quantize.get_codebook_entry(codes.flatten(), (2, 8, 12, 3))
    expected = reference.decode(quantised, force_not_quantize=True).sample
    torch.testing.assert_close(model.decode_codes(codes), expected, **TOLERANCE)
    assert torch.equal(model.quantize.codes(model.quantize.entries(codes)), codes)


def test_a_codec(folder, tmp_path):
    """`gencli codes`' own: of a model alone, and of the pipeline that has it."""
    path, reference = folder
    codec = open_codec(Source("vq", path, "folder"), device="cpu")
    assert (codec.factor, codec.entries) == (4, 64)
    image = to_picture(pictures(32, 48)[0])
    codes = codec.read(image)
    assert codes == their_codes(reference, from_picture(image))[0].tolist()
    painted = np.asarray(codec.paint(codes)).astype(int)
    with torch.no_grad():
        theirs = np.asarray(to_picture(reference(from_picture(image)).sample[0])).astype(int)
    assert np.abs(painted - theirs).max() <= 1
    with pytest.raises(GencliError, match="it is 48x30, and vq reads multiples of 4") as error:
        codec.read(image.crop((0, 0, 48, 30)))
    assert "--size 48x32" in error.value.hint
    with pytest.raises(GencliError, match="there is no code 64"):
        codec.paint([[1, 64]])
    (tmp_path / "pipeline").mkdir()
    shutil.copytree(path, tmp_path / "pipeline/vqvae")
    assert open_codec(Source("ldm", tmp_path / "pipeline", "folder"), device="cpu").read(image) == codes


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (None, "holds no VQ autoencoder"),
        ('{"_class_name": "AutoencoderKL"}', "its AutoencoderKL is not a VQ autoencoder"),
    ],
)
def test_what_has_no_codes(tmp_path, config, match):
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(GencliError, match=match):
        open_codec(Source("x", tmp_path, "folder"))


def test_codes_in_a_text():
    rows = [[1, 22, 333], [4, 5, 6]]
    assert parse(to_text(rows)) == rows
    assert parse("1 22\t333\r\n\n 4 5 6") == rows
    assert parse(json.dumps({"path": "x", "codes": rows})) == rows


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no codes"),
        ("{", "is not valid JSON"),
        ('{"codes": 3}', "no codes"),
        ('{"codes": [[]]}', "no codes"),
        ('{"codes": [[true]]}', "'True' is not a code"),
        ("1 2\n3", "row 2 has 1 codes, and the first 2"),
        ("1 -2", "'-2' is not a code"),
        ("1 2.5", "'2.5' is not a code"),
        ("1 99999999999999999999", "is not a code"),
        ("0 " * 3000, "3000x1 codes are too many"),
    ],
)
def test_what_are_no_codes(text, match):
    with pytest.raises(GencliError, match=match):
        parse(text)


@pytest.mark.parametrize("wrong", [-1, VQ["num_vq_embeddings"]])
def test_codes_that_no_entry_has(folder, wrong):
    with pytest.raises(ValueError, match="codes must be from 0 to 63"):
        load(folder[0]).decode_codes(torch.tensor([[[wrong]]]))


@torch.no_grad()
def test_large_pictures_are_compared_in_parts(folder, monkeypatch):
    model = load(folder[0])
    whole = model.codes(pictures())
    monkeypatch.setattr("gencli.models.vq_model.ROWS", 7)
    assert torch.equal(model.codes(pictures()), whole)


@torch.no_grad()
def test_tiles(folder):
    model = load(folder[0])
    z = torch.randn(1, 3, 12, 9)
    torch.testing.assert_close(model.decode_tiled(z), model.decode(z), atol=0, rtol=0)
    assert model.decode_tiled(z, tile=8, overlap=2).shape == (1, 3, 48, 36)


def test_models_show_and_check(folder):
    source = Source("vq", folder[0], "folder")
    described = describe(source)
    assert (described.kind, described.family, described.problem) == ("part", "VQModel", None)
    assert described.parameters == sum(p.numel() for p in folder[1].parameters())
    assert check_checkpoint(source).problems == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_type": "layer"}, "norm_type = 'layer' is not supported"),
        ({"num_vq_embeddings": 2**40}, "num_vq_embeddings"),
        ({"num_vq_embeddings": True}, "num_vq_embeddings"),
        ({"vq_embed_dim": 0}, "vq_embed_dim"),
        ({"scaling_factor": 0}, "scaling_factor"),
        ({"lookup_from_codebook": "no"}, "lookup_from_codebook"),
        ({"down_block_types": ["DownBlock2D"] * 3}, "DownBlock2D"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types has 1"),
        ({"ema_decay": 0.9}, "ema_decay = 0.9"),
    ],
)
def test_refused_by_name(changes, message):
    with pytest.raises(GencliError, match=message):
        VQModelConfig.from_dict({**VQ, **changes})


def test_a_codebook_of_another_size(tmp_path):
    make_vqvae(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"num_vq_embeddings": 64', '"num_vq_embeddings": 65'))
    with pytest.raises(GencliError, match=r"quantize.embedding.weight is \[64, 3\], not \[65, 3\]"):
        load(tmp_path)


# diffusers' names → those of taming-transformers, where the decoder's levels count from the image
TAMING = (
    (r"decoder\.up_blocks\.(\d+)", lambda found: f"decoder.up.{1 - int(found[1])}"),
    (r"encoder\.down_blocks\.", "encoder.down."),
    (r"\.resnets\.(\d+)\.", r".block.\1."),
    (r"mid_block\.block\.0\.", "mid.block_1."),
    (r"mid_block\.block\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"\.attentions\.(\d+)\.", r".attn.\1."),
    (r"(attn(?:_1|\.\d+))\.group_norm", r"\1.norm"),
    (r"(attn(?:_1|\.\d+))\.to_(q|k|v)", r"\1.\2"),
    (r"(attn(?:_1|\.\d+))\.to_out\.0", r"\1.proj_out"),
    (r"samplers\.0\.conv", "sample.conv"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def taming(name, tensor):
    for pattern, new in TAMING:
        name = re.sub(pattern, new, name)
    one_by_one = re.search(r"attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight", name)
    return name, tensor[..., None, None] if one_by_one else tensor


def make_vqgan(folder):
    """last.ckpt of a VQGAN with attention in its lower level, and what trained it; the reference."""
    changes = {"block_out_channels": [32, 64], "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}
    changes |= {"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"], "norm_num_groups": 32}
    reference = make_vqvae(folder / "diffusers", changes)
    state = dict(taming(name, tensor) for name, tensor in reference.state_dict().items())
    state |= {"loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)}
    torch.save({"epoch": 3, "state_dict": state}, folder / "last.ckpt")
    return reference


def test_taming_transformers_file(tmp_path):
    reference = make_vqgan(tmp_path)
    source = Source("vqgan", tmp_path / "last.ckpt", "file")
    codec = open_codec(source, device="cpu", allow_pickle=True)
    check(reference, codec.module)
    what = describe(source, allow_pickle=True)
    assert (what.kind, what.family, what.problem) == ("part", "VQModel", None)
    assert check_checkpoint(source, allow_pickle=True).problems == ()
    with pytest.raises(GencliError, match="is a pickle"):
        open_codec(source)
    state = torch.load(tmp_path / "last.ckpt")["state_dict"]
    state["quantize.embed.weight"] = state.pop("quantize.embedding.weight")
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    with pytest.raises(GencliError, match=r"its quantiser is not supported: quantize\.embed\.weight"):
        open_codec(source, allow_pickle=True)


def test_the_discrete_autoencoder_of_dalle(tmp_path):
    """Pickles of whole modules: their parameters are read, and their classes are never looked for."""
    tensors = dvae.make_dvae(tmp_path)
    source = Source("dvae", tmp_path, "folder")
    codec = open_codec(source, device="cpu", allow_pickle=True)
    assert (codec.factor, codec.entries) == (8, dvae.ENTRIES)
    squares = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(squares.repeat(16, 0).repeat(16, 1))
    x = torch.from_numpy(np.asarray(picture) / np.float32(255)).movedim(2, 0)[None]
    wanted = dvae.run(tensors, "encoder", 0.8 * x + 0.1).argmax(1)[0]
    assert codec.read(picture) == wanted.tolist() and len(wanted.unique()) > 2
    rows = F.one_hot(wanted, dvae.ENTRIES).float().movedim(-1, 0)[None]
    pixels = ((dvae.run(tensors, "decoder", rows)[0, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1) * 255
    assert np.abs(np.asarray(codec.paint(wanted.tolist())) - pixels.movedim(0, -1).numpy()).max() <= 1
    what = describe(source, allow_pickle=True)
    assert (what.kind, what.family, what.parameters) == ("part", "dall_e", sum(one.numel() for one in tensors.values()))
    assert check_checkpoint(source, allow_pickle=True).problems == ()
    with pytest.raises(GencliError, match=r"encoder\.pkl is not a \.safetensors file"):
        open_codec(source)


@pytest.mark.parametrize(("half", "millions"), [("encoder", 53.79), ("decoder", 43.83)])
def test_the_published_size_of_dalles(half, millions):
    from gencli.models.dvae import Config, Model

    with torch.device("meta"):
        model = Model(Config.from_dict({"model_type": "dall_e"}))
    count = sum(one.numel() for name, one in model.named_parameters() if name.startswith(half))
    assert count / 1e6 == pytest.approx(millions, abs=0.01)
