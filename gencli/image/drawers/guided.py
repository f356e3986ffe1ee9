"""A decoder of image tokens that is asked with its prompt and without, and led away from the latter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gencli.models.kv_cache import KeyValueCache
from gencli.models.module import LanguageModel


class Guided(LanguageModel):
    """Classifier-free guidance on logits (Ho & Salimans 2022; Gafni et al. 2022): u + scale · (c − u).

    Every sequence is a row with the prompt and one without, next to each other in the cache; at a scale of 1 or less
    only the one with it.
    """

    def __init__(self, module: Any, prompt: list[int], negative: list[int], scale: float, first: int):
        """prompt, negative: ids of one length. first: the id of image token 0."""
        super().__init__()
        self.module, self.scale, self.first = module, scale, first
        self.compute_dtype = module.compute_dtype
        self.rows = torch.tensor([prompt, negative] if scale > 1 else [prompt], device=module.device)

    @property
    def max_length(self) -> int:
        return int(self.module.max_length)

    @property
    def vocab_size(self) -> int:
        return int(self.module.vocab_size)

    def new_cache(self, batch: int, positions: int) -> KeyValueCache:
        cache: KeyValueCache = self.module.new_cache(len(self.rows) * batch, positions)
        return cache

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None, *, last_only: bool = False) -> Tensor:
        """Return logits (B, T, K). What is read into an empty cache is the prompt, whatever `ids` are."""
        assert cache is not None
        count = len(self.rows)
        rows = self.rows if cache.length == 0 else (ids + self.first).repeat_interleave(count, 0)
        logits = self.module(rows, cache, last_only=last_only).unflatten(0, (-1, count))
        if count == 1:
            return logits[:, 0]
        cond, uncond = logits.float().unbind(1)
        return uncond + self.scale * (cond - uncond)
