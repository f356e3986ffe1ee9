"""Texts that a model generates together: sample a token for each, run the model on them, and so on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gencli.errors import GencliError
from gencli.models.module import LanguageModel
from gencli.text import sampling
from gencli.text.prompt_cache import PromptCache
from gencli.text.request import SamplingParams, TextRequest
from gencli.text.speculation import Guesser, verify

MEMORY = 2**30  # bytes of keys and values, soon to be filled, from which on no text begins beside others
SOON = 512  # tokens that each text is thought to add soon
MOST = 4  # times MEMORY that the texts may come to at their longest; a CPU gives memory as it is filled


class Follows(Protocol):
    """What a text has to follow."""

    def allowed(self) -> NDArray[np.bool_]:
        """Return for every token of the model (V,) whether it may come next. Raise GencliError if that is unknown."""

    def take(self, token: int) -> bool:
        """Take the next token. Return whether nothing can follow it."""


class Pick(NamedTuple):
    """A sampled token and, on request, its log-probability and the likeliest tokens with theirs. last: no token can
    follow it."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    last: bool = False


class Row:
    """A text: its random generator, and its ids so far, of which the first `prompt` were given. constraint: what it
    has to follow, if anything."""

    def __init__(
        self,
        ids: list[int],
        generator: torch.Generator,
        params: SamplingParams,
        max_tokens: int,
        constraint: Follows | None = None,
    ):
        self.ids = ids
        self.generator = generator
        self.params = dataclasses.replace(params, max_tokens=max_tokens)
        self.prompt = len(ids)
        self.left = max_tokens
        self.constraint = constraint


Picked = list[Pick] | GencliError  # of one text: tokens in order, or why there is none


