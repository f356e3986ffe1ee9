"""The key/value cache of a growing conversation, kept so that no turn is read twice."""

from __future__ import annotations

from gencli.models.kv_cache import KeyValueCache
from gencli.models.module import LanguageModel

SPARE = 256  # positions beyond the request, so that not every turn copies the cache


class PromptCache:
    """The cache of one growing text. ids: those that were read, and perhaps a last one that was only sampled."""

    def __init__(self) -> None:
        self.cache: KeyValueCache | None = None
        self.ids: list[int] = []
        self._regime = 0

    def reuse(self, module: LanguageModel, ids: list[int], positions: int) -> tuple[KeyValueCache, int]:
        """Return a cache with room for `positions`, and how many of the first `ids` it holds, which is never all.

        What it holds beyond the prefix that it shares with `ids` is forgotten.
        """
        known = self._shared_prefix(ids)
        regime = module.rope_regime(len(ids))
        if self.cache is None or not (self._regime == module.rope_regime(len(self.ids)) == regime):
            self.cache, known, self._regime = None, 0, regime
        room = max(positions, min(positions + SPARE, module.max_length))
        if self.cache is None:
            self.cache = module.new_cache(1, room)
        else:
            self.cache.truncate(known)
            if positions > self.cache.positions:
                self.cache.grow(room)
        self.ids = ids[:known]
        return self.cache, known

    def _shared_prefix(self, ids: list[int]) -> int:
        """Return the length of the prefix that the cache shares with a text, without the text's last id."""
        if self.cache is None:
            return 0
        limit = min(self.cache.length, len(self.ids), len(ids) - 1)
        return next((i for i in range(limit) if self.ids[i] != ids[i]), limit)
