"""Small things that people type: names of models as a browser shows them or none at all, examples from a pipe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gencli.__main__ import main
from gencli.checkpoints.find import find
from gencli.errors import GencliError
from gencli.text.chat_template import Templated
from gencli.text.conversation import read_examples
from gencli.tokens import load_tokenizer
from tests.tiny.hub_cache import put, tiny
from tests.tiny.scripted import END, make_scripted_chat


@pytest.mark.parametrize(
    "name", ["https://huggingface.co/org/name", "hf.co/org/name/", "huggingface.co/org/name", "org/name/"]
)
def test_a_hub_name_as_a_browser_shows_it(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    put(tmp_path, "org/name", "a" * 40, tiny(), "main")
    source = find(name, offline=True)
    assert (source.name, source.kind) == ("org/name", "hub")


def test_templates_get_the_names_of_extra_tokens(tmp_path: Path):
    template = "{{ image_token }}{{ eos_token }}{{ messages[0].content }}{{ tools is none }}"
    named = {"extra_special_tokens": {"image_token": "<image>", "messages": "<m>", "tools": "<t>"}}
    folder = make_scripted_chat(tmp_path, "a", template=template, tokenizer_config=named)
    made = Templated(load_tokenizer(folder), "tiny")
    prompt = made.prompt([{"role": "user", "content": "Hi"}])
    made.close()
    assert prompt.text == f"<image>{END}HiTrue"
    assert made.tokenizer.backend.token_to_id("<image>") in prompt.ids


def test_no_name_is_not_this_folder():
    with pytest.raises(GencliError, match="the model name is empty") as caught:
        find("")
    assert caught.value.hint == "is it an unset variable?"


@pytest.mark.parametrize("option", ["-o", "-i", "--mask", "--gif", "--save-steps", "--save-stages", "--from"])
def test_no_file_has_no_name(capsys, option: str):
    assert main(["image", "apple", option, ""]) == 2
    name = {"-o": "--output", "-i": "--init"}.get(option, option)
    said = f"error: {name} '': a file name cannot be empty\nhint: is it an unset variable?\n"
    assert capsys.readouterr().err == said
    assert main(["image", "apple", "--control", "x", "--control-image", ""]) == 2


def test_examples_from_a_pipe():
    reader, writer = os.pipe()
    os.write(writer, b'{"user": "a", "assistant": "b"}\n')
    os.close(writer)
    try:
        assert [message["content"] for message in read_examples(Path(f"/dev/fd/{reader}"))] == ["a", "b"]
    finally:
        os.close(reader)


def test_a_lone_surrogate_is_told_with_its_line(tmp_path: Path):
    file = tmp_path / "examples.jsonl"
    file.write_bytes(b'{"user": "a", "assistant": "b"}\n{"user": "ab\\ud800", "assistant": "b"}\n')
    with pytest.raises(GencliError) as caught:
        read_examples(file)
    assert caught.value.message == f"{file}, line 2: messages[0] is no Unicode text"
