"""Rows of a table of names, and the tensors of one part of a file under the names that diffusers' folders have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gencli.errors import GencliError

Shapes = Mapping[str, tuple[int, ...]]  # names as in the file, without the part's prefix


class Row(NamedTuple):
    """Tensors whose whole name matches `pattern` become `replacement`; every row that matches makes one.

    change: what becomes of the tensor on the way, a name in `tensors.CHANGES`.
    """

    pattern: str
    replacement: str
    change: str = ""


class Piece(NamedTuple):
    """Where a tensor comes from: a name in the file, and the change on the way."""

    source: str
    change: str = ""


@dataclass
class Part:
    """One part of a checkpoint: its config as the folder has it, its tensors by their names there."""

    config: dict[str, Any] = field(default_factory=dict)
    pieces: dict[str, Piece] = field(default_factory=dict)

    def take(self, target: str, piece: Piece) -> None:
        """Raises GencliError when two tensors want the same name."""
        if target in self.pieces:
            raise GencliError(f"two tensors want to be {target!r}: {self.pieces[target].source!r} and {piece.source!r}")
        self.pieces[target] = piece


def rename(shapes: Shapes, rows: Iterable[Row]) -> tuple[dict[str, Piece], list[str]]:
    """Tensors by their new names, and the names that no row knows. Raises GencliError for two of one new name."""
    compiled = [(re.compile(row.pattern), row) for row in rows]
    part, unknown = Part(), []
    for name in shapes:
        found = [(match, row) for pattern, row in compiled if (match := pattern.fullmatch(name))]
        for match, row in found:
            part.take(match.expand(row.replacement), Piece(name, row.change))
        if not found:
            unknown.append(name)
    return part.pieces, unknown


def sizes(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    """A tensor's shape. Raises GencliError when it is missing, or has another number of dimensions."""
    if name not in shapes:
        raise GencliError(f"{name} is missing")
    if len(shapes[name]) != dimensions:
        raise GencliError(f"{name} is {list(shapes[name])}, and wants {dimensions} dimensions")
    return shapes[name]


def numbered(shapes: Shapes, prefix: str) -> int:
    """How many of `prefix.0.…`, `prefix.1.…` there are. Raises GencliError for a gap in the numbers."""
    start = len(prefix) + 1
    found = {name[start:].partition(".")[0] for name in shapes if name.startswith(f"{prefix}.")}
    numbers = {int(one) for one in found if one.isdecimal() and len(one) < 6}
    if numbers != set(range(len(numbers))):
        lost = next(i for i in range(len(numbers) + 1) if i not in numbers)
        raise GencliError(f"{prefix}.{lost} is missing")
    return len(numbers)
