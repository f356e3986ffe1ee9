"""Events → the objects of Anthropic's Messages API: a message, or the events of its stream. No torch."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from gencli.text.events import Completion, Event, PromptTruncated, ReasoningDelta, TextDelta
from gencli.text.tools import Call

SIGNATURE = "gencli"  # of thoughts; nothing is made of one that comes back
THINKING, TEXT = "thinking", "text"  # types of blocks, whose texts have these names too
Told = Mapping[str, object]  # a JSON object


class Thought(TypedDict):
    """Tokens of an answer that are thoughts."""

    thinking_tokens: int


class Usage(TypedDict):
    """Tokens of a request. What is kept of earlier ones is not told apart."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: Thought


class Ended(TypedDict):
    """Why an answer has ended: null while it is made. stop_sequence: the client's, if one of these did it."""

    stop_reason: str | None
    stop_sequence: str | None


class Message(Ended):
    """An answer."""

    id: str
    type: str
    role: str
    model: str
    content: list[Told]
    usage: Usage


@dataclass
class Answer:
    """The answer to one request, as its events come. stops: stop strings of the client. shows: thoughts are sent,
    and not only that there are some. most: tokens that the answer may have; with fewer of them the context
    was full. prompt_tokens: to be set before the first event."""

    model: str
    stops: Sequence[str] = ()
    shows: bool = True
    most: int | None = None
    chat: bool = True  # the ends of turns end it
    prompt_tokens: int = 0
    id: str = field(default_factory=lambda: _id("msg"))
    done: Completion | None = None
    begun: bool = False
    kind: str = ""  # of the block that is open
    index: int = 0  # of that block, or of the next one
    held: str = ""  # white space that a thought may begin with, or be all of

    def take(self, event: Event, first: int, prompt: int) -> Iterator[Told]:
        """Take an event. Yield the events to stream for it."""
        if isinstance(event, PromptTruncated):
            self.prompt_tokens = event.kept
        elif isinstance(event, ReasoningDelta):
            self.held += event.text
            if self.held.strip() or self.kind == THINKING:
                text, self.held = self.held, ""
                yield from self._add(THINKING, text)
        elif isinstance(event, TextDelta):
            yield from self._add(TEXT, event.text)
        elif isinstance(event, Completion):
            self.done = event
            yield from self._begin()
            yield from self._close()
            for call in event.calls:
                yield self._start({**_use(call), "input": {}})
                yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
                yield from self._close()
            yield {"type": "message_delta", "delta": self._ended(event), "usage": _usage(event)}
            yield {"type": "message_stop"}

    def whole(self) -> Message:
        """Return the answer in one object."""
        done = self.done
        assert done is not None
        thought = done.reasoning if self.shows else ""
        blocks: list[Told] = []
        if done.reasoning.strip():
            blocks.append({"type": THINKING, THINKING: thought, "signature": SIGNATURE})
        if done.text:
            blocks.append({"type": TEXT, TEXT: done.text})
        content = [*blocks, *({**_use(call), "input": call.values()} for call in done.calls)]
        return {**self._message(), "content": content, **self._ended(done), "usage": _usage(done)}

    def last(self) -> list[bytes]:
        """Return what ends a stream: nothing more."""
        return []

    def _message(self) -> Message:
        """Return the answer before anything is said."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _tokens(self.prompt_tokens),
        }

    def _begin(self) -> Iterator[Told]:
        if not self.begun:
            self.begun = True
            yield {"type": "message_start", "message": self._message()}
            yield {"type": "ping"}

    def _add(self, kind: str, text: str) -> Iterator[Told]:
        """Add text to the block of a kind, which begins where another one is open, or none."""
        yield from self._begin()
        if self.kind != kind:
            yield from self._close()
            self.kind = kind
            yield self._start({"type": kind, kind: "", **({"signature": ""} if kind == THINKING else {})})
        if self.shows or kind != THINKING:
            yield self._delta({"type": f"{kind}_delta", kind: text})

    def _start(self, block: Told) -> Told:
        self.kind = str(block["type"])
        return {"type": "content_block_start", "index": self.index, "content_block": block}

    def _delta(self, delta: Told) -> Told:
        return {"type": "content_block_delta", "index": self.index, "delta": delta}

    def _close(self) -> Iterator[Told]:
        """End the block that is open, if one is."""
        if not self.kind:
            return
        if self.kind == THINKING:
            yield self._delta({"type": "signature_delta", "signature": SIGNATURE})
        yield {"type": "content_block_stop", "index": self.index}
        self.kind, self.index = "", self.index + 1

    def _ended(self, done: Completion) -> Ended:
        """Return why an answer ends."""
        if done.calls:
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if done.finish_reason == "length":
            full = self.most is not None and done.completion_tokens < self.most
            return {"stop_reason": "model_context_window_exceeded" if full else "max_tokens", "stop_sequence": None}
        if done.stop in self.stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": done.stop}
        return {"stop_reason": "end_turn", "stop_sequence": None}


def _use(call: Call) -> dict[str, object]:
    """Return the block of a call, without its input."""
    return {"type": "tool_use", "id": _id("toolu"), "name": call.name}


def _usage(done: Completion) -> Usage:
    return _tokens(done.prompt_tokens, done.completion_tokens, done.reasoning_tokens)


def _tokens(prompt: int, made: int = 0, thought: int = 0) -> Usage:
    """Return a usage: tokens of the prompt, of the answer, and of these the thoughts."""
    return {
        "input_tokens": prompt,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": made,
        "output_tokens_details": {"thinking_tokens": thought},
    }


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:24]}"
