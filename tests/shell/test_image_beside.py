"""What is written beside pictures (animations, steps) and what a grid says of itself; in this process."""

import io
import json
import sys

import pytest
from PIL import Image

from gencli.__main__ import main
from tests.tiny.image import make_stable_diffusion

pytestmark = pytest.mark.slow

QUICK = ("--steps", 2, "--size", "64x64", "--seed", 5)


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    make_stable_diffusion(folder / "sd")
    return folder / "sd"


@pytest.fixture
def gencli(sd, tmp_path, monkeypatch, capfdbinary):
    """Runs `gencli image` in a folder of its own: stdout's lines and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(["image", "-m", str(sd), *map(str, (*args, *QUICK))])
        out, said = capfdbinary.readouterr()
        assert code == 0, said.decode()
        return out.decode().splitlines(), said.decode()

    return run


GRID = ("red apple", "--count", 2, "--grid", "-o", "grid.png", "--gif", "{seed}.gif", "--save-steps", "steps")
STEPS = ["steps/5-0001.png", "steps/5-0002.png", "steps/6-0001.png", "steps/6-0002.png"]


def test_every_file_beside_a_grid_is_told(gencli, tmp_path):
    out, said = gencli(*GRID)
    assert (out, said) == (["grid.png", "5.gif", "6.gif", *STEPS], "")
    assert all((tmp_path / name).is_file() for name in out)
    out, _ = gencli(*GRID, "--json")
    (row,) = map(json.loads, out)
    assert (row["path"], row["gifs"], row["step_files"], row["steps"]) == ("grid.png", ["5.gif", "6.gif"], STEPS, 2)


def test_every_file_beside_a_picture_is_told(gencli):
    args = ("red apple", "-o", "a.png", "--save-steps", "steps")
    assert gencli(*args, "--gif", "a.gif")[0] == ["a.png", "a.gif", *STEPS[:2]]
    (row,) = map(json.loads, gencli(*args, "--json")[0])
    assert row["step_files"] == STEPS[:2] and "gif" not in row


def test_a_grid_of_several_prompts_says_that_it_does_not_say_how_it_was_made(gencli):
    args = ("--lines", "--grid", "-o", "grid.png")
    out, said = gencli(*args, stdin=b"red apple\nblue dog\n")
    assert out == ["grid.png"] and "the grid has no generation settings" in said
    with Image.open("grid.png") as opened:
        assert opened.text == {}
    assert "grid does not" not in gencli(*args, "--no-metadata", stdin=b"red apple\nblue dog\n")[1]
    assert gencli(*args, stdin=b"red apple\nred apple\n")[1] == ""
    with Image.open("grid.png") as opened:
        assert json.loads(opened.text["gencli"])["prompt"] == "red apple"
