"""The messages of a conversation, and its files: few-shot examples and saved conversations. No torch."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gencli.atomic import check_target, write_over
from gencli.errors import GencliError
from gencli.json_files import parse_json, read_text
from gencli.text.messages import Message, read_at, read_turns


@dataclass
class Conversation:
    """system: the system prompt. examples: messages before those of the conversation. turns: user, assistant, …

    left_out: how many of the oldest messages of `turns` no longer go to the model, for lack of room in the context.
    """

    system: str | None = None
    examples: list[Message] = field(default_factory=list)
    turns: list[Message] = field(default_factory=list)
    left_out: int = 0

    def messages(self) -> list[Message]:
        """Return the messages that go to the model."""
        head: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*head, *self.examples, *self.turns[self.left_out :]]

    def leave_out(self) -> bool:
        """Leave out the oldest turn, up to the next message of the user. Return False if there is none."""
        if self.left_out >= len(self.turns):
            return False
        self.left_out += 1
        while self.left_out < len(self.turns) and self.turns[self.left_out]["role"] != "user":
            self.left_out += 1
        return True

    def add(self, role: str, content: str) -> None:
        self.turns.append({"role": role, "content": content})

    def reset(self) -> None:
        """Forget all turns; the system prompt and the examples stay."""
        self.turns, self.left_out = [], 0

    def dump(self) -> bytes:
        """Return the content of a file: one line of JSON, which `--examples` reads too. Examples are not in it."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        return json.dumps({"messages": [*head, *self.turns]}, ensure_ascii=False).encode() + b"\n"

    def save(self, path: Path) -> None:
        """Write a file, in place of a saved conversation if there is one. Raise GencliError, also for any other file
        that has something in it: it stays."""
        check_target(path)
        try:
            if path.is_file() and path.stat().st_size and not _is_conversation(path):
                hint = "name another file, or remove this one first"
                raise GencliError(f"{path} is not a conversation, and is not written over", hint)
            write_over(path, self.dump())
        except OSError as error:
            raise GencliError(f"cannot write {path}: {error.strerror}") from None

    def load(self, path: Path) -> None:
        """Replace this conversation by a saved one. Raises GencliError for a file that is not one."""
        value = parse_json(_text(path), path)
        messages = _messages(value.get("messages") if isinstance(value, dict) else value, str(path))
        systems = [message["content"] for message in messages if message["role"] == "system"]
        if len(systems) > 1:
            raise GencliError(f"{path}: a conversation has one system prompt, not {len(systems)}")
        self.reset()
        self.system = systems[0] if systems else self.system
        self.turns = [message for message in messages if message["role"] != "system"]


def _is_conversation(path: Path) -> bool:
    try:
        Conversation().load(path)
    except GencliError:
        return False
    return True


def read_examples(path: Path) -> list[Message]:
    """Read few-shot examples, a JSON object per line: `{"user", "assistant"}` or `{"messages": [{"role", "content"}]}`.

    Raises GencliError, with the number of the line, for anything else.
    """
    return [message for number, line in _lines(path) for message in _example(line, f"{path}, line {number}")]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield number, line


def _example(line: str, where: str) -> list[Message]:
    value = parse_json(line, where)
    if isinstance(value, dict) and "messages" in value:
        messages = _messages(value["messages"], where)
    elif isinstance(value, dict) and {"user", "assistant"} <= value.keys():
        messages = _messages([{"role": role, "content": value[role]} for role in ("user", "assistant")], where)
    else:
        raise GencliError(f"{where}: expected an object with `user` and `assistant`, or with `messages`")
    if any(message["role"] == "system" for message in messages):
        raise GencliError(f"{where}: an example holds no system prompt", "give it with --system")
    if messages and messages[-1]["role"] != "assistant":
        raise GencliError(f"{where}: an example ends with an answer of the assistant")
    return messages


def _messages(value: object, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise GencliError(f"{where} holds no list of messages")
    return read_at(where, value, read_turns)


def check_file(path: Path) -> None:
    """Raise GencliError unless there is a file at a path, or a pipe."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        raise GencliError(f"{path}: there is no such file") from None
    except OSError as error:
        raise GencliError(f"cannot read {path}: {error.strerror}") from None
    if is_folder:
        raise GencliError(f"{path} is a folder", "name a file in it")


def _text(path: Path) -> str:
    check_file(path)
    return read_text(path)
