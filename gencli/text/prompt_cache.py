"""What a model has read, kept so that no beginning of a text is read twice."""

from __future__ import annotations

from gencli.models.kv_cache import KeyValueCache
from gencli.models.module import LanguageModel

SPARE = 256  # positions beyond a request, so that not every turn of a conversation copies the cache


class PromptCache:
    """Texts that a model has read, one in each row of a key/value cache; what a new text shares with one is kept.

    ids: those of each row that were read, and perhaps a last one that was only sampled. New rows are made as needed.
    """

    def __init__(self) -> None:
        self.cache: KeyValueCache | None = None
        self.ids: list[list[int]] = []
        self._regimes: list[int] = []  # in which each row was read

    def take(self, module: LanguageModel, row: int, ids: list[int], positions: int) -> int:
        """Give a row to a text of at most `positions` tokens in all, that begins with `ids`; rows before it are there.

        Return how many of the ids the row holds, which is never all. What it held beyond them is forgotten.
        """
        room = max(positions, min(positions + SPARE, module.max_length))
        if self.cache is None:
            self.cache = module.new_cache(1, room)
        elif positions > self.cache.positions or row >= self.cache.batch:
            more = min(2 * row, row + 16) if row >= self.cache.batch else 0
            self.cache.grow(room if positions > self.cache.positions else 0, more)
        if row == len(self.ids):
            self.ids.append([])
            self._regimes.append(0)
        shared, regime = [self._shared(i, module, ids) for i in range(len(self.ids))], module.rope_regime(len(ids))
        left = [self.cache.reachable(length, i) for i, length in enumerate(shared)]
        best = max(range(len(left)), key=lambda i: (left[i], shared[i], i == row))
        known = self.cache.truncate(shared[row], row) if best == row else self.cache.copy_row(best, row, shared[best])
        self.ids[row], self._regimes[row] = ids[:known], regime
        return known

    def read(self, row: int, ids: list[int]) -> None:
        """Take note that a row holds a text now. The list may grow, as the row does."""
        self.ids[row] = ids

    def move(self, source: int, to: int) -> None:
        """Make a row what another one is."""
        assert self.cache is not None
        self.cache.copy_row(source, to, int(self.cache.lengths[source]))
        self.ids[to], self._regimes[to] = self.ids[source], self._regimes[source]

    @property
    def positions(self) -> int:
        """The positions that each row has room for."""
        return 0 if self.cache is None else self.cache.positions

    def bytes(self, rows: int, positions: int) -> int:
        """Return the memory of so many rows with so many positions in all; 0 before anything was read."""
        if self.cache is None:
            return 0
        each = sum(tensor[0, :, 0].nbytes for tensor in (*self.cache.keys, *self.cache.values))
        own = sum(getattr(self.cache, name)[0].nbytes for name in self.cache.ROWS if name not in self.cache.POSITIONS)
        return positions * each + rows * own

    def _shared(self, row: int, module: LanguageModel, ids: list[int]) -> int:
        """Return the length of the prefix that a row shares with a text, without the text's last id."""
        assert self.cache is not None
        mine = self.ids[row]
        if not (self._regimes[row] == module.rope_regime(len(mine)) == module.rope_regime(len(ids))):
            return 0
        limit = min(int(self.cache.lengths[row]), len(mine), len(ids) - 1)
        if mine[:limit] == ids[:limit]:
            return limit
        return next(i for i in range(limit) if mine[i] != ids[i])
