"""DALL·E mini and mega as min-dalle (kuprel/min-dalle) publishes them: encoder.pt and decoder.pt beside vocab.json and
merges.txt, those of the mini with `_mini` in their names or in a folder of its own; detoker.pt there or in ../vqgan.

Where a folder has both, it is the mega; a file of the mini names that one. No torch before a tensor is read.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Part, Shapes
from gencli.checkpoints.formats.renaming import Renamed, numbered, open_prefixed, sizes
from gencli.checkpoints.formats.vq import CODEBOOK, VQ_PART, read_vq
from gencli.checkpoints.layout import some
from gencli.checkpoints.tensors import Piece, RenamedTensors, Tensors
from gencli.errors import GencliError

FAMILY, TITLE = "dalle-mini", "DALL·E mini or mega of min-dalle"
HALVES, SUFFIXES = ("encoder", "decoder"), ("", "_mini")
DETOKER = ("detoker.pt", "../vqgan/detoker.pt")
OWN_CODEBOOK = "embedding.weight"
DRAWN = 2**14  # image tokens that the autoencoder knows; the embedding may have more


def is_min_dalle(contents: Contents) -> bool:
    """Return whether both halves lie in a folder, or beside a file that is one of them."""
    return _suffix(contents) is not None


def _suffix(contents: Contents) -> str | None:
    """Return what stands in the names of the files behind `encoder` and `decoder`, None where they are not there."""
    for suffix in SUFFIXES:
        names = [f"{half}{suffix}.pt" for half in HALVES]
        if all(map(contents.has, names)) and (not contents.is_file or contents.path.name in names):
            return suffix
    return None


def read_min_dalle(contents: Contents, hints: Hints) -> Checkpoint:
    """Read what draws. Tensors, and the shapes that tell the sizes, are read when they are used."""
    found, path = _Files(contents, _suffix(contents) or ""), contents.folder
    parts = {
        "dalle_bart": Part("dalle_bart", "model", path, lambda: found.config, lambda: found.halves),
        VQ_PART: Part(VQ_PART, "model", path, lambda: found.vq.config, lambda: found.vq_tensors),
    }
    return Checkpoint(contents, "image", FAMILY, parts, title=TITLE)


class _Files:
    """The files of one model, each opened when it is first asked for. Pickles are opened only if they may be."""

    def __init__(self, contents: Contents, suffix: str):
        self.contents, self.suffix = contents, suffix

    @cached_property
    def halves(self) -> Tensors:
        return open_prefixed(self.contents, {f"{half}.": f"{half}{self.suffix}.pt" for half in HALVES})

    @cached_property
    def config(self) -> dict[str, object]:
        """Return the sizes. Raise GencliError for tensors that are missing or misshapen."""
        shapes: Shapes = {name: self.halves.shape(name) for name in self.halves}
        (text_ids, width), (image_ids, _) = (sizes(shapes, f"{half}.embed_tokens.weight", 2) for half in HALVES)
        lengths = [sizes(shapes, f"{half}.embed_positions.weight", 2)[0] for half in HALVES]
        return {
            "model_type": FAMILY,
            "layers": numbered(shapes, "encoder.layers"),
            "width": width,
            "inner": sizes(shapes, "encoder.layers.0.glu.fc0.weight", 2)[0],
            "text_ids": text_ids,
            "text_length": lengths[0],
            "image_ids": image_ids,
            "image_length": lengths[1],
            "image_tokens": min(DRAWN, image_ids),
        }

    @cached_property
    def _detoker(self) -> Tensors:
        found = [path for name in DETOKER if (path := self.contents.folder / name).is_file()]
        if not found:
            raise GencliError(f"{self.contents.folder} has no {DETOKER[0]}, which makes images of tokens")
        return self.contents.open_tensors(found[0])

    @cached_property
    def vq(self) -> Renamed:
        shapes = {_own(name): self._detoker.shape(name) for name in self._detoker}
        found, unknown = read_vq(shapes)
        if unknown:
            raise GencliError(f"{DETOKER[0]} has tensors that a VQ autoencoder has not: {some(sorted(unknown))}")
        return found

    @cached_property
    def vq_tensors(self) -> RenamedTensors:
        names = {_own(name): name for name in self._detoker}
        pieces = {new: Piece(names[one.source], one.transform) for new, one in self.vq.pieces.items()}
        return RenamedTensors(self._detoker, pieces)


def _own(name: str) -> str:
    return CODEBOOK if name == OWN_CODEBOOK else name


def vocabulary(contents: Contents) -> tuple[Path, Path]:
    """Return where the words lie: vocab.json and merges.txt. Raise GencliError for files that are not there."""
    suffix = _suffix(contents) or ""
    for one in (suffix, ""):
        paths = contents.folder / f"vocab{one}.json", contents.folder / f"merges{one}.txt"
        if all(path.is_file() for path in paths):
            return paths
    raise GencliError(f"{contents.folder} has no vocab{suffix}.json with merges{suffix}.txt")
