"""Keep special tokens that a user wrote into a message as plain words, while those of the chat template are parsed.

Before rendering, each character of such a word is replaced by one of a private plane, which no template contains: a
template may go through a text by characters, cut it or measure it. Afterwards the text is encoded as a whole, except
for the spans that hold such characters: they lie between two tokens of the template, where the tokenizer would split
anyway, and are encoded with their words restored and nothing parsed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar, cast

from gencli.tokens import Tokenizer

if TYPE_CHECKING:
    from gencli.text.messages import Message

T = TypeVar("T")

PRIVATE = range(0xF0000, 0xFFFFE)  # a plane of private-use characters


class SpecialTokens:
    """The special tokens of one tokenizer and template, and the marks that stand for their characters."""

    def __init__(self, tokenizer: Tokenizer, template: str):
        self.tokenizer = tokenizer
        added = tokenizer.backend.get_added_tokens_decoder()
        self.special = {token.content: token for i, token in added.items() if i in tokenizer.special_ids}
        # Tokens that are not special, but that the template uses all the same: <think>, <tool_call>, …
        used = {t.content for t in added.values() if t.content in template and t.content.strip()}
        self._special = _any_of(self.special)
        self._control = _any_of({*self.special, *used})
        self._characters = sorted({char for word in (*self.special, *used) for char in word})
        self._choose_marks("")

    def _choose_marks(self, text: str) -> None:
        """Choose characters that the text lacks to stand for those of the words."""
        free = (chr(code) for code in PRIVATE if chr(code) not in text)
        pairs = list(zip(self._characters, free, strict=False))
        self._to_mark = str.maketrans(dict(pairs))
        self._from_mark = str.maketrans({mark: char for char, mark in pairs})
        self._marked = re.compile("[" + "".join(mark for _, mark in pairs) + "]+" if pairs else r"(?!)")

    def escape_special_tokens(
        self, messages: list[Message], tools: list[Mapping[str, object]] | None = None
    ) -> tuple[list[Message], list[Mapping[str, object]] | None]:
        """Return the messages, and what is said of tools, with such words replaced by marks.

        An answer of the model may hold the tokens that are not special.
        """
        self._choose_marks("".join(_texts([messages, tools])))
        escaped = [self._escape(message, message["role"]) for message in messages]
        return escaped, self._escape(tools, "")

    def _escape(self, value: T, role: str) -> T:
        """Return a value of JSON with its texts escaped."""
        words = self._special if role == "assistant" else self._control

        def escaped(one: object) -> object:
            if isinstance(one, str):
                return words.sub(lambda match: match[0].translate(self._to_mark), one)
            if isinstance(one, list):
                return [escaped(part) for part in one]
            return {escaped(key): escaped(part) for key, part in one.items()} if isinstance(one, dict) else one

        return cast(T, escaped(value))

    def unescape(self, text: str) -> str:
        """Return a rendered text as transformers would render it."""
        return text.translate(self._from_mark)

    def faithful(self, text: str, plain: str) -> str:
        """Return a rendered text, or `plain`, which is rendered without marks, where the template has changed these.

        A template may escape a text, or write it in capitals. That counts unless a word then is a token again.
        """
        if self.unescape(text) == plain or self._control.findall(text) != self._control.findall(plain):
            return text
        return plain

    def encode(self, text: str) -> list[int]:
        """Return the ids of a rendered text. No special tokens are added: a template writes its own beginning."""
        ids: list[int] = []
        pending = 0  # start of the text that is still to be encoded with its tokens parsed
        for start, stop in self._spans(text):
            if self._marked.search(text, start, stop):
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
        start, restored = 0, self.unescape(span)
        for marked in self._marked.finditer(span):
            for word in self._control.finditer(restored, marked.start(), marked.end()):
                if word[0] not in self.special:
                    middle = word.start() + len(word[0]) // 2
                    yield restored[start:middle]
                    start = middle
        yield restored[start:]


def _texts(value: object) -> Iterator[str]:
    """Yield the texts of a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _texts(one)


def _any_of(words: Collection[str]) -> re.Pattern[str]:
    """Compile a pattern for any of these words, the longest that matches; for no words, one that never matches."""
    longest = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")
