"""The server's page of itself: OpenAPI 3.1, made from the same rows as the command line. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gencli import __version__
from gencli.options import Option
from gencli.serve import anthropic_bodies, edits, responses_bodies
from gencli.serve.bodies import (
    DRAWN,
    DRAWN_INERT,
    DRAWN_ROWS,
    FORMATS,
    INERT,
    MOST_PROMPTS,
    ONLY,
    TEXT,
    TEXT_ROWS,
)
from gencli.serve.ollama_bodies import OPTIONS
from gencli.serve.values import CHOICES, EFFORTS, MOST_IMAGES, MOST_LOGPROBS, MOST_SAMPLES, MOST_SEEN, MOST_TOKENS
from gencli.text.messages import MOST_MESSAGES
from gencli.text.tools import MOST

Schema = dict[str, object]
JSON, FORM, EVENTS = "application/json", "multipart/form-data", "text/event-stream"
TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}
TEXT_OF_OPENAI: Schema = {  # what their rows do not say of them
    "n": {"type": "integer", "minimum": 1, "maximum": MOST_SAMPLES},
    "logprobs": {"type": "integer", "minimum": 0, "maximum": MOST_LOGPROBS},
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": MOST_TOKENS},
    "stop": {
        "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}}]
    },
    "logit_bias": {
        "type": "object",
        "additionalProperties": {"type": "number"},
        "propertyNames": {"pattern": "^[0-9]{1,6}$"},
    },
    "truncate": {"enum": ["left", True, False]},
}
STREAMED: Schema = {
    "stream": {"type": "boolean"},
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
}
ANY: Schema = {}
SCHEMA = {"name": {"type": "string"}, "description": {"type": "string"}, "strict": {"type": ["boolean", "null"]}}
FORMAT: Schema = {  # of a text: what it has to follow
    "anyOf": [
        {"type": "object", "properties": {"type": {"const": "text"}}, "required": ["type"], "maxProperties": 1},
        {"type": "object", "properties": {"type": {"const": "json_object"}}, "required": ["type"]},
        {
            "type": "object",
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "properties": {**SCHEMA, "schema": {"type": "object"}},
                    "required": ["schema"],
                },
            },
            "required": ["type", "json_schema"],
        },
        {"type": "null"},
    ]
}
URL = {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]}
PARTS = [
    {"type": "object", "properties": {"type": {"const": kind}, kind: schema}, "required": ["type", kind]}
    for kind, schema in (("text", {"type": "string"}), ("image_url", URL))
]
CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": PARTS}}]}
WRITTEN = {"anyOf": [{"type": "string"}, {"type": "array", "items": PARTS[0]}]}  # texts alone
FUNCTION = {"name": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,128}$"}, "parameters": {"type": "object"}}
CHOSEN = {
    "type": "object",
    "properties": {"type": {"const": "function"}, "function": {"type": "object", "required": ["name"]}},
    "required": ["type", "function"],
}
TOOL = {
    "type": "object",
    "properties": {"type": {"const": "function"}, "function": {"type": "object", "properties": FUNCTION}},
    "required": ["type", "function"],
}
MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": CONTENT,
        "tool_calls": {"type": "array"},
        "tool_call_id": {"type": "string"},
    },
    "required": ["role", "content"],
}
FILE = {"type": "string", "format": "binary"}
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


def page(models: Iterable[str]) -> Schema:
    """Return the page of a server of these models."""
    names = list(models)
    model: Schema = {"model": {"enum": names if len(names) != 1 else [*names, None]}}
    named = ("model",) if len(names) != 1 else ()  # one alone may be left out
    text: Schema = dict.fromkeys(INERT, ANY)
    text |= {name: {"enum": [*values]} for name, values in ONLY.items()}
    text |= {name: _schema(field, TEXT_ROWS) for name, field in TEXT.items()} | TEXT_OF_OPENAI | STREAMED
    text |= {**model, "response_format": FORMAT}
    prompt = {"type": "string"}
    completion = {
        "prompt": {"anyOf": [prompt, {"type": "array", "items": prompt, "minItems": 1, "maxItems": MOST_PROMPTS}]}
    }
    chat: Schema = {"messages": {"type": "array", "items": MESSAGE, "minItems": 1, "maxItems": MOST_MESSAGES}}
    chat |= {
        "max_completion_tokens": text["max_tokens"],
        "top_logprobs": text["logprobs"],
        "logprobs": {"type": "boolean"},
        "reasoning_effort": {"enum": [*EFFORTS, None]},
        "think": {"enum": [*EFFORTS, True, False, None]},
        "chat_template_kwargs": {"type": ["object", "null"]},
        "tools": {"anyOf": [{"type": "array", "items": TOOL, "maxItems": MOST}, {"type": "null"}]},
        "tool_choice": {"anyOf": [{"enum": [*CHOICES, None]}, CHOSEN]},
        "parallel_tool_calls": {"type": ["boolean", "null"]},
    }
    drawn: Schema = dict.fromkeys(DRAWN_INERT, ANY)
    drawn |= {name: _schema(field, DRAWN_ROWS) for name, field in DRAWN.items()}
    drawn |= {**model, "response_format": {"enum": ["b64_json", None]}, "stream": {"enum": [False, None]}}
    drawn |= {"n": {"type": "integer", "minimum": 1, "maximum": MOST_IMAGES}, "output_format": {"enum": list(FORMATS)}}
    drawn |= {"size": {"type": "string", "pattern": "^(auto|[1-9][0-9]{1,3}x[1-9][0-9]{1,3})$"}}
    files: Schema = {
        "image": {"anyOf": [FILE, {"type": "array", "items": FILE, "minItems": 1, "maxItems": edits.MOST_IMAGES}]}
    }
    files |= {"image[]": files["image"], "mask": FILE}
    inert = dict.fromkeys(edits.INERT, ANY)
    edited: Schema = {**inert, **{name: _schema(field, DRAWN_ROWS) for name, field in edits.EDITED.items()}, **drawn}
    varied: Schema = {**{name: one for name, one in edited.items() if name not in edits.DRAWN_ALONE}, "image": FILE}
    edited |= files
    return {
        "openapi": "3.1.0",
        "info": {"title": "gencli", "version": __version__},
        "paths": {
            "/health": _get({"type": "object", "required": ["status", "models"]}),
            "/v1/models": _get({"type": "object", "required": ["object", "data"]}),
            "/v1/completions": _post({**text, **completion}, *named, "prompt", media=EVENTS),
            "/v1/chat/completions": _post({**text, **chat}, *named, "messages", media=EVENTS),
            "/v1/responses": _post(_responses(text, chat), *named, "input", media=EVENTS),
            "/v1/images/generations": _post(drawn, *named, "prompt"),
            "/v1/images/edits": _post(edited, *named, "image", kind=FORM),
            "/v1/images/variations": _post(varied, *named, "image", kind=FORM),
            **_anthropic(model, named, text),
            **_ollama(names, text),
            "/v1/embeddings": _post({**model, "input": {"type": "string"}}, *named, "input"),
        },
    }


def _responses(text: Mapping[str, object], chat: Mapping[str, object]) -> Schema:
    """Return the properties of /v1/responses. text, chat: those of completions, and of chats beside these."""
    inert = (*INERT, *responses_bodies.INERT, "include")
    known = {name: text.get(name, chat.get(name, ANY)) for name in responses_bodies.KNOWN if "." not in name}
    item = {"type": "object"}
    string, one = {"type": "string"}, {"type": "array", "items": item, "minItems": 1, "maxItems": MOST_MESSAGES}
    return {
        **dict.fromkeys(inert, ANY),
        **known,
        "model": text["model"],
        "input": {"anyOf": [{"type": "string"}, one]},
        "instructions": {"type": ["string", "null"]},
        "max_output_tokens": {"anyOf": [text["max_tokens"], {"type": "null"}]},
        "stream": {"type": ["boolean", "null"]},
        "text": {"type": ["object", "null"], "properties": {"format": item, "verbosity": {"enum": ["medium", None]}}},
        "reasoning": {"type": ["object", "null"], "properties": {"effort": {"enum": [*EFFORTS, None]}}},
        "truncation": {"enum": ["auto", "disabled", None]},
        "tools": {"type": ["array", "null"], "items": {"type": "object", "required": ["type", "name"]}},
        "tool_choice": {"anyOf": [{"enum": [*CHOICES, None]}, {"type": "object", "properties": {"name": string}}]},
        **{name: {"enum": [None]} for name in responses_bodies.STATEFUL},
    }


def _anthropic(model: Schema, named: tuple[str, ...], text: Mapping[str, object]) -> Schema:
    """Return the routes of Anthropic's API. model, named: its model, and whether that is needed. text: as `_ollama`."""
    tool = {
        "type": "object",
        "properties": {"name": FUNCTION["name"], "input_schema": {"type": "object"}, "description": {"type": "string"}},
        "required": ["name", "input_schema"],
    }
    kinds = {"type": {"enum": [*anthropic_bodies.CHOICES, "tool"]}, "name": {"type": "string"}}
    thinking = {"type": {"enum": [*anthropic_bodies.WISHES]}, "budget_tokens": {"type": "integer", "minimum": 1}}
    said = {"role": {"enum": ["user", "assistant", "system"]}, "content": WRITTEN}
    message = {"type": "object", "properties": said, "required": ["role", "content"]}
    asked: Schema = dict.fromkeys(anthropic_bodies.INERT, ANY)
    asked |= {name: text.get(field, text.get(name, ANY)) for name, field in anthropic_bodies.FIELDS.items()}
    asked |= {**model, "messages": {"type": "array", "items": message, "minItems": 1, "maxItems": MOST_MESSAGES}}
    asked |= {
        "system": {"anyOf": [WRITTEN, {"type": "null"}]},
        "stream": {"type": ["boolean", "null"]},
        "stop_sequences": {"type": ["array", "null"], "items": {"type": "string", "minLength": 1}},
        "tools": {"anyOf": [{"type": "array", "items": tool, "maxItems": MOST}, {"type": "null"}]},
        "tool_choice": {"anyOf": [{"type": "object", "properties": kinds, "required": ["type"]}, {"type": "null"}]},
        "thinking": {"anyOf": [{"type": "object", "properties": thinking, "required": ["type"]}, {"type": "null"}]},
        "output_config": {
            "type": ["object", "null"],
            "properties": {"effort": {"enum": [*anthropic_bodies.EFFORTS, None]}, "format": {"type": "object"}},
        },
        "context_management": {"type": ["object", "null"]},
        "think": {"enum": [*EFFORTS, True, False, None]},
        "chat_template_kwargs": {"type": ["object", "null"]},
    }
    told = {"type": "object", "required": ["type", "message"]}
    error = {"type": "object", "properties": {"type": {"const": "error"}, "error": told}, "required": ["type", "error"]}
    return {
        "/v1/messages": _post(asked, *named, "messages", "max_tokens", media=EVENTS, error=error),
        "/v1/messages/count_tokens": _post(asked, *named, "messages", error=error),
    }


