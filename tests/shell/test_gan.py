"""`gencli image` with a GAN: one image, several, and the way between them."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.shell.process import gencli, pixels
from tests.tiny.biggan import make_biggan

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("inside")]
GAN = ("-m", "./gan", "--allow-pickle")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("gan")
    make_biggan(root / "gan")
    return root


def test_an_image_says_how_it_was_made_and_is_made_again(run):
    done = run("image", "White Shark", *GAN, "--seed", 3, "--truncation", 0.5, "-o", "a.png", "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert {"prompt": "White Shark", "truncation": 0.5, "width": 32}.items() <= row.items() and "steps" not in row
    assert run("image", "--from", "a.png", "--allow-pickle", "-o", "again.png").returncode == 0
    np.testing.assert_array_equal(pixels("again.png"), pixels("a.png"))
    assert run("image", "--from", "a.png", "--truncation", 1, "--allow-pickle", "-o", "wild.png").returncode == 0
    assert (pixels("wild.png") != pixels("a.png")).any()


def test_one_animation_leads_from_seed_to_seed_and_from_class_to_class(run):
    done = run("image", "hen", *GAN, "--count", 3, "--seed", 1, "--steps", 5, "--gif", "walk.gif", "-o", "{seed}.png")
    assert (done.returncode, done.stdout) == (0, b"1.png\n2.png\n3.png\nwalk.gif\n"), done.stderr
    with Image.open("walk.gif") as walk:
        assert walk.n_frames == 3 + 2 * 4
    lines = b"hen\nostrich\n"
    done = gencli("image", "--lines", *GAN, "--gif", "lines.gif", "--grid", "--json", "-o", "grid.png", stdin=lines)
    assert done.returncode == 0 and json.loads(done.stdout)["gifs"] == ["lines.gif"]
    with Image.open("lines.gif") as walk:
        assert walk.n_frames == 2 + 15
    done = run("image", "hen", *GAN, "--count", 2, "--seed", 1, "--gif", "{seed}.gif", "-o", "{seed}.png")
    assert done.returncode == 0 and done.stdout.split() == [b"1.png", b"1.gif", b"2.png", b"2.gif"]


def test_what_is_refused(run):
    for args, code, message in [
        ((*GAN, "hen", "--gif", "one.gif"), 2, "leads from image to image, and there is one"),
        ((*GAN, "hens"), 2, "the nearest are hen"),
        (GAN, 2, "no class is named"),
        ((*GAN, "hen", "--truncation", 0), 2, "--truncation 0"),
        (
            (*GAN, "hen", "--cfg-scale", 4),
            2,
            "in one pass and does not denoise: --cfg-scale would have no effect",
        ),
        (("-m", "./gan", "hen"), 1, "--allow-pickle"),
        (("-m", "emoji", "x", "--truncation", 0.3), 2, "emoji denoises: --truncation would have no effect"),
    ]:
        done = run("image", *args, "-o", "error.png")
        assert (done.returncode, done.stdout) == (code, b""), (args, done.stderr)
        assert message in done.stderr.decode(), (args, done.stderr)
    assert not os.path.exists("error.png")


def test_what_models_says(run):
    shown = json.loads(run("models", "show", "./gan", "--json", "--allow-pickle").stdout)
    assert (shown["kind"], shown["family"], shown["problem"], shown["stages"]) == ("image", "biggan-deep", None, [])
    assert {"truncation": 0.4, "width": 32, "height": 32}.items() <= shown["defaults"].items()
    assert run("models", "check", "./gan", "--allow-pickle").returncode == 0
