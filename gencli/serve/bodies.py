"""The JSON bodies of OpenAI's routes → requests, checked by the same rows as the command line. No torch.

Beside OpenAI's own names every sampling parameter is known by the name of its row, as `top_k` and `repeat_penalty`. A
name that would be ignored is refused, so that nothing is dropped in silence; null is the same as not given. What is
wrong is told in the names of the body.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from gencli.errors import GencliError, UsageError, did_you_mean
from gencli.image.request import ImageRequest
from gencli.json_files import shown
from gencli.options import KINDS, Option, make, rows, typed
from gencli.serve.refusal import INVALID, NO_NAMES, Refusal
from gencli.serve.values import (
    MOST_LOGPROBS,
    MOST_SAMPLES,
    MOST_TOKENS,
    READ,
    read_conversation,
    read_images,
    whole,
)
from gencli.text.messages import MOST_MESSAGES, Message, urls
from gencli.text.request import ANSWER_TOKENS, SamplingParams, TextRequest, draw_seed

T = TypeVar("T")
Body = Mapping[str, object]  # as it came
Values = dict[str, object]  # of the fields of a request, checked
MOST_PROMPTS, MOST_PIXELS = 64, 2048 * 2048
INERT = {  # what changes no answer
    "model", "stream", "stream_options", "user", "store", "metadata", "service_tier", "safety_identifier",
    "prompt_cache_key", "prompt_cache_retention",
}  # fmt: skip
TEXT = {name: name for name, option in rows(SamplingParams) if option.usage}
TEXT |= {"max_tokens": "max_tokens", "seed": "seed", "n": "num_samples", "stop": "stop", "logprobs": "logprobs"}
TEXT |= {"truncate": "truncate", "grammar": "grammar"}
CHAT = {"max_completion_tokens": "max_tokens", **TEXT}
CHAT |= {"reasoning_effort": "think", "think": "think", "chat_template_kwargs": "chat_template_kwargs"}
CHAT |= {"tools": "tools", "tool_choice": "tool_choice", "parallel_tool_calls": "several_calls"}
TEXT_ROWS, DRAWN_ROWS = {**dict(rows(TextRequest)), **dict(rows(SamplingParams))}, dict(rows(ImageRequest))
FORMS = ("text", "json_object", "json_schema")
# Those of OpenAI's that change nothing at one value, and are not followed at others.
ONLY: dict[str, Collection[object]] = {
    "best_of": (1,), "suffix": ("",), "echo": (False,), "tool_choice": ("none", "auto"), "tools": ([],),
    "parallel_tool_calls": (True, False), "modalities": (["text"],), "response_format": ({"type": "text"},),
    "verbosity": ("medium",),
}  # fmt: skip
DRAWN = {  # name in a body → field of ImageRequest
    "negative_prompt": "negative", "guidance_scale": "guidance", "cfg_scale": "guidance", "n": "count",
    **{name: name for name in ("prompt", "negative", "steps", "sampler", "guidance", "guidance_rescale", "seed", "eta",
                               "guidance_start", "guidance_end", "karras", "spacing", "weighted", "clip_skip",
                               "truncate")},
}  # fmt: skip
FORMATS = ("png", "jpeg", "webp")
DRAWN_INERT = {*INERT, "response_format", "size", "output_format", "quality", "style", "background", "moderation"}
NOTHING: Body = MappingProxyType({})
SIZE = ("--width", "--height", "--size")  # in errors


@dataclass(frozen=True)
class Completions:
    """Prompts to continue: a request each, with ids where the client gave tokens."""

    requests: tuple[tuple[TextRequest, list[int] | None], ...]


@dataclass(frozen=True)
class Chat:
    """A conversation to answer. images: what its last message is about. names: as `Refusal.of`."""

    request: TextRequest
    messages: list[Message]
    names: Mapping[str, str]
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """Images to draw, and the file format that they are sent in. names: as `Refusal.of`."""

    request: ImageRequest
    format: str
    names: Mapping[str, str]


def read_completions(body: Body) -> Completions:
    """Read the body of /v1/completions. Raise Refusal."""
    prompts = _prompts("" if body.get("prompt") is None else body["prompt"])
    values = _text_values(body, {"prompt"}, TEXT, len(prompts))
    seed, samples = typed(values, "seed", int) or 0, typed(values, "num_samples", int) or 1
    made = []
    for number, prompt in enumerate(prompts):
        text, ids = (prompt, None) if isinstance(prompt, str) else ("", prompt)
        made.append((text_request(text, {**values, "seed": seed + number * samples}), ids))
    return Completions(tuple(made))


def read_chat(body: Body) -> Chat:
    """Read the body of /v1/chat/completions. Raise Refusal."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or len(messages) > MOST_MESSAGES:
        raise Refusal(INVALID, f"messages: wants a list of 1 to {MOST_MESSAGES} messages", param="messages")
    values = {name: value for name, value in body.items() if name != "messages"}
    if values.get("max_completion_tokens") is not None:  # which took the other one's place
        values.pop("max_tokens", None)
    if values.get("think") is not None and values.get("reasoning_effort") is not None:
        raise Refusal(INVALID, "think says what reasoning_effort says: give one of them", param="think")
    logprobs, top = values.pop("logprobs", None), values.pop("top_logprobs", None)
    if not isinstance(logprobs, bool | None):
        raise Refusal(INVALID, f"logprobs {shown(logprobs)}: wants true or false", param="logprobs")
    if top is not None and not logprobs:
        raise Refusal(INVALID, "top_logprobs: wants logprobs to be true", param="top_logprobs")
    if logprobs:
        values["logprobs"] = 0 if top is None else whole("top_logprobs", top, 0, MOST_LOGPROBS)
    names = {**spoken(body, CHAT, TEXT_ROWS), "--schema": "response_format"}
    return conversation(messages, values, CHAT, names)


