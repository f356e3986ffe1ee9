"""Readers of broken files: one short line that names the file, whatever a library raises."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from gencli.checkpoints.find import Source
from gencli.checkpoints.report import describe
from gencli.cli.prompts import read_stdin
from gencli.errors import HINT_LIMIT, MESSAGE_LIMIT, GencliError, shorten
from gencli.image.files.pictures import open_picture
from gencli.json_files import read_bytes
from gencli.many.records import Records
from gencli.text.conversation import Conversation, read_examples
from gencli.train.captions import find_captions
from gencli.train.pictures import read_pictures
from gencli.train.state import load as load_state
from gencli.train.texts import read_texts

DEEP = "[" * 100_000
ROW = '{"file": "a.png", "label": "a"}'


def zipped(file: Path, *, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    png = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(png, "PNG")
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("a.png", png.getvalue())
        archive.writestr("metadata.jsonl", ROW)
    return file


def damaged(file: Path, at: int, value: int) -> Path:
    """Change a byte, counted from the header of the first member, or for a negative one from its row in the table."""
    data = bytearray(file.read_bytes())
    data[at if at >= 0 else data.index(b"PK\x01\x02") - at] = value
    file.write_bytes(data)
    return file


@pytest.mark.parametrize(
    "at, value", [(200, 255), (-10, 99), (-8, 1), (2, 0), (26, 255)], ids=["CRC", "method", "lock", "header", "name"]
)
def test_a_zip_with_a_bad_member(tmp_path: Path, at: int, value: int):
    file = damaged(zipped(tmp_path / "p.zip"), at, value)
    with pytest.raises(GencliError, match=r"p\.zip: a\.png (cannot be read|is not an image)|p\.zip: metadata\.jsonl"):
        read_pictures(file, [name for name, _ in find_captions(file, [])], 8)


@pytest.mark.slow
def test_a_zip_whose_member_claims_a_gigabyte(tmp_path: Path):
    file = tmp_path / "p.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.png", "w") as member:
        for _ in range(80):
            member.write(bytes(2**20))
    with pytest.raises(GencliError, match="has 83886080 bytes, more than any image or caption"):
        read_pictures(file, ["a.png"], 8)


@pytest.mark.parametrize("line", [DEEP, '{"file": "a.png", "label": ' + DEEP], ids=["list", "label"])
def test_json_too_deep(tmp_path: Path, line: str):
    (tmp_path / "a.png").write_bytes(b"")
    for name in ("captions.jsonl", "texts.jsonl", "talk.json"):
        (tmp_path / name).write_text(line)
    readers = {
        "captions.jsonl": lambda file: find_captions(tmp_path, [file]),
        "texts.jsonl": read_texts,
        "talk.json": Conversation().load,
    }
    readers |= {"talk.json again": lambda _: read_examples(tmp_path / "talk.json")}
    for name, read in readers.items():
        with pytest.raises(GencliError, match=rf"{name.split()[0]}.* is not valid JSON"):
            read(tmp_path / name.split()[0])


def test_lone_surrogates(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "c.jsonl").write_text('{"file": "a.png", "label": "a\\ud800"}')
    (tmp_path / "t.jsonl").write_text('{"text": "a\\ud800"}')
    for name, read in (("c.jsonl", lambda file: find_captions(tmp_path, [file])), ("t.jsonl", read_texts)):
        with pytest.raises(GencliError, match=rf"{name}, line 1: a text is not valid Unicode at its character 1"):
            read(tmp_path / name)


def test_a_damaged_gzip(tmp_path: Path):
    data = bytearray(gzip.compress(json.dumps({"text": "a b c d e" * 50}).encode()))
    data[14:20] = b"\xff" * 6
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    with pytest.raises(GencliError, match=r"a\.jsonl\.gz is not a whole gzip file"):
        read_texts(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize("value", ["a text", [1], {"recipe": "a"}, {"recipe": {"sizes": 5}}])
def test_a_state_of_no_run(tmp_path: Path, value: object):
    torch.save(value, tmp_path / "state.pt")
    with pytest.raises(GencliError, match=r"state\.pt is not a state of a run"):
        load_state(tmp_path / "state.pt")


@pytest.mark.parametrize("key", ["_class_name", "model_type"])
@pytest.mark.parametrize("value", [["a"], {"a": 1}, 5, True])
def test_a_config_that_names_no_kind(tmp_path: Path, key: str, value: object):
    config = {"_class_name": "AutoencoderKL", "model_type": "gpt2"} | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert f"{key} = {value!r} in its config is not a name" in describe(Source("a", tmp_path, "folder")).problem


@pytest.mark.parametrize("letter", ["x", "é", "🙂", "\udc80", "\n"])
def test_messages_have_an_end(letter: str):
    error = GencliError(f"begin {letter * 100_000} end", letter * 100_000)
    said = f"error: {error.message}\nhint: {error.hint}\n".encode("utf-8", "backslashreplace")
    assert len(said) < 2000 and said.count(b"\n") == 2
    assert error.message.startswith("begin ") and error.message.endswith(" end") and " … " in error.message
    assert str(error) == error.message
    assert len(shorten(letter * 9, HINT_LIMIT)) >= 9 and MESSAGE_LIMIT + HINT_LIMIT < 2000


@pytest.fixture
def little_memory():
    """At most 2 GB more for what a test does: without a guard it would take all that there is."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


READERS = [read_bytes, read_texts, open_picture, Records, lambda path: find_captions(path.parent, [path])]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no such device")
@pytest.mark.parametrize("read", READERS, ids=["small files", "texts", "pictures", "records", "captions"])
@pytest.mark.parametrize("name", ["zero", "full", "urandom"])
def test_a_device_without_an_end_is_not_read(tmp_path, little_memory, name, read):
    (tmp_path / "device").symlink_to(f"/dev/{name}")
    with pytest.raises(GencliError, match="device is a device that never ends"):
        read(tmp_path / "device")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="this system has no such device")
def test_nor_is_stdin_if_it_is_one(little_memory):
    kept = os.dup(0)
    try:
        with open("/dev/zero") as device:
            os.dup2(device.fileno(), 0)
        with pytest.raises(GencliError, match="stdin is a device that never ends"):
            read_stdin()
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def test_what_ends_is_read():
    """The device that holds nothing, and a pipe."""
    assert read_bytes(Path(os.devnull)) == b""
    ends = os.pipe()
    os.write(ends[1], b"{}")
    os.close(ends[1])
    assert read_bytes(Path(f"/dev/fd/{ends[0]}")) == b"{}"
    os.close(ends[0])
