"""The messages of a conversation, and how they are read as OpenAI's API has them. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from gencli.errors import GencliError
from gencli.json_files import as_unicode, parse_json, shown
from gencli.text.tools import MOST, call_id

if TYPE_CHECKING:
    from typing_extensions import NotRequired

ROLES = ("system", "user", "assistant", "tool")
EXAMPLE = """a conversation is a JSON list of messages, as in [{"role": "user", "content": "Hello"}]"""
LAST = ("user", "tool")  # whose message is to be answered
MOST_MESSAGES = 4096
OBJECT_KEYS = ("messages", "model")  # of a conversation's object: `gencli chat` writes both


class Message(TypedDict):
    """One message. role: system, user, assistant or tool. tool_calls: of an assistant, as templates take them. name,
    tool_call_id: of the call that a tool's message answers."""

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, object]]]
    name: NotRequired[str]
    tool_call_id: NotRequired[str]


def parse_conversation(text: str, where: str) -> list[Message]:
    """Return the messages of a conversation in JSON: a list of them, or an object that has them as `messages`.

    where: what holds it, for errors. Raise GencliError for anything else, and for messages with images.
    """
    if not text.strip():
        raise GencliError(f"{where} is empty", EXAMPLE)
    try:
        value = parse_json(text, where)
    except GencliError as error:
        error.hint = error.hint or EXAMPLE
        raise
    if isinstance(value, dict):
        if other := next((name for name in value if name not in OBJECT_KEYS), None):
            hint = f"--{other} says it" if other in ("tools", "tool_choice") else "options say the rest"
            hint = "write the one message as a list: [{…}]" if {"role", "content"} <= value.keys() else hint
            raise GencliError(f"{where}: of an object only `messages` is read, and not {other!r:.60}", hint)
        value = value.get("messages")
    if not isinstance(value, list) or not 0 < len(value) <= MOST_MESSAGES:
        raise GencliError(f"{where} is no JSON list of 1 to {MOST_MESSAGES} messages", EXAMPLE)
    return read_at(where, value, read_messages)


def read_at(where: str, values: list[object], read: Callable[[list[object]], list[Message]]) -> list[Message]:
    """Return messages as a function reads them. where: what holds them. Raise GencliError, for images too."""
    try:
        if any(map(urls, values)):
            raise GencliError("images of messages are not read here")
        return read(values)
    except GencliError as error:
        raise GencliError(f"{where}: {error.message.removeprefix('messages: ')}", error.hint) from None


def last_turn(messages: Sequence[Message]) -> int:
    """Return where the last turn begins: at the last message of the user, which calls and their answers may follow."""
    return max((number for number, message in enumerate(messages) if message["role"] == "user"), default=0)


def read_messages(values: list[object]) -> list[Message]:
    """Return the messages of a conversation that ends with one to answer, or with the beginning of an answer. Raise
    GencliError."""
    read = read_turns(values)
    if read and read[-1]["role"] not in LAST and not begun_answer(read):
        raise GencliError("messages: the last one must be the user's, a tool's, or the beginning of an answer")
    return read


def begun_answer(messages: Sequence[Message]) -> str:
    """Return the beginning of an answer that the last of messages is; "" if it is none."""
    last = messages[-1]
    return last["content"] if last["role"] == "assistant" and not last.get("tool_calls") else ""


def read_turns(values: list[object]) -> list[Message]:
    """Return messages that follow one another. A tool's answer without an id is that to the first call that has none.
    Raise GencliError."""
    read = [read_message(number, value) for number, value in enumerate(values)]
    open_calls: list[tuple[str, str]] = []  # id and name
    for number, message in enumerate(read):
        if message["role"] == "assistant":
            open_calls = [_id_and_name(call) for call in message.get("tool_calls", ())]
        elif message["role"] == "tool":
            known = message.get("tool_call_id")
            found = next((one for one in open_calls if known in (None, one[0])), None)
            if found is None:
                what = "has its tool_call_id" if known else "is left for it"
                raise GencliError(f"messages[{number}]: no call of the assistant's last message {what}")
            open_calls.remove(found)
            message["tool_call_id"] = found[0]
            message.setdefault("name", found[1])
    return read


def read_message(number: int, message: object) -> Message:
    """Return a message of a conversation. Raise GencliError."""
    where = f"messages[{number}]"
    role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
    calls = message.get("tool_calls") if isinstance(message, Mapping) and role == "assistant" else None
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, Mapping)]
        texts = [part["text"] for part in parts if part.get("type") == "text" and isinstance(part.get("text"), str)]
        if len(texts) + len(urls(message)) != len(content):
            raise GencliError(f"{where}: only parts of type text and image_url are read")
        content = "".join(texts)
    if content is None and calls:
        content = ""
    role = "system" if role == "developer" else role
    if not isinstance(message, Mapping):
        raise GencliError(f"{where} is no object with a role and content")
    if role not in ROLES:
        raise GencliError(f"{where}: wants a role of {', '.join(ROLES[:-1])} or {ROLES[-1]}, not {shown(role)}")
    if not isinstance(content, str):
        raise GencliError(f"{where}: wants a text as content, not {shown(content)}")
    made = Message(role=role, content=content)
    if calls:
        made["tool_calls"] = _calls(where, calls)
    if role == "tool":
        if (given := message.get("tool_call_id")) is not None:
            made["tool_call_id"] = call_id(given)
        name = message.get("name", message.get("tool_name"))  # ollama's
        if isinstance(name, str):
            made["name"] = name
    try:
        as_unicode(json.dumps(made, ensure_ascii=False, allow_nan=False), where)
    except RecursionError:
        raise GencliError(f"{where} is nested too deeply") from None
    except ValueError:
        raise GencliError(f"{where} has a number that is not finite") from None
    except GencliError:
        raise GencliError(f"{where} is no Unicode text") from None
    return made


def urls(message: object) -> list[str]:
    """Return the images of a message, as their data: URLs."""
    content = message.get("content") if isinstance(message, Mapping) else None
    parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    holders = [part.get("image_url") for part in parts if part.get("type") == "image_url"]
    found = [holder.get("url") if isinstance(holder, Mapping) else holder for holder in holders]
    return [url for url in found if isinstance(url, str)]


def _calls(where: str, values: object) -> list[dict[str, object]]:
    """Return the calls of an earlier answer, with their arguments as an object. Raise GencliError."""
    if not isinstance(values, list) or len(values) > MOST:
        raise GencliError(f"{where}: tool_calls wants a list of at most {MOST} calls")
    made: list[dict[str, object]] = []
    for number, value in enumerate(values):
        function = value.get("function", value) if isinstance(value, Mapping) else None  # `--json` writes it alone
        name, arguments = (
            (function.get("name"), function.get("arguments")) if isinstance(function, Mapping) else (None, None)
        )
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            wanted = "wants a function with a name, and arguments that are a JSON object"
            told = f"{where}: tool_calls[{number}] {shown(value)}: {wanted}"
            raise GencliError(told)
        given = value.get("id") if isinstance(value, Mapping) else None
        identity = call_id(f"{where}/{number}" if given is None else given)
        made.append({"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}})
    return made


def _id_and_name(call: Mapping[str, object]) -> tuple[str, str]:
    function = call["function"]
    assert isinstance(function, Mapping)
    return str(call["id"]), str(function["name"])