def conversation(messages: list[object], values: Body, known: Mapping[str, str], names: Mapping[str, str]) -> Chat:
    """Return the chat of messages as OpenAI's clients write them. values: what a body says else, of `known`; names: as
    `Refusal.of`. Raise Refusal."""
    read = read_conversation(messages)
    seen = [urls(message) for message in messages]
    if any(seen[:-1]):
        raise Refusal(INVALID, "messages: images of the last message alone are read", param="messages")
    images = read_images("messages", seen[-1])
    asked = _text_values(values, (), known)
    asked["answers"] = (typed(asked, "num_samples", int) or 1) * ANSWER_TOKENS <= MOST_TOKENS
    return Chat(text_request("", asked, names), read, names, images)


def read_drawing(
    body: Body,
    model: str,
    known: Mapping[str, str] = DRAWN,
    inert: Collection[str] = (),
    begun: Body = NOTHING,
    flags: Mapping[str, str] = NO_NAMES,
) -> Drawing:
    """Read the body of /v1/images/generations for a model of this name. Raise Refusal.

    known, inert: the names that it may have. begun: further values of the request, which the body does not give by
    these. flags: what clients call the options of such.
    """
    if body.get("response_format") not in (None, "b64_json"):
        raise Refusal(INVALID, "response_format: images are sent as b64_json alone", param="response_format")
    if body.get("stream") not in (None, False):
        raise Refusal(INVALID, "stream: images are not streamed", param="stream")
    format = body.get("output_format")
    format = FORMATS[0] if format is None else format
    if not isinstance(format, str) or format not in FORMATS:
        wanted = f"output_format {shown(format)}: wants one of {', '.join(FORMATS)}"
        raise Refusal(INVALID, wanted, param="output_format")
    values = read_values(given_values(body, known, {*DRAWN_INERT, *inert}, DRAWN_ROWS), known, DRAWN_ROWS)
    size = body.get("size")
    if size not in (None, "auto"):
        values["width"], values["height"] = _size(size)
    names = {**spoken(body, known, DRAWN_ROWS), **dict.fromkeys((*SIZE, "size"), "size"), **flags}
    made = _checked(lambda: make(ImageRequest, {**values, **begun, "model": model}), names)
    return Drawing(made, format, names)


