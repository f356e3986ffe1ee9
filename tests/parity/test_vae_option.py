"""Another autoencoder in the place of a checkpoint's own: as diffusers draws with it, from folders and files alike."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.find import Source
from gencli.errors import GencliError, UsageError
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from tests.oracles.pipelines import PROMPT, SIZE, assert_same, draw, generator, picture, with_scheduler
from tests.tiny.image import make_ddpm, make_stable_diffusion, make_text_encoder, make_vae
from tests.tiny.single import original_vae

VALUES = {"prompt": PROMPT, "steps": 2, "strength": 0.6, **SIZE}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("vae")


@pytest.fixture(scope="module")
def sd(root):
    return root / "sd", make_stable_diffusion(root / "sd")


@pytest.fixture(scope="module")
def vae(root):
    """Another one in a folder of its own, and the same in diffusers."""
    reference = make_vae(root / "vae", {"scaling_factor": 0.3, "layers_per_block": 2})
    return root / "vae", reference


def opened(folder, path):
    kind = "folder" if path.is_dir() else "file"
    checkpoint = open_image_checkpoint(Source("sd", folder, "folder"), vae=Source(str(path), path, kind))
    return load(checkpoint, device="cpu")


def drawn(folder, path):
    return draw(folder, init=picture(), pipeline=opened(folder, path), **VALUES)[0].image


def test_equals_diffusers(sd, vae):
    import diffusers

    (folder, pipe), (path, reference) = sd, vae
    ours = drawn(folder, path)
    theirs = with_scheduler(pipe, "ddim", kind=diffusers.StableDiffusionImg2ImgPipeline)
    theirs.register_modules(vae=reference)
    theirs = theirs(PROMPT, image=picture(), strength=0.6, num_inference_steps=2, generator=generator()).images[0]
    assert_same(ours, theirs)
    plain = draw(folder, init=picture(), **VALUES)[0].image
    assert plain.tobytes() != ours.tobytes()


def test_every_form_gives_the_same_pixels(sd, root, tmp_path):
    """A folder, a pipeline's, and files under both names: scaling and groups are those of the model's own there."""
    folder, _ = sd
    make_vae(tmp_path / "whole/vae", {"layers_per_block": 2})
    (tmp_path / "whole/model_index.json").write_text("{}")
    expected = drawn(folder, tmp_path / "whole")
    file = tmp_path / "whole/vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    originals = dict(original_vae(name, tensor, levels=4) for name, tensor in tensors.items())
    originals["loss.logvar"] = torch.zeros(())
    save_file(originals, tmp_path / "original.safetensors")
    save_file({f"first_stage_model.{name}": t for name, t in originals.items()}, tmp_path / "in.safetensors")
    torch.save({"state_dict": originals}, tmp_path / "original.ckpt")
    for path in (file, tmp_path / "whole/vae", tmp_path / "original.safetensors", tmp_path / "in.safetensors"):
        assert drawn(folder, path).tobytes() == expected.tobytes(), path
    source = Source("x", tmp_path / "original.ckpt", "file")
    with pytest.raises(GencliError, match="pickle"):
        open_image_checkpoint(Source("sd", folder, "folder"), vae=source)
    pipeline = load(open_image_checkpoint(Source("sd", folder, "folder"), vae=source, allow_pickle=True), device="cpu")
    assert draw(folder, init=picture(), pipeline=pipeline, **VALUES)[0].image.tobytes() == expected.tobytes()


def test_what_is_refused(sd, vae, tmp_path):
    folder, path = sd[0], vae[0]
    make_text_encoder(tmp_path / "text")
    make_vae(tmp_path / "wide", {"latent_channels": 16})
    save_file({"a": torch.zeros(2)}, tmp_path / "odd.safetensors")
    tensors = load_file(path / "diffusion_pytorch_model.safetensors")
    save_file({**tensors, "strange": torch.zeros(2)}, tmp_path / "more.safetensors")
    del tensors["decoder.conv_out.weight"]
    save_file(tensors, tmp_path / "less.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    for name, match in [
        ("text", "is a clip_text_model"),
        ("wide", "makes latents of 16 channels, and sd knows 4"),
        ("odd.safetensors", "holds no autoencoder that gencli knows"),
        ("more.safetensors", "strange"),
        ("less.safetensors", "decoder.conv_out.weight is missing"),
        ("empty", "holds no autoencoder"),
        ("cut.safetensors", "cut.safetensors"),
    ]:
        with pytest.raises(GencliError, match=match):
            opened(folder, tmp_path / name)
    make_ddpm(tmp_path / "ddpm")
    with pytest.raises(UsageError, match="draws in pixels: --vae would have no effect"):
        opened(tmp_path / "ddpm", path)
    shutil.rmtree(tmp_path / "ddpm")