def _ollama(models: Iterable[str], text: Mapping[str, object]) -> Schema:
    """Return the two routes of ollama's API that answer. text: the schemas of OpenAI's names."""
    limits = {"num_predict": {"type": "integer", "minimum": -2, "maximum": MOST_TOKENS}, "num_ctx": {"type": "integer"}}
    options = {name: text.get(field, ANY) for name, field in OPTIONS.items()} | limits
    asked: Schema = {
        "model": {"enum": [*models]},
        "options": {"type": "object", "properties": options},
        "format": {"anyOf": [{"enum": ["", "json", None]}, {"type": "object"}]},
        "stream": {"type": ["boolean", "null"]},
        "think": {"enum": [*EFFORTS, True, False, None]},
        "keep_alive": {"type": ["number", "string", "null"]},
        "logprobs": {"type": ["boolean", "null"]},
        "top_logprobs": text["logprobs"],
        "truncate": {"type": ["boolean", "null"]},
    }
    images = {"type": "array", "items": {"type": "string"}, "maxItems": MOST_SEEN}
    said = {"role": {"enum": ["system", "user", "assistant"]}, "content": {"type": "string"}, "images": images}
    message = {"type": "object", "properties": said, "required": ["role", "content"]}
    prompt = {"prompt": {"type": "string"}, "system": {"type": "string"}, "raw": {"type": "boolean"}, "images": images}
    chat = {
        "messages": {"type": "array", "items": message, "maxItems": MOST_MESSAGES},
        "tools": {"type": ["array", "null"]},
    }
    error = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    return {
        "/api/generate": _post({**asked, **prompt}, "model", media="application/x-ndjson", error=error),
        "/api/chat": _post({**asked, **chat}, "model", media="application/x-ndjson", error=error),
    }


