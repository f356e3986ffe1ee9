"""What tests ask of a checkpoint in one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gencli.checkpoints.checkpoint import Checkpoint, Hints
from gencli.checkpoints.find import Source
from gencli.checkpoints.open import open_checkpoint
from gencli.checkpoints.tensors import Tensors


def open_file(file: Path, *, allow_pickle: bool = False, **hints: Any) -> Checkpoint:
    """Return what a file, or a folder, holds. Raise GencliError for what is wrong with it."""
    kind = "folder" if file.is_dir() else "file"
    found = open_checkpoint(Source(file.name, file, kind), allow_pickle=allow_pickle, hints=Hints(**hints))
    if found.problem is not None:
        raise found.problem
    return found


def configs(file: Path, **how: Any) -> dict[str, Mapping[str, Any]]:
    """Return the configs of all parts of a file, by name."""
    return {name: part.config for name, part in open_file(file, **how).parts.items()}


def open_part(file: Path, name: str = "") -> tuple[Mapping[str, Any], Tensors]:
    """Return a part's config and tensors."""
    part = open_file(file).parts[name]
    return part.config, part.tensors()
