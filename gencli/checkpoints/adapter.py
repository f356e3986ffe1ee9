"""Naming a LoRA adapter: its folder or file, and the weight it gets. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from gencli.checkpoints.hub_cache import Progress
from gencli.checkpoints.small import CONFIG, PEFT, locate
from gencli.errors import UsageError

STEMS = ("pytorch_lora_weights",)  # diffusers' name for one


@dataclass(frozen=True)
class Adapter:
    """A PEFT folder or a LoRA file, and the weight it gets. Until it is found, `path` may be a name on the hub."""

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

    def find(self, *, offline: bool = False, progress: Progress | None = None, allow_pickle: bool = False) -> Adapter:
        """The same with a path that is here, fetched if need be. Raises GencliError when there is none.

        One file of a PEFT folder stands for the folder.
        """
        more = {"offline": offline, "allow_pickle": allow_pickle}
        path = locate(self.path.as_posix(), STEMS, option="--lora", progress=progress, **more)
        if path.is_file() and path.stem == PEFT and (path.parent / CONFIG).is_file():
            path = path.parent
        return Adapter(path, self.scale)
