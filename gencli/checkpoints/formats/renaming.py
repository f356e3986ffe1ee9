"""Original files → the names that diffusers' folders have: tables of names, and what shapes tell. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Kind, Part, Shapes
from gencli.checkpoints.tensors import Piece, PrefixedFile, RenamedTensors, Tensors
from gencli.errors import GencliError
from gencli.models.base import Rename
from gencli.options import typed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Renamed:
    """A model of an original file: its config as a folder has it, and its tensors by their names there."""

    config: dict[str, object] = field(default_factory=dict)
    pieces: dict[str, Piece] = field(default_factory=dict)

    def take(self, target: str, piece: Piece) -> None:
        """Add a tensor. Raise GencliError if another one has that name."""
        if target in self.pieces:
            raise GencliError(f"two tensors want to be {target!r}: {self.pieces[target].source!r} and {piece.source!r}")
        self.pieces[target] = piece

    def size(self, key: str) -> int:
        """Return a size in its config, as shapes have told it."""
        return typed(self.config, key, int) or 0

    def part(self, contents: Contents, name: str, prefix: str = "") -> Part:
        """Return it as a part of the checkpoint in a file or folder; `prefix` stands before all names there."""
        pieces = {new: Piece(prefix + piece.source, piece.transform) for new, piece in self.pieces.items()}
        return Part(name, "model", contents.path, lambda: self.config, lambda: _open(contents, pieces))


def _open(contents: Contents, pieces: Mapping[str, Piece]) -> RenamedTensors:
    """Open a part's tensors. Raise GencliError for what is neither .safetensors nor a pickle that may be opened."""
    return RenamedTensors(contents.open_tensors(contents.path), pieces)


def open_prefixed(contents: Contents, files: Mapping[str, str]) -> Tensors:
    """Open several files of a folder as one set of tensors. files: what stands before the names in a file → the file.

    Raise GencliError for what is neither .safetensors nor a pickle that may be opened.
    """
    opened = {prefix: contents.open_tensors(contents.folder / name).stored() for prefix, name in files.items()}
    return Tensors([PrefixedFile(file, prefix) for prefix, one in opened.items() for file in [*one.values()][:1]])


def read_beside(contents: Contents) -> dict[str, object] | None:
    """Return the JSON file beside a file of one network, of the same name, which may say what the file does not."""
    beside = contents.path.with_suffix(".json")
    return contents.read_json(beside) if beside.is_file() else None


def one_network(
    contents: Contents,
    title: str,
    pipeline: str,
    parts: dict[str, Part],
    scheduler: Mapping[str, object],
    labels: object = None,
) -> Checkpoint:
    """Return a checkpoint of one network. pipeline: a key of `image.families.FAMILIES`, "" for what draws nothing."""
    path, family = contents.path, pipeline or next(str(part.config["_class_name"]) for part in parts.values())
    if pipeline:
        parts["scheduler"] = Part("scheduler", "scheduler", path, lambda: scheduler)
    labels_file = path.with_suffix(".json")
    kind: Kind = "image" if pipeline else "part"
    return Checkpoint(contents, kind, family, parts, title=title, labels=labels, labels_file=labels_file)


def rename(shapes: Shapes, rows: Iterable[Rename]) -> tuple[dict[str, Piece], list[str]]:
    """Return tensors by their new names, and the names that no row knows; every row that matches a name makes one.

    Raises GencliError for two of one new name.
    """
    rows = tuple(rows)
    renamed, unknown = Renamed(), []
    for name in shapes:
        new_names = [(new, row.transform) for row in rows if (new := row.new_name(name)) is not None]
        for new, transform in new_names:
            renamed.take(new, Piece(name, transform))
        if not new_names:
            unknown.append(name)
    return renamed.pieces, unknown


def sizes(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    """Return a tensor's shape. Raise GencliError if it is missing, or has another number of dimensions."""
    if name not in shapes:
        raise GencliError(f"{name} is missing")
    if len(shapes[name]) != dimensions:
        raise GencliError(f"{name} is {list(shapes[name])}, and must have {dimensions} dimensions")
    return shapes[name]


def numbered(shapes: Shapes, prefix: str) -> int:
    """Return how many of `prefix.0.…`, `prefix.1.…` there are. Raise GencliError for a gap in the numbers."""
    start = len(prefix) + 1
    found = {name[start:].partition(".")[0] for name in shapes if name.startswith(f"{prefix}.")}
    numbers = {int(one) for one in found if one.isdecimal() and len(one) < 6}
    if numbers != set(range(len(numbers))):
        lost = next(i for i in range(len(numbers) + 1) if i not in numbers)
        raise GencliError(f"{prefix}.{lost} is missing")
    return len(numbers)


def transposed(tensor: Tensor) -> Tensor:
    """Return a matrix (in, out) as (out, in); others stay."""
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor


def _third(index: int) -> Callable[[Tensor], Tensor]:
    """Return what cuts the rows of q, k or v from (3 C, …): (C, …)."""

    def cut(tensor: Tensor) -> Tensor:
        rows = tensor.shape[0] // 3 if tensor.ndim else 0
        if not rows or tensor.shape[0] % 3:
            raise GencliError(f"{list(tensor.shape)} does not split into q, k and v")
        return tensor[index * rows : (index + 1) * rows]

    return cut


THIRDS = {name: _third(index) for index, name in enumerate("qkv")}
