"""The JSON bodies of Anthropic's Messages API (platform.claude.com/docs/en/api/messages) → requests, by the same rows
as all others. No torch.

Beside that API's names every sampling parameter is known by the name of its row. A name that would be ignored is
refused, so that nothing is dropped in silence; null is the same as not given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from gencli.json_files import shown
from gencli.options import rows
from gencli.serve.anthropic_turns import read_talk
from gencli.serve.bodies import TEXT_ROWS, Body, Values, given_values, read_values, spoken, text_request, wants_stream
from gencli.serve.refusal import INVALID, Refusal
from gencli.serve.values import READ, whole
from gencli.text.messages import Message
from gencli.text.request import SamplingParams, TextRequest
from gencli.text.tools import AUTO, NONE, REQUIRED
from gencli.text.wishes import OFF, ON, read_wish

FIELDS = {  # name in a body → field of a text request
    **{name: name for name, option in rows(SamplingParams) if option.usage},
    **{name: name for name in ("max_tokens", "seed", "truncate", "think", "chat_template_kwargs")},
    "stop_sequences": "stop",
}
INERT = {  # what changes no answer
    "model", "stream", "metadata", "service_tier", "cache_control", "inference_geo", "speed", "diagnostics",
    "user_profile_id", "workspace_id",
}  # fmt: skip
OWN = {"messages", "system", "tools", "tool_choice", "thinking", "output_config", "context_management"}  # read here
WISHES = {"enabled": ON, "disabled": OFF, "adaptive": None}  # None: as the model does it by itself
DISPLAYS = ("summarized", "omitted")
EFFORTS = ("low", "medium", "high", "xhigh", "max")
CHOICES = {"auto": AUTO, "any": REQUIRED, "none": NONE}
CUSTOM = (None, "custom")  # types of tools that a client describes itself
TOOL = {"name", "description", "input_schema", "input_examples"}  # of a tool, as the model is told of it
TOOL_INERT = {"type", "cache_control", "eager_input_streaming", "strict"}  # calls follow their schemas in any case
TOOL_ONLY: dict[str, tuple[object, ...]] = {"defer_loading": (False,), "allowed_callers": (["direct"],)}
NO_THREADS = "thread_unsupported_request"  # the code by which that API refuses to keep a conversation for its client
NO_THOUGHTS = "clear_thinking_"  # the edit of a context that is always made: models are not shown earlier thoughts


@dataclass(frozen=True)
class Asked:
    """A conversation to answer. images: what its last message is about. effort: how much to reason, where the model
    knows efforts. shows: its thoughts are sent. names: as `Refusal.of`."""

    request: TextRequest
    messages: list[Message]
    images: tuple[bytes, ...]
    stream: bool
    effort: str | None
    shows: bool
    names: Mapping[str, str]


def read_body(body: Body, *, counts: bool = False) -> Asked:
    """Read the body of /v1/messages, or of /v1/messages/count_tokens, which needs no `max_tokens`. Raise Refusal."""
    talk = read_talk(body.get("system"), body.get("messages"))
    if body.get("max_tokens") is None and not counts:
        raise Refusal(INVALID, "max_tokens: wants a whole number, the most tokens of the answer", param="max_tokens")
    _check_edits(body.get("context_management"))
    if body.get("thread") is not None:
        told = "thread: no conversation is kept here: messages want all of it"
        raise Refusal(INVALID, told, param="thread", code=NO_THREADS)
    values = read_values(given_values(body, FIELDS, {*INERT, *OWN}, TEXT_ROWS), FIELDS, TEXT_ROWS)
    wish, shows = _thinking(body.get("thinking"))
    effort, schema = _output(body.get("output_config"))
    if wish is not None:
        if body.get("think") is not None:
            raise Refusal(INVALID, "think says what thinking says: give one of them", param="think")
        values["think"] = wish
    values |= {} if schema is None else {"schema": schema}
    values |= _tools(body.get("tools")) | _choice(body.get("tool_choice"), bool(body.get("tools")))
    own = {"--schema": "output_config", "--tools": "tools", "--tool-choice": "tool_choice"}
    own |= {} if body.get("think") is not None else {"--think": "thinking", "think": "thinking"}
    names = {**spoken(body, FIELDS, TEXT_ROWS), **own}
    request = text_request("", values, names)
    wanted = None if talk.begun or request.think == OFF else effort
    return Asked(request, talk.messages, talk.images, wants_stream(body)[0], wanted, shows, names)


def _thinking(value: object) -> tuple[str | None, bool]:
    """Return the wish that `thinking` is, and whether thoughts are to be sent. Raise Refusal."""
    if value is None:
        return None, True
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(kind, str) or kind not in WISHES:
        told = f"thinking {shown(value)}: wants an object with a type of {', '.join(WISHES)}"
        raise Refusal(INVALID, told, param="thinking")
    if kind == "enabled":
        whole("thinking.budget_tokens", value.get("budget_tokens"), 1, 2**31)
    display = value.get("display")
    if display is not None and display not in DISPLAYS:
        told = f"thinking.display {shown(display)}: wants {' or '.join(DISPLAYS)}"
        raise Refusal(INVALID, told, param="thinking")
    return WISHES[kind], display != "omitted"


def _output(value: object) -> tuple[str | None, str | None]:
    """Return the effort and the JSON schema that `output_config` asks for. Raise Refusal."""
    if value is None:
        return None, None
    if not isinstance(value, Mapping) or (value.keys() - {"effort", "format"}):
        told = f"output_config {shown(value)}: wants an object of effort and format"
        raise Refusal(INVALID, told, param="output_config")
    effort, format = value.get("effort"), value.get("format")
    if effort is not None and effort not in EFFORTS:
        told = f"output_config.effort {shown(effort)}: wants one of {', '.join(EFFORTS)}"
        raise Refusal(INVALID, told, param="output_config")
    schema = format.get("schema") if isinstance(format, Mapping) and format.get("type") == "json_schema" else None
    if format is not None and not isinstance(schema, Mapping):
        told = "output_config.format: wants an object with a type, json_schema, and a schema"
        raise Refusal(INVALID, told, param="output_config")
    return read_wish(str(effort)) if effort else None, None if schema is None else json.dumps(schema)


def _tools(value: object) -> Values:
    """Return tools as a value of a text request. Raise Refusal."""
    if value is None:
        return {}
    several = value if isinstance(value, list) else [None]
    tools = [_tool(f"tools[{number}]", one) for number, one in enumerate(several)]
    try:
        return {"tools": READ["tools"]("tools", tools)}
    except Refusal as refusal:
        refusal.message = refusal.message.replace("parameters", "input_schema")
        raise


def _tool(where: str, value: object) -> dict[str, object]:
    """Return a tool in the form of OpenAI's API. Raise Refusal."""
    if not isinstance(value, Mapping):
        raise Refusal(INVALID, f"{where}: wants an object with a name and an input_schema", param="tools")
    if value.get("type") not in CUSTOM:
        told = f"{where}: of the types only custom is known: a tool with a name and an input_schema"
        raise Refusal(INVALID, told, param="tools")
    for name, given in value.items():
        followed = name in TOOL or name in TOOL_INERT or given in (None, *TOOL_ONLY.get(name, ()))
        if not followed:
            raise Refusal(INVALID, f"{where}: {name[:60]} {shown(given)} is not supported", param="tools")
    if not isinstance(value.get("input_schema"), Mapping):
        raise Refusal(INVALID, f"{where}: wants an input_schema, the JSON schema of its input", param="tools")
    kept = {name: value[name] for name in ("name", "description", "input_examples") if value.get(name) is not None}
    return {**kept, "parameters": value["input_schema"]}


