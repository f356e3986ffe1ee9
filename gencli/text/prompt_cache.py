"""What a model has read of a conversation: its key/value cache is kept, so that no turn is read twice."""

from __future__ import annotations

from typing import Any

from gencli.models.kv_cache import KeyValueCache

SPARE = 256  # positions of room beyond what is asked, so that not every turn copies the cache


class PromptCache:
    """The cache of one growing text. `ids`: what was read, and perhaps a last token that was only picked."""

    def __init__(self) -> None:
        self.cache: KeyValueCache | None = None
        self.ids: list[int] = []
        self._regime = 0

    def reuse(self, module: Any, ids: list[int], positions: int) -> tuple[KeyValueCache, int]:
        """A cache with room for `positions`, and how many of the first `ids` are in it: never all of them.

        What the cache holds beyond their common beginning is forgotten.
        """
        known = self._common(ids)
        regime = _regime(module, len(ids))
        if self.cache is None or not (self._regime == _regime(module, len(self.ids)) == regime):
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

    def _common(self, ids: list[int]) -> int:
        """How many ids the cache and a text have in common at their beginnings; the last is left to be read."""
        if self.cache is None:
            return 0
        limit = min(self.cache.length, len(self.ids), len(ids) - 1)
        return next((i for i in range(limit) if self.ids[i] != ids[i]), limit)


def _regime(module: Any, length: int) -> int:
    """RoPE that is stretched by length makes keys that are right only among texts of the same regime."""
    rotary = getattr(module, "rotary", None)
    return 0 if rotary is None else rotary.regime(length)
