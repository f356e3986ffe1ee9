"""The header of a safetensors file: names, dtypes, shapes and metadata of its tensors, and no tensor. No torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gencli.errors import GencliError

LIMIT = 100_000_000  # bytes; safetensors' own limit
LETTERS = {"F64": "d", "F32": "f", "F16": "e"}  # dtypes as `struct` writes them
NAME_LIMIT = 500  # characters; errors name tensors


@dataclass(frozen=True)
class Header:
    """shapes, dtypes (`F32`, `F16`, `BF16`, …) and spans (first byte and the one after the last, in the file) by name;
    metadata: what the writer says of the file."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """A small tensor of floats; None for other kinds of numbers. Raises GencliError."""
        letter = LETTERS.get(self.dtypes[name])
        first, last = self.spans[name]
        count = math.prod(self.shapes[name])
        if letter is None:
            return None
        if last - first != count * struct.calcsize(f"<{letter}"):
            raise GencliError(f"{name} is {list(self.shapes[name])} in {last - first} bytes")
        with self.path.open("rb") as stream:
            stream.seek(first)
            return struct.unpack(f"<{count}{letter}", stream.read(last - first))

    def count(self, names: set[str] | None = None) -> int:
        """Numbers in all tensors, or in those named."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if names is None or name in names)


def read_header(path: Path) -> Header:
    """Read the header of one file. Raises GencliError for one that is truncated, too large, or no safetensors."""
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(LIMIT, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            raw = json.loads(stream.read(length))
        metadata = {str(key): str(value) for key, value in (raw.pop("__metadata__", None) or {}).items()}
        if odd := next((name for name in raw if not name.isprintable() or len(name) > NAME_LIMIT), None):
            raise ValueError(f"a tensor is called {odd[:60]!r}")
        spans = {name: _span(value["data_offsets"], 8 + length, size) for name, value in raw.items()}
        shapes = {name: _shape(value["shape"]) for name, value in raw.items()}
        return Header(path, shapes, {name: str(value["dtype"]) for name, value in raw.items()}, spans, metadata)
    except OSError as error:
        raise GencliError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise GencliError(f"{path} is broken or no safetensors file: {reason}") from None


def _shape(raw: list[int]) -> tuple[int, ...]:
    if not all(type(side) is int and 0 <= side < 2**48 for side in raw) or len(raw) > 16:
        raise ValueError("a shape that is none")
    return tuple(raw)


def _span(raw: list[int], start: int, size: int) -> tuple[int, int]:
    first, last = raw
    if type(first) is not int or type(last) is not int or not 0 <= first <= last:
        raise ValueError("offsets that are none")
    if start + last > size:
        raise ValueError(f"it ends after {size} of {start + last} bytes or more: was it fetched whole?")
    return start + first, start + last
