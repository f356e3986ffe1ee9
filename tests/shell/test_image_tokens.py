"""`gencli image` with models that draw token by token from a prompt, and `gencli codes` with their autoencoders."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.shell.process import gencli, on_terminal, pixels
from tests.tiny.janus import GRID, SIDE, make_janus

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("inside")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    make_janus(root / "janus")
    return root


def test_an_image_says_how_it_was_made_and_is_made_again(run):
    done = run("image", "a", "red", "dog", "-m", "./janus", "--seed", 3, "--top-k", 9, "-o", "a.png", "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert {
        "prompt": "a red dog",
        "guidance": 5.0,
        "top_k": 9,
        "temperature": 1.0,
        "width": SIDE,
    }.items() <= row.items()
    assert run("image", "--from", "a.png", "-o", "again.png", "--gif", "a.gif").returncode == 0
    np.testing.assert_array_equal(pixels("again.png"), pixels("a.png"))
    assert run("image", "--from", "a.png", "--cfg-scale", 1, "-o", "free.png").returncode == 0
    assert (pixels("free.png") != pixels("a.png")).any()


def test_each_line_is_a_prompt(run):
    lines = b"a cat\na dog\n"
    done = gencli("image", "--lines", "-m", "./janus", "--count", 2, "--batch", 2, "-o", "{index}.png", stdin=lines)
    assert (done.returncode, done.stdout) == (0, b"0.png\n1.png\n2.png\n3.png\n"), done.stderr


def test_a_terminal_sees_rows():
    code, screen, _, _ = on_terminal("image", "x", "-m", "./janus", "--seed", 9, "--preview", "--stats", "-o", "p.png")
    assert code == 0 and f"{GRID} steps" in screen.decode()


def test_codes_and_what_is_refused(run):
    Image.new("RGB", (SIDE, SIDE), "red").save("red.png")
    done = run("codes", "red.png", "-m", "./janus")
    assert done.returncode == 0 and len(done.stdout.split()) == GRID * GRID
    for args, code, message in [
        (("image", "x", "-m", "./janus", "--steps", 3), 2, "draws token by token and does not denoise: --steps"),
        (("image", "x", "-m", "./janus", "-i", "red.png"), 2, "does not denoise: --init would have no effect"),
        (("image", "x" * 3000, "-m", "./janus"), 1, "./janus reads at most"),
    ]:
        done = run(*args)
        assert (done.returncode, done.stdout) == (code, b""), (args, done.stderr)
        assert message in done.stderr.decode(), done.stderr


def test_what_models_says(run):
    shown = json.loads(run("models", "show", "./janus", "--json").stdout)
    assert (shown["kind"], shown["family"], shown["problem"], shown["stages"]) == ("image", "janus", None, [])
    assert {"guidance": 5.0, "width": SIDE, "height": SIDE}.items() <= shown["defaults"].items()
    assert run("models", "check", "./janus").returncode == 0