def wants_stream(body: Body) -> tuple[bool, bool]:
    """Return whether the answer is to be streamed, and whether its end is to tell the usage. Raise Refusal."""
    stream, options = body.get("stream"), body.get("stream_options")
    if not isinstance(stream, bool | None):
        raise Refusal(INVALID, f"stream {shown(stream)}: wants true or false", param="stream")
    usage = options.get("include_usage") if isinstance(options, Mapping) else None
    if not isinstance(options, Mapping | None) or not isinstance(usage, bool | None):
        wanted = "stream_options: wants an object, in which include_usage is true or false"
        raise Refusal(INVALID, wanted, param="stream_options")
    if stream and body.get("logprobs") not in (None, False):
        raise Refusal(INVALID, "logprobs are not streamed: leave out stream", param="logprobs")
    return bool(stream), bool(usage)


def spoken(body: Body, known: Mapping[str, str], options: Mapping[str, Option]) -> dict[str, str]:
    """Return what clients call the options of the command line, as `Refusal.of` wants it: one of several names is that
    of the body, or else the first; and the names that the body gives, for errors that have them as words."""
    said = [name for name in known if name in body]
    found = {name: name for name in said}
    for name in (*said, *known):
        for flag in "/".join(options[known[name]].flags).split("/"):  # --weighted/--no-weighted
            found.setdefault(flag, name)
    return found


def given_values(
    body: Body, known: Mapping[str, str], inert: Collection[str], options: Mapping[str, Option]
) -> dict[str, object]:
    """Return what the body gives of `known`. Raise Refusal for what would be ignored."""
    found = {}
    for name, value in body.items():
        if value is None or name in inert:
            continue
        if name in ONLY and name not in known and any(value == one and type(value) is type(one) for one in ONLY[name]):
            continue
        if name not in known:
            if name in ONLY:
                right = " or ".join(map(json.dumps, ONLY[name]))
                told = f"{name} {shown(value)} is not supported (leave it out, or give {right})"
            else:
                flag = f"--{name.replace('_', '-')}"  # as other programs call it
                same = next((one for one, field in known.items() if flag in options[field].also), None)
                close = f"did you mean {same}?" if same else did_you_mean(name[:60], known)
                told = f"{name[:60]!r} is not supported{f' ({close})' if close else ''}"
            raise Refusal(INVALID, told, param=name[:60], code="unsupported_parameter")
        whole = isinstance(value, float) and value.is_integer() and options[known[name]].kind is int
        found[name] = int(value) if whole and isinstance(value, float) else value  # 5.0, as some languages write it
    return found


def read_values(given: Body, known: Mapping[str, str], options: Mapping[str, Option]) -> Values:
    """Return what a body gives as values of fields, and a seed in any case. Raise Refusal."""
    values: Values = {"seed": draw_seed(None)}
    for name, value in given.items():
        field = known[name]
        values[field] = READ[field](name, value) if field in READ else _by_row(name, value, options[field])
    return values


def _by_row(name: str, value: object, option: Option) -> object:
    """Return a value, as its row has it. Raise Refusal for one of another kind, or outside of the limits."""
    right = isinstance(value, int | float) if option.kind is float else isinstance(value, option.kind)
    if not right or (isinstance(value, bool) and option.kind is not bool):
        raise Refusal(INVALID, f"{name} {shown(value)}: wants {KINDS[option.kind]}", param=name)
    try:
        dataclasses.replace(option, called=name).check(name, value)
    except UsageError as error:
        raise Refusal.of(error, status=INVALID, param=name) from None
    return float(value) if option.kind is float and isinstance(value, int) else value


