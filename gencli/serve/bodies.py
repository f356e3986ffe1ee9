"""The JSON bodies of OpenAI's routes → requests, checked by the same rows as the command line. No torch.

Beside OpenAI's own names every sampling parameter is known by the name of its row, as `top_k` and `repeat_penalty`. A
name that would be ignored is refused, so that nothing is dropped in silence; null is the same as not given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gencli.errors import GencliError, UsageError
from gencli.image.request import ImageRequest
from gencli.options import SEVERAL_LIMIT, rows
from gencli.serve.refusal import INVALID, Refusal
from gencli.text.chat_template import Message
from gencli.text.request import MAX_SEED, SamplingParams, TextRequest, draw_seed

T = TypeVar("T")
Body = Mapping[str, object]  # as it came
Values = dict[str, Any]  # of the fields of a request, as they came: their rows check them
MOST_TOKENS = 2**17  # of all answers to one request
MOST_LOGPROBS = 20  # as OpenAI has it
MOST_PROMPTS, MOST_SAMPLES, MOST_IMAGES, MOST_PIXELS, MOST_MESSAGES = 64, 128, 10, 2048 * 2048, 4096
INERT = {  # what changes no answer
    "model", "stream", "stream_options", "user", "store", "metadata", "service_tier", "safety_identifier",
    "prompt_cache_key",
}  # fmt: skip
TEXT = {name: name for name, option in rows(SamplingParams) if option.usage}
TEXT |= {"max_tokens": "max_tokens", "seed": "seed", "n": "num_samples", "stop": "stop", "logprobs": "logprobs"}
TEXT |= {"truncate": "truncate"}
# Those of OpenAI's that change nothing at one value, and are not followed at others.
ONLY: dict[str, Collection[object]] = {
    "best_of": (1,), "suffix": ("",), "echo": (False,), "tool_choice": ("none", "auto"), "tools": ([],),
    "parallel_tool_calls": (True, False), "modalities": (["text"],), "response_format": ({"type": "text"},),
}  # fmt: skip
DRAWN = {  # name in a body → field of ImageRequest
    "negative_prompt": "negative", "guidance_scale": "guidance", "cfg_scale": "guidance", "n": "count",
    **{name: name for name in ("prompt", "negative", "steps", "sampler", "guidance", "guidance_rescale", "seed", "eta",
                               "karras", "spacing", "weighted", "clip_skip", "truncate")},
}  # fmt: skip
FORMATS = ("png", "jpeg", "webp")
DRAWN_INERT = {*INERT, "response_format", "size", "output_format", "quality", "style", "background", "moderation"}


@dataclass(frozen=True)
class Completions:
    """Prompts to continue: a request each, with ids where the client gave tokens."""

    requests: tuple[tuple[TextRequest, list[int] | None], ...]


@dataclass(frozen=True)
class Chat:
    """A conversation to answer."""

    request: TextRequest
    messages: list[Message]


@dataclass(frozen=True)
class Drawing:
    """Images to draw, and the file format that they are sent in."""

    request: ImageRequest
    format: str


def read_completions(body: Body) -> Completions:
    """Read the body of /v1/completions. Raise Refusal."""
    prompts = _prompts(body.get("prompt", ""))
    values = _text_values(body, {"prompt"})
    if len(prompts) * values.get("num_samples", 1) > MOST_SAMPLES:
        raise Refusal(INVALID, f"more than {MOST_SAMPLES} texts in one request", param="n")
    _limit_tokens(values, len(prompts))
    seed = _seed(values)
    samples = values.get("num_samples", 1)
    made = []
    for number, prompt in enumerate(prompts):
        text, ids = (prompt, None) if isinstance(prompt, str) else ("", prompt)
        made.append((_request(text, seed + number * samples, values), ids))
    return Completions(tuple(made))


def read_chat(body: Body) -> Chat:
    """Read the body of /v1/chat/completions. Raise Refusal."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or len(messages) > MOST_MESSAGES:
        raise Refusal(INVALID, f"messages: wants a list of 1 to {MOST_MESSAGES} messages", param="messages")
    read = [_message(number, message) for number, message in enumerate(messages)]
    if read[-1]["role"] != "user":
        raise Refusal(INVALID, "messages: the last one must be the user's", param="messages")
    values = dict(body)
    if (most := values.pop("max_completion_tokens", None)) is not None:
        values["max_tokens"] = most
    logprobs, top = values.pop("logprobs", None), values.pop("top_logprobs", None)
    if not isinstance(logprobs, bool | None) or (top is not None and not logprobs):
        raise Refusal(INVALID, "logprobs: wants true or false, and true with top_logprobs", param="logprobs")
    if logprobs:
        values["logprobs"] = 0 if top is None else top
    known = _text_values(values, {"messages"})
    _limit_tokens(known)
    return Chat(_request("", _seed(known), known), read)


