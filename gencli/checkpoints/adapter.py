"""Naming a LoRA adapter: its folder and the weight it gets. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from gencli.errors import UsageError


@dataclass(frozen=True)
class Adapter:
    """A PEFT folder and the weight it gets."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Adapter:
        """`PATH[:SCALE]`. Raises UsageError for a scale that is no finite number, and when there is no path."""
        path, colon, number = text.rpartition(":")
        if not colon or Path(text).expanduser().exists():
            path, number = text, "1"
        try:
            scale = float(number)
        except ValueError:
            path, scale = text, 1.0  # a colon of the path's own
        if not path or not math.isfinite(scale):
            raise UsageError(f"--lora {text!r}: PATH or PATH:SCALE is wanted")
        return cls(Path(path).expanduser(), scale)