def _text_values(body: Body, besides: Collection[str], known: Mapping[str, str], prompts: int = 1) -> Values:
    """Return the values of a text request. Raise Refusal."""
    form = _schema(body.get("response_format"))
    given = given_values(body, known, {*INERT, *besides, *(("response_format",) if form else ())}, TEXT_ROWS)
    values: Values = {**form, **read_values(given, known, TEXT_ROWS)}
    texts = prompts * (typed(values, "num_samples", int) or 1)
    if texts > MOST_SAMPLES:
        raise Refusal(INVALID, f"more than {MOST_SAMPLES} texts in one request", param="n")
    if (typed(values, "max_tokens", int) or 0) > MOST_TOKENS // texts:
        name = next(name for name in given if known[name] == "max_tokens")
        wanted = f"at most {MOST_TOKENS // texts} for each text of so many in one request"
        raise Refusal(INVALID, f"{name} {values['max_tokens']}: {wanted}", param=name)
    return values


def _schema(format: object) -> dict[str, str]:
    """Return the JSON schema that `response_format` asks for, as a value of a text request. Raise Refusal."""
    if format is None:
        return {}
    kind = format.get("type") if isinstance(format, Mapping) else None
    if not isinstance(format, Mapping) or not isinstance(kind, str) or kind not in FORMS:
        wanted = f"response_format: wants an object with a type of {', '.join(FORMS[:-1])} or {FORMS[-1]}"
        raise Refusal(INVALID, wanted, param="response_format")
    if kind != "json_schema":
        return {"schema": '{"type": "object"}'} if kind == "json_object" else {}
    holder = format.get("json_schema")
    schema = holder.get("schema") if isinstance(holder, Mapping) else None
    if not isinstance(schema, Mapping):
        raise Refusal(INVALID, "response_format: json_schema wants an object with a schema", param="response_format")
    return {"schema": json.dumps(schema)}


def text_request(prompt: str, values: Values, names: Mapping[str, str] = NO_NAMES) -> TextRequest:
    """Return a request of values of its fields. names: what a client calls the options, if not as OpenAI does. Raise
    Refusal."""
    return _checked(lambda: TextRequest.of(prompt, **values), {**(names or FLAGS), "prompt": "prompt"})


def _checked(build: Callable[[], T], names: Mapping[str, str]) -> T:
    """Make a request. Raise Refusal where values do not go together, or a text is none."""
    try:
        return build()
    except GencliError as error:
        raise Refusal.of(error, status=INVALID, names=names) from None


def _prompts(value: object) -> list[str | list[int]]:
    """Return the prompts of `prompt`: a text or several, or the same of token ids. Raise Refusal."""
    several = value if isinstance(value, list) and value and isinstance(value[0], str | list) else [value]
    if len(several) > MOST_PROMPTS:
        raise Refusal(INVALID, f"prompt: at most {MOST_PROMPTS} of them", param="prompt")
    found: list[str | list[int]] = []
    for one in several:
        if not isinstance(one, str) and not (isinstance(one, list) and all(map(_is_token, one))):
            raise Refusal(INVALID, "prompt: wants a text, token ids, or a list of one of these", param="prompt")
        found.append(one)
    return found


def _is_token(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _size(size: object) -> tuple[int, int]:
    found = re.fullmatch("([1-9][0-9]{0,6})x([1-9][0-9]{0,6})", size) if isinstance(size, str) else None
    if found is None or int(found[1]) * int(found[2]) > MOST_PIXELS:
        wanted = f"wants WIDTHxHEIGHT of at most {MOST_PIXELS} pixels, or auto"
        raise Refusal(INVALID, f"size {shown(size)}: {wanted}", param="size")
    return int(found[1]), int(found[2])


FLAGS = {**spoken({}, TEXT, TEXT_ROWS), "--schema": "response_format"}  # of texts
