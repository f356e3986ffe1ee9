"""How likely the model found each token, in the shape of OpenAI's completion API."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.tokens import Tokenizer


@dataclass
class Logprobs:
    """One entry a token of the text; natural logarithms of the model's own probabilities, before any sampling setting.

    text_offset: where the token's text begins in the sample's text, in characters. top_logprobs: the `top` most likely
    tokens and the one picked, by their text (the likelier one where two tokens read the same).
    """

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[str, float]] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, tokenizer: Tokenizer, scores: Tensor, token: int, offset: int, top: int) -> None:
        """The next token. scores: the logits it was picked from, (V,) float32, as they came from the model."""
        logprobs = scores.log_softmax(dim=-1)
        values, ids = logprobs.topk(min(top, len(logprobs)))
        most: dict[str, float] = {}
        for i, value in [*zip(ids.tolist(), values.tolist(), strict=True), (token, float(logprobs[token]))]:
            most.setdefault(tokenizer.id_to_piece(i), value)
        self.tokens.append(tokenizer.id_to_piece(token))
        self.token_logprobs.append(float(logprobs[token]))
        self.top_logprobs.append(most)
        self.text_offset.append(offset)

    def cut(self, length: int) -> None:
        """Leave out tokens that begin at or after character `length`: a stop string has taken their text."""
        keep = sum(offset < length for offset in self.text_offset)
        for column in (self.tokens, self.token_logprobs, self.top_logprobs, self.text_offset):
            del column[keep:]
