"""Writing a GGUF file: a header, then tensor after tensor, each packed some rows at a time. See `gguf_file`."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from gencli.checkpoints.gguf_file import ALIGNMENT, ARRAY, STRING
from gencli.errors import GencliError
from gencli.kernels import TYPES

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 3
UINT32, INT32, FLOAT32, BOOL = 4, 5, 6, 7
LISTED = {INT32: "i", FLOAT32: "f", BOOL: "?"}  # types of values in lists → how `struct` calls them
ROWS = 2**22  # values packed at a time


@dataclass(frozen=True)
class Planned:
    """A tensor to write: its name, its shape as torch has it, the type it gets, what reads it, and the type that it is
    packed in so far, if it is."""

    name: str
    shape: tuple[int, ...]
    kind: str
    get: Callable[[], Tensor]
    packed: str = ""

    @property
    def size(self) -> int:
        """Return its bytes in the file."""
        _, block, size = TYPES[self.kind]
        return math.prod(self.shape) // block * size


def write_gguf(
    stream: BinaryIO,
    metadata: Mapping[str, object],
    tensors: Sequence[Planned],
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> None:
    """Write a file whose tensors are read, packed and written one after the other, some rows at a time.

    Rows that are packed in the type that is wanted are copied. progress: called with a tensor's name, the values
    written before it, and those of all. Raise GencliError for values that a type cannot hold; OSError.
    """
    stream.write(header(metadata, tensors))
    done, total = 0, sum(math.prod(tensor.shape) for tensor in tensors)
    for tensor in tensors:
        progress(tensor.name, done, total)
        try:
            for some in _packed(tensor):
                stream.write(some.numpy().tobytes())
        except GencliError as error:
            raise GencliError(f"{tensor.name}: {error.message}", error.hint) from None
        stream.write(bytes(-tensor.size % ALIGNMENT))
        done += math.prod(tensor.shape)


def _packed(tensor: Planned) -> Iterator[Tensor]:
    """Yield some rows of a tensor after the other in its type, (R, bytes) uint8. Raise GencliError."""
    import torch

    from gencli.kernels.pack import pack
    from gencli.kernels.packed import Packed

    count, whole = max(ROWS // tensor.shape[-1], 1), tensor.get()
    if not isinstance(whole, Packed):
        yield from (pack(tensor.kind, rows) for rows in whole.reshape(-1, tensor.shape[-1]).split(count))
        return
    for ids in torch.arange(len(whole)).split(count):
        yield whole.data_of(ids) if whole.kind == tensor.kind else pack(tensor.kind, whole.rows(ids))


def header(metadata: Mapping[str, object], tensors: Sequence[Planned]) -> bytes:
    """Return all that comes before the tensors."""
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, data = _value(value)
        parts += [_text(key), struct.pack("<I", kind), data]
    offset = 0
    for tensor in tensors:
        numbers = (len(tensor.shape), *tensor.shape[::-1])
        parts += [_text(tensor.name), struct.pack(f"<I{len(tensor.shape)}Q", *numbers)]
        parts.append(struct.pack("<IQ", TYPES[tensor.kind][0], offset))
        offset += tensor.size + -tensor.size % ALIGNMENT
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % ALIGNMENT)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _value(value: object) -> tuple[int, bytes]:
    """Return GGUF's type and bytes of a value: whole numbers have 32 bits, without a sign outside of lists."""
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, str):
        return STRING, _text(value)
    if isinstance(value, int):
        return UINT32, struct.pack("<I", value)
    if isinstance(value, float):
        return FLOAT32, struct.pack("<f", value)
    if not isinstance(value, list | tuple):
        raise TypeError(f"a GGUF file holds no {type(value).__name__}")
    kind = {int: INT32, float: FLOAT32, str: STRING, bool: BOOL}[type(value[0]) if value else int]
    start = struct.pack("<IQ", kind, len(value))
    if kind == STRING:
        return ARRAY, start + b"".join(map(_text, value))
    return ARRAY, start + struct.pack(f"<{len(value)}{LISTED[kind]}", *value)
