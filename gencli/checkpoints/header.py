"""The header of a safetensors file: names, dtypes and shapes of its tensors, and metadata. No torch, no tensor read."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gencli.errors import GencliError

NAME_LIMIT = 500  # characters; errors name tensors
NUMPY_FLOATS = ("F64", "F32", "F16")


@dataclass(frozen=True)
class Header:
    """shapes and dtypes (`F32`, `F16`, `BF16`, …) by tensor name; metadata: what the writer says of the file."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def numbers(self, name: str) -> list[float] | None:
        """Return a small one-dimensional tensor of floats, or None for another dtype. Raise GencliError."""
        if self.dtypes[name] not in NUMPY_FLOATS:
            return None
        return open_safetensors(self.path, "np").get_tensor(name).tolist()

    def count(self, names: Collection[str] | None = None) -> int:
        """Return the number of parameters in all tensors, or in those named."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if names is None or name in names)


def read_header(path: Path) -> Header:
    """Read the header of one file. Raise GencliError as `open_safetensors`, and for a name that cannot be shown."""
    handle = open_safetensors(path, "np")
    names = handle.keys()
    if bad := next((name for name in names if not name.isprintable() or len(name) > NAME_LIMIT), None):
        raise GencliError(f"{path} is broken or no safetensors file: a tensor is called {bad[:60]!r}")
    slices = {name: handle.get_slice(name) for name in names}
    shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
    return Header(path, shapes, {name: one.get_dtype() for name, one in slices.items()}, handle.metadata() or {})


def open_safetensors(path: Path, framework: str) -> Any:
    """Open one file, memory-mapped; `framework` is `pt` or `np`. Raise GencliError for a truncated or broken file."""
    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # torch's, when it is too large to map
        reason = " ".join(str(error).split())
        raise GencliError(f"{path} is broken or no safetensors file: {reason}") from None
