"""Lines → blocks of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from gencli.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Each `count`-th block, from the `number`-th on, counted from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse I/N. Raise UsageError."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text, re.ASCII)
        if found is None:
            raise UsageError(f"--shard {text!r:.40}: expected I/N, as in 1/4")
        number, count = int(found[1]), int(found[2])
        if not count:
            raise UsageError(f"--shard {text}: N must be at least 1", "I/N is the I-th of N parts, as in 1/4")
        if not 1 <= number <= count:
            raise UsageError(f"--shard {text}: of {count} shards there are those from 1/{count} to {count}/{count}")
        return cls(number, count)

    def has(self, block: int) -> bool:
        """Return whether it has a block, counted from 0."""
        return block % self.count == self.number - 1


@dataclass(frozen=True)
class Block(Generic[T]):
    """Lines that follow each other. first: the number of the first among all lines, from 0."""

    first: int
    lines: list[T]


def blocks(lines: Iterable[T], size: int) -> Iterator[tuple[int, Iterator[T]]]:
    """Yield the blocks of lines as they come, each with the number of its first line; it is taken whole before the
    next one is asked for."""
    rest = iter(lines)
    for first in itertools.count(0, size):
        begin = list(itertools.islice(rest, 1))
        if not begin:
            return
        yield first, itertools.chain(begin, itertools.islice(rest, size - 1))


class Feed(Generic[T]):
    """Blocks of lines, read no further than they are asked for.

    ready: whether a line, or the end, can be had without waiting. missing: of a line's number, whether its answer is
    wanted; of a block that has no such line nothing is made. read: how many lines were read; own: how many of them are
    the shard's; there: how many of these are not wanted. ended: no block comes any more.
    """

    def __init__(
        self,
        lines: Iterable[T],
        size: int,
        *,
        shard: Shard = Shard(),
        missing: Callable[[int], bool] = lambda number: True,
        ready: Callable[[], bool] = lambda: True,
    ):
        self.lines, self.size, self.shard, self.missing, self.ready = iter(lines), size, shard, missing, ready
        self.read = self.own = self.there = self.given = 0
        self.ended = self.waits = False
        self._held: list[T] = []

    def next(self) -> Block[T] | None:
        """Return the next block; None if there is none, or none without waiting: then `waits` is true."""
        while not self.ended:
            self.waits = False
            while len(self._held) < self.size:
                if not self.ready():
                    self.waits = True
                    return None
                one = list(itertools.islice(self.lines, 1))
                if not one:
                    self.ended = True
                    break
                self.read += 1
                self._held += one
            found = Block(self.read - len(self._held), self._held)
            self._held = []
            if not self.shard.has(found.first // self.size):
                continue
            wanted = len(self.wanted(found))
            self.own += len(found.lines)
            self.there += len(found.lines) - wanted
            if wanted:
                self.given += 1
                return found
        return None

    def total(self, part: float) -> int | None:
        """Return how many lines the shard has, about so many until the end is read; None while that cannot be said.
        part: how much of all input is read, 0 to 1; 0 if that is not known."""
        if self.ended:
            return self.own
        return max(round(self.read / part / self.shard.count), self.own) if part else None

    def wanted(self, block: Block[T]) -> list[int]:
        """Return the numbers of the lines of a block whose answers are wanted."""
        return [number for number in range(block.first, block.first + len(block.lines)) if self.missing(number)]
