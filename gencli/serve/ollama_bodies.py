"""The JSON bodies of ollama's routes → requests, by the same rows as all others. No torch.

What ollama's clients send beside what gencli knows changes an answer little or not at all, and is passed over as ollama
passes it over, with a line in the log; what would change it and cannot be followed is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from gencli.json_files import shown
from gencli.serve.bodies import TEXT_ROWS, Body, Values, given_values, read_values, spoken
from gencli.serve.bodies import text_request as made
from gencli.serve.refusal import INVALID, Refusal
from gencli.serve.values import MOST_LOGPROBS, MOST_TOKENS, READ, note, read_conversation, read_images, whole
from gencli.text.messages import MOST_MESSAGES, Message
from gencli.text.request import TextRequest

OPTIONS = {  # ollama's name → field of a text request
    "num_predict": "max_tokens", "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "typical_p": "typical_p", "repeat_penalty": "repeat_penalty", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty", "seed": "seed", "stop": "stop",
}  # fmt: skip
MACHINE = frozenset(  # how ollama runs a model, which is the server's to say here; the context is the model's own
    "numa num_ctx num_batch num_gpu main_gpu low_vram f16_kv logits_all vocab_only use_mmap use_mlock embedding_only "
    "num_thread num_keep".split()
)
CONTEXT, MOST_CONTEXT = 4096, 2**31  # num_ctx, within which an answer ends that has no other limit; ollama's own
# What is followed at these values alone: mirostat, tail-free sampling.
ONLY = {"mirostat": (0,), "tfs_z": (0, 1)}
ALMOST = {  # not followed, and passed over with a line in the log: what is done instead
    "repeat_last_n": "repeat_penalty looks at the whole text", "penalize_newline": "newlines are penalised as all else",
    "mirostat_tau": "there is no mirostat", "mirostat_eta": "there is no mirostat",
}  # fmt: skip
FIELDS = frozenset(
    "model name prompt system messages options format stream raw keep_alive think logprobs top_logprobs truncate shift "
    "images tools template suffix context width height steps".split()
)
DRAWING = ("width", "height", "steps")  # of models that draw
EMPTY: Mapping[str, tuple[object, ...]] = {"template": ("",), "suffix": ("",), "context": ([],)}
WHY = {
    "template": "a model's own chat template is used; raw: true does without",
    "suffix": "no text is filled in",
    "context": "POST /api/chat takes a conversation",
}
DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ns|us|µs|ms|s|m|h)")
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Asked:
    """A request of /api/generate or /api/chat. messages: a conversation, of generate the system's word and the user's;
    None where the model is only to be loaded, or with `keep` 0 let go. raw: the prompt is continued as it is.
    images: what the last message is about. names: as `Refusal.of`."""

    model: str
    request: TextRequest
    messages: list[Message] | None
    raw: bool
    stream: bool
    keep: float | None
    names: Mapping[str, str]
    images: tuple[bytes, ...]


def read_generate(body: Body) -> Asked:
    """Read the body of /api/generate. Raise Refusal."""
    prompt, system, raw = _text(body, "prompt"), _text(body, "system"), _truth(body, "raw", usual=False)
    images = read_images("images", body.get("images"))
    messages = [_message("prompt", "user", prompt)] if prompt or images else None
    if messages and system:
        messages.insert(0, _message("system", "system", system))
    if body.get("tools"):
        raise Refusal(INVALID, "tools: POST /api/chat takes them", param="tools")
    if raw and images:
        raise Refusal(INVALID, "images: a raw prompt has no place for them", param="images")
    return _read(body, messages, prompt if raw else "", images, raw=raw)


def read_chat(body: Body) -> Asked:
    """Read the body of /api/chat. Raise Refusal."""
    given = body.get("messages")
    if not isinstance(given, list | None) or len(given or ()) > MOST_MESSAGES:
        raise Refusal(INVALID, f"messages: wants a list of at most {MOST_MESSAGES} messages", param="messages")
    messages = read_conversation([_said(one) for one in given or ()])
    seen = [one.get("images") if isinstance(one, Mapping) else None for one in given or ()]
    if any(seen[:-1]):
        raise Refusal(INVALID, "messages: images of the last message alone are read", param="messages")
    images = read_images("images", seen[-1] if seen else None)
    return _read(body, messages or None, "", images, raw=False)


def read_name(body: Body) -> str:
    """Return the name of the model that a body asks for. Raise Refusal."""
    name = body.get("model") or body.get("name")  # as older clients say
    if not isinstance(name, str):
        raise Refusal(INVALID, "model: wants the name of a model (GET /api/tags lists them)", param="model")
    return name


def read_keep(value: object) -> float | None:
    """Return the seconds of `keep_alive`: a number, or Go's form of a duration; forever if negative. Raise Refusal."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return math.inf if value < 0 else float(min(value, 10**9))
    if isinstance(value, str):
        sign, text = value[:1] == "-", value.removeprefix("-")
        found = DURATION.findall(text)
        if text and "".join(map("".join, found)) == text:
            return math.inf if sign else sum(float(number) * SECONDS[unit] for number, unit in found)
        if re.fullmatch("[0-9]{1,9}", text):
            return math.inf if sign else float(text)
    told = f"keep_alive {shown(value)}: wants seconds, or a time such as 5m or 1h30m"
    raise Refusal(INVALID, told, param="keep_alive")


