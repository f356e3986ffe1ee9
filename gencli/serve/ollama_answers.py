"""Events → the objects of ollama's answers, whole or streamed as lines of JSON. No torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TypedDict

from gencli.serve.answers import ChosenLogprob, chat_logprobs
from gencli.text.events import Completion, Event, ReasoningDelta, TextDelta


class Called(TypedDict):
    """A call of a tool: its function, with a name and an object of arguments."""

    function: Mapping[str, object]


class Said(TypedDict, total=False):
    """What a model says in a chat, whole or in part."""

    role: str
    content: str
    thinking: str
    tool_calls: list[Called]


class Body(TypedDict, total=False):
    """An object of /api/generate, which has a response, or of /api/chat, which has a message. Durations are in
    nanoseconds: from the request on, until the model was there, until the first text, and from there to the end."""

    model: str
    created_at: str
    response: str
    thinking: str
    message: Said
    done: bool
    done_reason: str
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int
    logprobs: list[ChosenLogprob]


def line(value: Mapping[str, object]) -> bytes:
    """Return an object as a line of a stream."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def stamp(seconds: float | None = None) -> str:
    """Return a time, or now, as ollama writes it: RFC 3339, in UTC."""
    at = datetime.now(timezone.utc) if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass
class Answer:
    """The answer to one request, as its events come. chat: whether the ends of turns end it. talks: whether the route
    is /api/chat, whose answers are messages. model: as the client called it."""

    model: str
    chat: bool
    talks: bool
    begun: int = field(default_factory=time.perf_counter_ns)
    loaded: int = 0
    first: int = 0
    done: Completion | None = None
    end: int = 0

    def ready(self) -> None:
        """Say that the model is there."""
        self.loaded = time.perf_counter_ns()

    def take(self, event: Event, first: int, prompt: int) -> list[Body]:
        """Take an event. Return the objects to stream for it."""
        self.first = self.first or time.perf_counter_ns()
        if isinstance(event, ReasoningDelta):
            return [self._part("", event.text)]
        if isinstance(event, TextDelta):
            return [self._part(event.text)]
        if isinstance(event, Completion):
            self.done, self.end = event, time.perf_counter_ns()
            calls = [self._called(self._part(""), event)] if event.calls else []
            return [*calls, {**self._part(""), **self._ended(event)}]
        return []

    def whole(self) -> Body:
        """Return the answer in one object."""
        assert self.done is not None
        said = self._called(self._part(self.done.text, self.done.reasoning), self.done)
        found: Body = {**said, **self._ended(self.done)}
        return found if self.done.logprobs is None else {**found, "logprobs": chat_logprobs(self.done.logprobs)}

    def last(self) -> list[bytes]:
        """Return what ends a stream: nothing more."""
        return []

    def empty(self, reason: str) -> Body:
        """Return what is said where nothing was asked: the model is loaded, or let go."""
        return {**self._part(""), "done": True, "done_reason": reason}

    def _part(self, text: str, thought: str = "") -> Body:
        found: Body = {"model": self.model, "created_at": stamp(), "done": False}
        thinks = bool(thought.strip() or (thought and not text))  # and more than a line's end in a whole answer
        if self.talks:
            said: Said = {"role": "assistant", "content": text}
            return {**found, "message": {**said, "thinking": thought} if thinks else said}
        found["response"] = text
        return {**found, "thinking": thought} if thinks else found

    def _called(self, part: Body, done: Completion) -> Body:
        """Return a part with the calls of an answer, if it has some."""
        if done.calls and "message" in part:
            calls: list[Called] = [{"function": {"name": one.name, "arguments": one.values()}} for one in done.calls]
            part["message"]["tool_calls"] = calls
        return part

    def _ended(self, done: Completion) -> Body:
        return {
            "done": True,
            "done_reason": done.finish_reason,
            "total_duration": self.end - self.begun,
            "load_duration": self.loaded - self.begun,
            "prompt_eval_count": done.prompt_tokens,
            "prompt_eval_duration": self.first - self.loaded,
            "eval_count": done.completion_tokens,
            "eval_duration": self.end - self.first,
        }
