"""Sequences that a model generates as one batch: sample a token for each, run the model on them, and so on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gencli.models.module import LanguageModel
from gencli.text import sampling
from gencli.text.prompt_cache import PromptCache
from gencli.text.request import TextRequest


class Pick(NamedTuple):
    """A sampled token and, on request, its log-probability and the likeliest tokens with theirs."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


class Batch:
    """Samples of one prompt: their key/value cache, ids so far (B, T) and logits of the next token (B, V).

    read: how many tokens of the prompt went through the model, the others being in the prompt cache.
    """

    @torch.inference_mode()
    def __init__(
        self,
        module: LanguageModel,
        request: TextRequest,
        ids: list[int],
        generators: list[torch.Generator],
        max_tokens: int,
        prompt_cache: PromptCache | None = None,
    ):
        self.module = module
        self.generators = generators
        self.prompt_length = len(ids)
        self.logprobs = request.logprobs
        self.params = request.sampling
        self.device = module.device
        self.picks_on = torch.device("cpu") if self.device.type == "mps" else self.device  # sampling needs float64
        self.ids = torch.tensor([ids], device=self.picks_on)
        self.prompt_cache = prompt_cache if len(generators) == 1 else None
        if self.prompt_cache:
            self.cache, known = self.prompt_cache.reuse(self.module, ids, len(ids) + max_tokens)
        else:
            self.cache, known = self.module.new_cache(1, len(ids) + max_tokens), 0
        self.read = len(ids) - known
        self.logits = self._read(self.ids[:, known:])
        if self.prompt_cache:
            self.prompt_cache.ids = list(ids)
        if len(generators) > 1:
            self.cache.repeat(len(generators))
            self.ids = self.ids.repeat(len(generators), 1)
            self.logits = self.logits.repeat(len(generators), 1)

    @torch.inference_mode()
    def pick(self) -> list[Pick]:
        """Sample a token for each sequence and add it to its ids."""
        generated = self.ids[:, self.prompt_length :]
        tokens = sampling.sample(self.logits, self.generators, self.params, self.ids, generated)
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        if self.prompt_cache:
            self.prompt_cache.ids += tokens.tolist()
        if self.logprobs is None:
            return [Pick(token) for token in tokens.tolist()]
        found = sampling.logprobs(self.logits, tokens, self.logprobs)
        tops = [tuple(zip(*pair, strict=True)) for pair in zip(found.top_ids.tolist(), found.top.tolist(), strict=True)]
        return [Pick(*row) for row in zip(tokens.tolist(), found.chosen.tolist(), tops, strict=True)]

    @torch.inference_mode()
    def advance(self) -> None:
        """Run the model on the tokens that were sampled last."""
        self.logits = self._read(self.ids[:, -1:])

    def _read(self, ids: Tensor) -> Tensor:
        """Return logits (B, V) after new ids (B, T)."""
        return self.module(ids.to(self.device), self.cache, last_only=True)[:, -1].to(self.picks_on)

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> None:
        """Keep only these rows of the batch."""
        self.ids = self.ids[rows]
        self.cache.keep(torch.tensor(rows, device=self.device))
        self.generators = [self.generators[i] for i in rows]
