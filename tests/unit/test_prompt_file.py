"""`--prompt-cache FILE`: a prompt is read once; a file that does not fit is written anew, any other file stays."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.build import load
from gencli.checkpoints.safetensors_file import SafetensorsFile
from gencli.errors import GencliError
from gencli.text.batch import Batch
from gencli.text.prompt_file import PromptFile
from gencli.text.request import TextRequest
from tests.tiny.decoder_cases import CASES
from tests.tiny.decoders import make_decoder
from tests.tiny.text import make_gpt2

IDS = [3 * i % 90 + 3 for i in range(30)]
CHOSEN = ("llama-2", "gemma2", "phi3-long")
GREEDY = TextRequest.of(temperature=0.0).resolve({})


def model_of(name, folder, **more):
    case = next((case for case in CASES if case.name == name), None)
    return load(make_decoder(folder, case, **more) if case else make_gpt2(folder, tokenizer=None, **more))


def continued(module, ids, file=None):
    """The next tokens, and how many of the ids were read."""
    batch = Batch(module, GREEDY, file)
    _, read = batch.add(ids, torch.Generator(), 8)
    for _ in range(7):
        batch.step()
    return batch.rows[0].ids[len(ids) :], read


@pytest.fixture
def gpt2(tmp_path):
    return model_of("gpt2", tmp_path / "gpt2")


@pytest.mark.parametrize("name", ["gpt2", *CHOSEN, pytest.param("gemma4-small", marks=pytest.mark.slow)])
def test_a_prompt_is_read_once(tmp_path, name):
    """Another text with the same beginning too; the file stays as it is while most of a prompt is in it."""
    module, path = model_of(name, tmp_path / "model"), tmp_path / "cache"
    assert continued(module, IDS, PromptFile(path, module)) == (continued(module, IDS)[0], 30)
    first = path.read_bytes()
    for ids, read in ((IDS, 1), ([*IDS, 5, 6, 7], 3), (IDS[:25], 1), ([*IDS[:24], 1, 2, 3], 3)):
        file = PromptFile(path, module)
        assert file.note is None
        assert continued(module, ids, file) == (continued(module, ids)[0], read)
        assert path.read_bytes() == first
    other = [*IDS[:9], *IDS[1:]]
    assert continued(module, other, PromptFile(path, module))[1] == len(other) - 9
    assert path.read_bytes() != first and continued(module, other, PromptFile(path, module))[1] == 1
    assert [file.name for file in tmp_path.iterdir() if "cache" in file.name] == ["cache"]


def test_another_model_or_precision(tmp_path, gpt2):
    path = tmp_path / "cache"
    continued(gpt2, IDS, PromptFile(path, gpt2))
    changed = model_of("gpt2", tmp_path / "other", seed=1)
    half = load(tmp_path / "gpt2", dtype=torch.bfloat16)
    merged = load(tmp_path / "gpt2")
    merged.transformer.h[1].mlp.c_fc.weight.add_(1e-3)
    for module in (changed, half, merged):
        file = PromptFile(path, module)
        assert file.note == f"{path} is of another model or precision: it is written anew"
        assert continued(module, IDS, file) == continued(module, IDS)
        assert PromptFile(path, module).note is None


def test_what_is_no_prompt_cache_is_left_alone(tmp_path, gpt2):
    path = tmp_path / "notes.txt"
    weights = tmp_path / "gpt2" / "model.safetensors"
    whole = continued(gpt2, IDS, PromptFile(tmp_path / "cache", gpt2)) and (tmp_path / "cache").read_bytes()
    for content in (b"my notes", whole[: len(whole) // 2], weights.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(GencliError, match=r"notes.txt is not a prompt cache, and is not written over"):
            PromptFile(path, gpt2)
        assert path.read_bytes() == content
    path.write_bytes(b"")  # as mktemp makes them
    assert (
        continued(gpt2, IDS, PromptFile(path, gpt2))[1] == 30 and continued(gpt2, IDS, PromptFile(path, gpt2))[1] == 1
    )
    with pytest.raises(GencliError, match="no such folder"):
        PromptFile(tmp_path / "no" / "cache", gpt2)


def test_a_file_that_cannot_be_written_is_named(tmp_path, gpt2):
    (tmp_path / "folder").mkdir()
    file = PromptFile(tmp_path / "folder" / "cache", gpt2)
    (tmp_path / "folder").rmdir()
    with pytest.raises(GencliError, match=r"cannot keep the prompt in .*folder/cache: No such file"):
        continued(gpt2, IDS, file)


def test_hostile_files(tmp_path, gpt2):
    """Numbers, names, shapes and ids that were changed: noted, and read anew."""
    path = tmp_path / "cache"
    expected = continued(gpt2, IDS, PromptFile(path, gpt2))[0]
    good, metadata = load_file(path), SafetensorsFile(path).metadata
    changes = {
        "a number": {"keys.0": good["keys.0"] + 1},
        "ids": {"tokens": good["tokens"] + 1},
        "less": {"tokens": good["tokens"][:5]},
        "no ids": {"tokens": good["tokens"][:0]},
        "floats": {"tokens": good["tokens"].float()},
        "many": {"tokens": torch.zeros(2**20, dtype=torch.long)},
        "a shape": {"values.1": good["values.1"].flatten()},
        "a type": {"values.1": good["values.1"].half()},
        "more": {"values.7": torch.zeros(1)},
    }
    for change in changes.values():
        save_file({**good, **change}, path, metadata)
        file = PromptFile(path, gpt2)
        assert file.note == f"{path} is damaged: it is written anew"
        assert continued(gpt2, IDS, file) == (expected, 30)
        assert PromptFile(path, gpt2).note is None
    save_file({name: one for name, one in good.items() if name != "keys.1"}, path, metadata)
    assert PromptFile(path, gpt2).note is not None


@pytest.mark.slow
def test_any_changed_byte(tmp_path, gpt2):
    """Refused, or read anew, or of no meaning: the text is always the same."""
    path, draw = tmp_path / "cache", random.Random(0)
    expected = continued(gpt2, IDS, PromptFile(path, gpt2))[0]
    whole = path.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    assert json.loads(whole[8:head])["__metadata__"]["kind"] == "gencli prompt cache"
    for number in range(120):
        changed = bytearray(whole)
        changed[draw.randrange(head if number % 2 else len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            file = PromptFile(path, gpt2)
        except GencliError as error:
            assert "is not a prompt cache" in error.message and path.read_bytes() == changed
            continue
        assert continued(gpt2, IDS, file)[0] == expected
