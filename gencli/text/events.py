"""The events of a text generation: text as it is made, and each completion once it is whole. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gencli.errors import GencliError, counted
from gencli.text.tools import Call


@dataclass
class Logprobs:
    """How likely the model found each token, in the shape of OpenAI's completion API: one entry per token of the text.

    The numbers are natural logarithms of the model's own probabilities, before temperature and filters.
    top_logprobs: the likeliest tokens and the chosen one, by their text (of two with the same text, the likelier).
    text_offset: where the token's text begins in the sample's text, in characters.
    """

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[str, float]] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, token: str, logprob: float, top: Iterable[tuple[str, float]], offset: int) -> None:
        """Add the next token and the likeliest tokens in its place, best first."""
        most: dict[str, float] = {}
        for other, value in [*top, (token, logprob)]:
            most.setdefault(other, value)
        self.tokens.append(token)
        self.token_logprobs.append(logprob)
        self.top_logprobs.append(most)
        self.text_offset.append(offset)

    def cut(self, length: int) -> None:
        """Remove the tokens that begin at or after character `length`, where a stop string has removed their text."""
        keep = sum(offset < length for offset in self.text_offset)
        for column in (self.tokens, self.token_logprobs, self.top_logprobs, self.text_offset):
            del column[keep:]


@dataclass(frozen=True)
class PromptTruncated:
    """The prompt had `tokens` tokens, of which the last `kept` are used. It comes before any text."""

    tokens: int
    kept: int
    index: int = 0


@dataclass(frozen=True)
class MessagesLeftOut:
    """The oldest `count` messages of the prompt's conversation do not fit the context. It comes before any text."""

    count: int
    index: int = 0


@dataclass(frozen=True)
class CharactersLost:
    """The vocabulary lacks `count` characters of the prompt, which the model does not see."""

    count: int
    index: int = 0


@dataclass(frozen=True)
class TextDelta:
    """The next text of sample `index`."""

    index: int
    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """The next reasoning of sample `index`, which a chat model writes before its answer and which is no part of it."""

    index: int
    text: str


@dataclass(frozen=True)
class Completion:
    """A whole sample. finish_reason: `stop` (end token or stop string) or `length` (token limit or context reached).

    completion_tokens counts every token that was sampled, including an end token and those of a stop string.
    unanswered: it ended within its reasoning, or right after it. reasoning: what came before the answer, and
    reasoning_tokens: how many of completion_tokens that and its marks took. calls: of tools, which are no part of the
    text. stop: the stop string that ended it; "" where something else did.
    """

    index: int
    seed: int
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: Logprobs | None = None
    unanswered: bool = False
    reasoning: str = ""
    reasoning_tokens: int = 0
    calls: tuple[Call, ...] = ()
    stop: str = ""


@dataclass(frozen=True)
class Failed:
    """No more comes of samples `index` to `following` - 1: those of a prompt that cannot be continued. at_work: the
    model failed at it, which says nothing against the prompt."""

    index: int
    error: GencliError
    following: int
    at_work: bool = False


@dataclass
class GenerationStats:
    """Tokens and seconds of a run so far. The first token of each sample comes from the forward pass of the prompt.

    guessed, held: tokens that were guessed ahead and checked, and how many of them were right.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    first_tokens: int = 0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    guessed: int = 0
    held: int = 0

    @property
    def generated(self) -> int:
        return self.first_tokens + self.decode_tokens

    @property
    def rate(self) -> float:
        """Decoded tokens per second, of all samples together."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0

    def __str__(self) -> str:
        reading = self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0
        guesses = f"; guessed {self.guessed} tokens, {self.held / self.guessed:.0%} right" if self.guessed else ""
        return (
            f"prompt {counted(self.prompt_tokens, 'token')}, {reading:.1f} tokens/s; "
            f"generated {counted(self.generated, 'token')}, {self.rate:.1f} tokens/s{guesses}"
        )


Event = PromptTruncated | MessagesLeftOut | CharactersLost | TextDelta | ReasoningDelta | Completion | Failed


def in_order(events: Iterable[Event]) -> Iterator[Event]:
    """Order events by sample: the first unfinished sample streams, events of later ones wait."""
    current = 0
    waiting: dict[int, list[Event]] = {}
    for event in events:
        waiting.setdefault(event.index, []).append(event)
        while current in waiting:
            ready = waiting.pop(current)
            yield from ready
            if isinstance(ready[-1], Completion):
                current += 1
            elif isinstance(ready[-1], Failed):
                for index in range(current, ready[-1].following):
                    waiting.pop(index, None)
                current = ready[-1].following
            else:
                break
