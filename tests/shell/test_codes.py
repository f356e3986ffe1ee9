"""`gencli codes` as a process: pictures to codes of a VQ autoencoder, and back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.shell.process import gencli, shell
from tests.tiny.ldm import make_vqvae

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A model and two pictures."""
    root = tmp_path_factory.mktemp("codes")
    make_vqvae(root / "vq")
    for seed, size in enumerate(((48, 32), (30, 20))):
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{seed}.png")
    return root


def test_there_and_back(here: Path) -> None:
    script = 'cat "$1/0.png" | gencli codes - -m "$1/vq" | tee "$1/0.txt" | gencli codes --paint - -m "$1/vq"'
    done = shell(script, here)
    assert done.stderr == b""
    painted = Image.open(io.BytesIO(done.stdout))
    assert (painted.format, painted.size) == ("PNG", (48, 32))
    rows = [line.split() for line in (here / "0.txt").read_text().splitlines()]
    assert [len(row) for row in rows] == [12] * 8
    assert all(0 <= int(code) < 64 for row in rows for code in row)


def test_several_and_their_sizes(here: Path) -> None:
    files = here / "0.png", here / "1.png"
    done = gencli("codes", *files, "--size", "32x16", "--json", GENCLI_VQ_MODEL=str(here / "vq"))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["path"] for one in found] == list(map(str, files))
    assert {(one["width"], one["height"], one["entries"]) for one in found} == {(32, 16, 64)}
    assert [np.shape(one["codes"]) for one in found] == [(4, 8)] * 2
    (here / "one.json").write_text(json.dumps(found[1]))
    done = gencli("codes", "--paint", here / "one.json", "-m", here / "vq", "-o", here / "back.png")
    assert done.stdout.decode() == f"{here / 'back.png'}\n"
    assert Image.open(here / "back.png").size == (32, 16)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 2, "no image"),
        (("--paint",), 2, "no codes to paint"),
        (("a.png",), 2, "no model"),
        (("a.png", "b.png", "-m", "vq"), 2, "several images"),
        (("a.png", "-m", "vq", "-o", "x.txt"), 2, "-o is for --paint"),
        (("a.txt", "b.txt", "--paint", "-m", "vq"), 2, "one file of codes"),
        (("a.png", "--size", "4", "-m", "vq"), 2, "--size 4: expected WIDTHxHEIGHT"),
        (("-", "-", "--json", "-m", "vq"), 2, "once"),
        (("a.png", "-m", "./none"), 1, "cannot read a.png as an image"),
        (("-", "-m", "./none"), 1, "no model './none'"),
    ],
)
def test_mistakes_are_told_at_once(args: tuple[str, ...], code: int, says: str) -> None:
    done = gencli("codes", *args)
    assert done.returncode == code
    assert says in done.stderr.decode()
    assert done.stdout == b""


def test_a_picture_that_does_not_fit(here: Path) -> None:
    done = gencli("codes", here / "1.png", "-m", here / "vq")
    assert done.returncode == 1
    error, hint = done.stderr.decode().splitlines()
    assert error.endswith("vq reads multiples of 4")
    assert hint == "hint: --size 32x20 makes it so"
