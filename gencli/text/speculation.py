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
from gencli.models.linear import step_bytes, step_weights
from gencli.models.module import LanguageModel
from gencli.models.step import LONGEST
from gencli.text import sampling
from gencli.text.events import GenerationStats
from gencli.text.prompt_cache import PromptCache
from gencli.text.request import SamplingParams

HOPE, LEARNING = 0.7, 0.15  # how likely a guess is to hold at first, and how much each one changes that
CHECKING = 0.15  # what checking a guess adds to a step of the model, as a part of it: little, where that reads memory
COMPUTING = 0.45  # and where it computes as long as it waits: with weights of few bits, and with few weights
CACHE = 2**25  # bytes that processors hold
CALL = 3 * 2**20  # bytes that are read in the time that a call of the draft takes besides
PATIENCE = 32  # tokens without guesses, where these do not pay, until one is tried again
NGRAM = 3  # tokens that must be there before, at most


class Chances(NamedTuple):
    """A distribution of the next token: probabilities (K,), float64, of ids (K,); ids None: of all, in order."""

    probs: Tensor
    ids: Tensor | None = None

    def of(self, token: int) -> float:
        """Return the probability of a token."""
        at = self.probs[token] if self.ids is None else self.probs[self.ids == token].sum()
        return float(at)

    def draw(self, generator: Generator) -> int:
        """Draw a token."""
        mass = self.probs.cumsum(0)
        point = torch.rand((), generator=generator, dtype=torch.float64).to(mass.device) * mass[-1]
        at = torch.searchsorted(mass, point.clamp(max=torch.nextafter(mass[-1], mass.new_zeros(()))), right=True)
        return int(at if self.ids is None else self.ids[at])

    def beyond(self, guessed: Chances | Few) -> Chances:
        """Return what this distribution has more than the one of a guess."""
        own = slice(None) if self.ids is None else self.ids
        size = len(self.probs) if self.ids is None else int(self.ids.max()) + 1
        rest = (self.probs - guessed.spread(size).to(self.probs)[own]).clamp(min=0)
        return Chances(rest, self.ids) if rest.sum() > 0 else self

    def spread(self, size: int) -> Tensor:
        """Return the probabilities of the tokens below `size`, (size,)."""
        ids = torch.arange(len(self.probs), device=self.probs.device) if self.ids is None else self.ids
        return self.probs.new_zeros(size).index_put_((ids[ids < size],), self.probs[ids < size])


class Few(NamedTuple):
    """A distribution over few tokens: the mass of each, and of all together."""

    masses: dict[int, float]
    total: float

    def of(self, token: int) -> float:
        """Return the probability of a token."""
        return self.masses.get(token, 0.0) / self.total

    def draw(self, generator: Generator) -> int:
        """Draw a token; a single one without a number of the generator."""
        left = 0.0
        if len(self.masses) > 1:
            left = torch.rand((), generator=generator, dtype=torch.float64).item() * self.total
        for token, mass in self.masses.items():
            left -= mass
            if left < 0:
                return token
        return token

    def beyond(self, guessed: Chances | Few) -> Few:
        """Return what this distribution has more than the one of a guess."""
        rest = {token: more for token in self.masses if (more := self.of(token) - guessed.of(token)) > 0}
        return Few(rest, sum(rest.values())) if rest else self

    def spread(self, size: int) -> Tensor:
        """Return the probabilities of the tokens below `size`, (size,)."""
        known = {token: self.of(token) for token in self.masses if token < size}
        return torch.zeros(size, dtype=torch.float64).index_put_(
            (torch.tensor([*known]).long(),), torch.tensor([*known.values()], dtype=torch.float64)
        )


