"""Reasoning that a model writes before its answer, told from the answer as it streams. No torch.

Models mark it by tokens of their own, or by words. A token is unmistakable: where the tokenizer has one, a thought may
quote its text.
"""

from __future__ import annotations

import bisect
import dataclasses
from dataclasses import dataclass

from gencli.text.calls import Calls
from gencli.text.channels import Channels, ChannelSplitter
from gencli.text.events import Logprobs
from gencli.tokens import Tokenizer

# What begins and ends a thought, by the families that write it.
PAIRS = (
    ("<think>", "</think>"),  # DeepSeek R1, Qwen 3, QwQ, SmolLM3, …
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
    ("<|channel>", "<channel|>"),  # Gemma 4
)
TITLES = {"<|channel>": "thought\n"}  # what stands after such a mark, and is no part of the thought


@dataclass(frozen=True)
class Marks:
    """How a model marks its reasoning. open_id, close_id: the tokens of these texts, where the tokenizer has them."""

    open: str = "<think>"
    close: str = "</think>"
    open_id: int | None = None
    close_id: int | None = None

    @property
    def title(self) -> str:
        """What stands between `open` and the thought."""
        return TITLES.get(self.open, "")

    def begun_in(self, prompt: str) -> bool:
        """Return whether a prompt ends within a thought that has no word yet."""
        return prompt.rstrip().endswith((self.open, (self.open + self.title).rstrip()))


@dataclass(frozen=True)
class Reasoning:
    """What to look for in an answer. inside: the marks of a thought that the prompt has begun. channels: in place of
    marks, of a model that writes them. calls: of tools, that may come in it. begun: the prompt has begun the answer."""

    marks: tuple[Marks, ...] = (Marks(),)
    inside: Marks | None = None
    channels: Channels | None = None
    calls: Calls | None = None
    begun: bool = False

    def splitter(self) -> Splitter | ChannelSplitter:
        """Return what parts an answer."""
        return Splitter(self) if self.channels is None else ChannelSplitter(self.channels, calls=self.calls is not None)


def marks_of(tokenizer: Tokenizer) -> tuple[Marks, ...]:
    """Return the marks that a model may write: `<think>`, and those that its tokens or its chat template name."""
    added = {token.content: i for i, token in tokenizer.backend.get_added_tokens_decoder().items()}
    named = [*added, tokenizer.chat_template or ""]
    found = [pair for pair in PAIRS if pair == PAIRS[0] or any(mark in name for mark in pair for name in named)]
    return tuple(Marks(open, close, added.get(open), added.get(close)) for open, close in found)


class Splitter:
    """One answer. A block counts only at its beginning: further on, an answer may speak of such a mark.

    inside: the marks of the thought that goes on. White space before the answer is left out.
    """

    def __init__(self, reasoning: Reasoning):
        self.marks = reasoning.marks
        self.ids = {i for one in (*self.marks, reasoning.inside or Marks()) for i in (one.open_id, one.close_id)}
        self.inside = reasoning.inside
        self.begun = reasoning.begun  # the answer has
        self.skipped = 0  # characters before the answer
        self._may_open = reasoning.inside is None and not reasoning.begun
        self._title = self.inside.title if self.inside else ""  # what may come now and is no part of the thought
        self._held = ""

    @property
    def openers(self) -> tuple[int, ...]:
        """The tokens that may open a thought now."""
        return tuple(one.open_id for one in self.marks if one.open_id is not None) if self._may_open else ()

    def take(self, token: int) -> bool:
        """Take a token, and return whether it is a mark at a place where one counts. It then has no text."""
        if self.begun or token not in self.ids:
            return False
        if self.inside is not None:
            if token != self.inside.close_id:
                return False
            self._skip_title(closes=True)
            self.inside = None
            return True
        opened = next((one for one in self.marks if one.open_id == token), None)
        if opened is None or not self._may_open or self._held.strip():
            return False
        self._skip(len(self._held))
        self.inside, self._may_open, self._title = opened, False, opened.title
        return True

    def push(self, text: str) -> tuple[str, str]:
        """Take more text. Return what of it is reasoning, and what answer."""
        if self.begun:
            return "", text
        self._held += text
        words = [one for one in self.marks if one.open_id is None] if self._may_open else []
        if opened := next((one for one in words if self._held.lstrip().startswith(one.open)), None):
            self._skip(self._held.index(opened.open) + len(opened.open))
            self.inside, self._may_open, self._title = opened, False, opened.title
        thought = ""
        if self.inside is not None:
            if self._skip_title():
                return "", ""
            close = self.inside.close if self.inside.close_id is None else ""
            end = self._held.find(close) if close else -1
            if end < 0:
                return self._skip(len(self._held) - _begins(self._held, close)), ""
            thought = self._skip(end)
            self._skip(len(close))
            self.inside = None
        self._skip(len(self._held) - len(self._held.lstrip()))
        if not self._held or (self._may_open and any(one.open.startswith(self._held) for one in words)):
            return thought, ""
        self.begun = True
        return thought, self.finish()[1]

    def finish(self) -> tuple[str, str]:
        """Return what was held back, when no more text comes."""
        text, self._held = self._held, ""
        return ("", text) if self.inside is None else (text, "")

    def _skip_title(self, *, closes: bool = False) -> bool:
        """Take the title out of what is held, and return whether more of it may come. closes: the thought ends here."""
        if self._title and self._held.startswith(self._title):
            self._skip(len(self._title))
        elif self._title.startswith(self._held) and self._title:
            if not closes:
                return True
            self._skip(len(self._held))
        self._title = ""
        return False

    def _skip(self, count: int) -> str:
        """Take the first characters out of what is held."""
        taken, self._held = self._held[:count], self._held[count:]
        self.skipped += count
        return taken


def _begins(text: str, mark: str) -> int:
    """Return the length of the longest end of `text` that begins `mark`, without being it."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)


def logprobs_after(logprobs: Logprobs, start: int) -> Logprobs:
    """Return the columns from the token on in which the answer begins, at character `start` of the text."""
    if not start:
        return logprobs
    first = max(bisect.bisect_right(logprobs.text_offset, start) - 1, 0)
    columns = {field.name: getattr(logprobs, field.name)[first:] for field in dataclasses.fields(logprobs)}
    columns["text_offset"] = [max(offset - start, 0) for offset in columns["text_offset"]]
    return Logprobs(**columns)
