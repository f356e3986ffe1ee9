"""Events → the objects of OpenAI's answers, whole or streamed. No torch."""

from __future__ import annotations

import base64
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gencli.text.events import Completion, Event, Logprobs, ReasoningDelta, TextDelta

if TYPE_CHECKING:
    from typing_extensions import NotRequired

DONE = b"data: [DONE]\n\n"


class Details(TypedDict):
    """What tokens of answers are."""

    reasoning_tokens: int


class Usage(TypedDict):
    """Tokens of a request. The details are those of chats."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: NotRequired[Details]


class CalledFunction(TypedDict):
    """The function of a call, with its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call of a tool. index: among the calls of a streamed answer."""

    index: NotRequired[int]
    id: str
    type: str
    function: CalledFunction


class Said(TypedDict, total=False):
    """What a chat model says, whole or in part."""

    role: str
    content: str | None
    reasoning_content: str
    refusal: None
    tool_calls: list[ToolCall]


class TokenLogprob(TypedDict):
    """A token of a chat, and how likely it was."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    """One that was chosen, with the most likely ones in its place."""

    top_logprobs: list[TokenLogprob]


class Choice(TypedDict, total=False):
    """One of several answers, whole or in part: a chat has a message or a delta, and a completion has a text."""

    index: int
    finish_reason: str | None
    text: str
    message: Said
    delta: Said
    logprobs: Mapping[str, object] | None


class Body(TypedDict, total=False):
    """An object of OpenAI's routes for text."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Images(TypedDict):
    """What /v1/images/generations answers."""

    created: int
    data: list[dict[str, str]]
    output_format: str


def server_sent(value: Mapping[str, object]) -> bytes:
    """Return an object as one server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def named_event(value: Mapping[str, object]) -> bytes:
    """Return an object as a server-sent event with the name of its type."""
    return f"event: {value['type']}\n".encode() + server_sent(value)


class Stream(StreamingResponse):
    """An answer that is streamed. source: what its parts are made from. At the end, though the client may have left
    before anything of it ran, the source is closed, and `ended` is called."""

    ended: Callable[[], None]

    def __init__(self, parts: AsyncIterator[bytes], source: AsyncGenerator[object, None], media: str):
        super().__init__(parts, media_type=media, headers={"Cache-Control": "no-store"})
        self.source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with contextlib.aclosing(self.source):
                await super().__call__(scope, receive, send)
        finally:
            self.ended()


@dataclass
class Answer:
    """The answer to one request for text, as its events come. tells_usage: whether the end of a stream does."""

    model: str
    chat: bool
    tells_usage: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    done: dict[int, Completion] = field(default_factory=dict)
    prompts: dict[int, int] = field(default_factory=dict)  # tokens of each prompt, by its number
    opened: set[int] = field(default_factory=set)

    def take(self, event: Event, first: int = 0, prompt: int = 0) -> list[Body]:
        """Take an event of a prompt whose choices begin at `first`. Return the objects to stream for it."""
        index = event.index + first
        if isinstance(event, ReasoningDelta):
            if not self.chat:
                return []
            return [*self._begin(index), self._chunk(index, {"delta": {"reasoning_content": event.text}})]
        if isinstance(event, TextDelta):
            part: Choice = {"delta": {"content": event.text}} if self.chat else {"text": event.text}
            return [*self._begin(index), self._chunk(index, part)]
        if isinstance(event, Completion):
            self.done[index] = event
            self.prompts[prompt] = event.prompt_tokens
            end: Choice = {"delta": {}} if self.chat else {"text": ""}
            calls = [self._chunk(index, {"delta": {"tool_calls": [one]}}) for one in tool_calls(event, streamed=True)]
            return [*self._begin(index), *calls, self._chunk(index, end, finish_reason(event))]
        return []

    def whole(self) -> Body:
        """Return the answer in one object."""
        choices = [self._choice(index, self.done[index]) for index in sorted(self.done)]
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self.usage()}

    def usage(self) -> Usage:
        """Return the tokens of prompts, which count once however many answers they have, and of answers."""
        prompt, made = sum(self.prompts.values()), sum(one.completion_tokens for one in self.done.values())
        usage: Usage = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
        if self.chat:
            reasoning = sum(one.reasoning_tokens for one in self.done.values())
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
        return usage

    def last(self) -> list[bytes]:
        """Return what ends a stream: the usage, if it is to be told, and a mark."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        usage: Body = {**self._head(kind), "choices": [], "usage": self.usage()}
        return [*([server_sent(usage)] if self.tells_usage else []), DONE]

    def _head(self, kind: str) -> Body:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _begin(self, index: int) -> list[Body]:
        if not self.chat or index in self.opened:
            return []
        self.opened.add(index)
        return [self._chunk(index, {"delta": {"role": "assistant", "content": ""}})]

    def _chunk(self, index: int, part: Choice, finish: str | None = None) -> Body:
        choice: Choice = {"index": index, **part, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk" if self.chat else "text_completion"), "choices": [choice]}

    def _choice(self, index: int, done: Completion) -> Choice:
        choice: Choice = {"index": index, "finish_reason": finish_reason(done), "logprobs": None}
        if not self.chat:
            logprobs = None if done.logprobs is None else vars(done.logprobs)
            return {**choice, "text": done.text, "logprobs": logprobs}
        message: Said = {"role": "assistant", "content": done.text, "refusal": None}
        if done.calls:
            message |= {"content": done.text or None, "tool_calls": tool_calls(done)}
        if done.reasoning.strip():
            message["reasoning_content"] = done.reasoning
        if done.logprobs is not None:
            choice["logprobs"] = {"content": chat_logprobs(done.logprobs), "refusal": None}
        return {**choice, "message": message}


def finish_reason(done: Completion) -> str:
    """Return why an answer ends, in OpenAI's words."""
    return "tool_calls" if done.calls else done.finish_reason


def tool_calls(done: Completion, *, streamed: bool = False) -> list[ToolCall]:
    """Return the calls of an answer, each with an id of its own."""
    made: list[ToolCall] = []
    for number, call in enumerate(done.calls):
        function: CalledFunction = {"name": call.name, "arguments": call.arguments}
        one: ToolCall = {"id": uuid.uuid4().hex[:9], "type": "function", "function": function}
        made.append({"index": number, **one} if streamed else one)
    return made


def chat_logprobs(found: Logprobs) -> list[ChosenLogprob]:
    """Return log-probabilities in the form of chat completions: a list with an object for each token."""

    def one(token: str, logprob: float) -> TokenLogprob:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}

    columns = zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True)
    return [{**one(t, p), "top_logprobs": [one(*pair) for pair in top.items()]} for t, p, top in columns]


def drawn(images: Sequence[bytes], format: str) -> Images:
    """Return the answer of /v1/images/generations."""
    data = [{"b64_json": base64.b64encode(image).decode()} for image in images]
    return {"created": int(time.time()), "data": data, "output_format": format}
