"""How likely the model found each token, in the shape of OpenAI's completion API. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Logprobs:
    """One entry a token of the text; natural logarithms of the model's own probabilities, before any setting.

    top_logprobs: the likeliest tokens and the one picked, by their text (of two that read the same, the likelier).
    text_offset: where the token's text begins in the sample's text, in characters.
    """

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[str, float]] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, token: str, logprob: float, top: Iterable[tuple[str, float]], offset: int) -> None:
        """The next token and its likeliest rivals, best first."""
        most: dict[str, float] = {}
        for other, value in [*top, (token, logprob)]:
            most.setdefault(other, value)
        self.tokens.append(token)
        self.token_logprobs.append(logprob)
        self.top_logprobs.append(most)
        self.text_offset.append(offset)

    def cut(self, length: int) -> None:
        """Leave out the tokens that begin at or after character `length`: a stop string has taken their text."""
        keep = sum(offset < length for offset in self.text_offset)
        for column in (self.tokens, self.token_logprobs, self.top_logprobs, self.text_offset):
            del column[keep:]
