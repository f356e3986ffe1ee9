"""A decoder of image tokens that is asked with its prompt and without, and led away from the latter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gencli.models.kv_cache import KeyValueCache
from gencli.models.module import LanguageModel


class Pair(KeyValueCache):
    """A cache for each of several decoders that read the same rows, as one. lengths (B,): of the rows in all."""

    def __init__(self, caches: Sequence[KeyValueCache]):
        self.caches = tuple(caches)
        self.lengths = self.caches[0].lengths.clone()
        self._join()

    def _join(self) -> None:
        self.keys = [tensor for one in self.caches for tensor in one.keys]
        self.values = [tensor for one in self.caches for tensor in one.values]

    def row(self, number: int) -> Pair:
        one = Pair([cache.row(number) for cache in self.caches])
        one.lengths = self.lengths[number : number + 1]
        return one

    def copy_row(self, source: int, to: int, length: int) -> int:
        for cache in self.caches:
            cache.copy_row(source, to, length)
        self.lengths[to] = length
        return length

    def grow(self, positions: int = 0, batch: int = 0) -> None:
        for cache in self.caches:
            cache.grow(positions, batch)
        kept, self.lengths = self.lengths, self.caches[0].lengths.clone()
        self.lengths[: len(kept)] = kept
        self._join()


class Guided(LanguageModel):
    """Classifier-free guidance on logits (Ho & Salimans 2022; Gafni et al. 2022): u + scale · (c − u).

    At a scale of 1 or less only the decoder with the prompt is asked.
    """

    def __init__(
        self, decoders: Sequence[LanguageModel], prompts: Sequence[Sequence[int]], scale: float, first: int = 0
    ):
        """decoders, prompts: with the prompt and without, the ids of one length. first: the id of image token 0."""
        super().__init__()
        count = 2 if scale > 1 else 1
        self.decoders, self.scale, self.first = decoders[:count], scale, first
        self.compute_dtype = decoders[0].compute_dtype
        self.prompts = [torch.tensor([prompt], device=decoders[0].device) for prompt in prompts[:count]]

    @property
    def device(self) -> torch.device:
        return self.decoders[0].device

    @property
    def max_length(self) -> int:
        return self.decoders[0].max_length

    @property
    def vocab_size(self) -> int:
        return self.decoders[0].vocab_size

    def new_cache(self, batch: int, positions: int) -> Pair:
        return Pair([one.new_cache(batch, positions) for one in self.decoders])

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None, *, last_only: bool = False) -> Tensor:
        """Return logits (B, T, K) of ids (B, T): those of the prompt where they are within it, else image tokens."""
        assert isinstance(cache, Pair)
        (B, T), start, logits = ids.shape, cache.length, list[Tensor]()
        for decoder, prompt, own in zip(self.decoders, self.prompts, cache.caches, strict=True):
            own.lengths[:] = cache.lengths
            rows = prompt[:, start : start + T] if start < prompt.shape[1] else ids + self.first
            logits.append(decoder(rows, own, last_only=last_only).float())
        cache.lengths[:B] += T
        if len(logits) == 1:
            return logits[0]
        cond, uncond = logits
        return uncond + self.scale * (cond - uncond)
