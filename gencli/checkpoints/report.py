"""What a checkpoint says of itself, told by small files and headers alone; and whether all of its tensors are right.

No torch before a tensor is read.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gencli.checkpoints import hub_cache, layout
from gencli.checkpoints.checkpoint import NO_CONFIG, Checkpoint, Contents, Hints, Part
from gencli.checkpoints.find import Source
from gencli.checkpoints.formats.folders import architecture_of
from gencli.checkpoints.open import open_checkpoint
from gencli.errors import GencliError
from gencli.models import ARCHITECTURES

if TYPE_CHECKING:
    import torch

CARD_LIMIT = 2**16  # bytes of a model card that are read
# Masks and tables that older files hold beside the parameters.
BUFFERS = re.compile(r"(.*\.)?(attn\.bias|masked_bias|position_ids|rotary_emb\.inv_freq)")
ANY = Hints(prediction="epsilon")  # of a file that need not say what it predicts: its parts are the same
SHA256 = re.compile(r"[0-9a-f]{64}")  # what the hub's cache names large files by
BOUND = re.compile(r".*\.(input|output)_(min|max)")  # of a clipped layer, as Gemma 4's towers have: ±∞ is none
CHUNK = 2**24  # numbers looked at together


@dataclass(frozen=True)
class Component:
    """A part of a checkpoint (name "" when it is all there is); parameters and dtypes of models alone."""

    name: str
    family: str
    parameters: int | None = None
    dtypes: tuple[str, ...] = ()
    config: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """A checkpoint in a few words. kind: text, image, score (compares both), part (of others), or other (nothing
    that gencli opens).

    files: name → bytes. format: of `checkpoints.formats`. problem, hint: what keeps it from being opened, as far as can
    be told without its weights, and what would help.
    """

    name: str
    kind: str
    family: str
    path: Path
    files: Mapping[str, int]
    components: tuple[Component, ...] = ()
    licence: str | None = None
    not_loaded: tuple[str, ...] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    problem: str | None = None
    hint: str | None = None
    format: str = ""

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    @property
    def parameters(self) -> int | None:
        counts = [component.parameters for component in self.components if component.parameters is not None]
        return sum(counts) if counts else None


def describe(source: Source | Contents, *, allow_pickle: bool = False) -> Description:
    """Return what a checkpoint says of itself. What is wrong with it is told in `problem`, not raised.

    allow_pickle: also count what lies in pickles (with torch).
    """
    checkpoint = open_checkpoint(source, allow_pickle=allow_pickle, hints=ANY)
    contents, components, config = checkpoint.contents, list[Component](), dict[str, object]()
    problem, hint = None, None
    try:
        config = _config(checkpoint)
        if checkpoint.problem is not None and checkpoint.kind in ("other", "text"):
            raise checkpoint.problem
        if checkpoint.format in ("transformers", "gguf") and checkpoint.family not in ARCHITECTURES:
            assert checkpoint.parts[""].config is not None  # raises for one that names no kind
            problem = f"unknown architecture {checkpoint.family!r:.60}"
            hint = "`gencli models available` lists well-known models"
        for part in checkpoint.parts.values():
            if part.kind == "model" or checkpoint.own_folder:
                components.append(_component(checkpoint, part))
        if checkpoint.problem is not None:
            raise checkpoint.problem
        if checkpoint.format == "gguf" and problem is None:
            config = dict(checkpoint.parts[""].config)
    except GencliError as error:
        problem, hint = (problem, hint) if problem else (error.message, error.hint)
    return Description(
        checkpoint.name,
        checkpoint.kind,
        checkpoint.family,
        checkpoint.path,
        contents.files,
        tuple(components),
        checkpoint.licence if contents.is_file else _licence(contents.folder / layout.CARD),
        tuple(layout.unused(lambda _: checkpoint.index)),
        config,
        problem,
        hint,
        checkpoint.format,
    )


def _config(checkpoint: Checkpoint) -> dict[str, object]:
    """Return what is shown as the config of the whole. Raise GencliError if a folder's own is missing or broken."""
    if checkpoint.title:
        return {"model": checkpoint.title}
    if checkpoint.contents.is_file or checkpoint.format == "gguf":
        return {}
    there = checkpoint.contents.has("model_index.json")
    return checkpoint.contents.read_json("model_index.json" if there else "config.json")


