"""ControlNets, inpainting and editing checkpoints from the command line, in this process."""

import json

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from gencli.__main__ import main
from tests.shell.process import pixels
from tests.tiny.control import SMALL_CONTROLNET, edges, make_controlnet, make_inpaint, make_instruct
from tests.tiny.image import make_stable_diffusion

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("inside")]

QUICK = ("--steps", 3, "--seed", 5)
SMALL = (*QUICK, "--size", "64x64")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("control")
    make_stable_diffusion(folder / "sd")
    make_controlnet(folder / "canny", SMALL_CONTROLNET)
    make_controlnet(folder / "sd21", SMALL_CONTROLNET | {"cross_attention_dim": 32})
    make_inpaint(folder / "inpaint")
    make_instruct(folder / "instruct")
    edges((64, 64)).save(folder / "edges.png")
    edges((64, 64), seed=3).save(folder / "other.png")
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(folder / "white.png")
    return folder


@pytest.fixture
def gencli(capfdbinary):
    """Runs `gencli image`: its exit code, stdout and stderr."""

    def run(*args):
        code = main(["image", *map(str, args)])
        return code, *capfdbinary.readouterr()

    return run


def test_a_control_is_followed_and_made_again_from_the_file(gencli):
    led = ("--control", "canny", "--control-image", "edges.png", "--control-scale", "0.7", "--control-end", 0.8)
    code, row, said = gencli("-m", "sd", "red apple", *SMALL, *led, "-o", "a.png", "--json")
    assert (code, said) == (0, b"")
    row = json.loads(row)
    assert row["control"] == ["canny"] and row["control_image"] == ["edges.png"] and row["control_end"] == [0.8]
    assert gencli("-m", "sd", "red apple", *SMALL, "-o", "plain.png")[0] == 0
    assert np.abs(pixels("a.png") - pixels("plain.png")).max() > 10
    assert gencli("--from", "a.png", "-o", "again.png") == (0, b"again.png\n", b"")
    np.testing.assert_array_equal(pixels("a.png"), pixels("again.png"))
    assert gencli("--from", "a.png", "--control-scale", "0", "-o", "none.png")[0] == 0
    np.testing.assert_array_equal(pixels("none.png"), pixels("plain.png"))
    two = ("--control", "canny", "--control-image", "edges.png", "--control", "./canny", "--control-image", "other.png")
    assert gencli("-m", "sd", "red apple", *SMALL, *two, "-o", "two.png")[0] == 0
    assert np.abs(pixels("two.png") - pixels("a.png")).max() > 10


def test_a_control_that_a_file_names_is_not_fetched(gencli, root):
    with Image.open(root / "edges.png") as opened:
        info = PngImagePlugin.PngInfo()
        info.add_text("gencli", json.dumps({"model": "sd", "control": ["a/b"], "control_image": ["edges.png"]}))
        opened.save("strange.png", pnginfo=info)
    code, _, said = gencli("--from", "strange.png", "-o", "never.png")
    assert code == 1 and b"'a/b', which is not on this machine" in said and b"--control" in said


def test_a_mask_and_an_edit(gencli):
    given = ("-i", "edges.png", *QUICK)
    assert gencli("-m", "inpaint", "red apple", *given, "--mask", "white.png", "-o", "painted.png")[0] == 0
    assert gencli("-m", "instruct", "make it red", *given, "--image-cfg-scale", "2", "-o", "edited.png")[0] == 0
    assert gencli("--from", "edited.png", "-o", "again.png") == (0, b"again.png\n", b"")
    said = gencli("-m", "instruct", *given, "--image-cfg-scale", 2, "--cfg-scale", 1, "-o", "plain.png")[2]
    assert b"--image-cfg-scale has no effect at --cfg-scale 1" in said
    np.testing.assert_array_equal(pixels("edited.png"), pixels("again.png"))


def test_models_check_and_show_know_them(root, capfdbinary):
    for name in ("inpaint", "instruct", "canny"):
        assert main(["models", "check", name]) == 0, capfdbinary.readouterr().err
    capfdbinary.readouterr()
    assert main(["models", "show", "instruct", "--json"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["defaults"]["image_guidance"] == 1.5


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("-m", "sd", "--control", "canny"), 2, "1 --control and 0 --control-image"),
        (("-m", "sd", "--control", "canny", "--control-image", "gone.png"), 1, "gone.png"),
        (("-m", "sd", "--control", "sd21", "--control-image", "edges.png"), 1, "sd21 does not fit sd: its cross_att"),
        (("-m", "sd", "--control", "sd", "--control-image", "edges.png"), 1, "config.json"),
        (("-m", "sd", "--image-cfg-scale", "2"), 2, "sd is not one"),
        (("-m", "inpaint", "-i", "edges.png"), 2, "paints by a mask"),
        (("-m", "instruct"), 2, "-i/--init FILE"),
    ],
)
def test_what_does_not_go_together(gencli, root, args, code, message):
    found, out, said = gencli("red apple", *args, "-o", "never.png")
    assert (found, out) == (code, b"")
    assert message in said.decode() and b"Traceback" not in said
    assert said.count(b"\n") <= 2
    assert not (root / "never.png").exists()
