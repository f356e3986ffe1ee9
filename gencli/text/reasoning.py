"""Reasoning that a model writes before its answer, between <think> and </think>, told from the answer as it streams."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Iterator

from gencli.text.events import Completion, Event, Logprobs, PromptTruncated, ReasoningDelta, TextDelta

OPEN, CLOSE = "<think>", "</think>"


class Splitter:
    """One answer. A block counts only at its beginning: further on, an answer may speak of such a tag.

    `inside`: the prompt ends within the block. White space before the answer is left out.
    """

    def __init__(self, inside: bool = False):
        self.inside = inside
        self.begun = False  # the answer has
        self.skipped = 0  # characters before the answer
        self._may_open = not inside
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """More text → what of it is reasoning, and what answer."""
        if self.begun:
            return "", text
        self._held += text
        if self._may_open and self._held.lstrip().startswith(OPEN):
            self._skip(self._held.index(OPEN) + len(OPEN))
            self.inside, self._may_open = True, False
        thought = ""
        if self.inside:
            end = self._held.find(CLOSE)
            if end < 0:
                return self._skip(len(self._held) - _begins(self._held, CLOSE)), ""
            thought = self._skip(end)
            self._skip(len(CLOSE))
            self.inside = False
        self._skip(len(self._held) - len(self._held.lstrip()))
        if not self._held or (self._may_open and OPEN.startswith(self._held)):
            return thought, ""
        self.begun = True
        return thought, self.finish()[1]

    def finish(self) -> tuple[str, str]:
        """What was held back, when no more text comes."""
        text, self._held = self._held, ""
        return (text, "") if self.inside else ("", text)

    def _skip(self, count: int) -> str:
        """Take the first characters out of what is held."""
        taken, self._held = self._held[:count], self._held[count:]
        self.skipped += count
        return taken


def _begins(text: str, tag: str) -> int:
    """The length of the longest end of `text` that begins `tag`, without being it."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)


def split_reasoning(events: Iterable[Event], inside: bool = False) -> Iterator[Event]:
    """The same events with reasoning apart: samples hold their answer alone, and log-probabilities of it alone."""
    splitters: dict[int, Splitter] = {}
    for event in events:
        if isinstance(event, (PromptTruncated, ReasoningDelta)):
            yield event
            continue
        splitter = splitters.setdefault(event.index, Splitter(inside))
        thought, answer = splitter.finish() if isinstance(event, Completion) else splitter.push(event.text)
        if thought:
            yield ReasoningDelta(event.index, thought)
        if answer:
            yield TextDelta(event.index, answer)
        if isinstance(event, Completion):
            start = len(event.text) if splitter.inside else splitter.skipped
            yield dataclasses.replace(event, text=event.text[start:], logprobs=_after(event.logprobs, start))


def _after(logprobs: Logprobs | None, start: int) -> Logprobs | None:
    """The columns from the token on in which the answer begins."""
    if logprobs is None or not start:
        return logprobs
    first = max(bisect.bisect_right(logprobs.text_offset, start) - 1, 0)
    columns = {field.name: getattr(logprobs, field.name)[first:] for field in dataclasses.fields(logprobs)}
    columns["text_offset"] = [max(offset - start, 0) for offset in columns["text_offset"]]
    return Logprobs(**columns)
