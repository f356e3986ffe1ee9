"""`gencli image` as a process on SDXL, on models made for few steps, and with another autoencoder."""

import json
import shutil

import pytest
from PIL import Image, PngImagePlugin

from tests.shell.process import gencli
from tests.tiny.image import make_ddpm, make_vae
from tests.tiny.sdxl import make_lcm, make_sdxl

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("folder")]

SMALL = ("--size", "64x64", "--seed", 5)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("xl")
    make_sdxl(root / "sdxl")
    make_sdxl(root / "turbo", "sdxl-turbo")
    make_lcm(root / "lcm")
    make_vae(root / "vae", {"layers_per_block": 2, "scaling_factor": 0.13025})
    return root


def written(path):
    with Image.open(path) as opened:
        return json.loads(opened.text["gencli"]), opened.text["parameters"]


def again(path, name, stderr=b"", more=()):
    """`--from` gives the same pixels."""
    done = gencli("image", "--from", path, *more, "-o", f"again-{name}.png")
    assert (done.returncode, done.stderr) == (0, stderr)
    with Image.open(path) as one, Image.open(f"again-{name}.png") as other:
        assert one.tobytes() == other.tobytes()


def test_sdxl_and_its_negative_prompt(root, folder):
    """None is not the empty one, and both are written so that they come back."""
    made = {}
    for name, more in {"none": (), "empty": ("-n", ""), "some": ("-n", "blue dog")}.items():
        done = gencli("image", "-m", root / "sdxl", "a red apple", *SMALL, "--steps", 2, *more, "-o", f"{name}.png")
        assert (done.returncode, done.stderr) == (0, b"")
        again(f"{name}.png", name)
        made[name] = (folder / f"{name}.png").read_bytes()
    assert len(set(made.values())) == 3
    with Image.open("none.png") as opened:  # what the web UI would show says it too
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", opened.text["parameters"])
        opened.save("copy.png", pnginfo=info)
    again("copy.png", "copy", more=("-m", root / "sdxl"))  # of which only the last name is there
    request, infotext = written("none.png")
    assert "negative" not in request and "Negative prompt" not in infotext
    assert request["guidance"] == 5.0
    assert written("empty.png")[0]["negative"] == ""


def test_a_turbo_model_says_what_it_assumes(root):
    note = b"note: %s looks made for few steps (by its name, and Euler's trailing steps): "
    note = note % str(root / "turbo").encode() + b"euler_a, 4 steps, --cfg-scale 1\n"
    done = gencli("image", "-m", root / "turbo", "a red apple", *SMALL, "-o", "a.png")
    assert (done.returncode, done.stderr) == (0, note)
    again("a.png", "turbo")  # all is said there: no note
    request, infotext = written("a.png")
    assert (request["sampler"], request["steps"], request["guidance"]) == ("euler_a", 4, 1.0)
    assert "Steps: 4, Sampler: Euler a" in infotext
    done = gencli("image", "-m", root / "turbo", "a", *SMALL, "--steps", 1, "--cfg-scale", 0, "--sampler", "euler_a")
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_latent_consistency_model(root):
    done = gencli("image", "-m", root / "lcm", "a red apple", *SMALL, "-o", "a.png", "-n", "dog")
    says = b"the negative prompt has no effect: %s reads --cfg-scale as a number" % str(root / "lcm").encode()
    assert (done.returncode, done.stderr) == (0, b"note: " + says + b"\n")
    again("a.png", "lcm", b"note: " + says + b"\n")
    request, infotext = written("a.png")
    assert (request["sampler"], request["steps"], request["guidance"]) == ("lcm", 4, 8.5)
    assert "Sampler: LCM" in infotext
    option = ("--sampler-option", "original_inference_steps=20")
    done = gencli("image", "-m", root / "lcm", "a", *SMALL, *option, "-o", "b.png")
    assert (done.returncode, done.stderr) == (0, b"")
    assert written("b.png")[0]["sampler_options"] == {"original_inference_steps": 20}
    again("b.png", "option")
    done = gencli("image", "-m", root / "lcm", "a", *SMALL, *option, "--steps", 21)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: 21 steps: sampler lcm can take 1 to 20\nhint: the model learned 20 timesteps\n"


def test_another_autoencoder(root, folder):
    args = ("image", "-m", root / "sdxl", "a red apple", *SMALL, "--steps", 1)
    for name, more in {"own": (), "other": ("--vae", root / "vae")}.items():
        assert gencli(*args, *more, "-o", f"{name}.png").returncode == 0
    assert (folder / "own.png").read_bytes() != (folder / "other.png").read_bytes()
    request, infotext = written("other.png")
    assert request["vae"] == "vae" and "VAE: vae" in infotext
    again("other.png", "vae")
    moved = shutil.copytree(root / "vae", folder / "moved")
    done = gencli("image", "--from", "other.png", "--vae", moved, "-o", "moved.png")
    assert (done.returncode, done.stderr) == (0, b"")
    assert written("moved.png")[0]["vae"] == moved.name


def test_autoencoders_that_cannot_be_followed(root, folder):
    make_ddpm(folder / "ddpm")
    for args, code, error in [
        (("-m", root / "sdxl", "--vae", "nowhere"), 1, b"error: --vae: no model 'nowhere'"),
        (("-m", root / "sdxl", "--vae", root / "sdxl/text_encoder"), 1, b"is a clip_text_model"),
        (("-m", folder / "ddpm", "--vae", root / "vae"), 2, b"draws in pixels: --vae would have no effect"),
    ]:
        done = gencli("image", *args, "--steps", 1, "-o", "a.png")
        assert (done.returncode, done.stdout) == (code, b"") and error in done.stderr, done.stderr
        assert b"Traceback" not in done.stderr
