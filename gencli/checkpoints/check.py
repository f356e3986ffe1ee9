"""Open every tensor of a checkpoint, compare with its config, and say all that is wrong. Nothing is copied."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gencli.checkpoints import hub_cache, layout
from gencli.checkpoints.build import load
from gencli.checkpoints.class_file import open_class_file
from gencli.checkpoints.find import Source
from gencli.checkpoints.gguf import open_gguf
from gencli.checkpoints.single_file import is_original, open_single_file
from gencli.checkpoints.tensors import Tensors
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.json_files import read_json

SHA256 = re.compile(r"[0-9a-f]{64}")  # what the hub's cache names large files by
CHUNK = 2**24  # numbers looked at together


@dataclass(frozen=True)
class Result:
    """What was found: how many tensors were read, and what is wrong, a line each."""

    tensors: int
    problems: tuple[str, ...]


def check(source: Source, opened: Callable[[str], None] = lambda name: None, *, allow_pickle: bool = False) -> Result:
    """Check all models of a checkpoint: names and shapes against the config, all numbers finite, files undamaged.

    `opened` is called with the name of each tensor before it is read. allow_pickle: read tensors from pickles too.
    """
    count = 0
    problems: list[str] = []
    try:
        places = [*_models(source, allow_pickle)]
    except GencliError as error:
        return Result(0, (error.message,))
    for file, checksum in sorted({found for model in places for found in _hashed(model.path)}):
        opened(file.name)
        if hub_cache.sha256(file) != checksum:
            problems.append(f"{file} is damaged: its checksum is not the hub's")
    for model in places:
        try:
            config, tensors = model.open()
            for name in tensors:
                opened(name)
                count += 1
                if bad := _not_finite(tensors.get(name)):
                    problems.append(f"{model.path}: {name} has {bad} values that are NaN or infinite")
            if config is not None:
                load(model.path, config=config, tensors=tensors)
        except GencliError as error:
            problems.append(error.message)
    return Result(count, tuple(problems))


@dataclass(frozen=True)
class _Model:
    """A model of a checkpoint: where it lies, and what opens it: its config, if there is one, and its tensors."""

    path: Path
    open: Callable[[], tuple[Mapping[str, Any] | None, Tensors]]


def _models(source: Source, allow_pickle: bool) -> Iterator[_Model]:
    path = source.path
    if source.kind == "file" and path.suffix == ".gguf":
        yield _Model(path, lambda: open_gguf(path)[:2])
        return
    if source.kind == "file" and is_original(path, allow_pickle=allow_pickle):
        # whatever it predicts, its parts are the same
        single = open_single_file(path, allow_pickle=allow_pickle, prediction="epsilon")
        for name in single.parts:
            yield _Model(path, partial(single.open, name))
        return
    if source.kind == "file":
        if network := open_class_file(path, allow_pickle=allow_pickle):
            for name in network.parts:
                yield _Model(path, partial(network.open, name))
        else:
            yield _Model(path, partial(_open, path, path.parent, allow_pickle))
        return
    folder = source.path
    try:
        parts = layout.parts(hub_cache.files(folder), lambda name: read_json(folder / name))
    except GencliError as error:
        raise GencliError(f"{folder}: {error.message}", error.hint) from None
    for part in parts:
        if part.kind == "model":
            place = folder / part.prefix
            yield _Model(place, partial(_open, place, place, allow_pickle))


def _open(path: Path, config_folder: Path, allow_pickle: bool) -> tuple[Mapping[str, Any] | None, Tensors]:
    tensors = open_tensors(path, allow_pickle=allow_pickle)
    config = config_folder / "config.json"
    return read_json(config) if config.is_file() else None, tensors


def _hashed(path: Path) -> Iterator[tuple[Path, str]]:
    """The weights in a folder whose place in the hub's cache tells their checksum, with it."""
    for file in path.glob("*.safetensors") if path.is_dir() else (path,):
        if file.is_symlink() and SHA256.fullmatch(checksum := Path(os.readlink(file)).name):
            yield file, checksum


def _not_finite(tensor: torch.Tensor) -> int:
    """How many values are NaN or infinite."""
    if not tensor.is_floating_point():
        return 0
    bad = 0
    for part in tensor.reshape(-1).split(CHUNK):
        bad += part.numel() - int(torch.isfinite(part.float() if part.element_size() == 1 else part).sum())
    return bad
