"""Options are rows: one more is one row, and for sampling one function, in a copy of gencli as a process."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from gencli import cli
from gencli.options import rows
from gencli.text.request import SamplingParams
from tests.shell.process import ROOT, gencli

MOST_PARAMETERS = 10
TEXT_ROW = """\
    toy_last: int | None = integer(
        None, "--toy-last N", "Only the N candidates of the highest ids; 0 is all", SAMPLING, env="GENCLI_TOY_LAST",
        bounds=Bounds(0), usual=0, off=0, config_key="toy_last",
    )
"""
TEXT_FUNCTION = """

@logits_processor("toy_last")
def keep_last(logits: Tensor, n: int) -> Tensor:
    places = torch.arange(logits.shape[-1], device=logits.device)
    return logits.masked_fill(places < logits.shape[-1] - n, -torch.inf)
"""
IMAGE_ROW = """\
    toy: int | None = integer(
        None, "--toy N", "A toy.", PICTURE, env="GENCLI_TOY", within=(0, 9), infotext="Toy", after="width"
    )
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A source tree of gencli with one more option for text and one for images."""
    folder = tmp_path_factory.mktemp("toy")
    shutil.copytree(ROOT / "gencli", folder / "gencli", ignore=shutil.ignore_patterns("_weights"))
    (folder / "weights").symlink_to(ROOT / "weights")
    insert(folder / "gencli/text/request.py", "    repeat_penalty: float | None = ", TEXT_ROW)
    insert(folder / "gencli/image/request.py", "    model: str = ", IMAGE_ROW)
    with (folder / "gencli/text/sampling.py").open("a") as file:
        file.write(TEXT_FUNCTION)
    return folder


def insert(file: Path, before: str, row: str) -> None:
    source = file.read_text()
    assert source.count(before) == 1
    file.write_text(source.replace(before, row + before))


def toy(copy: Path, *args: object, code: int = 0, **env: str) -> subprocess.CompletedProcess:
    done = gencli(*args, root=copy, **env)
    assert done.returncode == code, done.stderr.decode()
    return done


def write(copy: Path, *args: object, **env: str) -> str:
    done = toy(
        copy, "text", "Once", "-n", 6, "--temperature", 3, "--top-k", 50, "--top-p", 1, "-q", "--json", *args, **env
    )
    text: str = json.loads(done.stdout)["text"]
    return text


@pytest.mark.slow
def test_one_more_sampling_parameter(copy):
    """With one candidate left, whatever the seed, the text is the same."""
    only = write(copy, "--toy-last", 1, "--seed", 1)
    assert only == write(copy, "--toy-last", 1, "--seed", 2)
    assert only != write(copy, "--seed", 1) != write(copy, "--seed", 2)
    assert only == write(copy, "--seed", 3, GENCLI_TOY_LAST="1")
    assert only != write(copy, "--seed", 1, "--toy-last", 0, GENCLI_TOY_LAST="1")
    page = toy(copy, "text", "--help", COLUMNS="200").stdout.decode()
    line = "      --toy-last N            Only the N candidates of the highest ids; 0 is all (default: 0)."
    lines = page.splitlines()
    at = lines.index(line)
    fields = [name for name, option in rows(SamplingParams) if option.usage]
    before = fields[fields.index("repeat_penalty") - 1].replace("_", "-")
    assert f"--{before}" in lines[at - 1] and lines[at + 1].strip() == "Environment: GENCLI_TOY_LAST."
    assert toy(copy, "chat", "--help", COLUMNS="200").stdout.decode().count(line) == 1
    done = toy(copy, "text", "a", "--toy-last", -1, code=2)
    assert done.stderr == b"error: --toy-last -1: must be at least 0\n"
    done = toy(copy, "text", "a", "--toy-last", "one", code=2)
    assert b"'one' is not an integer" in done.stderr and b"TOY_LAST" not in done.stderr
    done = toy(copy, "text", "a", GENCLI_TOY_LAST="one", code=2)
    assert b"(set by GENCLI_TOY_LAST)" in done.stderr


@pytest.mark.slow
def test_a_checkpoint_may_set_it(copy, tmp_path):
    folder = shutil.copytree(ROOT / "weights" / "stories", tmp_path / "own")
    file = folder / "generation_config.json"
    assert json.loads(toy(copy, "models", "show", folder, "--json").stdout)["defaults"]["toy_last"] == 0
    file.write_text(json.dumps({**json.loads(file.read_text()), "toy_last": 1}))
    assert json.loads(toy(copy, "models", "show", folder, "--json").stdout)["defaults"]["toy_last"] == 1
    assert write(copy, "-m", folder, "--seed", 1) == write(copy, "--toy-last", 1)


@pytest.mark.slow
def test_one_more_image_parameter(copy, tmp_path):
    first, second, third = (tmp_path / name for name in ("first.png", "second.png", "third.webp"))
    draw = ["image", "red apple", "--steps", 1, "--seed", 1, "--json", "-o"]
    assert json.loads(toy(copy, *draw, first, "--toy", 3).stdout)["toy"] == 3
    info = Image.open(first).info
    assert json.loads(info["gencli"])["toy"] == 3
    assert "Toy: 3" in info["parameters"]
    again = ["image", "--json", "--from"]
    assert json.loads(toy(copy, *again, first, "-o", second).stdout)["toy"] == 3
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(toy(copy, *again, first, "--toy", 4, "-o", third).stdout)["toy"] == 4
    assert json.loads(toy(copy, *draw, second, GENCLI_TOY="5").stdout)["toy"] == 5
    assert "toy" not in json.loads(toy(copy, *draw, second).stdout)
    assert toy(copy, *draw, second, "--toy", 10, code=2).stderr == b"error: --toy 10: must be from 0 to 9\n"
    page = toy(copy, "image", "--help", COLUMNS="100").stdout.decode().splitlines()
    at = page.index("      --toy N                 A toy. Environment: GENCLI_TOY.")
    assert page[at - 1].split()[:2] == ["-W,", "--width"]


@pytest.mark.slow
def test_how_often_a_request_is_built(tmp_path):
    code = """
import atexit
from gencli.image.request import ImageRequest
built = 0
check = ImageRequest.__post_init__
def count(self):
    global built
    built += 1
    check(self)
ImageRequest.__post_init__ = count
atexit.register(lambda: print(built))
"""
    counts = []
    for images in (1, 3):
        args = ["image", "red apple", "--steps", "1", "--count", images, "-q", "-o", tmp_path / "{index}.png"]
        done = gencli(*args, code=code)
        assert done.returncode == 0, done.stderr.decode()
        counts.append(int(done.stdout.split()[-1]))
    assert counts[1] - counts[0] == 2 * 3, "an image's own, and one for each of its two texts"
    assert counts[0] < 3 + 8, "asked, with fingerprints, complete; the texts of the last are checked before the work"


def test_no_function_of_the_command_line_has_more_than_a_screen_of_parameters():
    for module in pkgutil.iter_modules(cli.__path__, "gencli.cli."):
        for _, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction):
            if function.__module__ == module.name:
                count = len(inspect.signature(function).parameters)
                assert count <= MOST_PARAMETERS, (module.name, function.__name__, count)
