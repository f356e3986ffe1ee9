"""Pickles: opened only when it is said, for tensors alone; what would run code is refused, and does not run."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pickle
import random
import sys
import types
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

from gencli.checkpoints.build import load
from gencli.checkpoints.find import find
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.spec import ModelSpec
from gencli.text.load import open_model
from tests.tiny.text import make_gpt2, write_json


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a fresh folder, which has none afterwards."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_gpt2(tmp_path / "model")


def open_it(folder: Path) -> torch.nn.Module:
    return load(folder, tensors=open_tensors(folder, allow_pickle=True))


def check_same(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    own = expected.state_dict()
    assert model.state_dict().keys() == own.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, own[name]), name


def refusal(folder: Path, says: str) -> GencliError:
    with pytest.raises(GencliError) as caught:
        open_it(folder)
    message = caught.value.message
    assert says in message and str(folder) in message and "\n" not in message and len(message) < 500
    return caught.value


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.fp16.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_one_file(folder, name, zipped):
    expected = load(folder)
    torch.save(tensors_of(folder), folder / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(GencliError, match="no weights in safetensors") as caught:
        load(folder)
    assert "--allow-pickle" in caught.value.hint
    check_same(open_it(folder), expected)


def test_parameters_and_a_training_scripts_wrapper(folder):
    expected = load(folder)
    tensors = {name: torch.nn.Parameter(tensor) for name, tensor in tensors_of(folder).items()}
    torch.save({"step": 3, "state_dict": tensors}, folder / "pytorch_model.bin")
    check_same(open_it(folder), expected)


def test_several_files_with_an_index(folder):
    expected = load(folder)
    tensors = tensors_of(folder)
    names = sorted(tensors)
    files = {}
    for i in range(2):
        file = f"pytorch_model-{i + 1:05}-of-00002.bin"
        torch.save({name: tensors[name] for name in names[i::2]}, folder / file)
        files |= dict.fromkeys(names[i::2], file)
    index = folder / "pytorch_model.bin.index.json"
    write_json(index, {"metadata": {}, "weight_map": files})
    check_same(open_it(folder), expected)
    write_json(index, {"weight_map": {**files, "ln_f.bias": "pytorch_model-00001-of-00002.bin"}})
    if files["ln_f.bias"] == "pytorch_model-00001-of-00002.bin":
        write_json(index, {"weight_map": {**files, "ln_f.bias": "pytorch_model-00002-of-00002.bin"}})
    refusal(folder, "is not where the index says")
    for outside in ("../x.bin", "/etc/x.bin", "model.safetensors", "x.so"):
        write_json(index, {"weight_map": {**files, "ln_f.bias": outside}})
        refusal(folder, "is not a plain name of a bin file beside it")


def test_safetensors_come_first(folder):
    expected = load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"never looked at")
    check_same(open_it(folder), expected)


def test_a_whole_model_is_opened_and_named_files_too(folder):
    torch.save(tensors_of(folder), folder / "pytorch_model.bin")
    model = open_model(find(str(folder)), ModelSpec(allow_pickle=True))
    assert model.vocab_size == 384
    assert open_model(find(str(folder / "pytorch_model.bin")), ModelSpec(allow_pickle=True)).vocab_size == 384
    for name in (str(folder), str(folder / "pytorch_model.bin")):
        with pytest.raises(GencliError) as caught:
            open_model(find(name))
        assert "pickles can run code" in caught.value.hint


class Payload:
    """What an attacker would put in: a call of the shell when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.system, (f"touch '{self.mark}'",))


class Evaluated(Payload):
    def __reduce__(self):
        return (eval, (f"open({str(self.mark)!r}, 'w')",))


class Imported(Payload):
    def __reduce__(self):
        return (__import__, ("antigravity",))


