"""Answers in channels, as gpt-oss writes them (OpenAI 2025, "harmony response format"). No torch.

`<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…`: what is in `final` is the
answer, what is in other channels is reasoning. The prompt ends behind `<|start|>assistant`. A header with
`to=functions.NAME` begins the arguments of a call.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gencli.text.call_forms import read_call
from gencli.text.tools import Call
from gencli.tokens import Tokenizer
from gencli.tokens.decode import IncrementalDecoder

ANSWER = "final"
RECIPIENT = re.compile(r"to=functions\.([\w.-]+)")


@dataclass(frozen=True)
class Channels:
    """The tokens that messages are made of: start of a header, its channel, start and end of what is said."""

    start: int
    channel: int
    message: int
    end: int


def channels_of(tokenizer: Tokenizer) -> Channels | None:
    """Return the tokens of channels, or None for a model whose chat template writes none."""
    added = {token.content: i for i, token in tokenizer.backend.get_added_tokens_decoder().items()}
    ids = [added.get(f"<|{name}|>") for name in ("start", "channel", "message", "end")]
    found = [one for one in ids if one is not None]
    return Channels(*found) if len(found) == len(ids) and "<|channel|>" in (tokenizer.chat_template or "") else None


class ChannelSplitter:
    """One answer in channels; it parts reasoning from the answer as `reasoning.Splitter` does.

    inside: whether the answer has not begun. An answer without any mark is all answer. calls: whether what is said to a
    function is a call, and not reasoning. called: the tool whose arguments are written now.
    """

    def __init__(self, channels: Channels, *, calls: bool = False):
        self.tokens = channels
        self.ids: set[int | None] = {channels.start, channels.channel, channels.message, channels.end}
        self.begun = False
        self.skipped = 0  # characters before the answer
        self._marked, self._in_header, self._header = False, True, ""
        self._between = False  # two messages
        self.called, self._recipient, self._arguments = "", "", ""
        self._knows_calls = calls
        self._calls: list[Call] = []

    openers: tuple[int, ...] = ()  # tokens that may open a thought beside the channels' marks

    @property
    def inside(self) -> bool:
        """Whether what is written now is no answer."""
        return self._marked and not self.begun

    @property
    def next(self) -> tuple[int, ...]:
        """The tokens that may come next of an answer that is to have its marks; empty where any may."""
        if not self._marked:
            return (self.tokens.channel, self.tokens.message)
        return (self.tokens.start,) if self._between else ()

    def take(self, token: int) -> bool:
        """Take a token, and return whether it is a mark at a place where one counts. It then has no text."""
        if self.begun or token not in self.ids:
            return False
        self._marked = True
        if self._in_header and self._knows_calls and (found := RECIPIENT.search(self._header)):
            self._recipient = found[1]
        if token == self.tokens.message and self._in_header:
            self._in_header = False
            self.called, self._recipient = self._recipient, ""
            self.begun = not self.called and self._header.split()[:1] in ([], [ANSWER])
        elif token != self.tokens.message:
            self._in_header = True
            self._end_call()
        self._header, self._between = "", token == self.tokens.end
        return True

    def follow(self, token: int, decoder: IncrementalDecoder, known: int) -> None:
        """Take a token and its text, which nobody wants to see. known: how many tokens have one."""
        if token in self.ids:
            self.push(decoder.finish())
            self.take(token)
        elif token < known:
            self.push(decoder.push(token))

    def push(self, text: str) -> tuple[str, str]:
        """Take more text. Return what of it is reasoning, and what answer."""
        if self.begun:
            return "", text
        self.skipped += len(text)
        if self._in_header:
            self._header += text
            return "", ""
        if self.called:
            self._arguments += text
            return "", ""
        return text, ""

    def calls(self) -> tuple[Call, ...]:
        """Return the calls so far."""
        self._end_call()
        return tuple(self._calls)

    def _end_call(self) -> None:
        if self.called and (call := read_call(self.called, self._arguments)) is not None:
            self._calls.append(call)
        self.called = self._arguments = ""

    def finish(self) -> tuple[str, str]:
        """Return what was held back, when no more text comes."""
        if self._marked or self.begun:
            return "", ""
        text, self._header = self._header, ""
        self.skipped -= len(text)
        return "", text