def read_drawing(body: Body, model: str) -> Drawing:
    """Read the body of /v1/images/generations for a model of this name. Raise Refusal."""
    if body.get("response_format") not in (None, "b64_json"):
        raise Refusal(INVALID, "response_format: images are sent as b64_json alone", param="response_format")
    if not isinstance(body.get("prompt", ""), str):
        raise Refusal(INVALID, "prompt: wants a text", param="prompt")
    format = body.get("output_format") or "png"
    if format not in FORMATS:
        raise Refusal(
            INVALID, f"output_format {format!r:.60}: wants one of {', '.join(FORMATS)}", param="output_format"
        )
    values: Values = {}
    for name, value in _given(body, DRAWN, DRAWN_INERT).items():
        values[DRAWN[name]] = value
    _integer(values, "count", "n", MOST_IMAGES)
    size = body.get("size") or "auto"
    if size != "auto":
        values["width"], values["height"] = _size(size)
    values["seed"] = _seed(values)
    return Drawing(_checked(lambda: ImageRequest(**values, model=model)), format)


def wants_stream(body: Body) -> tuple[bool, bool]:
    """Return whether the answer is to be streamed, and whether its end is to tell the usage. Raise Refusal."""
    stream, options = body.get("stream"), body.get("stream_options")
    if not isinstance(stream, bool | None) or not isinstance(options, Mapping | None):
        raise Refusal(INVALID, "stream: wants true or false, and stream_options an object", param="stream")
    usage = bool((options or {}).get("include_usage"))
    if stream and body.get("logprobs") not in (None, False):
        raise Refusal(INVALID, "logprobs are not streamed: leave out stream", param="logprobs")
    return bool(stream), usage


def _given(body: Body, known: Mapping[str, str], inert: Collection[str]) -> Values:
    """Return what the body gives of `known`. Raise Refusal for what would be ignored."""
    found = {}
    for name, value in body.items():
        if value is None or name in inert:
            continue
        if name in ONLY and any(value == one and type(value) is type(one) for one in ONLY[name]):
            continue
        if name not in known:
            raise Refusal(INVALID, f"{name[:60]!r} is not supported", param=name[:60], code="unsupported_parameter")
        found[name] = value
    return found


def _text_values(body: Body, besides: Collection[str]) -> Values:
    """Return the values of a text request. Raise Refusal."""
    form = _schema(body.get("response_format"))
    known = {*INERT, *besides, *(("response_format",) if form else ())}
    values = {**form, **{TEXT[name]: value for name, value in _given(body, TEXT, known).items()}}
    if "stop" in values:
        stop = values["stop"]
        values["stop"] = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else stop
        several = values["stop"] if isinstance(values["stop"], tuple) else (None,)
        if len(several) > SEVERAL_LIMIT or not all(isinstance(one, str) for one in several):
            raise Refusal(INVALID, f"stop: wants a text or at most {SEVERAL_LIMIT} of them", param="stop")
    if "logit_bias" in values:
        values["logit_bias"] = _bias(values["logit_bias"])
    _integer(values, "num_samples", "n", MOST_SAMPLES)
    _integer(values, "logprobs", "logprobs", MOST_LOGPROBS, least=0)
    return values


def _schema(format: object) -> dict[str, str]:
    """Return the JSON schema that `response_format` asks for, as a value of a text request. Raise Refusal."""
    if not isinstance(format, Mapping):
        return {}
    kind = format.get("type")
    if kind == "json_object":
        return {"schema": '{"type": "object"}'}
    if kind != "json_schema":
        return {}
    holder = format.get("json_schema")
    schema = holder.get("schema") if isinstance(holder, Mapping) else None
    if not isinstance(schema, Mapping):
        raise Refusal(INVALID, "response_format: json_schema wants an object with a schema", param="response_format")
    return {"schema": json.dumps(schema)}


