"""GGUF language models: metadata → config.json's keys, tensors → the checkpoint's own names and order of rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Part
from gencli.checkpoints.formats.gguf_families import FAMILIES, family_of, name_of, read_config
from gencli.checkpoints.formats.gguf_qwen35 import AHEAD
from gencli.checkpoints.formats.gguf_tables import ROPE
from gencli.checkpoints.formats.renaming import rename
from gencli.checkpoints.gguf_file import GgufParts, metadata_get
from gencli.checkpoints.gguf_names import SPLIT, by_type
from gencli.checkpoints.layout import some
from gencli.checkpoints.tensors import Expert, Piece, RenamedTensors, TensorFile, Tensors, elementwise
from gencli.checkpoints.weights import is_gguf_file
from gencli.errors import GencliError
from gencli.models.base import EXPERT_LIMIT, Rename

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.tokens import Tokenizer

GATE_UP = ("gate_proj.weight", "up_proj.weight")  # which Gemma 4 has one below the other


class GgufTensors(RenamedTensors):
    """A file's tensors under the names, in the shapes and in the order of rows that the checkpoint had."""

    _last: tuple[str, Tensor] | None = None

    @cached_property
    def _kinds(self) -> set[str]:
        return {self._tensors.dtype(name) for name in self._tensors if len(self._tensors.shape(name)) > 1}

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors writes it, or GGUF's name of its type. llama.cpp keeps the norms of
        files in BF16 in float32: there they count as BF16."""
        return "BF16" if self._kinds == {"BF16"} else super().dtype(name)

    def forget(self) -> None:
        """Nothing is held that could be let go."""

    def get(self, name: str) -> Tensor:
        """Return a tensor on the CPU, in the file's own memory."""
        from gencli.kernels.packed import Packed

        piece = self._pieces[name]
        if self._last is None or self._last[0] != piece.source:  # experts of a layer come one after the other
            self._last = piece.source, self._tensors.get(piece.source)
        tensor = self._last[1]
        if not isinstance(tensor, Packed) or piece.transform is None:
            return self._changed(piece, tensor)
        if piece.transform is turned:
            return tensor.transposed()
        if isinstance(piece.transform, Expert):
            return Packed(tensor.kind, piece.transform.cut(tensor.data_rows))
        import torch

        return tensor.ordered(piece.transform(torch.arange(len(tensor))))


def turned(tensor: Tensor) -> Tensor:
    """(out, in) → (in, out), in the same memory."""
    return tensor.t() if tensor.ndim == 2 else tensor  # of packed ones too, which `T` would unpack


def is_gguf(contents: Contents) -> bool:
    """Return whether this is a GGUF file, or a folder with one and no config.json."""
    return is_gguf_file(contents.path) if contents.is_file else any(contents.folder.glob("*.gguf"))


def read_gguf(contents: Contents, hints: Hints) -> Checkpoint:
    """Read a language model as config.json would have it. What is broken or not supported is told by the problem, or
    by its part: another architecture or quantisation, and keys that change the numbers."""
    try:
        file = _open(contents)
    except GencliError as error:
        return Checkpoint(contents, "other", problem=error)
    path = file.path
    named, licence = file.metadata.get("general.architecture"), file.metadata.get("general.license")
    is_read = isinstance(named, str) and named in FAMILIES
    stored = dict.fromkeys(file.shapes, file)
    part = Part(
        "",
        "model",
        path,
        lambda: _read_config(file),
        lambda: gguf_tensors(file, part.config),
        lambda: stored,
    )
    return Checkpoint(
        contents,
        "text" if is_read else "other",
        name_of(file) if is_read else str(named)[:60],
        {"": part},
        {"tokenizer": partial(_tokenizer, file)},
        licence=licence if isinstance(licence, str) else None,
    )


def _open(contents: Contents) -> TensorFile:
    """The one file, or all parts of a split one, whichever of them was named. Raises GencliError."""
    path = contents.path if contents.is_file else _only_file(contents.folder)
    file = contents.open_file(path)
    count = metadata_get(file.metadata, "split.count", int, 0)
    if count < 2:
        return file
    match = SPLIT.fullmatch(path.name)
    if match is None or int(match[3]) != count or count > 99999:
        raise GencliError(f"{path} is one of {count} parts, which its name does not say", "as NAME-00001-of-00002.gguf")
    parts = [path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, count + 1)]
    if lost := [part.name for part in parts if not part.is_file()]:
        raise GencliError(f"{path} is one of {count} parts, and {some(lost)} is not beside it")
    return GgufParts([contents.open_file(part) for part in parts])


def _only_file(folder: Path) -> Path:
    names = sorted(file.name for file in folder.glob("*.gguf"))
    found = by_type(names)
    if len(found) > 1:
        raise GencliError(
            f"{folder} has {len(found)} GGUF files: {some([f'{folder}:{kind}' for kind in found])}", "name one of them"
        )
    return folder / (next(iter(found.values())) if found else names)[0]