@pytest.mark.parametrize("payload", [Payload, Evaluated, Imported])
@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_a_payload_is_refused_and_does_not_run(folder, tmp_path, payload, form):
    mark = tmp_path / "was here"
    bad = {**tensors_of(folder), "x": payload(mark)}
    if form == "bare":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(bad["x"]))
    else:
        torch.save(bad, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
    error = refusal(folder, "is refused: " if form == "bare" else "is refused: it asks for ")
    assert "nothing of it was run" in error.hint
    assert not mark.exists()


def test_the_payload_would_have_run(folder, tmp_path):
    """The attack of the tests above is a real one."""
    torch.save({"x": Payload(tmp_path / "mark")}, folder / "bad.bin")
    torch.load(folder / "bad.bin", weights_only=False)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "value",
    [
        [torch.zeros(2)],
        torch.zeros(2),
        {"ln_f.bias": 3},
        {"ln_f.bias": "text"},
        {3: torch.zeros(2)},
        {"ln_f.bias": torch.zeros(2).to_sparse()},
        {"ln_f.bias": torch.zeros(2, device="meta")},
        None,
    ],
    ids=range(8),
)
def test_what_is_no_table_of_tensors(folder, value):
    tensors_of(folder)
    torch.save(value, folder / "pytorch_model.bin")
    with pytest.raises(GencliError, match=r"holds no table of tensors|is not a plain tensor|is broken|is refused"):
        open_it(folder)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02]q.", b"no pickle", b"\0" * 100])
def test_broken_files(folder, content):
    tensors_of(folder)
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(GencliError, match=r"is broken|holds no table|is refused"):
        open_it(folder)


def test_a_file_cut_anywhere(folder):
    torch.save(tensors_of(folder), folder / "pytorch_model.bin")
    content = (folder / "pytorch_model.bin").read_bytes()
    for seed in range(25):
        (folder / "pytorch_model.bin").write_bytes(content[: random.Random(seed).randrange(len(content))])
        refusal(folder, "/pytorch_model.bin is ")


def test_a_record_shorter_than_its_tensors(folder):
    """A zip whose storages were cut is told of before a page beyond its end is touched."""
    torch.save(tensors_of(folder), folder / "whole.bin")
    with zipfile.ZipFile(folder / "whole.bin") as old, zipfile.ZipFile(folder / "pytorch_model.bin", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[: len(content) // 2] if "/data/" in name else content)
    with pytest.raises(GencliError) as caught:
        model = open_it(folder)
        model(torch.tensor([[1, 2, 3]]))
    assert "\n" not in caught.value.message


def test_weights_that_do_not_fit_are_told_as_ever(folder):
    tensors = tensors_of(folder)
    tensors["ln_f.bias"] = torch.zeros(31)
    torch.save(tensors, folder / "pytorch_model.bin")
    refusal(folder, "ln_f.bias is [31], not [32]")
    tensors["ln_f.bias"] = torch.zeros(32, dtype=torch.int64)
    torch.save(tensors, folder / "pytorch_model.bin")
    refusal(folder, "ln_f.bias is stored as I64")
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "gpt2"


def made_up_class(module: str, name: str) -> type:
    """A class of a library that is not here, as a pickle names it."""
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[: i + 1]), types.ModuleType(".".join(parts[: i + 1])))
    made = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, made)
    return made


@pytest.mark.parametrize("zipped", [True, False])
def test_what_lightning_keeps_beside_the_weights(folder, zipped):
    """Callbacks by class, settings, numpy's scalars and arrays: inert, and the weights are read."""
    expected = load(folder)
    callback = made_up_class("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    kept = made_up_class("omegaconf.dictconfig", "DictConfig")()
    kept.settings = {"lr": 1e-4}
    try:
        state = {
            "state_dict": tensors_of(folder), "callbacks": {callback: {"best": callback(), "path": Path("x")}},
            "global_step": numpy.int64(470000), "lr": numpy.float64(1e-4), "losses": numpy.zeros(3),
            "hyper_parameters": argparse.Namespace(lr=1e-4, nested=kept),
            "counts": collections.defaultdict(list, a=[1]),
        }  # fmt: skip
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    finally:
        for name in [one for one in sys.modules if one.partition(".")[0] in ("pytorch_lightning", "omegaconf")]:
            del sys.modules[name]
    check_same(open_it(folder), expected)


def test_a_payload_beside_lightnings_is_refused(folder, tmp_path):
    mark = tmp_path / "was here"
    state = {"state_dict": tensors_of(folder), "callbacks": argparse.Namespace(x=Payload(mark))}
    torch.save(state, folder / "pytorch_model.bin")
    refusal(folder, "is refused: it asks for posix.system")
    assert not mark.exists()