class Batch:
    """Rows of one key/value cache, a text in each: more can be added and any removed between two steps.

    request: resolved, with the settings of all texts. guesser: what guesses tokens, which are checked together.
    A text is what it is alone, but for the rounding of sums.
    """

    def __init__(
        self,
        module: LanguageModel,
        request: TextRequest,
        prompt_cache: PromptCache | None = None,
        guesser: Guesser | None = None,
    ):
        self.module, self.device = module, module.device
        self.logprobs, self.params = request.logprobs, request.sampling
        self.looks_back = sampling.looks_back(self.params)
        self.memory = prompt_cache or PromptCache()
        self.guesser = guesser
        self.rows: list[Row] = []
        self.picks_on = torch.device("cpu") if self.device.type == "mps" else self.device  # sampling needs float64

    def has_room(self, prompt: int, more: int) -> bool:
        """Return whether there is memory for one more text of so many tokens, as there is for a single one. more: how
        many may be added."""
        if not self.rows:
            return True
        rows, most = len(self.rows) + 1, MOST if self.device.type == "cpu" else 1
        soon = prompt + min(more, SOON) + sum(len(row.ids) + min(row.left, SOON) for row in self.rows)
        allocated = rows * max(prompt + more, self.memory.positions)
        return self.memory.bytes(rows, soon) <= MEMORY and self.memory.bytes(rows, allocated) <= most * MEMORY

    @torch.inference_mode()
    def add(
        self,
        ids: list[int],
        generator: torch.Generator,
        max_tokens: int,
        constraint: Follows | None = None,
    ) -> tuple[Picked, int]:
        """Read the prompt of one more text. Return its first token, and how many of the ids went through the model."""
        number, row = len(self.rows), Row(list(ids), generator, self.params, max_tokens, constraint)
        known = self.memory.take(self.module, number, ids, len(ids) + max_tokens)
        assert self.memory.cache is not None
        new = torch.tensor([ids[known:]], device=self.device)
        logits = self.module(new, self.memory.cache.row(number), last_only=True)[:, -1]
        self.memory.read(number, row.ids)
        self.rows.append(row)
        return self._pick(logits.to(self.picks_on), [row])[0], len(ids) - known

    @torch.inference_mode()
    def step(self) -> list[Picked]:
        """Run the model on the last token of every text, and return the next one: several, where they were guessed."""
        if self.guesser is not None:
            return [self._guessed(number, row, self.guesser) for number, row in enumerate(self.rows)]
        last = torch.tensor([row.ids[-1:] for row in self.rows], device=self.device)
        logits = self.module(last, self.memory.cache, last_only=True)[:, -1]
        return self._pick(logits.to(self.picks_on), self.rows)

    @torch.inference_mode()
    def remove(self, number: int) -> None:
        """Let a text go; the last one takes its number."""
        last = self.rows.pop()
        if number < len(self.rows):
            self.rows[number] = last
            self.memory.move(len(self.rows), number)

    def _pick(self, logits: Tensor, rows: Sequence[Row]) -> list[Picked]:
        """Sample a token for each row from logits (B, V)."""
        if len(rows) > 1 and self.looks_back:
            return [self._pick(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
        context = generated = None
        if len(rows) == 1 and self.looks_back:
            context = torch.tensor([rows[0].ids], device=logits.device)
            generated = context[:, rows[0].prompt :]
        try:
            allowed, generators = _allowed(logits, rows), [row.generator for row in rows]
            tokens = sampling.sample(allowed, generators, rows[0].params, context, generated)
        except GencliError as error:  # before anything was drawn
            if len(rows) == 1:
                return [error]
            return [self._pick(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
        return [[pick] for pick in self._take(rows, tokens.tolist(), logits)]

    def _take(self, rows: Sequence[Row], tokens: Sequence[int], logits: Tensor) -> list[Pick]:
        """Add a token to each row, and return what there is to say of it."""
        last = []
        for row, token in zip(rows, tokens, strict=True):
            row.ids.append(token)
            row.left -= 1
            last.append(row.constraint is not None and row.constraint.take(token))
        if self.logprobs is None:
            return [Pick(token, last=ends) for token, ends in zip(tokens, last, strict=True)]
        found = sampling.logprobs(logits, torch.tensor(tokens, device=logits.device), self.logprobs)
        tops = [tuple(zip(*pair, strict=True)) for pair in zip(found.top_ids.tolist(), found.top.tolist(), strict=True)]
        return [Pick(*row) for row in zip(tokens, found.chosen.tolist(), tops, last, strict=True)]

    def _guessed(self, number: int, row: Row, guesser: Guesser) -> Picked:
        """The next tokens of one text: those guessed that hold, and one more."""
        assert self.memory.cache is not None
        cache, length = self.memory.cache.row(number), len(row.ids)
        count = min(row.left - 1, cache.positions - length)
        if count and self.module.rope_regime(length) != self.module.rope_regime(length + count):
            count = 0
        guesses = guesser.guess(number, row.ids, row.prompt, count, row.params, row.generator)
        new = torch.tensor([[row.ids[-1], *(guess.token for guess in guesses)]], device=self.device)
        if not guesses:
            return self._pick(self.module(new, cache, last_only=True)[:, -1].to(self.picks_on), [row])[0]
        logits = self.module(new, cache)[0].to(self.picks_on)
        picks: list[Pick] = []
        try:
            for i in range(len(guesses) + 1):
                guess = guesses[i] if i < len(guesses) else None
                allowed = _allowed(logits[i : i + 1], [row])
                token, held = verify(allowed, guess, row.ids, row.prompt, row.params, row.generator)
                picks += self._take([row], [token], logits[i : i + 1])
                guesser.learn(number, guess, held)
                if not held or picks[-1].last:
                    break
        except GencliError as error:
            return picks or error
        finally:
            cache.lengths[0] = len(row.ids) - 1
        return picks


def _allowed(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return logits (B, V), -inf for the tokens that may not come next in a row. Raise GencliError."""
    if all(row.constraint is None for row in rows):
        return logits
    allowed = torch.ones(logits.shape, dtype=torch.bool)
    for at, row in enumerate(rows):
        if row.constraint is not None:
            allowed[at] = torch.from_numpy(row.constraint.allowed())
    return logits.masked_fill(~allowed.to(logits.device), -torch.inf)
