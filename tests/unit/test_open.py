"""The one door: each file of a checkpoint is read once by a command, and a new format is one file and one row."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gencli.__main__ import main
from gencli.checkpoints import open as door
from gencli.checkpoints import pickles
from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Part
from gencli.checkpoints.find import Source
from gencli.checkpoints.formats import FORMATS, Format
from gencli.errors import GencliError
from gencli.tokens import load_tokenizer
from tests.shell.process import gencli
from tests.tiny import single
from tests.tiny.hub_cache import COMMIT, put
from tests.tiny.sdxl import make_sdxl
from tests.tiny.text import make_gpt2

Opens = Callable[..., Counter[str]]
DRAW = ("a red apple", "--steps", "1", "--size", "64x64", "--seed", "1", "-o", "out.png")

# Python's own account of every file that is opened; in a process of its own, as nothing takes such a hook away again,
# and a good part of what Python does goes through it.
RECORD = """
import atexit, json, os, sys
opened = []
def record(event, args):
    if event == "open" and isinstance(args[0], (str, os.PathLike)):
        opened.append(os.path.abspath(args[0]))
def tell():
    told = json.dumps(opened)
    with open("opened.json", "w") as file:
        file.write(told)
sys.addaudithook(record)
atexit.register(tell)
"""


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Opens:
    """Run a command; how often it opened each file, by path."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object, **env: str) -> Counter[str]:
        done = gencli(*argv, code=RECORD, **env)
        assert done.returncode == 0, done.stderr
        return Counter(json.loads((tmp_path / "opened.json").read_text()))

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1 in one file, with its tokenizer beside it; and the same as a pickle."""
    root = tmp_path_factory.mktemp("whole")
    folder = single.make_folder(root / "folder", "sd1")
    tensors = single.original(folder, "sd1")
    shutil.copytree(folder / "tokenizer", root / "tokenizer")
    torch.save({"state_dict": tensors}, root / "whole.ckpt")
    return single.write_original(root / "whole.safetensors", tensors)


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "xl"
    make_sdxl(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "show", "image"])
def test_a_single_file_is_opened_once(opens: Opens, whole: Path, command: str) -> None:
    """Its header is parsed from that one opening, and its tensors are views of that one map."""
    argv = ("image", "-m", whole, *DRAW) if command == "image" else ("models", command, whole)
    counted = opens(*argv)
    assert counted[str(whole)] == (2 if command == "image" else 1)  # and for its fingerprint
    assert all(times == 1 for name, times in counted.items() if name.endswith(".json")), counted


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "image"])
def test_a_pickle_is_unpickled_once(whole: Path, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    unpickled, unpickle = [], pickles.unpickle
    monkeypatch.setattr(pickles, "unpickle", lambda file, **how: unpickled.append(file) or unpickle(file, **how))
    file = whole.with_suffix(".ckpt")
    argv = ("image", "-m", str(file), *DRAW) if command == "image" else ("models", "check", str(file))
    assert main([*argv, "--allow-pickle"]) == 0
    assert unpickled == [file]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "show", "image"])
def test_each_file_of_an_sdxl_folder_is_read_once(opens: Opens, xl: Path, command: str) -> None:
    files = [str(path) for path in xl.rglob("*") if path.suffix in (".json", ".safetensors")]
    counted = opens(*(("image", "-m", xl, *DRAW) if command == "image" else ("models", command, xl)))
    times = 2 if command == "image" else 1  # and for its fingerprint
    assert counted[str(xl / "model_index.json")] == times
    assert [file for file in files if counted[file] > times] == []
    assert sum(counted[file] for file in files) > 10


def test_what_finding_reads_is_not_read_again(opens: Opens, tmp_path: Path) -> None:
    files = {file.name: file.read_bytes() for file in make_gpt2(tmp_path / "gpt2", sharded=True).iterdir()}
    snapshot = put(tmp_path / "cache", "org/gpt2", COMMIT, files, "main")
    counted = opens("text", "a", "-m", "org/gpt2", "-n", "1", HF_HUB_CACHE=str(tmp_path / "cache"))
    names = [name for name in files if name.endswith(".json")]
    assert {name: counted[str(snapshot / name)] for name in names} == dict.fromkeys(names, 1)


# --- a new format: this much code, and one row


def is_toy(contents: Contents) -> bool:
    return contents.path.suffix == ".toy"


def read_toy(contents: Contents, hints: Hints) -> Checkpoint:
    """A text file: a config, and the name of the file that has the weights."""
    raw = contents.read_json(contents.path)
    if "weights" not in raw:
        raise GencliError("it names no weights", "a line is missing")
    weights = contents.folder / raw["weights"]
    part = Part("", "model", contents.path, lambda: raw["config"], lambda: contents.open_tensors(weights))
    tokenizers = {"tokenizer": lambda: load_tokenizer(weights.parent)}
    return Checkpoint(contents, "text", raw["config"]["model_type"], {"": part}, tokenizers)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_gpt2(tmp_path / "gpt2")
    config = json.loads((folder / "config.json").read_text())
    file = tmp_path / "model.toy"
    file.write_text(json.dumps({"weights": "gpt2/model.safetensors", "config": config}))
    place = [row.name for row in FORMATS].index("stable diffusion")
    with_toy = (*FORMATS[:place], Format("toy", is_toy, read_toy, kind="text"), *FORMATS[place:])
    monkeypatch.setattr(door, "FORMATS", with_toy)
    return file


def test_a_new_format_is_one_row(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", str(toy), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["family"], shown["problem"]) == ("text", "gpt2", None)
    assert shown["parameters"] > 1000 and shown["defaults"]["top_k"] == 40
    assert main(["models", "check", str(toy)]) == 0
    assert "OK" in capsys.readouterr().out
    said = []
    for model in (toy, toy.parent / "gpt2"):
        assert main(["text", "-m", str(model), "hello", "--temperature", "0", "--max-tokens", "8"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


def test_what_is_asked_twice_is_read_once(tmp_path: Path) -> None:
    """A config that a caller changes stays as it was for the next one; a broken file is broken for all."""
    folder = make_gpt2(tmp_path / "gpt2")
    contents = Contents(Source("gpt2", folder, "folder"))
    contents.read_json("config.json").clear()
    assert contents.read_json("config.json")["model_type"] == "gpt2"
    part = door.open_checkpoint(contents).parts[""]
    assert part.tensors() is part.tensors()
    assert door.open_checkpoint(contents).parts[""].tensors().stored().keys() == part.tensors().stored().keys()


@pytest.mark.parametrize("command", [("models", "check"), ("models", "show"), ("text", "a", "-m")])
def test_what_a_new_format_says_of_a_broken_file_is_told(
    toy: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    (toy.parent / "config.json").write_text("{}")  # beside it, as later rows of the table look for
    toy.write_text("{}")
    main([*command, str(toy)])
    said = capsys.readouterr()
    assert "it names no weights" in said.out + said.err