def _component(checkpoint: Checkpoint, part: Part) -> Component:
    """Return the report of a part. Raise GencliError if it is missing or broken."""
    contents = checkpoint.contents
    if part.kind == "tokenizer":
        there = (part.path / "tokenizer_config.json").is_file()
        return Component(part.name, str(part.config.get("tokenizer_class") or "") if there else "")
    if part.kind == "scheduler":
        return Component(part.name, str(part.config.get("_class_name") or ""), config=dict(part.config))
    whole = not part.name and (contents.is_file or checkpoint.format == "gguf")
    config = NO_CONFIG if whole else part.config
    if not contents.is_file and checkpoint.own_folder:
        prefix = "" if part.path == contents.folder else f"{part.path.name}/"
        layout.weights(contents.files, contents.read_json, prefix, allow_pickle=contents.allow_pickle)
    stored = {name: file for name, file in part.stored().items() if not BUFFERS.fullmatch(name)}
    count = sum(math.prod(file.shapes[name]) for name, file in stored.items())
    dtypes = tuple(sorted({file.dtypes[name] for name, file in stored.items()}))
    return Component(part.name, checkpoint.family if whole else architecture_of(config), count, dtypes, dict(config))


def _licence(card: Path) -> str | None:
    """Return `license:` in a model card's front matter, or `license_name:` if that says `other`."""
    try:
        with card.open("rb") as stream:
            text = stream.read(CARD_LIMIT).decode("utf-8", "replace")
    except OSError:
        return None
    match = re.match(r"\ufeff?---[ \t\r]*\n(.*?)\n---[ \t\r]*(\n|$)", text, re.DOTALL)
    if match is None:
        return None
    values = {}
    for key in ("license", "license_name"):
        if found := re.search(rf"^{key}:[ \t]*(?:\n[ \t]*-[ \t]*)?([^\n#]*)", match[1], re.MULTILINE):
            values[key] = found[1].strip().strip("'\"[]")
    name = values.get("license")
    return (values.get("license_name") or name if name == "other" else name) or None


@dataclass(frozen=True)
class Result:
    """What was found: how many tensors were read, and what is wrong, a line each."""

    tensors: int
    problems: tuple[str, ...]


def check(
    source: Source | Contents, opened: Callable[[str], None] = lambda name: None, *, allow_pickle: bool = False
) -> Result:
    """Check all models of a checkpoint: names and shapes against the config, all numbers finite, files undamaged.

    `opened` is called with the name of each tensor before it is read. allow_pickle: read tensors from pickles too.
    """
    from gencli.checkpoints.build import load

    checkpoint = open_checkpoint(source, allow_pickle=allow_pickle, hints=ANY)
    if (problem := checkpoint.problem) is not None:
        where = "" if checkpoint.contents.is_file or checkpoint.format == "gguf" else f"{checkpoint.path}: "
        return Result(0, (f"{where}{problem.message}",))
    count, problems, models = 0, list[str](), checkpoint.models.values()
    for file, checksum in sorted({found for part in models for found in _hashed(part.path)}):
        opened(file.name)
        if hub_cache.sha256(file) != checksum:
            problems.append(f"{file} is damaged: its checksum is not the Hub's")
    for part in models:
        try:
            tensors, config = part.tensors(), part.config
            for name in tensors:
                opened(name)
                count += 1
                if not BOUND.fullmatch(name) and (bad := _not_finite(tensors.get(name))):
                    problems.append(f"{part.path}: {name} has {bad} values that are NaN or infinite")
            if config is not NO_CONFIG:
                load(part.path, config=config, tensors=tensors)
        except GencliError as error:
            problems.append(error.message)
    return Result(count, tuple(problems))


def _hashed(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the weights in a folder whose checksum the hub's cache tells, each with its checksum."""
    for file in path.glob("*.safetensors") if path.is_dir() else (path,):
        if file.is_symlink() and SHA256.fullmatch(checksum := Path(os.readlink(file)).name):
            yield file, checksum


def _not_finite(tensor: torch.Tensor) -> int:
    """Return how many values are NaN or infinite."""
    import torch

    from gencli.kernels.packed import Packed

    if not tensor.is_floating_point():
        return 0
    bad = 0
    for part in tensor.parts(CHUNK) if isinstance(tensor, Packed) else tensor.reshape(-1).split(CHUNK):
        bad += part.numel() - int(torch.isfinite(part.float() if part.element_size() == 1 else part).sum())
    return bad
