"""The conversation of a request of Anthropic's Messages API → messages as chat templates take them. No torch.

Blocks of one message are joined as they are. Messages of one role in a row are one turn, as that API has it: of a
user's the results of tools come first, and between texts there is an empty line. Thoughts that a client gives back are
left out, as templates leave them out; `cache_control` and `citations` change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gencli.errors import GencliError
from gencli.json_files import shown
from gencli.serve.refusal import INVALID, Refusal
from gencli.serve.values import read_images
from gencli.text.messages import MOST_MESSAGES, Message, read_message
from gencli.text.tools import MOST, call_id

Block = Mapping[str, object]
BLOCKS = {  # by whose message it is
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}
FAILED = "Error: "  # before what a tool says that has failed, as templates have no other place for it


@dataclass(frozen=True)
class Talk:
    """A conversation. images: what its last message is about. begun: its last message begins the answer."""

    messages: list[Message]
    images: tuple[bytes, ...]
    begun: bool


@dataclass
class _Turn:
    """What one side says. results: of tools, which come before it. images: as base64."""

    said: Message
    results: list[Message] = field(default_factory=list)
    images: list[object] = field(default_factory=list)

    def join(self, other: _Turn) -> None:
        """Take in a turn of the same role that follows."""
        texts = (self.said["content"], other.said["content"])
        self.said["content"] = "\n\n".join(text for text in texts if text)
        if calls := [*self.said.get("tool_calls", ()), *other.said.get("tool_calls", ())]:
            self.said["tool_calls"] = calls
        self.results += other.results
        self.images += other.images

    def messages(self) -> list[Message]:
        return [*self.results, *([self.said] if self.said["content"] or self.images or not self.results else [])]


def read_talk(system: object, values: object) -> Talk:
    """Return the conversation of a body's `system` and `messages`. Raise Refusal."""
    if not isinstance(values, list) or not 0 < len(values) <= MOST_MESSAGES:
        raise _wrong("messages", f"wants a list of 1 to {MOST_MESSAGES} messages")
    turns: list[_Turn] = []
    if system is not None and (text := _texts("system", system)):
        turns.append(_Turn(_message("system", 0, {"role": "system", "content": text})))
    open_calls: dict[str, str] = {}  # a tool's name by the call's id
    for number, value in enumerate(values):
        turn = _turn(number, value, open_calls)
        if turns and turns[-1].said["role"] == turn.said["role"]:
            turns[-1].join(turn)
        else:
            turns.append(turn)
    last = turns[-1].said
    begun = last["role"] == "assistant" and bool(last["content"])
    if last.get("tool_calls"):
        raise _wrong("messages", "the last one has a tool_use, and wants a message with its tool_result")
    if begun and last["content"] != last["content"].rstrip():
        raise _wrong("messages", "the last one, which begins the answer, ends with white space: leave that out")
    if last["role"] == "assistant" and not begun:
        turns.pop()
    if not any(turn.said["role"] == "user" for turn in turns[-1 - begun :]):
        raise _wrong("messages", "the last one is to be the user's, or the beginning of an answer to that")
    if any(turn.images for turn in turns[:-1]):
        raise _wrong("messages", "images of the last message alone are read")
    images = read_images("messages", turns[-1].images or None)
    return Talk([one for turn in turns for one in turn.messages()], images, begun)


def _turn(number: int, value: object, open_calls: dict[str, str]) -> _Turn:
    """Return a message as a turn. open_calls: the calls so far that have no result, which it takes from and adds to."""
    where = f"messages[{number}]"
    role = value.get("role") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(role, str) or role not in BLOCKS:
        raise _wrong(where, f"wants a message with a role of {', '.join(BLOCKS)}")
    texts, calls = list[str](), list[object]()
    turn = _Turn(Message(role=role, content=""))
    for block in _blocks(where, value.get("content")):
        kind = block.get("type")
        if kind not in BLOCKS[role]:
            known = ", ".join(BLOCKS[role])
            raise _wrong(where, f"content of type {shown(kind)} is not read in a message of role {role} ({known} are)")
        if kind == "text":
            texts.append(_text(where, block))
        elif kind == "image":
            turn.images.append(_image(where, block.get("source")))
        elif kind == "tool_use":
            calls.append(_call(where, block))
        elif kind == "tool_result":
            turn.results.append(_message(where, number, _result(where, block, open_calls)))
    if len(calls) > MOST:
        raise _wrong(where, f"at most {MOST} of tool_use")
    turn.said = _message(where, number, {"role": role, "content": "".join(texts), "tool_calls": calls})
    if role == "assistant":
        for call in turn.said.get("tool_calls", ()):
            function = call["function"]
            assert isinstance(function, Mapping)
            open_calls[str(call["id"])] = str(function["name"])
    return turn


def _blocks(where: str, content: object) -> list[Block]:
    """Return the blocks of a content, which may be a text alone. Raise Refusal."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    blocks = [one for one in content if isinstance(one, Mapping)] if isinstance(content, list) else None
    if blocks is None or not isinstance(content, list) or len(blocks) != len(content):
        raise _wrong(where, "wants a text or a list of blocks as content")
    return blocks


def _texts(where: str, content: object) -> str:
    """Return a content of texts alone. Raise Refusal."""
    blocks = _blocks(where, content)
    if other := next((one for one in blocks if one.get("type") != "text"), None):
        raise _wrong(where, f"content of type {shown(other.get('type'))} is not read here (text is)")
    return "".join(_text(where, one) for one in blocks)


def _text(where: str, block: Block) -> str:
    text = block.get("text")
    if not isinstance(text, str):
        raise _wrong(where, "a block of type text wants a text")
    return text


def _image(where: str, source: object) -> object:
    """Return the base64 of an image's source. Raise Refusal."""
    if not isinstance(source, Mapping) or source.get("type") != "base64":
        raise _wrong(where, "an image wants a source of type base64; nothing is fetched")
    return source.get("data")


def _call(where: str, block: Block) -> object:
    """Return a call of a tool in the form of OpenAI's API. Raise Refusal."""
    identity, name, given = block.get("id"), block.get("name"), block.get("input")
    if not isinstance(identity, str) or not isinstance(name, str) or not isinstance(given, dict):
        raise _wrong(where, "a tool_use wants an id, a name and an input, which is an object")
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": given}}


def _result(where: str, block: Block, open_calls: dict[str, str]) -> dict[str, object]:
    """Return what a tool has answered, as a message in the form of OpenAI's API. Raise Refusal."""
    identity, failed = block.get("tool_use_id"), block.get("is_error")
    if not isinstance(failed, bool | None):
        raise _wrong(where, f"is_error {shown(failed)}: wants true or false")
    name = open_calls.pop(call_id(identity), None) if isinstance(identity, str) else None
    if name is None:
        raise _wrong(where, f"tool_use_id {shown(identity)}: no tool_use before has this id, and waits for a result")
    content = block.get("content")
    text = "" if content is None else _texts(where, content)
    return {"role": "tool", "content": FAILED * bool(failed) + text, "tool_call_id": identity, "name": name}


def _message(where: str, number: int, value: object) -> Message:
    """Return a message of OpenAI's form that was made here. Raise Refusal for what is no Unicode, or no JSON."""
    try:
        return read_message(number, value)
    except GencliError as error:
        raise _wrong(where, error.message.removeprefix(f"messages[{number}]").lstrip(": ")) from None


def _wrong(where: str, told: str) -> Refusal:
    return Refusal(INVALID, f"{where}: {told}", param=where.partition("[")[0])
