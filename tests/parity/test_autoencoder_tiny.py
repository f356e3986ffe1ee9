"""The tiny autoencoder against diffusers: alone, in the place of a model's own, and for what is seen on the way."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.build import load as load_part
from gencli.checkpoints.find import Source
from gencli.cli.models_settings import belongs_to
from gencli.errors import GencliError
from gencli.image.files.pictures import to_picture
from gencli.image.generate import Denoised, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import notes, resolve
from gencli.models import architecture
from tests.oracles.libraries import diffusers
from tests.oracles.pipelines import PROMPT, SIZE, assert_same, draw, generator, picture, with_scheduler
from tests.tiny.hub_cache import COMMIT, put
from tests.tiny.image import make_stable_diffusion, make_tiny_vae

VALUES = {"prompt": PROMPT, "steps": 2, "strength": 0.6, **SIZE}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def sd(root):
    return root / "sd", make_stable_diffusion(root / "sd")


@pytest.fixture(scope="module")
def tiny(root):
    return root / "taesd", make_tiny_vae(root / "taesd")


@torch.no_grad()
def test_equals_diffusers(tiny):
    model, reference = load_part(tiny[0]), tiny[1]
    torch.manual_seed(1)
    x, z = torch.rand(2, 3, 48, 32) * 2 - 1, 4 * torch.randn(2, 4, 6, 5)
    for ours, theirs in ((model.encode(x), reference.encode(x).latents), (model.decode(z), reference.decode(z).sample)):
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode_tiled(z), model.decode(z))


@pytest.mark.parametrize(("changes", "millions"), [({}, 2.445), ({"latent_channels": 16}, 2.459)])
def test_names_and_shapes(changes, millions):
    module = architecture("AutoencoderTiny")
    with torch.device("meta"):
        ours = module.Model(module.Config.from_dict(changes)).state_dict()
        theirs = diffusers.AutoencoderTiny(**changes).state_dict()
    assert {name: one.shape for name, one in ours.items()} == {name: one.shape for name, one in theirs.items()}
    assert sum(one.numel() for one in ours.values()) / 1e6 == pytest.approx(millions, abs=0.001)


def opened(folder, vae=None):
    return open_image_checkpoint(Source("sd", folder, "folder"), vae=vae and Source(str(vae), vae, "folder"))


def test_in_the_place_of_the_models_own(sd, tiny):
    """It reads latents as the network knows them, and its own are certain: no noise is drawn for them."""
    ours = draw(None, init=picture(), pipeline=load(opened(sd[0], tiny[0]), device="cpu"), **VALUES)[0].image
    theirs = with_scheduler(sd[1], "ddim", kind=diffusers.StableDiffusionImg2ImgPipeline)
    theirs.register_modules(vae=tiny[1])
    theirs = theirs(PROMPT, image=picture(), strength=0.6, num_inference_steps=2, generator=generator()).images[0]
    assert_same(ours, theirs)


def test_from_a_file(sd, tiny, tmp_path):
    """Its shapes tell its config, and the scaling of the model's own is not taken over."""
    file = shutil.copy(tiny[0] / "diffusion_pytorch_model.safetensors", tmp_path / "taesd.safetensors")
    source = Source("taesd.safetensors", tmp_path / "taesd.safetensors", "file")
    ours = open_image_checkpoint(Source("sd", sd[0], "folder"), vae=source)
    folder = opened(sd[0], tiny[0])
    module = architecture("AutoencoderTiny").Config
    assert module.from_dict(ours.configs["vae"]) == module.from_dict(folder.configs["vae"])
    made = [load(one, device="cpu").codec.vae.state_dict() for one in (ours, folder)]
    assert all(torch.equal(tensor, made[1][name]) for name, tensor in made[0].items()), file
    for change in ({"decoder.layers.0.weight": torch.zeros(3)}, {"encoder.layers.x.weight": torch.zeros(3)}):
        save_file(load_file(file) | change, tmp_path / "odd.safetensors")
        with pytest.raises(GencliError):
            load(
                open_image_checkpoint(
                    Source("sd", sd[0], "folder"), vae=Source("odd", tmp_path / "odd.safetensors", "file")
                )
            )