class Guess(NamedTuple):
    """A token, and the distribution that it was drawn from; None: it was certain."""

    token: int
    chances: Chances | Few | None = None


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
    """How many tokens are guessed: as many as promise the most tokens in the time, by how many of the last ones held.

    price: the time that a guess takes, with its check, as a part of what a step of the model takes. It is no measured
    time: a text and its seed stay the same wherever it is made.
    """

    stats: GenerationStats
    price: float = COMPUTING
    chance: float = HOPE
    idle: int = 0

    def begin(self) -> None:
        self.chance, self.idle = HOPE, 0

    def learn(self, row: int, guess: Guess | None, held: bool) -> None:
        if guess is None:
            return
        self.stats.guessed += 1
        self.stats.held += held
        self.chance += (held - self.chance) * LEARNING

    def count(self) -> int:
        """Return how many tokens to guess now, 0 to LONGEST - 1."""
        best = max(range(LONGEST), key=self.gain)
        self.idle = 0 if best else self.idle + 1
        return best or int(self.idle % PATIENCE == 0)

    def gain(self, count: int) -> float:
        """Return how many tokens come of so many guesses and their check, in the time of one step of the model."""
        return sum(self.chance**i for i in range(count + 1)) / (1 + count * self.price)


class Lookup(Pace):
    """What followed the last tokens where the text had them before (Saxena 2023, "Prompt Lookup Decoding")."""

    def guess(
        self, row: int, ids: list[int], prompt: int, most: int, params: SamplingParams, generator: Generator
    ) -> list[Guess]:
        if (most := min(most, self.count())) < 1:
            return []
        text = "".join(chr(i % 0x110000) for i in ids)  # a string is searched quickly
        for size in range(min(NGRAM, len(ids) - 1), 0, -1):
            if (at := text.rfind(text[-size:], 0, -1)) >= 0:
                return [Guess(token) for token in ids[at + size :][:most]]
        return []


class Draft(Pace):
    """A smaller model of the same vocabulary. price: as `Pace` has it."""

    def __init__(self, module: LanguageModel, vocab_size: int, stats: GenerationStats, price: float = 0.5):
        super().__init__(stats, price)
        self.module, self.device = module, module.device
        self.vocab_size = vocab_size
        self.memory = PromptCache()

    def begin(self) -> None:
        super().begin()
        self.memory = PromptCache()

    def guess(
        self, row: int, ids: list[int], prompt: int, most: int, params: SamplingParams, generator: Generator
    ) -> list[Guess]:
        most = min(most, self.count(), self.module.max_length - len(ids))
        if most < 1:
            return []
        for number in range(len(self.memory.ids), row):  # rows come in order
            self.memory.take(self.module, number, ids[:1], 1)
        text, made = list(ids), list[Guess]()
        new = text[self.memory.take(self.module, row, text, len(text) + most) :]
        assert self.memory.cache is not None
        cache = self.memory.cache.row(row)
        while True:
            size = LONGEST if len(new) <= PATIENCE + LONGEST else len(new)  # some steps are quicker than torch's way
            for first in range(0, len(new), size):
                some = torch.tensor([new[first : first + size]], device=self.device)
                logits = self.module(some, cache, last_only=True)[:, -1]
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


def price(model: LanguageModel, draft: LanguageModel | None = None) -> float:
    """Return what a guess costs, as `Pace` has it: by the sizes of the models and where the weights are."""
    size, count = step_bytes(model), sum(one.numel() for one in step_weights(model))
    computes = model.device.type == "cpu" and (size < CACHE or size < count)
    return (COMPUTING if computes else CHECKING) + ((step_bytes(draft) + CALL) / size if draft is not None else 0.0)


def chances(logits: Tensor, ids: list[int], prompt: int, params: SamplingParams) -> Chances | Few:
    """Return the distribution that a token is sampled from, given logits (1, V) and the text before it.

    Raise GencliError for logits that nothing can be picked from.
    """
    if (masses := sampling.masses(logits, params)) is not None:
        return Few(masses, sum(masses.values()))
    context = torch.tensor([ids], device=logits.device) if sampling.looks_back(params) else None
    found = sampling.candidates(logits, params, context, None if context is None else context[:, prompt:])
    sampling.check(found.logits)
    if found.ids is not None and found.ids.shape[-1] == 1:
        return Few({int(found.ids): 1.0}, 1.0)
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
    theirs = guess.chances or Few({guess.token: 1.0}, 1.0)
    p, q = found.of(guess.token), theirs.of(guess.token)
    if p >= q or (p > 0 and torch.rand((), generator=generator, dtype=torch.float64).item() * q < p):
        return guess.token, True
    return found.beyond(theirs).draw(generator), False
