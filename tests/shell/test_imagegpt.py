"""`gencli image` with an iGPT, as a process where it needs one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gencli.checkpoints.find import Source
from gencli.checkpoints.open import open_checkpoint
from gencli.image.drawers import open_drawer
from tests.shell.process import gencli, on_terminal, pixels
from tests.tiny.clip import make_pictures
from tests.tiny.imagegpt import SIDE, make_imagegpt

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("inside")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagegpt")
    make_imagegpt(root / "igpt")
    make_imagegpt(root / "pickle", pickle=True)
    make_pictures()[0].save(root / "init.png")
    return root


def test_a_picture_into_a_pipe_and_each_of_several_alone(run):
    done = gencli("image", "-m", "igpt", "--seed", 7)
    assert done.returncode == 0 and done.stderr == b""
    alone = pixels(done.stdout)
    assert alone.shape == (SIDE, SIDE, 3)
    done = run("image", "-m", "igpt", "--seed", 5, "--count", 3, "-o", "{seed}.png")
    assert (done.returncode, done.stdout) == (0, b"5.png\n6.png\n7.png\n")
    np.testing.assert_array_equal(pixels("7.png"), alone)
    assert (pixels("5.png") != alone).any()


def test_completion_says_how_it_was_made_and_is_made_again(run):
    args = ("-i", "init.png", "--temperature", 0.8, "--top-k", 10, "--top-p", 0.9)
    done = run("image", "-m", "igpt", *args, "--seed", 1, "-o", "half.png", "--gif", "half.gif", "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    wanted = {"init": "init.png", "keep_rows": SIDE // 2, "temperature": 0.8, "top_k": 10, "top_p": 0.9, "seed": 1}
    assert wanted.items() <= row.items() and "steps" not in row and "sampler" not in row
    palette = open_drawer(open_checkpoint(Source("igpt", Path("igpt"), "folder")))
    kept = np.asarray(palette.decode(palette.encode(Image.open("init.png"))))[: SIDE // 2]
    np.testing.assert_array_equal(pixels("half.png")[: SIDE // 2], kept)
    with Image.open("half.gif") as animation:
        assert animation.n_frames > 1  # a frame a row; equal ones are one
    with Image.open("half.png") as picture:
        assert "Temperature: 0.8, Top K: 10, Top P: 0.9" in picture.info["parameters"]
    assert run("image", "--from", "half.png", "-o", "again.png").returncode == 0
    np.testing.assert_array_equal(pixels("again.png"), pixels("half.png"))
    done = run("image", "--from", "half.png", "--keep-rows", SIDE - 1, "--seed", 2, "-o", "more.png")
    assert done.returncode == 0
    whole = np.asarray(palette.decode(palette.encode(Image.open("init.png"))))
    np.testing.assert_array_equal(pixels("more.png")[: SIDE - 1], whole[: SIDE - 1])


def test_a_terminal_sees_rows(root):
    code, screen, _, _ = on_terminal("image", "-m", "igpt", "--seed", 9, "--preview", "--stats")
    assert code == 0 and f"{SIDE} steps" in screen.decode() and "gencli-9.png" in screen.decode()
    os.remove("gencli-9.png")


def test_what_is_refused(run):
    for args, code, message in [
        (("-m", "igpt", "a", "cat"), 2, "igpt draws without a prompt"),
        (("-m", "igpt", "--steps", 9, "--eta", 1), 2, "igpt draws pixel by pixel and does not denoise: --steps, --eta"),
        (("-m", "igpt", "--size", "64x64"), 2, f"--width 64: igpt draws {SIDE}x{SIDE} pixels and no other size"),
        (("-m", "igpt", "--keep-rows", 2), 2, "--keep-rows needs --init"),
        (("-m", "igpt", "-i", "init.png", "--keep-rows", SIDE), 2, "at least one must be left"),
        (("-m", "igpt", "--temperature", -1), 2, "--temperature -1"),
        (("-m", "igpt", "--top-p", 2), 2, "--top-p 2"),
        (
            ("-m", "emoji", "x", "--temperature", 1, "--top-k", 3),
            2,
            "emoji denoises: --temperature, --top-k would have no effect",
        ),
        (
            (
                "-m",
                "pickle",
            ),
            1,
            "--allow-pickle",
        ),
    ]:
        done = run("image", *args, "-o", "error.png")
        assert (done.returncode, done.stdout) == (code, b""), (args, done.stderr)
        assert message in done.stderr.decode(), (args, done.stderr)
    assert not os.path.exists("error.png")
    done = run("text", "-m", "igpt", "hello")
    assert (
        done.returncode == 1
        and b"igpt is an image model (imagegpt), not a text model\nhint: `gencli image -m igpt` draws" in done.stderr
    )


def test_pickles_when_asked_and_what_models_says(run):
    assert run("image", "-m", "pickle", "--allow-pickle", "--seed", 7, "-o", "pickle.png").returncode == 0
    assert run("image", "-m", "igpt", "--seed", 7, "-o", "plain.png").returncode == 0
    np.testing.assert_array_equal(pixels("pickle.png"), pixels("plain.png"))
    shown = json.loads(run("models", "show", "./igpt", "--json").stdout)
    assert (shown["kind"], shown["family"], shown["problem"]) == ("image", "imagegpt", None)
    assert {"temperature": 1.0, "width": SIDE, "height": SIDE}.items() <= shown["defaults"].items()
    assert run("models", "check", "./igpt").returncode == 0
