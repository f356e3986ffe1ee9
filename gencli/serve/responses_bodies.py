"""The JSON bodies of OpenAI's /v1/responses → requests, by the same rows as those of chats. No torch.

Nothing is kept between requests: `input` is the whole conversation, as clients send it that set `store` to false.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gencli.json_files import shown
from gencli.serve.bodies import CHAT, FORMS, TEXT_ROWS, Body, Chat, conversation, spoken
from gencli.serve.refusal import INVALID, Refusal
from gencli.serve.values import MOST_LOGPROBS, whole
from gencli.text.messages import MOST_MESSAGES

EFFORT, FORMAT, LOGPROBS = "reasoning.effort", "text.format", "message.output_text.logprobs"
OWN = ("input", "instructions", "text", "reasoning", "include", "truncation", "tools", "tool_choice", "top_logprobs")
# What changes no answer; a reasoning's encrypted content is not asked for again, since its text is not sent back.
INERT = ("max_tool_calls",)
INCLUDED = (LOGPROBS, "reasoning.encrypted_content")
STATEFUL = {"previous_response_id": None, "conversation": None, "prompt": None, "background": False}
CHATS = {  # names of chats → what stands for them here
    "messages": "input", "max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": EFFORT, "think": EFFORT, "response_format": FORMAT, "logprobs": "include",
}  # fmt: skip
KNOWN = {name: field for name, field in CHAT.items() if name not in (*CHATS, "n")}
KNOWN |= {"max_output_tokens": "max_tokens", "top_logprobs": "logprobs", EFFORT: "think"}
TEXTS = ("input_text", "output_text", "text")
CULPRIT = re.compile(r"messages\[([0-9]+)\]")


def read_responses(body: Body) -> Chat:
    """Read the body of /v1/responses. Raise Refusal."""
    for name, usual in STATEFUL.items():
        if body.get(name) not in (None, usual):
            told = f"{name} is not supported: nothing is kept here, so input has to be the whole conversation"
            raise Refusal(INVALID, told, param=name, code="unsupported_parameter")
    for name, here in CHATS.items():
        if body.get(name) is not None:
            told = f"{name!r} is not supported (did you mean {here}?)"
            raise Refusal(INVALID, told, param=name, code="unsupported_parameter")
    values = {name: value for name, value in body.items() if name not in (*OWN, *STATEFUL, *INERT)}
    values |= _format(_object(body, "text", ("format", "verbosity")))
    reasoning = _object(body, "reasoning", ("effort", "summary", "generate_summary"))
    if reasoning.get("effort") is not None:
        values[EFFORT] = reasoning["effort"]
    if (truncation := body.get("truncation")) not in (None, "auto", "disabled"):
        raise Refusal(INVALID, f"truncation {shown(truncation)}: wants auto or disabled", param="truncation")
    if truncation == "auto":
        values["truncate"] = "left"
    if body.get("tools") is not None:
        values["tools"] = _tools(body["tools"])
    if (choice := body.get("tool_choice")) is not None:
        values["tool_choice"] = _choice(choice)
    values |= _logprobs(body)
    messages, places = _messages(body)
    names = {**spoken(values, KNOWN, TEXT_ROWS), "--schema": FORMAT}
    try:
        return conversation(messages, values, KNOWN, names)
    except Refusal as refusal:
        refusal.message = CULPRIT.sub(lambda found: places[int(found[1])], refusal.message)
        refusal.message = re.sub("^messages: ", "input: ", refusal.message).replace("tool_call_id", "call_id")
        if refusal.param == "messages":
            refusal.param = "input"
        raise


def _object(body: Body, name: str, known: tuple[str, ...]) -> Body:
    """Return an object of a body. Raise Refusal for anything else, and for what it may not have."""
    value = body.get(name)
    if not isinstance(value, Mapping | None):
        raise Refusal(INVALID, f"{name} {shown(value)}: wants an object", param=name)
    for key, inner in (value or {}).items():
        if key not in known and inner is not None:
            told = f"{name}.{key[:60]} is not supported"
            raise Refusal(INVALID, told, param=name, code="unsupported_parameter")
    return value or {}


def _format(text: Body) -> dict[str, object]:
    """Return what `text` asks for, as chats have it. Raise Refusal."""
    if text.get("verbosity") not in (None, "medium"):
        told = f"text.verbosity {shown(text['verbosity'])} is not supported (leave it out, or give medium)"
        raise Refusal(INVALID, told, param="text", code="unsupported_parameter")
    format = text.get("format")
    if format is None:
        return {}
    kind = format.get("type") if isinstance(format, Mapping) else None
    if not isinstance(format, Mapping) or kind not in FORMS:
        wanted = f"wants an object with a type of {', '.join(FORMS[:-1])} or {FORMS[-1]}"
        raise Refusal(INVALID, f"{FORMAT}: {wanted}", param="text")
    if kind != "json_schema":
        return {"response_format": {"type": kind}}
    if not isinstance(format.get("schema"), Mapping):
        raise Refusal(INVALID, f"{FORMAT}: json_schema wants a name and a schema", param="text")
    return {"response_format": {"type": kind, "json_schema": {"schema": format["schema"]}}}


def _logprobs(body: Body) -> dict[str, object]:
    """Return how many log-probabilities are asked for, if any. Raise Refusal."""
    include, top = body.get("include"), body.get("top_logprobs")
    if include is None:
        include = []
    if not isinstance(include, list) or not all(one in INCLUDED for one in include):
        raise Refusal(INVALID, f"include: wants a list of {' or '.join(INCLUDED)}", param="include")
    if top is not None:
        whole("top_logprobs", top, 0, MOST_LOGPROBS)
    if LOGPROBS not in include:
        if top:
            raise Refusal(INVALID, f"top_logprobs: wants {LOGPROBS} in include", param="top_logprobs")
        return {}
    if body.get("stream"):
        raise Refusal(INVALID, f"{LOGPROBS} are not streamed: leave out stream", param="include")
    return {"top_logprobs": top or 0}


def _tools(given: object) -> list[object]:
    """Return tools in the form of chats. Raise Refusal."""
    if not isinstance(given, list):
        raise Refusal(INVALID, f"tools {shown(given)}: wants a list of tools", param="tools")
    for number, tool in enumerate(given):
        kind = tool.get("type") if isinstance(tool, Mapping) else None
        if kind != "function":
            told = f"tools[{number}]: a tool of type {shown(kind)} is not supported, only functions are"
            raise Refusal(INVALID, told, param="tools")
        if "name" not in tool:
            told = f"tools[{number}]: wants its name, description and parameters beside type"
            raise Refusal(INVALID, told, param="tools")
    return [{"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}} for tool in given]


def _choice(choice: object) -> object:
    """Return which tool is to be called, in the form of chats. Raise Refusal."""
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if isinstance(choice, Mapping):
        told = f"tool_choice of type {shown(choice.get('type'))} is not supported"
        raise Refusal(INVALID, told, param="tool_choice")
    return choice


def _messages(body: Body) -> tuple[list[object], list[str]]:
    """Return the messages of `input` and `instructions` in the form of chats, and where each was. Raise Refusal."""
    given, instructions = body.get("input"), body.get("instructions")
    if not isinstance(instructions, str | None):
        raise Refusal(INVALID, f"instructions {shown(instructions)}: wants text", param="instructions")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not 0 < len(items) <= MOST_MESSAGES:
        raise Refusal(INVALID, f"input: wants text, or a list of 1 to {MOST_MESSAGES} items", param="input")
    messages: list[object] = [{"role": "system", "content": instructions}] if instructions else []
    places = ["instructions"] * len(messages)
    turn: dict[str, object] | None = None  # the assistant's, to which calls are added
    for number, item in enumerate(items):
        where = f"input[{number}]"
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        if kind == "reasoning":  # of earlier turns, which templates leave out
            continue
        message = _message(where, kind, item)
        if kind == "function_call" and turn is not None:
            _add(turn, message)
            continue
        turn = message if message["role"] == "assistant" else None
        messages.append(message)
        places.append(where)
    return messages, places


def _add(turn: dict[str, object], message: Body) -> None:
    """Add the calls of a message to a turn."""
    calls, more = turn.setdefault("tool_calls", []), message["tool_calls"]
    assert isinstance(calls, list) and isinstance(more, list)
    calls += more


def _message(where: str, kind: object, item: object) -> dict[str, object]:
    """Return an item of `input` as a message. Raise Refusal."""
    if isinstance(item, Mapping) and kind == "message":
        return {"role": item.get("role"), "content": _content(where, item.get("content"))}
    if isinstance(item, Mapping) and kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if isinstance(item, Mapping) and kind == "function_call_output":
        content = _content(where, item.get("output"))
        return {"role": "tool", "content": content, "tool_call_id": item.get("call_id")}
    if isinstance(item, Mapping):
        wanted = "only messages, reasoning, function_call and function_call_output are read"
        raise Refusal(INVALID, f"{where}: an item of type {shown(kind)}; {wanted}", param="input")
    raise Refusal(INVALID, f"{where} {shown(item)}: wants an object", param="input")


def _content(where: str, content: object) -> object:
    """Return the content of a message in the form of chats. Raise Refusal."""
    if not isinstance(content, list):
        return content
    made: list[object] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and kind in TEXTS:
            made.append({"type": "text", "text": part.get("text")})
        elif isinstance(part, Mapping) and kind == "refusal":
            made.append({"type": "text", "text": part.get("refusal")})
        elif isinstance(part, Mapping) and kind == "input_image" and part.get("image_url") is not None:
            made.append({"type": "image_url", "image_url": {"url": part["image_url"]}})
        else:
            told = f"{where}: only parts of type input_text, output_text and input_image (with image_url) are read"
            raise Refusal(INVALID, told, param="input")
    return made
