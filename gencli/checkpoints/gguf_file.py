"""Reading a GGUF file: its metadata, and its tensors memory-mapped, packed ones as they are.

The header is walked here, with bounds: the package's own reader goes on for ever when a hostile file counts to 2^60.
magic "GGUF" · version · tensors · keys | key, type, value … | name, dimensions (last first), type, offset … | data
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np

from gencli.checkpoints.tensors import TensorFile
from gencli.errors import GencliError
from gencli.json_files import POINTER, check_no_pointer
from gencli.kernels import TYPES

if TYPE_CHECKING:  # describing a file needs no torch
    import torch

K = TypeVar("K")
Kinds = type[K] | tuple[type[K], ...]

HEADER_LIMIT = 2**28  # bytes; tokens and merges of the largest vocabularies take a tenth of it
COUNT_LIMIT = 2**20  # tensors, and keys
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # torch's names
NAMES = {number: name for name, (number, _, _) in TYPES.items()}
OTHER_TYPES = {  # that have a name and are not read
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8",
    25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


class GgufFile:
    """An open GGUF file: `metadata` by key, and `shapes` (as torch has them, the reverse of what the file says) and
    `dtypes` (GGUF's own names) of its tensors."""

    def __init__(self, path: Path):
        """Raises GencliError for a file that is cut off, hostile or of another version, and for unknown types."""
        self.path = path
        try:
            with path.open("rb") as stream:
                check_no_pointer(stream.read(len(POINTER)), path)
            if not path.stat().st_size:
                raise CutOffError("it is empty")
            self._map = np.memmap(path, mode="c")  # changes, if any, stay in memory
            header = _Header(self._map.data[:HEADER_LIMIT])
            self.metadata, infos, data = header.parse()
            self.shapes = {name: shape for name, (shape, _, _) in infos.items()}
            self.dtypes: dict[str, str] = {}
            self._spans: dict[str, tuple[int, int]] = {}  # first byte, and how many
            for name, (_, type_id, offset) in infos.items():
                self._place(name, type_id, data + offset)
        except OSError as error:
            raise GencliError(f"cannot read {path}: {error.strerror or error}") from None
        except (CutOffError, struct.error) as error:
            why = "it ends in its header" if isinstance(error, struct.error) else error
            raise GencliError(f"{path} is broken or no GGUF file: {why}", "is the download complete?") from None
        except (ValueError, OverflowError, MemoryError) as error:
            raise GencliError(f"{path} is broken or no GGUF file: {error}") from None

    def _place(self, name: str, type_id: int, start: int) -> None:
        shape = self.shapes[name]
        if type_id not in NAMES:
            raise GencliError(
                f"{self.path}: {name[:60]} is quantised as {_other_type(type_id)}, which is not supported",
                f"gencli reads {', '.join(TYPES)}",
            )
        kind = NAMES[type_id]
        _, block, size = TYPES[kind]
        count = math.prod(shape)
        if shape[-1] % block:
            raise ValueError(f"tensor {name[:60]!r} has rows of {shape[-1]} values in blocks of {block}")
        if kind not in FLOATS and len(shape) not in (2, 3):
            raise ValueError(f"tensor {name[:60]!r} is packed, and no matrix: {list(shape)}")
        self.dtypes[name], self._spans[name] = kind, (start, count // block * size)
        if (end := start + count // block * size) > len(self._map):
            raise CutOffError(f"tensor {name[:60]!r} ends at byte {end}, and the file has {len(self._map)}")

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """Return a small tensor of floats without torch, or None for other kinds of numbers."""
        kind, (start, size) = self.dtypes[name], self._spans[name]
        dtype = {"F32": "<f4", "F16": "<f2"}.get(kind)
        return tuple(self._map[start : start + size].view(dtype).tolist()) if dtype else None

    def forget(self) -> None:
        """Nothing is held that could be let go."""

    def get(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU in the file's own memory: floats as they are, and packed matrices as `Packed`,
        several one below the other."""
        import torch

        from gencli.kernels.packed import Packed

        shape, kind, (start, size) = self.shapes[name], self.dtypes[name], self._spans[name]
        if kind not in FLOATS:
            data = torch.from_numpy(np.asarray(self._map[start : start + size]))
            rows = math.prod(shape[:-1])
            return Packed(kind, data.reshape(rows, -1) if rows else data.reshape(0, size))
        dtype, count = getattr(torch, FLOATS[kind]), math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start).reshape(shape)


class GgufParts:
    """The files of a split one, as one: the first has the metadata, each has some of the tensors."""

    def __init__(self, files: Sequence[TensorFile]):
        """Raises GencliError for a tensor that is in two of them."""
        self.path, self.metadata = files[0].path, files[0].metadata
        self._where: dict[str, TensorFile] = {}
        for file in files:
            if twice := self._where.keys() & file.shapes.keys():
                raise GencliError(f"{file.path}: tensor {min(twice)[:60]!r} is in another part too")
            self._where.update(dict.fromkeys(file.shapes, file))
        self.shapes = {name: file.shapes[name] for name, file in self._where.items()}
        self.dtypes = {name: file.dtypes[name] for name, file in self._where.items()}

    def numbers(self, name: str) -> Sequence[float] | None:
        """Return a tensor's numbers as `GgufFile.numbers`."""
        return self._where[name].numbers(name)

    def forget(self) -> None:
        """Nothing is held that could be let go."""

    def get(self, name: str) -> torch.Tensor:
        """Return a tensor as `GgufFile.get`."""
        return self._where[name].get(name)


def _other_type(number: int) -> str:
    """The name of a type that gencli does not read."""
    return OTHER_TYPES.get(number, f"type {number}")


class CutOffError(ValueError):
    """A file that has less than it says."""


class _Header:
    """A cursor over the header's bytes. Raises ValueError or struct.error wherever it does not hold together."""

    def __init__(self, data: memoryview):
        self.data, self.at = data, 0

    def take(self, form: str) -> object:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def whole(self, form: str = "I") -> int:
        value = self.take(form)
        assert isinstance(value, int)
        return value

    def count(self, limit: int, what: str) -> int:
        value = self.whole("Q")
        if value > limit:
            kind = ValueError if limit == COUNT_LIMIT else CutOffError
            raise kind(f"it counts {value} {what}, of which {limit} are possible")
        return value

    def text(self) -> str:
        size = self.count(len(self.data) - self.at, "bytes of text")
        value = self.data[self.at : self.at + size]
        if len(value) < size:
            raise CutOffError("it is cut off in a text")
        self.at += size
        return str(value, "utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> object:
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.take(SCALARS[kind])
        if kind != ARRAY or depth > 2:
            raise ValueError(f"a value of the unknown type {kind}")
        inner = self.whole()
        left = len(self.data) - self.at
        if inner in SCALARS:
            size = struct.calcsize(f"<{SCALARS[inner]}")
            count = self.count(left // size, "values")
            values = list(struct.unpack_from(f"<{count}{SCALARS[inner]}", self.data, self.at))
            self.at += count * size
            return values
        count = self.count(left // 8, "values")
        return self.texts(count) if inner == STRING else [self.value(inner, depth + 1) for _ in range(count)]

    def texts(self, count: int) -> list[str]:
        """As `text`, for the many of a vocabulary."""
        data, at, end, found = self.data, self.at, len(self.data), list[str]()
        for _ in range(count):
            start = at + 8
            at = start + int.from_bytes(data[at:start], "little")
            if at > end or start > end:
                raise CutOffError("it is cut off in a text")
            found.append(str(data[start:at], "utf-8", "replace"))
        self.at = at
        return found

    def parse(self) -> tuple[dict[str, object], dict[str, tuple[tuple[int, ...], int, int]], int]:
        """Metadata, tensors as (shape, type, offset), and where the data begins."""
        if bytes(self.data[:4]) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version = self.whole()
        if version not in (2, 3):
            big = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
            raise ValueError(f"version {version}" if not big else "it is of a big-endian machine")
        tensor_count = self.count(COUNT_LIMIT, "tensors")
        key_count = self.count(COUNT_LIMIT, "keys")
        metadata: dict[str, object] = {}
        for _ in range(key_count):
            key = self.text()
            if key in metadata:
                raise ValueError(f"the key {key[:60]!r} is there twice")
            metadata[key] = self.value(self.whole())
        infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensor_count):
            name = self.text()
            dims = self.whole()
            if not 1 <= dims <= 4 or name in infos:
                raise ValueError(f"tensor {name[:60]!r} has {dims} dimensions, or is there twice")
            shape = tuple(self.whole("Q") for _ in range(dims))[::-1]
            if math.prod(max(size, 1) for size in shape) > 2**48:
                raise ValueError(f"tensor {name[:60]!r} counts {math.prod(shape)} values")
            infos[name] = shape, self.whole(), self.whole("Q")
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**16 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment = {alignment!r:.40}")
        if any(offset % alignment for _, _, offset in infos.values()):
            raise ValueError("a tensor does not begin where the alignment says")
        return metadata, infos, -(-self.at // alignment) * alignment


@overload
def metadata_get(metadata: Mapping[str, object], key: str, kinds: Kinds[K], default: K) -> K: ...
@overload
def metadata_get(metadata: Mapping[str, object], key: str, kinds: Kinds[K], default: None = None) -> K | None: ...
def metadata_get(metadata: Mapping[str, object], key: str, kinds: Kinds[K], default: K | None = None) -> K | None:
    """A key's value, of the Python type that is wanted. Raises GencliError for another."""
    value = metadata.get(key, default)
    if value is not None and not isinstance(value, kinds):
        raise GencliError(f"the metadata's {key} = {str(value)[:60]!r} is of another kind than it should be")
    return value
