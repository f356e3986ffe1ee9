"""What published folders and files are like: pointers of Git LFS, bookkeeping in configs, old Stable Diffusion."""

import json
import shutil

import pytest

from gencli.checkpoints.find import Source
from gencli.checkpoints.weights import open_file
from gencli.errors import GencliError
from gencli.image.files.pictures import open_picture
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import notes, resolve
from gencli.json_files import read_json
from gencli.models.autoencoder_kl import AutoencoderKLConfig
from gencli.models.unet_2d_condition_config import UNet2DConditionConfig
from gencli.tokens import load_tokenizer
from gencli.train.captions import find_captions
from gencli.train.pictures import read_pictures
from gencli.train.texts import read_texts
from tests.tiny.image import make_stable_diffusion, rewrite_json

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 5135149760\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "sd"
    make_stable_diffusion(folder)
    return folder


@pytest.fixture
def sd(made, tmp_path):
    """A folder of Stable Diffusion that a test may change."""
    return shutil.copytree(made, tmp_path / "sd")


def opened(folder, name=None, **said):
    return open_image_checkpoint(Source(name or folder.name, folder, "folder"), **said)


READERS = {
    "model.safetensors": open_file, "model.gguf": open_file, "model.bin": open_file, "v1-5.ckpt": open_file,
    "config.json": read_json, "a.png": open_picture,
    "tokenizer.json": lambda path: load_tokenizer(path.parent),
    "tokenizer.model": lambda path: load_tokenizer(path.parent),
    "a.txt": read_texts, "a.jsonl": read_texts, "a.jsonl.gz": read_texts,
    "captions.jsonl": lambda path: find_captions(path.parent, [path]),
    "images.zip": lambda path: find_captions(path, []),
    "metadata.jsonl": lambda path: find_captions(path.parent, []),
    "1.png": lambda path: read_pictures(path.parent, [path.name], 8),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_pointers_of_git_lfs_are_told(tmp_path, name):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(GencliError, match=f"{name} is a pointer of Git LFS") as caught:
        READERS[name](tmp_path / name)
    assert "git lfs pull" in caught.value.hint


EMA = {
    "decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 37000, "power": 0.6666666,
    "update_after_step": 0, "use_ema_warmup": False,
}  # fmt: skip


@pytest.mark.slow
def test_bookkeeping_refuses_no_unet(sd):
    """As the UNet of SDXL inpainting and every `unet_ema` folder have it."""
    raw = json.loads((sd / "unet" / "config.json").read_text())
    known = UNet2DConditionConfig.from_dict(raw)
    assert UNet2DConditionConfig.from_dict({**raw, **EMA, "note": "a name", "new_thing": False}) == known
    AutoencoderKLConfig.from_dict({"_class_name": "AutoencoderKL", **EMA})
    with pytest.raises(GencliError, match="new_thing = 3") as caught:
        UNet2DConditionConfig.from_dict({**raw, "new_thing": 3})
    assert "--ignore-config" in caught.value.hint


@pytest.mark.slow
def test_a_key_may_be_said_to_change_nothing(sd):
    rewrite_json(sd / "unet" / "config.json", lambda raw: {**raw, "new_thing": 3})
    config, _ = opened(sd, ignore=["new_thing"]).open("unet")
    assert "new_thing" not in config and UNet2DConditionConfig.from_dict(config)
    with pytest.raises(GencliError, match="--ignore-config other: no config"):
        opened(sd, ignore=["other"])


@pytest.mark.slow
@pytest.mark.parametrize(("version", "side", "wanted"), [("0.6.0", 16, 64), ("0.6.0", 96, 96), ("0.9.0", 16, 16)])
def test_unets_of_the_first_versions_draw_64_latents(sd, version, side, wanted):
    change = {"_diffusers_version": version, "sample_size": side}
    rewrite_json(sd / "unet" / "config.json", lambda raw: {**raw, **change})
    checkpoint = opened(sd)
    assert checkpoint.size == (wanted * checkpoint.factor,) * 2


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 1, None])
def test_steps_are_offset_by_one(sd, offset):
    """As diffusers' pipelines of Stable Diffusion have it, whatever the file says."""
    rewrite_json(sd / "scheduler" / "scheduler_config.json", lambda raw: {**raw, "steps_offset": offset})
    assert opened(sd).configs["scheduler"]["steps_offset"] == 1


TRAILING = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "timestep_spacing": "trailing",
    "prediction_type": "epsilon",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "few"),
    [("sd", False), ("dreamer-xl", False), ("org/sdxl-turbo", True), ("SDXL-Lightning", True), ("x_4step", True)],
)
def test_a_scheduler_alone_tells_no_model_of_few_steps(sd, name, few):
    rewrite_json(sd / "scheduler" / "scheduler_config.json", lambda raw: {**raw, **TRAILING})
    checkpoint = opened(sd, name)
    asked = ImageRequest(prompt="a")
    request = resolve(asked, checkpoint)
    usual = ("euler_a", 4, 1.0) if few else ("ddim", 50, 7.5)
    assert (request.sampler, request.steps, request.guidance) == usual
    [note] = notes(asked, request, checkpoint)
    assert ("looks made for few steps" in note) == few
    assert few or "if it was made for few steps: --sampler euler_a --steps 4 --cfg-scale 1" in note