@torch.no_grad()
def test_from_the_two_files_of_its_author(sd, tiny, tmp_path):
    """taesd_encoder and taesd_decoder, whichever is named; the decoder's layers count from 1 there."""
    whole = load_file(tiny[0] / "diffusion_pytorch_model.safetensors")
    for half, first in (("encoder", 0), ("decoder", 1)):
        state = {}
        for name, tensor in whole.items():
            if name.startswith(half):
                number, _, rest = name.removeprefix(f"{half}.layers.").partition(".")
                state[f"{int(number) + first}.{rest}"] = tensor
        save_file(state, tmp_path / f"taesd_{half}.safetensors")
        torch.save(state, tmp_path / f"taesd_{half}.pth")
    for name in ("taesd_decoder.safetensors", "taesd_encoder.safetensors", "taesd_decoder.pth"):
        given = {"vae": Source(name, tmp_path / name, "file"), "allow_pickle": name.endswith(".pth")}
        pipeline = load(open_image_checkpoint(Source("sd", sd[0], "folder"), **given), device="cpu")
        made = pipeline.codec.vae.state_dict()
        assert made.keys() == whole.keys() and all(torch.equal(made[name], whole[name]) for name in whole)
    with pytest.raises(GencliError, match="is a pickle"):
        open_image_checkpoint(Source("sd", sd[0], "folder"), vae=Source("x", tmp_path / "taesd_decoder.pth", "file"))
    (tmp_path / "taesd_encoder.safetensors").unlink()
    lone = Source("x", tmp_path / "taesd_decoder.safetensors", "file")
    with pytest.raises(GencliError, match=r"decoder of a tiny autoencoder alone: taesd_encoder\.safetensors must lie"):
        open_image_checkpoint(Source("sd", sd[0], "folder"), vae=lone)


def test_what_is_seen_on_the_way(sd, tiny, tmp_path, monkeypatch):
    """Where it is in the hub's cache, and only there; the finished image is the model's own."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    before = Source("sd", sd[0], "folder")
    assert "gencli models pull madebyollin/taesd" in belongs_to(before)
    assert load(opened(sd[0]), device="cpu", views=True).main.view.vae is not None
    files = {file.name: file.read_bytes() for file in tiny[0].iterdir()}
    folder = put(tmp_path, "madebyollin/taesd", COMMIT, files, "main")
    assert belongs_to(before) is None
    assert "Stable Diffusion 1 and 2" in belongs_to(Source("madebyollin/taesd", folder, "hub"))
    with_views, without = (load(opened(sd[0]), device="cpu", views=views) for views in (True, False))
    request = resolve(ImageRequest(seed=3, **VALUES | {"strength": None}), with_views.checkpoint)
    [*steps, last], [*_, plain] = (list(generate(pipeline, request)) for pipeline in (with_views, without))
    assert last.image.tobytes() == plain.image.tobytes()
    for step in steps:
        assert isinstance(step, Denoised)
        expected = to_picture(tiny[1].decode(step.x0).sample[0])
        assert_same(step.view.decode(step.x0), expected)
        assert step.codec is without.main.view or step.codec.vae is not step.view.vae
    assert without.main.view is without.main.codec


def test_what_does_not_fit(sd, tiny, tmp_path):
    """Another number of latent channels or of pixels is refused; another model's latents of as many are noted."""
    make_tiny_vae(tmp_path / "wide", latent_channels=16)
    small = {"encoder_block_out_channels": [64] * 3, "num_encoder_blocks": [1, 1, 1]}
    small |= {"decoder_block_out_channels": [64] * 3, "num_decoder_blocks": [1, 1, 1]}
    make_tiny_vae(tmp_path / "small", **small)
    with pytest.raises(GencliError, match="latents of 16 channels, and sd knows 4"):
        opened(sd[0], tmp_path / "wide")
    with pytest.raises(GencliError, match="has 4 pixels a side of a latent, and sd has 8"):
        opened(sd[0], tmp_path / "small")
    shutil.copytree(tiny[0], tmp_path / "taesdxl")
    request = ImageRequest(prompt="a", vae=str(tmp_path / "taesdxl"))
    checkpoint = opened(sd[0], tmp_path / "taesdxl")
    [note] = notes(request, resolve(request, checkpoint), checkpoint)
    assert "reads the latents of Stable Diffusion XL: images of sd may look wrong" in note
    with pytest.raises(GencliError, match="one width for every level"):
        architecture("AutoencoderTiny").Config.from_dict({"encoder_block_out_channels": [64, 64, 32, 64]})