def _limit_tokens(values: Values, prompts: int = 1) -> None:
    """Raise Refusal for more tokens than one request may ask for."""
    asked = values.get("max_tokens")
    most = MOST_TOKENS // (prompts * values.get("num_samples", 1))
    if type(asked) is int and asked > most:
        message = f"max_tokens {str(asked)[:20]}: at most {most} for each text of so many in one request"
        raise Refusal(INVALID, message, param="max_tokens")


def _request(prompt: str, seed: int, values: Values) -> TextRequest:
    return _checked(lambda: TextRequest.of(prompt, seed=seed, **values))


def _checked(make: Callable[[], T]) -> T:
    """Make a request. Raise Refusal where its rows refuse a value."""
    try:
        return make()
    except GencliError as error:
        name = error.message.removeprefix("--").split(" ")[0].replace("-", "_").rstrip(":")
        raise Refusal.of(error, status=INVALID, param=name) from None
    except TypeError as error:  # of a kind that cannot even be compared
        raise Refusal(INVALID, f"a value is of the wrong kind: {error}"[:300]) from None


def _seed(values: Values) -> int:
    """Take the seed out of values, or draw one. Raise Refusal."""
    seed = draw_seed(values.pop("seed", None))
    if type(seed) is not int or not 0 <= seed <= MAX_SEED - MOST_SAMPLES:
        raise Refusal(INVALID, f"seed {seed!r:.60}: wants a whole number below {MAX_SEED - MOST_SAMPLES}", param="seed")
    return seed


def _integer(values: Values, field: str, name: str, most: int, least: int = 1) -> None:
    value = values.get(field, least)
    if type(value) is not int or not least <= value <= most:
        raise Refusal(INVALID, f"{name} {value!r:.60}: wants a whole number from {least} to {most}", param=name)


def _prompts(value: object) -> list[str | list[int]]:
    """Return the prompts of `prompt`: a text or several, or the same of token ids. Raise Refusal."""
    several: list[Any] = value if isinstance(value, list) and value and isinstance(value[0], str | list) else [value]
    if len(several) > MOST_PROMPTS:
        raise Refusal(INVALID, f"prompt: at most {MOST_PROMPTS} of them", param="prompt")
    for one in several:
        ids = isinstance(one, list) and all(type(token) is int and 0 <= token < 2**31 for token in one)
        if not isinstance(one, str) and not ids:
            raise Refusal(INVALID, "prompt: wants a text, token ids, or a list of one of these", param="prompt")
    return several


def _message(number: int, message: object) -> Message:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        texts = [text for text in parts if isinstance(text, str)]
        if len(texts) != len(content):
            raise Refusal(INVALID, f"messages[{number}]: only parts of type text are read", param="messages")
        content = "".join(texts)
    role = "system" if role == "developer" else role
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        wanted = "wants a role of system, user or assistant and a text as content"
        raise Refusal(INVALID, f"messages[{number}]: {wanted}", param="messages")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise Refusal(INVALID, f"messages[{number}] is no Unicode text", param="messages") from None
    return {"role": role, "content": content}


def _bias(value: object) -> tuple[tuple[int, float], ...]:
    try:
        if not isinstance(value, Mapping):
            raise TypeError
        return tuple((int(token), float(bias)) for token, bias in value.items())
    except (TypeError, ValueError):
        raise Refusal(INVALID, "logit_bias: wants an object of token ids and numbers", param="logit_bias") from None


def _size(size: object) -> tuple[int, int]:
    try:
        width, height = (int(side) for side in (size.split("x") if isinstance(size, str) else ()))
        if min(width, height) < 1 or width * height > MOST_PIXELS:
            raise UsageError("")
    except (ValueError, UsageError):
        wanted = f"wants WIDTHxHEIGHT of at most {MOST_PIXELS} pixels, or auto"
        raise Refusal(INVALID, f"size {size!r:.60}: {wanted}", param="size") from None
    return width, height
