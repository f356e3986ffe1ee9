"""A safetensors file, memory-mapped: its header is parsed once, here, and its tensors are views of the map.

No torch before a tensor is read. length of the header (8 bytes, little-endian) | header, a JSON object | tensors
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from gencli.errors import GencliError
from gencli.json_files import POINTER, check_no_pointer

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 100_000_000  # bytes of a header, as in the safetensors library
NAME_LIMIT = 500  # characters; errors name tensors
LETTERS = {"F64": "d", "F32": "f", "F16": "e"}  # dtypes as `struct` writes them
# dtype in the header → torch's name, and bytes a number
DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1), "F8_E8M0": ("float8_e8m0fnu", 1),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "C64": ("complex64", 8),
    "U64": ("uint64", 8), "U32": ("uint32", 4), "U16": ("uint16", 2), "U8": ("uint8", 1), "BOOL": ("bool", 1),
}  # fmt: skip


class SafetensorsFile:
    """An open file: `shapes` and `dtypes` (`F32`, `F16`, `BF16`, …) of its tensors by name, and `metadata`, which is
    what the writer says of the file."""

    def __init__(self, path: Path):
        """Raise GencliError for a file that is truncated or not safetensors, and for tensors that overlap."""
        self.path = path
        if path.suffix == ".json":
            raise GencliError(f"{path} holds no weights: name the model's folder, {path.parent}")
        try:
            with path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                head = stream.read(len(POINTER))
                check_no_pointer(head, path)
                if head.startswith(b"GGUF"):
                    raise GencliError(f"{path} is a GGUF file", f"give it its own ending: {path.with_suffix('.gguf')}")
                length = int.from_bytes(head[:8], "little")
                stream.seek(8)
                if length > LIMIT:
                    raise ValueError("it does not begin as one")
                if not 2 <= length <= size - 8:
                    raise ValueError(f"a header of {length} bytes in a file of {size}")
                raw = json.loads(stream.read(length))
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)  # changes stay in memory
            self.metadata = {str(key): str(value) for key, value in (raw.pop("__metadata__", None) or {}).items()}
            if odd := next((name for name in raw if not name.isprintable() or len(name) > NAME_LIMIT), None):
                raise ValueError(f"a tensor is called {odd[:60]!r}")
            self.shapes = {name: _shape(value["shape"]) for name, value in raw.items()}
            self.dtypes = {name: str(value["dtype"]) for name, value in raw.items()}
            self._spans = {name: _span(value["data_offsets"], 8 + length, size) for name, value in raw.items()}
            self._check_spans(8 + length, size)
        except OSError as error:
            raise GencliError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:160]
            raise GencliError(f"{path} is broken or no safetensors file: {reason}") from None

    def _check_spans(self, start: int, size: int) -> None:
        """Raise ValueError unless the tensors fill the file from `start` to `size` without gaps, and each shape takes
        as many bytes as its tensor has."""
        end = start
        for first, last, name in sorted((*span, name) for name, span in self._spans.items()):
            if first != end:
                raise ValueError(f"{name} begins at byte {first}, and the tensor before it ends at {end}")
            if self.dtypes[name] not in DTYPES:
                raise ValueError(f"{name} is of the unknown dtype {self.dtypes[name]:.20}")
            width = DTYPES[self.dtypes[name]][1]
            if last - first != width * math.prod(self.shapes[name]):
                raise ValueError(f"{name} is {list(self.shapes[name])} in {last - first} bytes")
            end = last
        if end != size:
            raise ValueError(f"its tensors end at byte {end} of {size}")

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """Return a small tensor of floats without torch, or None for other kinds of numbers."""
        letter = LETTERS.get(self.dtypes[name])
        count = math.prod(self.shapes[name])
        return struct.unpack_from(f"<{count}{letter}", self._map, self._spans[name][0]) if letter else None

    def forget(self) -> None:
        """Let go of the pages that were read, which are read again if they are used again; changes to them are lost."""
        if hasattr(self._map, "madvise"):  # not on Windows
            self._map.madvise(mmap.MADV_DONTNEED)

    def get(self, name: str) -> Tensor:
        """Return a tensor on the CPU that shares the file's memory map: its pages are read when they are used."""
        import torch

        dtype = getattr(torch, DTYPES[self.dtypes[name]][0], None)
        if dtype is None:
            raise GencliError(f"{self.path}: cannot read tensor {name!r}: torch has no {self.dtypes[name]:.40}")
        shape, (first, last) = self.shapes[name], self._spans[name]
        if first == last:
            return torch.empty(shape, dtype=dtype)
        if first % dtype.itemsize:  # some writers do not align the header
            return torch.frombuffer(bytearray(self._map[first:last]), dtype=dtype).reshape(shape)
        return torch.frombuffer(self._map, dtype=dtype, count=math.prod(shape), offset=first).reshape(shape)


def _shape(raw: list[int]) -> tuple[int, ...]:
    if not all(type(side) is int and 0 <= side < 2**48 for side in raw) or len(raw) > 16:
        raise ValueError("an invalid shape")
    return tuple(raw)


def _span(raw: list[int], start: int, size: int) -> tuple[int, int]:
    first, last = raw
    if type(first) is not int or type(last) is not int or not 0 <= first <= last:
        raise ValueError("offsets that are none")
    if start + last > size:
        raise ValueError(f"it ends after {size} of {start + last} bytes or more: was it fetched whole?")
    return start + first, start + last
