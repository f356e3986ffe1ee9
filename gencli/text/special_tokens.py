"""Keep special tokens that a user wrote into a message as plain words, while those of the chat template are parsed.

Before rendering, each such word is replaced by a private-use mark, which no template contains. Afterwards the text is
encoded as a whole, except for the spans that hold a mark: they lie between two tokens of the template, where the
tokenizer would split anyway, and are encoded with their words restored and nothing parsed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from gencli.errors import GencliError
from gencli.tokens import Tokenizer

MARKS = range(0xF0000, 0xFFFFE)  # a plane of private-use characters


class SpecialTokens:
    """The special tokens of one tokenizer and template, and the words of one conversation that are escaped."""

    def __init__(self, tokenizer: Tokenizer, template: str):
        self.tokenizer = tokenizer
        added = tokenizer.backend.get_added_tokens_decoder()
        self.special = {token.content: token for i, token in added.items() if i in tokenizer.special_ids}
        # Tokens that are not special, but that the template uses all the same: <think>, <tool_call>, …
        used = {t.content for t in added.values() if t.content in template and t.content.strip()}
        self._special = _any_of(self.special)
        self._control = _any_of({*self.special, *used})
        self._words: list[str] = []
        self._mark = chr(MARKS[0])

    def escape_special_tokens(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """Return the messages with such words replaced by marks.

        An answer of the model may hold the tokens that are not special.
        """
        everything = "".join(text for message in messages for text in message.values())
        self._words = []
        self._mark = next(c for c in map(chr, MARKS) if c not in everything)
        return [{key: self._escape(text, message["role"]) for key, text in message.items()} for message in messages]

    def _escape(self, text: str, role: str) -> str:
        def replace(match: re.Match[str]) -> str:
            self._words.append(match[0])
            return f"{self._mark}{len(self._words) - 1}{self._mark}"

        return (self._special if role == "assistant" else self._control).sub(replace, text)

    def unescape(self, text: str) -> str:
        """Return a rendered text as transformers would render it."""
        return re.sub(f"{self._mark}([^{self._mark}]*){self._mark}", lambda match: self._word(match[1]), text)

    def _word(self, index: str) -> str:
        """Return the word that two marks stand for. Raises GencliError for what a template has put between them."""
        if index.isdecimal() and len(index) < 10 and int(index) < len(self._words):
            return self._words[int(index)]
        raise GencliError("the chat template takes the messages apart, with special tokens in them")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a rendered text. No special tokens are added: a template writes its own beginning."""
        ids: list[int] = []
        pending = 0  # start of the text that is still to be encoded with its tokens parsed
        for start, stop in self._spans(text):
            if self._mark in text[start:stop]:
                ids += self.tokenizer.encode(text[pending:start], add_special_tokens=False)
                for words in self._plain(text[start:stop]):
                    ids += self.tokenizer.encode(words, special=False, add_special_tokens=False)
                pending = stop
        return ids + self.tokenizer.encode(text[pending:], add_special_tokens=False)

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield start and end of each text between special tokens, without spaces that a token strips."""
        start, before = 0, None
        for match in [*self._special.finditer(text), None]:
            stop = match.start() if match else len(text)
            after = self.special[match[0]] if match else None
            span = text[start:stop]
            left = len(span) - len(span.lstrip()) if before is not None and before.rstrip else 0
            right = len(span) - len(span.rstrip()) if after is not None and after.lstrip else 0
            if left < len(span) - right:
                yield start + left, stop - right
            if match:
                start, before = match.end(), after

    def _plain(self, span: str) -> Iterator[str]:
        """Yield a span with its words restored, split inside words that the tokenizer parses even as plain text."""
        part = ""
        for index, piece in enumerate(span.split(self._mark)):
            if index % 2 == 0:
                part += piece
                continue
            word = self._word(piece)
            if word not in self.special:
                yield part + word[: len(word) // 2]
                part, word = "", word[len(word) // 2 :]
            part += word
        yield part


def _any_of(words: Collection[str]) -> re.Pattern[str]:
    """Compile a pattern for any of these words, the longest that matches; for no words, one that never matches."""
    longest = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")
