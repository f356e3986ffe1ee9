"""What TAB knows of the functions that complete words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Completed:
    """What TAB knows of a function that completes words, beside what it gives. tasks: of the models whose names these
    are, in place of words that could be kept. others: words elsewhere, and the names here. asks: whether what it gives
    depends on the words before."""

    tasks: tuple[str | None, ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    asks: bool = False


COMPLETED: dict[object, Completed] = {}  # by the function
