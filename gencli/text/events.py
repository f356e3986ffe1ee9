"""What continuing a prompt yields: pieces of text as they are made, and each sample once it is whole. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gencli.text.logprobs import Logprobs


@dataclass(frozen=True)
class Cut:
    """The prompt had `tokens` tokens, of which the last `kept` are used. Comes first of all."""

    tokens: int
    kept: int


@dataclass(frozen=True)
class Piece:
    """Text of sample `index`, to be shown after what came before it."""

    index: int
    text: str


@dataclass(frozen=True)
class Reasoning:
    """What sample `index` of a chat model says to itself before its answer: never a part of the answer."""

    index: int
    text: str


@dataclass(frozen=True)
class Sample:
    """A whole sample. finish_reason: `stop` (end token or stop string) or `length` (tokens or context used up).

    completion_tokens counts every token that was picked, an end token and those of a stop string included.
    """

    index: int
    seed: int
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: Logprobs | None = None


@dataclass
class Speed:
    """What a run has cost so far, in tokens and seconds. Each sample's first token comes from the prompt's pass."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    first_tokens: int = 0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    @property
    def generated(self) -> int:
        return self.first_tokens + self.decode_tokens

    @property
    def rate(self) -> float:
        """Decoded tokens a second, of all samples together."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0

    def __str__(self) -> str:
        reading = self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0
        return (
            f"prompt {self.prompt_tokens} tokens, {reading:.1f} tokens/s; "
            f"generated {self.generated} tokens, {self.rate:.1f} tokens/s"
        )


Event = Cut | Piece | Reasoning | Sample


def in_order(events: Iterable[Event]) -> Iterator[Event]:
    """Samples one after another: the first unfinished one live, the pieces of others wait for their turn."""
    turn = 0
    waiting: dict[int, list[Piece | Reasoning | Sample]] = {}
    for event in events:
        if isinstance(event, Cut):
            yield event
            continue
        waiting.setdefault(event.index, []).append(event)
        while turn in waiting:
            ready = waiting.pop(turn)
            yield from ready
            if not isinstance(ready[-1], Sample):
                break
            turn += 1
