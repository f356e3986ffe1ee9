"""Write samples to stdout: as streamed text, or as JSON objects with the field names of OpenAI's completion API."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gencli.cli.sinks import TextSink, json_line, stdout_bytes, write_json
from gencli.errors import counted
from gencli.text.events import Completion, Logprobs, TextDelta
from gencli.text.tools import Call

if TYPE_CHECKING:
    from gencli.many.records import Records


class PlainOutput:
    """Streamed text, one record per sample; with `echo` each record begins with its prompt."""

    def __init__(self, *, echo: bool, null: bool):
        self.sink = TextSink(null=null)
        self.echo = echo
        self._begun = False

    records: Records | None = None

    def show(self, event: TextDelta | Completion, prompt: str, more: Mapping[str, object] | None = None) -> None:
        """Write an event of samples in order. more: what a JSON object says beside them."""
        if not self._begun:
            self._begun = True
            self.sink.write(prompt if self.echo else "")
        if isinstance(event, Completion):
            for number, call in enumerate(event.calls):
                self.sink.write(("\n" if number or event.text else "") + json.dumps(_called(call), ensure_ascii=False))
            self.sink.end()
            self._begun = False
        else:
            self.sink.write(event.text)

    def fail(self) -> None:
        """End the record of a sample that comes to no end."""
        if self._begun:
            self.sink.end()
            self._begun = False

    def interrupted(self) -> None:
        self.sink.interrupted()


class JsonOutput:
    """One object per sample, once it is complete. settings: what was asked for, if anything. shows: it goes to stdout.
    records: the file that it goes to, without what a repetition would not give again."""

    def __init__(
        self,
        model: str,
        settings: Mapping[str, object],
        *,
        echo: bool,
        shows: bool = True,
        records: Records | None = None,
    ):
        stdout_bytes()  # fails now rather than after the work
        self.made_by = {"model": model, **({"settings": settings} if settings else {})}
        self.echo, self.shows, self.records = echo, shows, records

    def show(self, event: TextDelta | Completion, prompt: str, more: Mapping[str, object] | None = None) -> None:
        """As `PlainOutput.show`."""
        if isinstance(event, Completion):
            record = self.record(event, prompt)
            if self.records is not None:
                self.records.add(event.index, json_line(record))
            if self.shows:
                write_json({**record, **(more or {})})

    def record(self, sample: Completion, prompt: str) -> dict[str, object]:
        """Return a sample with the names of the completion API; with `echo` the prompt is put before the text."""
        before = prompt if self.echo else ""
        details = {"reasoning_tokens": sample.reasoning_tokens}
        return {
            "index": sample.index,
            "prompt": prompt,
            "text": before + sample.text,
            **({"reasoning_content": sample.reasoning} if sample.reasoning.strip() else {}),
            **({"tool_calls": [_called(call) for call in sample.calls]} if sample.calls else {}),
            "finish_reason": "tool_calls" if sample.calls else sample.finish_reason,
            "logprobs": sample.logprobs and _logprobs(sample.logprobs, len(before)),
            "usage": {
                "prompt_tokens": sample.prompt_tokens,
                "completion_tokens": sample.completion_tokens,
                "total_tokens": sample.prompt_tokens + sample.completion_tokens,
                **({"completion_tokens_details": details} if details["reasoning_tokens"] else {}),
            },
            "seed": sample.seed,
            **self.made_by,
        }

    def fail(self) -> None:
        pass

    def interrupted(self) -> None:
        pass


def _called(call: Call) -> dict[str, object]:
    return {"name": call.name, "arguments": call.values()}


def why_empty(sample: Completion, context: int) -> str | None:
    """Return why a sample of a conversation has no text, or None if it has. context: of the model, in tokens."""
    if sample.text or sample.calls:
        return None
    if sample.finish_reason == "length":
        what = "reasoning took all of its" if sample.unanswered else "nothing came within"
        limit = _limit(sample, context)
        if sample.unanswered:
            limit += ", --think" if limit.startswith("see") else "; see --think"
        return f"the answer is empty: {what} {counted(sample.completion_tokens, 'token')} ({limit})"
    return (
        "the model ended with its reasoning and gave no answer" if sample.unanswered else "the model had nothing to say"
    )


def why_cut(sample: Completion, context: int) -> str | None:
    """Return why a sample ends in the middle, or None if it does not."""
    if sample.finish_reason != "length":
        return None
    return f"cut off after {counted(sample.completion_tokens, 'token')} ({_limit(sample, context)})"


def _limit(sample: Completion, context: int) -> str:
    full = sample.prompt_tokens + sample.completion_tokens >= context
    return f"the context of {context} tokens is full" if full else "see --max-tokens"


def _logprobs(logprobs: Logprobs, offset: int) -> dict[str, object]:
    """Return log-probabilities for JSON: without infinities, with offsets from the beginning of the printed text."""
    columns = dataclasses.asdict(logprobs)
    columns["token_logprobs"] = [_finite(value) for value in logprobs.token_logprobs]
    columns["top_logprobs"] = [{t: _finite(value) for t, value in row.items()} for row in logprobs.top_logprobs]
    columns["text_offset"] = [offset + start for start in logprobs.text_offset]
    return columns


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
