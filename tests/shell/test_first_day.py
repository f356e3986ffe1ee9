"""A new user's first day, from README: a story, an image, a model by its short name, a conversation that is resumed, an
answer in JSON, and own notes that a model learns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gencli.checkpoints.catalogue import find_entry
from tests.oracles.hub_server import Hub
from tests.shell.process import Terminal, environment, gencli
from tests.tiny.chat_templates import FAMILIES, make_chat_tokenizer
from tests.tiny.decoder_cases import SMOLLM2, llama, plain
from tests.tiny.decoders import make_decoder
from tests.tiny.text import write_json

pytestmark = pytest.mark.slow

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True, **SMOLLM2,
}  # fmt: skip
READY = b"\x1b[?2004h"  # the editor of messages has the terminal


def smollm2(folder: Path) -> Path:
    """A small checkpoint in the layout of SmolLM2's: Llama, tokenizer.json with ChatML, its own generation config."""
    make_chat_tokenizer(folder, FAMILIES[0])
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) + len(
        json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    )
    make_decoder(folder, llama("day", {"vocab_size": size, **SHAPE}, *plain(10000.0)))
    write_json(folder / "generation_config.json", {"temperature": 0.2, "top_p": 0.9})
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The environment of a user with nothing on the disk, whose hub has one model."""
    entry = find_entry("smollm2")
    assert entry is not None
    with Hub() as hub:
        hub.commit(entry.id, smollm2(tmp_path / "made"))
        yield {
            "HOME": str(tmp_path), "HF_HUB_OFFLINE": None, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "h"),
            "HF_TOKEN": None, "NO_PROXY": "127.0.0.1", "GENCLI_CONFIG": str(tmp_path / "config.toml"),
            "GENCLI_CACHE": str(tmp_path / "cache"), "XDG_STATE_HOME": str(tmp_path / "state"), "NO_COLOR": "1",
        }  # fmt: skip


def test_the_first_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: dict[str, Any]) -> None:
    monkeypatch.chdir(tmp_path)

    def done(*args: object, stdin: bytes = b"") -> str:
        ran = gencli(*args, stdin=stdin, **home)
        assert ran.returncode == 0, ran.stderr.decode()
        return ran.stdout.decode()

    assert done("text", "Once upon a time", "-n", 12, "-s", 1).strip()
    assert done("image", "red apple", "--steps", 2, "-o", "apple.png") == "apple.png\n"
    with Image.open("apple.png") as apple:
        assert apple.size == (128, 128)

    assert "smollm2 " in done("models", "available", "--task", "chat")
    folder = Path(done("models", "pull", "smollm2").strip())
    assert (folder / "model.safetensors").is_file()
    assert "HuggingFaceTB/SmolLM2-360M-Instruct" in done("models", "list")
    done("models", "use", "smollm2")
    assert json.loads(done("text", "--chat", "Hi", "-n", 3, "--json"))["model"] == "HuggingFaceTB/SmolLM2-360M-Instruct"

    for more in ((), ("-c",)):
        env = environment(**{**home, "TERM": "xterm"})
        terminal = Terminal.of_gencli("chat", "-n", 4, "-s", 1, *more, folder=tmp_path, env=env)
        if more:
            terminal.wait_for(b"continuing ")
        terminal.wait_for(READY)
        terminal.type(b"What is a fox?\r")
        terminal.wait_for(b"tokens")  # cut off after 4
        terminal.wait_for(READY)
        terminal.type(b"\x04")
        assert terminal.ended() == 0
    [kept] = (tmp_path / "state" / "gencli" / "chats").iterdir()
    assert [turn["role"] for turn in json.loads(kept.read_text())["messages"]] == ["user", "assistant"] * 2

    Path("person.json").write_text(json.dumps(PERSON))
    answer = json.loads(done("text", "--chat", "Who wrote the first program?", "--schema", "person.json", "-s", 1))
    assert isinstance(answer["name"], str) and 0 <= answer["age"] <= 130

    Path("notes.txt").write_text("\n\n".join(f"On day {day} the fox sat by the sea." for day in range(60)))
    done("train", "text", "notes.txt", "--init", "stories", "--lora-rank", 4, "-o", "notes", "--steps", 2, "--batch", 2)
    assert done("text", "-m", "stories", "--lora", "notes", "On day", "-n", 4).strip()
