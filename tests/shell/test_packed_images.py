"""gencli image --quantize as a user runs it, and gencli text -i."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.shell.process import gencli
from tests.tiny import flow
from tests.tiny.janus import SIDE, make_janus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shell")
    make_janus(folder / "janus")
    settings = {"image_size": SIDE, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "min_size": 14}
    (folder / "janus" / "preprocessor_config.json").write_text(json.dumps(settings))
    flow.make_z_image(folder / "z-turbo", axes_dims=[8, 12, 12], dim=96)
    Image.new("RGB", (100, 60), "red").save(folder / "red.png")
    return folder


@pytest.fixture
def here(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    return {"HF_HUB_CACHE": str(tmp_path / "hub")}


def test_an_image_holds_how_its_weights_were_packed(here, tmp_path):
    made = ("image", "an apple", "-m", "./z-turbo", "--size", "64x64", "--steps", 1, "--seed", 1)
    first, again, plain = (tmp_path / f"{name}.png" for name in ("first", "again", "plain"))
    assert gencli(*made, "--quantize", "q4_k", "-o", first, **here).returncode == 0
    info = json.loads(gencli("image", "--info", first, "--json", **here).stdout)
    assert info["quantize"] == "q4_k_m" and "dtype" not in info
    assert gencli("image", "--from", first, "-o", again, **here).returncode == 0
    np.testing.assert_array_equal(*(np.asarray(Image.open(path)) for path in (first, again)))
    assert gencli("image", "--from", first, "--dtype", "float32", "-o", plain, **here).returncode == 0
    assert "quantize" not in json.loads(gencli("image", "--info", plain, "--json", **here).stdout)
    shown = json.loads(gencli("models", "show", "./z-turbo", "--json", **here).stdout)
    assert list(shown["quantized"]) == ["q4_k_m"] and shown["quantized"]["q4_k_m"] > 10_000
    assert b"quantized copies:" in gencli("models", "show", "./z-turbo", **here).stdout
    for args, code, message in (
        (("--quantize", "q9"), 2, b"no such type of weights"),
        (("--quantize", "q8_0", "--dtype", "float32"), 2, b"--dtype float32 holds them in another type"),
    ):
        done = gencli(*made, *args, "-o", "no.png", **here)
        assert done.returncode == code and message in done.stderr


def test_questions_about_an_image(root, here):
    asked = ("text", "-m", "./janus", "What is this?", "-n", 8, "--temperature", 0)
    by_file = gencli(*asked, "-i", "red.png", **here)
    by_stdin = gencli(*asked, "-i", "-", stdin=(root / "red.png").read_bytes(), **here)
    assert by_file.returncode == by_stdin.returncode == 0, by_file.stderr
    assert by_file.stdout == by_stdin.stdout != gencli(*asked, **here).stdout
    two = gencli(*asked, "-i", "red.png", "-i", "red.png", "--json", **here)
    one = gencli(*asked, "-i", "red.png", "--json", "--quantize", "q8_0", **here)
    counts = [json.loads(done.stdout)["usage"]["prompt_tokens"] for done in (two, one)]
    assert counts[0] - counts[1] == 16 + len("  ") + 1  # patches, begin and end, and a new line
    for args, code, message in (
        (("text", "-m", "stories", "-i", "red.png", "hi"), 2, b"stories reads no images"),
        ((*asked, "-i", "red.png", "--draft", "lookup"), 2, b"--draft cannot be combined with -i/--image"),
        ((*asked, "-i", "red.png", "--prompt-cache", "x"), 2, b"--prompt-cache cannot be combined"),
        (("text", "-m", "./janus", "-i", "-"), 2, b"-i - reads the image from stdin"),
        ((*asked, "-i", "no.png"), 1, b"cannot read no.png as an image"),
    ):
        done = gencli(*args, **here)
        assert (done.returncode, done.stdout) == (code, b"") and message in done.stderr, done.stderr
