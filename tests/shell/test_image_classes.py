"""`gencli image` of classes, as a process: DiT, guided-diffusion's own files, and a classifier that leads them."""

import io
import json

import pytest
from PIL import Image

from tests.shell.process import gencli, pixels
from tests.tiny.classes import FLAGS, make_classifier, make_dit, make_guided

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("folder")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A DiT, a UNet without classes in a pickle, and a classifier."""
    root = tmp_path_factory.mktemp("classes")
    make_dit(root / "dit")
    make_guided(root / "unet.pt", FLAGS)
    make_classifier(root / "classifier.safetensors", FLAGS)
    return root


def test_classes_from_lines_and_again_from_a_picture(root):
    """A name and a number of the same class, from seeds 5 and 6."""
    lines = b"golden retriever\n207\n"
    done = gencli("image", "--lines", "-m", root / "dit", "--steps", 2, "--seed", 5, "-o", "{index}.png", stdin=lines)
    assert done.stdout.split() == [b"0.png", b"1.png"]
    with Image.open("1.png") as opened:
        request = json.loads(opened.info["gencli"])
    assert (request["prompt"], request["seed"], request["guidance"]) == ("207", 6, 4.0)
    again = gencli("image", "golden", "retriever", "--from", "1.png")
    assert (pixels(again.stdout) == pixels("1.png")).all()


def test_a_pickle_led_by_a_classifier(root):
    """A model that is told no class draws one for all that."""
    options = ("--steps", 2, "--seed", 5, "--sampler", "ddpm", "-m", root / "unet.pt", "--allow-pickle")
    led = gencli("image", "7", *options, "--classifier", root / "classifier.safetensors", "--classifier-scale", 20)
    assert led.returncode == 0, led.stderr
    request = json.loads(Image.open(io.BytesIO(led.stdout)).info["gencli"])
    assert request["classifier"] == "classifier.safetensors"
    assert (request["prompt"], request["classifier_scale"]) == ("7", 20.0)


@pytest.mark.parametrize(
    ("options", "code", "message", "hint"),
    [
        (("golden retreiver", "-m", "dit"), 2, "no class 'golden retreiver'", "golden retriever"),
        (("-m", "unet.pt"), 1, "is a pickle", "--allow-pickle"),
        (("7", "-m", "unet.pt", "--classifier", "none.pt"), 1, "no model 'none.pt'", "models available"),
        (("--classifier-scale", "2"), 2, "--classifier-scale without a classifier", "--classifier"),
    ],
)
def test_errors_are_one_line_and_a_hint(root, monkeypatch, options, code, message, hint):
    monkeypatch.chdir(root)
    done = gencli("image", *options)
    assert done.returncode == code
    first, second = done.stderr.decode().splitlines()
    assert first.startswith("error: ") and message in first
    assert second.startswith("hint: ") and hint in second
    assert done.stdout == b""
