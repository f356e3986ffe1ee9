"""Special tokens that someone wrote into a message stay plain words, while the template's own are parsed.

Before rendering, each such word is replaced by a private-use mark, which no template knows; afterwards the text is
encoded as a whole but for the stretches that hold a mark: between two tokens of the template, where the tokenizer
would split anyway, they are encoded with their words restored and nothing parsed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from gencli.tokens import Tokenizer

MARKS = range(0xF0000, 0xFFFFE)  # a plane of private-use characters


class Literals:
    """The words of one conversation that must not be parsed."""

    def __init__(self, tokenizer: Tokenizer, template: str):
        self.tokenizer = tokenizer
        added = tokenizer.backend.get_added_tokens_decoder()
        self.special = {token.content: token for i, token in added.items() if i in tokenizer.special_ids}
        # Tokens that are not special, but that the template uses all the same: <think>, <tool_call>, …
        own = {t.content for t in added.values() if t.content in template and t.content.strip()}
        self._special = _any_of(self.special)
        self._control = _any_of({*self.special, *own})
        self._words: list[str] = []
        self._mark = chr(MARKS[0])

    def hide(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """The messages with such words replaced. A model's own answers may hold the tokens that are not special."""
        everything = "".join(text for message in messages for text in message.values())
        self._words = []
        self._mark = next(c for c in map(chr, MARKS) if c not in everything)
        return [{key: self._hidden(text, message["role"]) for key, text in message.items()} for message in messages]

    def _hidden(self, text: str, role: str) -> str:
        def replace(match: re.Match[str]) -> str:
            self._words.append(match[0])
            return f"{self._mark}{len(self._words) - 1}{self._mark}"

        return (self._special if role == "assistant" else self._control).sub(replace, text)

    def restore(self, text: str) -> str:
        """A rendered text as transformers would render it."""
        return re.sub(f"{self._mark}(\\d+){self._mark}", lambda match: self._words[int(match[1])], text)

    def encode(self, text: str) -> list[int]:
        """The ids of a rendered text. Nothing is put around it: a template writes its own beginning."""
        ids: list[int] = []
        pending = 0  # where the text begins that is still to be encoded with its tokens parsed
        for start, stop in self._stretches(text):
            if self._mark in text[start:stop]:
                ids += self.tokenizer.encode(text[pending:start], add_special_tokens=False)
                for words in self._plain(text[start:stop]):
                    ids += self.tokenizer.encode(words, special=False, add_special_tokens=False)
                pending = stop
        return ids + self.tokenizer.encode(text[pending:], add_special_tokens=False)

    def _stretches(self, text: str) -> Iterator[tuple[int, int]]:
        """Where the text between special tokens begins and ends; spaces that a token takes to itself are its own."""
        start, before = 0, None
        for match in [*self._special.finditer(text), None]:
            stop = match.start() if match else len(text)
            after = self.special[match[0]] if match else None
            stretch = text[start:stop]
            left = len(stretch) - len(stretch.lstrip()) if before is not None and before.rstrip else 0
            right = len(stretch) - len(stretch.rstrip()) if after is not None and after.lstrip else 0
            if left < len(stretch) - right:
                yield start + left, stop - right
            if match:
                start, before = match.end(), after

    def _plain(self, stretch: str) -> Iterator[str]:
        """A stretch with its words restored, cut inside those that the tokenizer would parse even as plain text."""
        part = ""
        for index, piece in enumerate(stretch.split(self._mark)):
            if index % 2 == 0:
                part += piece
                continue
            word = self._words[int(piece)]
            if word not in self.special:
                yield part + word[: len(word) // 2]
                part, word = "", word[len(word) // 2 :]
            part += word
        yield part


def _any_of(words: Collection[str]) -> re.Pattern[str]:
    """A pattern for any of these words, the longest that fits; nothing matches when there are none."""
    longest = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")
