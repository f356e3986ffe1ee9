"""Models of several stages, as a process: a toy family of two, and SDXL with its refiner."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.shell.process import gencli, on_terminal, pixels
from tests.tiny.image import DDPM, SCHEDULER, SMALL_DDPM, make_unet_2d, write_scheduler
from tests.tiny.sdxl import make_refiner, make_sdxl
from tests.tiny.systems import make_karlo, make_x4

pytestmark = pytest.mark.usefixtures("folder")

TOY = '''
"""A cascade in pixels: half the size, then the whole, which reads the half enlarged beside its own x."""

import torch.nn.functional as F

from gencli.image.latents import InitLatents, Start


def half(pipeline, inputs):
    width, height = inputs.size
    return Start((3, height // 2, width // 2))


def whole(pipeline, inputs):
    width, height = inputs.size
    return Enlarged((3, height, width))


class Enlarged(Start):
    def draw(self, draw_noise, batch, before):
        return InitLatents(draw_noise(), concat=F.interpolate(before.x, size=self.shape[1:]))
'''
ROW = """
from gencli.image import families, prompts
from gencli.image.families import Family, Stage

prompts.__path__.append({folder!r})
unet = frozenset({{"UNet2DModel"}})
families.FAMILIES["ToyCascadePipeline"] = Family(
    (
        Stage("classes:load", start="toy_cascade:half", name="small"),
        Stage("classes:load", "upscaler", "upscaler_scheduler", "large", "toy_cascade:whole", defaults={{"steps": 3}}),
    ),
    {{"unet": unet, "scheduler": None, "upscaler": unet, "upscaler_scheduler": None}},
    "none",
)
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A checkpoint of the toy family, and the code after which gencli knows it."""
    root = tmp_path_factory.mktemp("toy")
    folder = root / "cascade"
    make_unet_2d(folder / "unet", SMALL_DDPM)
    make_unet_2d(folder / "upscaler", SMALL_DDPM | {"in_channels": 6})
    write_scheduler(folder / "scheduler", SCHEDULER["ddpm"])
    write_scheduler(folder / "upscaler_scheduler", SCHEDULER["ddpm"] | {"beta_schedule": "squaredcos_cap_v2"})
    parts = {name: ["diffusers", "UNet2DModel"] for name in ("unet", "upscaler")}
    parts |= {name: ["diffusers", "DDPMScheduler"] for name in ("scheduler", "upscaler_scheduler")}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ToyCascadePipeline", **parts}))
    (root / "toy_cascade.py").write_text(TOY)
    return folder, ROW.format(folder=str(root))


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    root = tmp_path_factory.mktemp("xl")
    make_refiner(root / "refiner", root / "sdxl", make_sdxl(root / "sdxl"))
    return root


def run(code, *args):
    done = gencli(*args, code=code)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def said(file):
    with Image.open(file) as opened:
        return json.loads(opened.text["gencli"]), opened.text["parameters"]


@pytest.mark.slow
def test_a_family_of_two_stages_is_one_file_and_one_row(toy):
    model, code = toy
    common = ("image", "-m", model, "--steps", 2, "--seed", 5)
    assert gencli(*common, "-o", "no.png").returncode == 1  # not yet
    made = run(code, *common, "--count", 3, "--batch", 2, "-o", "{seed}.png", "--stats")
    assert made[0] == 0 and made[1] == "5.png\n6.png\n7.png\n"
    assert "; 10 steps in" in made[2]  # two batches of 2 and 3 steps
    size = DDPM["sample_size"]
    assert pixels("5.png").shape == (size, size, 3)
    for seed in (5, 6, 7):  # each alone, and by what it says itself
        assert run(code, *common[:-1], seed, "-o", "alone.png")[0] == 0
        assert np.abs(pixels("alone.png") - pixels(f"{seed}.png")).max() <= 1
        assert run(code, "image", "--from", f"{seed}.png", "-o", "again.png") == (0, "again.png\n", "")
        np.testing.assert_array_equal(pixels("again.png"), pixels("alone.png"))
    request, infotext = said("5.png")
    assert "stage" not in request and "Stages" not in infotext


@pytest.mark.slow
def test_settings_of_a_further_stage(toy):
    model, code = toy
    common = ("image", "-m", model, "--steps", 2, "--seed", 5)
    stage = ("--stage", "large:steps=4", "--stage", "large:sampler=ddpm")
    assert run(code, *common, "-o", "plain.png")[0] == 0
    status, out, _ = run(
        code,
        *common,
        *stage,
        "-o",
        "more.png",
        "--json",
        "--save-steps",
        "steps",
        "--gif",
        "a.gif",
        "--save-stages",
        "s",
    )
    assert status == 0 and np.abs(pixels("more.png") - pixels("plain.png")).max() > 10
    made = json.loads(out)
    assert made["stage"] == ["large:steps=4", "large:sampler=ddpm"] and (made["steps"], made["sampler"]) == (2, "ddim")
    names = [*(f"5-small-{i:04}.png" for i in (1, 2)), *(f"5-large-{i:04}.png" for i in (1, 2, 3, 4))]
    assert [file.split("/")[-1] for file in made["step_files"]] == names
    assert pixels(f"steps/{names[0]}").shape[0] * 2 == pixels(f"steps/{names[-1]}").shape[0]
    assert [file.split("/")[-1] for file in made["stage_files"]] == ["5-small.png"]
    np.testing.assert_array_equal(pixels("s/5-small.png"), pixels(f"steps/{names[1]}"))
    with Image.open("a.gif") as animation:
        assert animation.size == Image.open("more.png").size
    request, infotext = said("more.png")
    assert request["stage"] == made["stage"] and 'Stages: "[\\"large:steps=4\\", \\"large:sampler=ddpm\\"]"' in infotext
    assert run(code, "image", "--from", "more.png", "-o", "again.png") == (0, "again.png\n", "")
    np.testing.assert_array_equal(pixels("again.png"), pixels("more.png"))
    assert run(code, "image", "--from", "more.png", "--stage", "large:steps=3", "-o", "other.png")[0] == 0
    np.testing.assert_array_equal(pixels("other.png"), pixels("plain.png"))


@pytest.mark.slow
def test_progress_says_which_stage(toy):
    model, code = toy
    status, terminal, _, _ = on_terminal("image", "-m", model, "--steps", 2, "--preview", "-o", "a.png", code=code)
    assert status == 0
    for line in ("small (stage 1 of 2)", "large (stage 2 of 2)", "decoding"):
        assert line in terminal.decode()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--stage", "refiner"), "--stage 'refiner': expected NAME:KEY=VALUE"),
        (("--stage", "refiner:stride=3"), "--stage 'refiner:stride=3': no key 'stride'"),
        (("--stage", "refiner:steps=many"), "--stage 'refiner:steps=many': expected an integer"),
        (("--stage", "refiner:steps=2,eta=1"), "hint: each --stage sets one KEY; give it again for another"),
        (("--refiner-steps", 3), "hint: --stage refiner:steps=N counts all denoising steps; --refiner-start F"),
        (("--sampler", "eulr"), "error: --sampler 'eulr': no such sampler\nhint: did you mean euler?"),
        (("--stage", "refiner:steps=0"), "--stage 'refiner:steps=0': --steps 0: must be from 1 to 10000"),
        (("--stage", "refiner:sampler=nonesuch"), "no such sampler"),
        (("--stage", "refiner:karras=so"), "expected true or false"),
        (("--stage", "refiner:steps=3"), "--stage refiner: emoji has no such stage"),
        (("--refiner-start", 0.5), "--refiner-start without a refiner"),
        (("--refiner", "x", "--refiner-start", 1), "--refiner-start 1: must be more than 0 and less than 1"),
    ],
)
def test_usage(args, message):
    done = gencli("image", "apple", *args, "-o", "a.png")
    assert done.returncode == 2 and message in done.stderr.decode()


@pytest.mark.slow
def test_sdxl_and_its_refiner(xl):
    common = ("image", "red apple", "-m", xl / "sdxl", "--size", "64x64", "--steps", 5, "--seed", 3)
    refiner = ("--refiner", xl / "refiner", "--refiner-start", 0.5)
    assert gencli(*common, "-o", "base.png").returncode == 0
    assert gencli(*common, *refiner, "-o", "both.png").returncode == 0
    assert np.abs(pixels("both.png") - pixels("base.png")).max() > 2
    request, infotext = said("both.png")
    assert request["refiner"] == "refiner" and request["refiner_start"] == 0.5
    assert "Refiner: refiner, Refiner switch at: 0.5" in infotext
    assert gencli("image", "--from", "both.png", "-o", "again.png").stderr == b""
    np.testing.assert_array_equal(pixels("again.png"), pixels("both.png"))
    done = gencli(*common, *refiner, "--stage", "refiner:steps=20", "-o", "more.png", "--stats")
    assert b"; 12 steps in" in done.stderr  # 2 of 5, and 10 of 20
    shutil.copy("both.png", "lost.png")
    done = gencli("image", "--from", "lost.png", "--refiner", "nowhere", "-o", "a.png")
    assert done.returncode == 1 and done.stderr.startswith(b"error: --refiner: no model 'nowhere'")


@pytest.mark.slow
def test_the_refiner_alone_changes_a_picture(xl):
    Image.new("RGB", (64, 64), "red").save("red.png")
    done = gencli("image", "an apple", "-m", xl / "refiner", "--steps", 4, "-o", "a.png")
    assert done.returncode == 2 and b"refines an image, and needs one to start from" in done.stderr
    done = gencli("image", "an apple", "-m", xl / "refiner", "--steps", 4, "-i", "red.png", "-o", "a.png")
    assert (done.returncode, done.stderr) == (0, b"")
    done = gencli("models", "show", xl / "refiner")
    assert done.returncode == 0
    assert gencli("models", "check", xl / "refiner").returncode == 0


@pytest.mark.slow
def test_karlo_draws_and_varies(tmp_path):
    make_karlo(tmp_path)
    few = ("--steps", 3, "--stage", "super_res:steps=3", "--seed", 1)
    done = gencli("image", "red apple", "-m", tmp_path / "text", *few, "--stage", "prior:steps=3", "-o", "a.png")
    assert done.returncode == 0 and pixels("a.png").shape == (32, 32, 3)
    assert gencli("image", "-m", tmp_path / "image", "-i", "a.png", *few, "-o", "b.png").returncode == 0
    for file in ("a.png", "b.png"):
        assert gencli("image", "--from", file, "-o", "again.png").returncode == 0
        np.testing.assert_array_equal(pixels("again.png"), pixels(file))
    done = gencli("image", "-m", tmp_path / "image", "-o", "c.png")
    assert done.returncode == 2 and b"varies an image, and needs one to start from" in done.stderr
    stages = json.loads(gencli("models", "show", tmp_path / "text", "--json").stdout)["stages"]
    assert [(one["name"], one["steps"]) for one in stages] == [
        ("prior", 25),
        ("decoder", 25),
        ("super_res", 7),
    ]
    assert [one["main"] for one in stages] == [False, True, False]
    for name in ("text", "image"):
        assert gencli("models", "check", tmp_path / name).returncode == 0


@pytest.mark.slow
def test_upscale(tmp_path, xl):
    make_x4(tmp_path / "x4")
    Image.new("RGB", (16, 8), "red").save("photo.png")
    few = ("-m", tmp_path / "x4", "--steps", 2, "--seed", 1)
    done = gencli("upscale", "photo.png", *few, "-o", "big.png")
    assert (done.returncode, done.stdout) == (0, b"big.png\n") and pixels("big.png").shape == (32, 64, 3)
    assert gencli("image", "--from", "big.png", "-o", "again.png").returncode == 0
    np.testing.assert_array_equal(pixels("again.png"), pixels("big.png"))
    assert (
        gencli("upscale", "photo.png", *few, "-p", "red apple", "--noise-level", 50, "-o", "told.png").returncode == 0
    )
    request, _ = said("told.png")
    assert (request["prompt"], request["noise_level"], request["init"]) == ("red apple", 50, "photo.png")
    # an image that says what it shows is read as that
    done = gencli("upscale", "told.png", *few, "-o", "larger.png")
    assert done.returncode == 0 and b"enlarged with the prompt in the image's settings, red apple" in done.stderr
    assert said("larger.png")[0]["prompt"] == "red apple" and pixels("larger.png").shape == (128, 256, 3)
    done = gencli("upscale", "photo.png", "-m", xl / "sdxl", "-o", "no.png")
    assert done.returncode == 2 and b"cannot enlarge images" in done.stderr
    done = gencli("upscale", "-o", "no.png")
    assert done.returncode == 2 and b"no image to enlarge" in done.stderr
    after = ("--size", "32x32", "--steps", 2, "--upscaler", tmp_path / "x4", "--stage", "upscaler:steps=2")
    assert gencli("image", "a fox", "-m", xl / "sdxl", *after, "--seed", 1, "-o", "fox.png").returncode == 0
    assert pixels("fox.png").shape == (128, 128, 3)
