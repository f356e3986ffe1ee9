"""`gencli image` with LoRA files, embeddings and weighted prompts, as a process."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.oracles.hub_server import Hub
from tests.shell.process import gencli, pixels, without_torch
from tests.tiny.image import make_stable_diffusion
from tests.tiny.lora import draw_layers, kohya_name, write

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("folder")]

QUICK = ("--steps", 2, "--size", "64x64", "--seed", 5)
PROMPT = "a (red:1.3) toy, [sun]"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkpoint, a LoRA file and an embedding."""
    root = tmp_path_factory.mktemp("additions")
    pipe = make_stable_diffusion(root / "sd")
    layers = draw_layers({"unet": pipe.unet, "text_encoder": pipe.text_encoder}, lambda path: "attn" in path)
    write(root / "style.safetensors", layers, kohya_name)
    write(root / "other.safetensors", layers[:1], kohya_name)
    save_file({"emb_params": torch.randn(2, 24, generator=torch.Generator().manual_seed(0))}, root / "toy.safetensors")
    return root


def test_all_of_it_is_drawn_recorded_and_drawn_again(root, folder):
    shutil.copy(root / "style.safetensors", "style.safetensors")
    added = ("--lora", "style.safetensors:0.5", "--embedding", f"{root / 'toy.safetensors'}", "--weighted")
    done = gencli("image", "-m", root / "sd", PROMPT, *added, *QUICK, "-o", "a.png")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a.png\n", b"")
    with Image.open("a.png") as opened:
        raw, infotext = json.loads(opened.text["gencli"]), opened.text["parameters"]
    assert (raw["lora"], raw["weighted"]) == (["style.safetensors:0.5"], True)
    assert raw["embedding"] == ["toy.safetensors"]  # without its folder; it is found again where it was
    assert infotext.startswith(PROMPT) and "Emphasis: Original" in infotext
    again = gencli("image", "--from", "a.png")
    assert (again.returncode, again.stderr) == (0, b"")
    np.testing.assert_array_equal(pixels(again.stdout), pixels("a.png"))

    (folder / "style.safetensors").unlink()
    lost = gencli("image", "--from", "a.png")
    assert lost.returncode == 1
    assert b"error: a.png was made with --lora style.safetensors, which is not on this machine\nhint: " in lost.stderr


def test_wrong_usage_is_told_before_anything_is_opened():
    wrong = [
        (("a", "--lora", "x:inf"), "--lora 'x:inf'"),
        (("a", "--embedding", "x.pt:"), "--embedding 'x.pt:'"),
        (("a", "--embedding", ":word"), "FILE or FILE:WORD is wanted"),
        (("a", "--lora", ""), "--lora ''"),
    ]
    codes, errors = without_torch([["image", "-m", "./none", *args] for args, _ in wrong])
    assert codes == [2] * len(wrong)
    for error, (_, message) in zip(errors, wrong, strict=True):
        assert message in error


def test_what_cannot_be_is_one_line(root, folder):
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2)}, "other.safetensors")
    for args, message in (
        (("--lora", "other.safetensors"), "other.safetensors does not fit: its module for the unet"),
        (("--lora", "none.safetensors"), "--lora none.safetensors: no such file or folder"),
        (("--embedding", "toy.pt"), "--embedding toy.pt: no such file or folder"),
        (("--lora", "org/none"), "--lora org/none: no such file or folder, and not in the Hugging Face cache"),
    ):
        done = gencli("image", "-m", root / "sd", "a", *args, *QUICK)
        error = done.stderr.decode()
        assert (done.returncode, done.stdout) == (1, b"")
        assert error.startswith("error: ") and message in error and error.count("\n") <= 2, error


def test_a_lora_from_the_hub_is_fetched_alone_and_slips_get_hints(root, folder):
    with Hub() as hub:
        files = {
            "README.md": b"a style",
            "pytorch_lora_weights.safetensors": (root / "style.safetensors").read_bytes(),
            "pytorch_lora_weights.bin": b"pickle",
            "more/other.safetensors": (root / "other.safetensors").read_bytes(),
            "picture.png": b"x",
        }
        hub.commit("org/style", files)
        env = {"HF_HUB_OFFLINE": None, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "NO_PROXY": "127.0.0.1"}
        env |= {"HF_HUB_CACHE": str(folder / "cache"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": None}
        added = (
            "--lora",
            "org/style:0.5",
            "--lora",
            "org/style/more/other.safetensors:0",
            "--embedding",
            root / "toy.safetensors",
        )
        done = gencli("image", "-m", root / "sd", "an apple <lora:x:1>", *added, *QUICK, **env)
        assert done.returncode == 0
        assert b"note: no prompt has the word 'toy'" in done.stderr
        assert b"note: <lora:" in done.stderr
        assert hub.fetched() == ["pytorch_lora_weights.safetensors", "more/other.safetensors"]
        hub.requests.clear()
        wrong = gencli("image", "-m", root / "sd", "a", "--lora", "org/style/none.safetensors", *QUICK, **env)
        assert wrong.returncode == 1 and b"no file 'none.safetensors'" in wrong.stderr
        assert b"more/other.safetensors" in wrong.stderr  # there is that
    offline = gencli("image", "-m", root / "sd", "an apple <lora:x:1>", *added, *QUICK, "--offline", "-q", **env)
    assert (offline.returncode, offline.stderr) == (0, b"")
    np.testing.assert_array_equal(pixels(offline.stdout), pixels(done.stdout))
