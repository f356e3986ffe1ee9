"""Tokens that are guessed ahead, and checked by the model several at once (Leviathan, Kalman & Matias 2023, "Fast
Inference from Transformers via Speculative Decoding", arXiv 2211.17192): what comes out has the distribution that the
model alone has, and is the same text where it is greedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from gencli.errors import GencliError
from gencli.models.module import LanguageModel
from gencli.models.step import LONGEST
from gencli.text import sampling
from gencli.text.events import GenerationStats
from gencli.text.prompt_cache import PromptCache
from gencli.text.request import SamplingParams

FIRST = 4  # tokens that are guessed first; more after guesses that held, less after others
CERTAIN = torch.ones(1, dtype=torch.float64)
NGRAM = 3  # tokens that must be there before, at most


class Chances(NamedTuple):
    """A distribution of the next token: probabilities (K,), float64, of ids (K,); ids None: of all, in order."""

    probs: Tensor
    ids: Tensor | None = None

    def of(self, token: int) -> float:
        """Return the probability of a token."""
        if self.ids is not None and len(self.ids) == 1:
            return float(int(self.ids[0]) == token)
        at = self.probs[token] if self.ids is None else self.probs[self.ids == token].sum()
        return float(at)

    def draw(self, generator: Generator) -> int:
        """Draw a token; a single one without a number of the generator."""
        if len(self.probs) == 1 and self.ids is not None:
            return int(self.ids[0])
        mass = self.probs.cumsum(0)
        point = torch.rand((), generator=generator, dtype=torch.float64).to(mass.device) * mass[-1]
        at = torch.searchsorted(mass, point.clamp(max=torch.nextafter(mass[-1], mass.new_zeros(()))), right=True)
        return int(at if self.ids is None else self.ids[at])


class Guess(NamedTuple):
    """A token, and the distribution that it was drawn from; None: it was certain."""

    token: int
    chances: Chances | None = None


class Guesser(Protocol):
    """What guesses tokens of the texts in the rows of a batch."""

    def begin(self) -> None:
        """Forget all texts so far, and what was learned of them."""
        ...

    def guess(
        self, row: int, ids: list[int], prompt: int, most: int, params: SamplingParams, generator: Generator
    ) -> list[Guess]:
        """Return at most `most` tokens after `ids`, the first `prompt` of which were given."""
        ...

    def learn(self, row: int, guess: Guess | None, held: bool) -> None:
        """Take note of whether the guess for a token held; None: nothing was guessed."""
        ...


@dataclass
class Pace:
    """How many tokens are guessed, by how many of the last guesses held."""

    stats: GenerationStats
    count: float = FIRST

    def begin(self) -> None:
        self.count = FIRST

    def learn(self, row: int, guess: Guess | None, held: bool) -> None:
        if guess is None:
            return
        self.stats.guessed += 1
        self.stats.held += held
        self.count = min(self.count + 0.5, LONGEST - 1) if held else max(self.count - 1, 1)


class Lookup(Pace):
    """What followed the last tokens where the text had them before (Saxena 2023, "Prompt Lookup Decoding")."""

    def guess(
        self, row: int, ids: list[int], prompt: int, most: int, params: SamplingParams, generator: Generator
    ) -> list[Guess]:
        text = "".join(chr(i % 0x110000) for i in ids)  # a string is searched quickly
        for size in range(min(NGRAM, len(ids) - 1), 0, -1):
            if (at := text.rfind(text[-size:], 0, -1)) >= 0:
                return [Guess(token) for token in ids[at + size :][: min(most, int(self.count))]]
        return []


class Draft(Pace):
    """A smaller model of the same vocabulary."""

    def __init__(self, module: LanguageModel, vocab_size: int, stats: GenerationStats):
        super().__init__(stats)
        self.module = module
        self.vocab_size = vocab_size
        self.memory = PromptCache()

    def begin(self) -> None:
        super().begin()
        self.memory = PromptCache()

    def guess(
        self, row: int, ids: list[int], prompt: int, most: int, params: SamplingParams, generator: Generator
    ) -> list[Guess]:
        most = min(most, int(self.count), self.module.max_length - len(ids))
        if most < 1:
            return []
        for number in range(len(self.memory.ids), row):  # rows come in order
            self.memory.take(self.module, number, ids[:1], 1)
        text, made = list(ids), list[Guess]()
        new = text[self.memory.take(self.module, row, text, len(text) + most) :]
        assert self.memory.cache is not None
        cache = self.memory.cache.row(row)
        while True:
            logits = self.module(torch.tensor([new], device=self.module.device), cache, last_only=True)[:, -1]
            self.memory.read(row, text)
            try:
                found = chances(logits[:, : self.vocab_size], text, prompt, params)
            except GencliError:  # the model itself decides
                return made
            made.append(Guess(found.draw(generator), found))
            if len(made) == most:
                return made
            text.append(made[-1].token)
            new = text[-1:]


def chances(logits: Tensor, ids: list[int], prompt: int, params: SamplingParams) -> Chances:
    """Return the distribution that a token is sampled from, given logits (1, V) and the text before it.

    Raise GencliError for logits that nothing can be picked from.
    """
    context = torch.tensor([ids], device=logits.device) if sampling.looks_back(params) else None
    found = sampling.candidates(logits, params, context, None if context is None else context[:, prompt:])
    sampling.check(found.logits)
    if found.ids is not None and found.ids.shape[-1] == 1 and logits.is_cpu:
        return Chances(CERTAIN, found.ids[0])
    return Chances(found.logits[0].double().softmax(-1), None if found.ids is None else found.ids[0])


def verify(
    logits: Tensor, guess: Guess | None, ids: list[int], prompt: int, params: SamplingParams, generator: Generator
) -> tuple[int, bool]:
    """Return the next token, drawn from the distribution of the model's logits (1, V), and whether it was guessed.

    A guess with the probability q holds with min(1, p / q); else a token is drawn from what p has more than q
    (Leviathan et al. 2023, algorithm 1).
    """
    found = chances(logits, ids, prompt, params)
    if guess is None:
        return found.draw(generator), False
    p, q = found.of(guess.token), 1.0 if guess.chances is None else guess.chances.of(guess.token)
    if p >= q or (p > 0 and float(torch.rand((), generator=generator, dtype=torch.float64)) * q < p):
        return guess.token, True
    less = torch.zeros(logits.shape[-1], dtype=torch.float64, device=found.probs.device)
    if guess.chances is None or guess.chances.ids is not None:
        at = guess.token if guess.chances is None else guess.chances.ids
        less[at] = 1.0 if guess.chances is None else guess.chances.probs.to(less.device)
    else:
        less[: len(guess.chances.probs)] = guess.chances.probs
    rest = (found.probs - (less if found.ids is None else less[found.ids])).clamp(min=0)
    return Chances(rest if rest.sum() > 0 else found.probs, found.ids).draw(generator), False
