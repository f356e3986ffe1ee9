"""Events → the objects of OpenAI's /v1/responses, whole or streamed. No torch."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gencli.serve.answers import ChosenLogprob, chat_logprobs, tool_calls
from gencli.serve.refusal import Refusal
from gencli.text.events import Completion, Event, ReasoningDelta, TextDelta

Object = dict[str, object]
ECHOED = (  # of the request, as the answer has it
    "instructions", "max_output_tokens", "max_tool_calls", "metadata", "prompt_cache_key", "reasoning",
    "safety_identifier", "service_tier", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p",
    "truncation", "user",
)  # fmt: skip
USUAL: Mapping[str, object] = {  # where the request does not say it
    "metadata": {}, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "truncation": "disabled",
}  # fmt: skip
REASONING, MESSAGE = "reasoning", "message"
PARTS = {REASONING: "reasoning_text", MESSAGE: "output_text"}  # the type of an item's part
NO_SCHEMA = {"strict": None, "parameters": None}


@dataclass
class _Item:
    """Reasoning or a message, while its text comes."""

    kind: str
    at: int
    id: str
    text: str = ""


@dataclass
class Answer:
    """The answer to one request, as its events come. model: as the client called it; body: the request."""

    model: str
    body: Mapping[str, object]
    chat: bool = True
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    output: list[Object] = field(default_factory=list)  # items that are done
    done: Completion | None = None
    sent: int = 0  # events of the stream
    open: _Item | None = None
    held: str = ""  # reasoning that has only been space so far

    def take(self, event: Event, first: int = 0, prompt: int = 0) -> list[Object]:
        """Take an event. Return the objects to stream for it."""
        return [self._numbered(one) for one in self._take(event)]

    def whole(self) -> Object:
        """Return the answer in one object."""
        return self._response()

    def last(self) -> list[bytes]:
        """Return what ends a stream: nothing more."""
        return []

    def tell(self, refusal: Refusal) -> Object:
        """Return the event of an error in the stream."""
        error = refusal.body()["error"]
        told = {name: error[name] for name in ("code", "message", "param")}
        return self._numbered({"type": "error", **told, "error": error})

    def _take(self, event: Event) -> Iterator[Object]:
        begins = isinstance(event, ReasoningDelta | TextDelta | Completion) and not self.sent
        if begins:
            for name in ("created", "in_progress"):
                yield {"type": f"response.{name}", "response": self._response()}
        if isinstance(event, ReasoningDelta):
            self.held += event.text
            if self.open is not None or self.held.strip():
                text, self.held = self.held, ""
                yield from self._add(REASONING, text)
        elif isinstance(event, TextDelta) and event.text:
            yield from self._add(MESSAGE, event.text)
        elif isinstance(event, Completion):
            self.done = event
            if not self.output and self.open is None:
                yield from self._all(event)
            else:
                yield from self._close()
                if event.text and not any(item["type"] == MESSAGE for item in self.output):
                    yield from self._add(MESSAGE, event.text)
                    yield from self._close()
            yield from self._calls(event)
            response = self._response()
            yield {"type": f"response.{response['status']}", "response": response}

    def _all(self, done: Completion) -> Iterator[Object]:
        """Make the items of an answer of which nothing was streamed."""
        if done.reasoning.strip():
            yield from self._add(REASONING, done.reasoning)
        if done.text or not done.calls:
            yield from self._add(MESSAGE, done.text)
        yield from self._close()

    def _add(self, kind: str, text: str) -> Iterator[Object]:
        """Add text to the item of a kind, which begins where another was open."""
        if self.open is None or self.open.kind != kind:
            yield from self._close()
            prefix = "rs" if kind == REASONING else "msg"
            self.open = _Item(kind, len(self.output), f"{prefix}_{uuid.uuid4().hex}")
            begun = {**_item(self.open, "in_progress"), "content": []}
            yield {"type": "response.output_item.added", "output_index": self.open.at, "item": begun}
            yield {"type": "response.content_part.added", **self._place(), "part": _part(kind, "")}
        assert self.open is not None
        self.open.text += text
        more: Object = {"logprobs": []} if kind == MESSAGE else {}
        yield {"type": f"response.{PARTS[kind]}.delta", **self._place(), "delta": text, **more}

    def _close(self) -> Iterator[Object]:
        """End the item that is open, if one is."""
        if (item := self.open) is None:
            return
        place, kind = self._place(), item.kind
        made = _item(item, "completed" if self.done is None or self._ended else "incomplete")
        logprobs: list[ChosenLogprob] = []
        if kind == MESSAGE and self.done is not None and self.done.logprobs is not None:
            logprobs = chat_logprobs(self.done.logprobs)
        part = {**_part(kind, item.text), **({"logprobs": logprobs} if kind == MESSAGE else {})}
        made["content"] = [part]
        self.output.append(made)
        self.open = None
        more: Object = {"logprobs": logprobs} if kind == MESSAGE else {}
        yield {"type": f"response.{PARTS[kind]}.done", **place, "text": item.text, **more}
        yield {"type": "response.content_part.done", **place, "part": part}
        yield {"type": "response.output_item.done", "output_index": item.at, "item": made}

    def _calls(self, done: Completion) -> Iterator[Object]:
        """Make the items of an answer's calls."""
        for call in tool_calls(done):
            function, at = call["function"], len(self.output)
            item: Object = {
                "type": "function_call",
                "id": f"fc_{uuid.uuid4().hex}",
                "call_id": call["id"],
                "name": function["name"],
                "arguments": function["arguments"],
                "status": "completed",
            }
            self.output.append(item)
            place = {"item_id": item["id"], "output_index": at}
            begun = {**item, "arguments": "", "status": "in_progress"}
            yield {"type": "response.output_item.added", "output_index": at, "item": begun}
            kind = "response.function_call_arguments"
            yield {"type": f"{kind}.delta", **place, "delta": item["arguments"]}
            yield {"type": f"{kind}.done", **place, "name": item["name"], "arguments": item["arguments"]}
            yield {"type": "response.output_item.done", "output_index": at, "item": item}

    @property
    def _ended(self) -> bool:
        """Whether the answer ended by itself."""
        return self.done is not None and self.done.finish_reason != "length"

    def _place(self) -> Object:
        assert self.open is not None
        return {"item_id": self.open.id, "output_index": self.open.at, "content_index": 0}

    def _numbered(self, value: Object) -> Object:
        self.sent += 1
        return {**value, "sequence_number": self.sent - 1}

    def _response(self) -> Object:
        """Return the response as far as it is."""
        done = self.done
        status = "in_progress" if done is None else "completed" if self._ended else "incomplete"
        echoed = {name: self.body.get(name) for name in ECHOED}
        echoed |= {name: usual for name, usual in USUAL.items() if echoed[name] is None}
        tools = echoed["tools"]
        if isinstance(tools, Sequence):
            echoed["tools"] = [{**NO_SCHEMA, **tool} for tool in tools if isinstance(tool, Mapping)]
        parallel = self.body.get("parallel_tool_calls")
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": None if done is None else int(time.time()),
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.model,
            "output": [*self.output],
            "parallel_tool_calls": True if parallel is None else parallel,
            "previous_response_id": None,
            "store": False,
            **echoed,
            "usage": None if done is None else _usage(done),
        }


def _item(item: _Item, status: str) -> Object:
    made: Object = {"type": item.kind, "id": item.id, "status": status}
    return {**made, "summary": []} if item.kind == REASONING else {**made, "role": "assistant"}


def _part(kind: str, text: str) -> Object:
    made: Object = {"type": PARTS[kind], "text": text}
    return {**made, "annotations": [], "logprobs": []} if kind == MESSAGE else made


def _usage(done: Completion) -> Object:
    return {
        "input_tokens": done.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": done.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": done.reasoning_tokens},
        "total_tokens": done.prompt_tokens + done.completion_tokens,
    }