def _choice(value: object, has_tools: bool) -> Values:
    """Return which tool is to be called, and whether several may be, as values of a text request. Raise Refusal."""
    if value is None:
        return {}
    kind = value.get("type") if isinstance(value, Mapping) else None
    name = value.get("name") if isinstance(value, Mapping) else None
    known = isinstance(kind, str) and (kind in CHOICES or (kind == "tool" and isinstance(name, str)))
    if not isinstance(value, Mapping) or not known:
        told = f"tool_choice {shown(value)}: wants an object with a type of {', '.join(CHOICES)}, or tool and its name"
        raise Refusal(INVALID, told, param="tool_choice")
    alone = value.get("disable_parallel_tool_use")
    if not isinstance(alone, bool | None):
        told = f"tool_choice.disable_parallel_tool_use {shown(alone)}: wants true or false"
        raise Refusal(INVALID, told, param="tool_choice")
    if not has_tools and kind in ("any", "tool"):
        raise Refusal(INVALID, f"tool_choice {shown(kind)}: there are no tools", param="tool_choice")
    return {"tool_choice": CHOICES.get(str(kind), name), "several_calls": not alone}


def _check_edits(value: object) -> None:
    """Raise Refusal for edits of the context that are not made."""
    edits = value.get("edits", []) if isinstance(value, Mapping) else [] if value is None else None
    kinds = [one.get("type") if isinstance(one, Mapping) else None for one in edits] if isinstance(edits, list) else [0]
    for kind in kinds:
        if not isinstance(kind, str) or not kind.startswith(NO_THOUGHTS):
            told = f"context_management: an edit of type {shown(kind)} is not supported (earlier thoughts are left out)"
            raise Refusal(INVALID, told, param="context_management")