def _schema(field: str, known: Mapping[str, Option]) -> Schema:
    """Return the schema of a field by its row; null is the same as not given."""
    option = known.get(field)
    if option is None or option.kind not in TYPES:
        return {"type": "string"} if option is None else {}
    if option.choices:
        return {"enum": [*option.choices, None]}
    found: Schema = {"type": [TYPES[option.kind], "null"]}
    if option.bounds is not None:
        found["exclusiveMinimum" if option.bounds.open_low else "minimum"] = option.bounds.low
    low, high = option.within or (None, option.bounds.high if option.bounds else None)
    found |= {} if low is None else {"minimum": low}
    return found if high is None or high == float("inf") else {**found, "maximum": high}


def _answer(schema: Mapping[str, object], said: str = "done", media: str = "") -> Schema:
    more: Schema = {media: {}} if media else {}  # a schema would be of each object of the stream
    return {"description": said, "content": {JSON: {"schema": schema}, **more}}


def _get(schema: Mapping[str, object]) -> Schema:
    return {"get": {"responses": {"200": _answer(schema), "default": _answer(ERROR, "an error")}}}


def _post(
    properties: Mapping[str, object],
    *needed: str,
    media: str = "",
    kind: str = JSON,
    error: Mapping[str, object] = ERROR,
) -> Schema:
    """Return a route. media: the type of a stream, if it streams. kind: the type of the body."""
    body = {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
    return {
        "post": {
            "requestBody": {"required": True, "content": {kind: {"schema": body}}},
            "responses": {"200": _answer({"type": "object"}, media=media), "default": _answer(error, "an error")},
        }
    }