def _tokenizer(file: TensorFile) -> Tokenizer:
    from gencli.tokens.gguf import gguf_tokenizer

    return gguf_tokenizer(file.path, file.metadata)


def gguf_tensors(file: TensorFile, config: Mapping[str, object]) -> GgufTensors:
    """Return the tensors of a file under the names of the checkpoint that has this config. Raise GencliError for one
    that no row knows, and for rows that do not fit."""
    return GgufTensors(Tensors([file]), _pieces(file, config))


def _pieces(file: TensorFile, config: Mapping[str, object]) -> dict[str, Piece]:
    """Tensors by the checkpoint's names."""
    name = family_of(file)
    family, heads = FAMILIES[name], metadata_get(config, "num_attention_heads", int, 1)
    counts = (
        {"attn_q": heads, "attn_k": metadata_get(config, "num_key_value_heads", int, heads)}
        if family.neighbours
        else {}
    )
    rows = list[Rename]()
    for old, new in family.names.items():
        if old == "attn_sinks":  # whose name has no ending there
            rows.append(Rename(rf"blk\.(\d+)\.{old}\.weight", rf"{family.layers}.\1.{new}"))
            continue
        transform = turned if family.is_transposed(new) else _halves(counts[old]) if old in counts else None
        if family.adds_one(old):
            transform = _less_one
        transform = family.read.get(old, transform)
        rows.append(Rename(rf"{old}\.(weight|bias)", rf"{new}.\1", transform))
        rows.append(Rename(rf"blk\.(\d+)\.{old}\.(weight|bias)", rf"{family.layers}.\1.{new}.\2", transform))
    for old, new in family.whole.items():
        rows.append(Rename(rf"blk\.(\d+)\.{re.escape(old)}", rf"{family.layers}.\1.{new}", family.read.get(old)))
    if "ffn_gate_exps" in family.names:  # files of 2023 have a tensor for each expert
        rows.append(
            Rename(r"blk\.(\d+)\.ffn_(gate|up|down)\.(\d+)\.weight", r"model.layers.\1.mlp.experts.\3.\2_proj.weight")
        )
    shapes = {name: shape for name, shape in file.shapes.items() if name not in ROPE}
    if metadata_get(file.metadata, f"{name}.{AHEAD}", int, 0):
        layers = metadata_get(config, "num_hidden_layers", int, 0)
        shapes = {name: shape for name, shape in shapes.items() if _layer(name) < layers}
    pieces, unknown = rename(shapes, rows)
    if unknown:
        raise GencliError(f"{file.path}: tensor {unknown[0][:80]!r} is not one of a {name} that gencli knows")
    pieces = dict(_each_expert(file, pieces))
    for tensor, shape in shapes.items():
        count = next((count for old, count in counts.items() if f".{old}." in tensor), None)
        if count is not None and shape[0] % (2 * count):
            raise GencliError(f"{file.path}: {tensor} has {shape[0]} rows for {count} heads")
    return pieces


def _each_expert(file: TensorFile, pieces: Mapping[str, Piece]) -> Iterator[tuple[str, Piece]]:
    """Yield the pieces, with one for each expert in place of those that hold all. Raise GencliError for a wrong one."""
    for name, piece in pieces.items():
        before, all_of_them, after = name.rpartition(".experts.")
        if not all_of_them or after[:1].isdigit():
            yield name, piece
            continue
        count, *matrix = file.shapes[piece.source]
        parts = GATE_UP if after == "gate_up_proj.weight" else (after,)
        dimensions = 1 if after.endswith("bias") else 2
        if len(matrix) != dimensions or matrix[0] % len(parts) or not 0 < count <= EXPERT_LIMIT:
            raise GencliError(f"{file.path}: {piece.source} is {[count, *matrix]}, which are no matrices of experts")
        for number in range(count):
            for i, part in enumerate(parts):
                yield f"{before}.experts.{number}.{part}", Piece(piece.source, Expert(number, count, i, len(parts)))


def _layer(name: str) -> int:
    """The number of the layer that a tensor is of, -1 for none."""
    found = re.match(r"blk\.(\d{1,9})\.", name)
    return int(found[1]) if found else -1


_less_one = elementwise(lambda tensor: tensor - 1)


def _halves(heads: int) -> Callable[[Tensor], Tensor]:
    """llama.cpp rotates pairs of neighbours, the checkpoint pairs of halves: (heads, D/2, 2) → (heads, 2, D/2)."""
    return lambda tensor: tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _read_config(file: TensorFile) -> dict[str, object]:
    try:
        return read_config(file)
    except GencliError as error:
        if error.message.startswith(str(file.path)):
            raise
        raise GencliError(f"{file.path}: {error.message}", error.hint) from None