def _read(body: Body, messages: list[Message] | None, prompt: str, images: tuple[bytes, ...], *, raw: bool) -> Asked:
    """Return the request of a body, of which what it asks of the model is read."""
    _check(body)
    stream = _truth(body, "stream", usual=True)
    options = body.get("options")
    if not isinstance(options, Mapping | None):
        raise Refusal(INVALID, f"options {shown(options)}: wants an object", param="options")
    said, room = _options(options or {}), _room(options or {})
    values: Values = {"max_tokens": min(room, MOST_TOKENS), **_format(body.get("format"))}
    values |= read_values(said, OPTIONS, TEXT_ROWS)
    if body.get("think") is not None:
        values["think"] = READ["think"]("think", body["think"])
    if _truth(body, "logprobs", usual=False):
        top = body.get("top_logprobs")
        values["logprobs"] = 0 if top is None else whole("top_logprobs", top, 0, MOST_LOGPROBS)
        if stream:
            raise Refusal(INVALID, 'logprobs are not streamed: "stream": false has them', param="logprobs")
    if body.get("tools"):
        values["tools"] = READ["tools"]("tools", body["tools"])
    if _truth(body, "truncate", usual=False):
        values["truncate"] = "left"
    own = {"--schema": "format", "--think": "think", "think": "think", "--tools": "tools"}
    names = {**spoken(said, OPTIONS, TEXT_ROWS), **own}
    keep = read_keep(body.get("keep_alive"))
    return Asked(read_name(body), made(prompt, values, names), messages, raw, stream, keep, names, images)


def _check(body: Body) -> None:
    """Raise Refusal for what would change an answer and is not followed. Log what is unknown."""
    for name, usual in EMPTY.items():
        if body.get(name) is not None and body[name] not in usual:
            raise Refusal(INVALID, f"{name} is not supported: {WHY[name]}", param=name)
    for name in DRAWING:
        if body.get(name):
            told = f"{name} is for models that draw, which POST /v1/images/generations has"
            raise Refusal(INVALID, told, param=name)
    _note_unknown(set(body) - FIELDS, "field")


def _options(given: Body) -> dict[str, object]:
    """Return the options that are followed. Raise Refusal for what would change an answer otherwise."""
    for name, values in ONLY.items():
        if given.get(name) is not None and given[name] not in values:
            raise Refusal(INVALID, f"{name} {shown(given[name])} is not supported (leave it out)", param=name)
    for name in ALMOST.keys() & given.keys():
        note(f"option {name} is not followed: {ALMOST[name]}")
    _note_unknown(given.keys() - OPTIONS.keys() - MACHINE - ONLY.keys() - ALMOST.keys(), "option")
    found = given_values({name: value for name, value in given.items() if name in OPTIONS}, OPTIONS, (), TEXT_ROWS)
    if type(found.get("num_predict")) is int and found["num_predict"] in (0, -1, -2):
        found.pop("num_predict")  # to the end of the text or of the context
    if given.get("repeat_last_n") == 0:
        found.pop("repeat_penalty", None)
    return found


def _room(given: Body) -> int:
    """Return the tokens within which an answer ends that has no other limit."""
    asked = given.get("num_ctx")
    return CONTEXT if asked is None else whole("num_ctx", asked, 1, MOST_CONTEXT)


def _note_unknown(names: set[str], what: str) -> None:
    for name in sorted(names):
        note(f"{what} {name[:60]!a} is unknown, and passed over")


def _format(value: object) -> dict[str, str]:
    """Return the schema of `format`, as a value of a text request. Raise Refusal."""
    if value in (None, ""):
        return {}
    if value == "json":
        return {"schema": '{"type": "object"}'}
    if not isinstance(value, Mapping):
        raise Refusal(INVALID, f'format {shown(value)}: wants "json" or a JSON schema', param="format")
    return {"schema": json.dumps(value)}


def _truth(body: Body, name: str, *, usual: bool) -> bool:
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise Refusal(INVALID, f"{name} {shown(value)}: wants true or false", param=name)
    return usual if value is None else value


def _text(body: Body, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str | None):
        raise Refusal(INVALID, f"{name} {shown(value)}: wants text", param=name)
    return value or ""


def _said(message: object) -> object:
    """Return a message as OpenAI's clients write it; thoughts of earlier answers are left out, as templates do."""
    return {**message, "content": message.get("content") or ""} if isinstance(message, Mapping) else message


def _message(name: str, role: str, text: str) -> Message:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refusal(INVALID, f"{name} is no Unicode text", param=name) from None
    return {"role": role, "content": text}
