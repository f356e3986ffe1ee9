"""DiT's, guided-diffusion's and DDPM's own files: one network in one file, in safetensors or in a pickle.

They hold neither a noise schedule nor names of classes, nor (DiT) the autoencoder; a JSON file beside one, of the same
name, may say what it does not (see `original.guided_diffusion`, `original.ddpm`) and name the classes as `id2label`.
No torch before a pickle is opened or a part read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli.checkpoints.header import read_header
from gencli.checkpoints.layout import find_pickles, some
from gencli.checkpoints.original import ddpm, dit, guided_diffusion
from gencli.checkpoints.original.rows import Part, Piece, Shapes
from gencli.errors import GencliError
from gencli.json_files import read_json

if TYPE_CHECKING:
    from gencli.checkpoints.tensors import Tensors

PICKLE_HINT = (
    "--allow-pickle reads its tensors and nothing else; a safetensors file with the same names is read without it"
)


@dataclass(frozen=True)
class ClassFile:
    """What a file holds. title: in words. pipeline: a key of `image.families.FAMILIES`, "" for a classifier. parts: its
    network, by the name of its part. scheduler: as scheduler_config.json. labels: `id2label`, where there is one.
    notes: what is to be told of it. opened: its tensors, where telling what it is took opening it."""

    path: Path
    title: str
    pipeline: str
    parts: Mapping[str, Part]
    scheduler: Mapping[str, Any]
    labels: Any = None
    notes: tuple[str, ...] = ()
    opened: Tensors | None = field(default=None, repr=False)

    @property
    def configs(self) -> dict[str, Mapping[str, Any]]:
        """Part → its config.json, and the scheduler's."""
        return {**{name: part.config for name, part in self.parts.items()}, "scheduler": self.scheduler}

    def open(self, part: str) -> tuple[Mapping[str, Any], Tensors]:
        """A part's config, and its tensors by the names of the module's. Raises GencliError."""
        from gencli.checkpoints.original.tensors import OriginalTensors
        from gencli.checkpoints.weights import open_tensors

        found = self.parts[part]
        tensors = open_tensors(self.path) if self.opened is None else self.opened
        return found.config, OriginalTensors(tensors, "", found.pieces)


def shapes_of(path: Path, *, allow_pickle: bool) -> tuple[Shapes, Tensors | None]:
    """Names and shapes in a file, and its tensors where they had to be opened for that: a pickle's.

    Raises GencliError for a broken file, and for a pickle that may not be opened.
    """
    if not find_pickles([path.name]):
        return read_header(path).shapes, None
    if not allow_pickle:
        raise GencliError(f"{path} is a pickle, which may run code when it is opened", PICKLE_HINT)
    from gencli.checkpoints.weights import open_tensors

    tensors = open_tensors(path, allow_pickle=True)
    return {name: tensors.shape(name) for name in tensors}, tensors


def open_class_file(path: Path, *, allow_pickle: bool = False) -> ClassFile | None:
    """What a file of DiT, guided-diffusion or DDPM (ermongroup's) holds; None when it is of none of them.

    Raises GencliError, in one line, for a broken file, a pickle that may not be opened, tensors that are missing
    or not known, and for a file that does not say enough of itself.
    """
    shapes, tensors = shapes_of(path, allow_pickle=allow_pickle)
    kinds = {"a DiT": dit.is_dit(shapes), "DDPM's UNet": ddpm.is_ddpm(shapes)}
    kinds["one of guided-diffusion"] = guided_diffusion.is_unet(shapes) or guided_diffusion.is_classifier(shapes)
    seen = [kind for kind, is_one in kinds.items() if is_one]
    if not seen:
        return None
    try:
        if len(seen) > 1:
            raise GencliError(f"its tensors are those of two networks, {' and '.join(seen)}")
        read = {"a DiT": _dit, "DDPM's UNet": _ddpm}.get(seen[0], _guided)
        return read(path, shapes, tensors)
    except GencliError as error:
        raise GencliError(f"{path}: {error.message}", error.hint) from None


def _dit(path: Path, shapes: Shapes, tensors: Tensors | None) -> ClassFile:
    part, unknown = dit.read_dit(shapes)
    if unknown:
        raise GencliError(f"it has tensors that a DiT has not: {some(sorted(unknown))}")
    beside = _beside(path) or {}
    if wrong := sorted(key for key in beside if key != "id2label"):
        raise GencliError(f"{path.stem}.json: not supported: {', '.join(wrong)[:200]}")
    parts = {"transformer": part}
    return ClassFile(path, "DiT", "DiTPipeline", parts, dit.SCHEDULER, beside.get("id2label"), opened=tensors)


def _guided(path: Path, shapes: Shapes, tensors: Tensors | None) -> ClassFile:
    """A UNet, or a classifier. Tensors that its config does not explain are refused when it is loaded."""
    flags = guided_diffusion.flags(path.stem, _beside(path))
    pieces = {name: Piece(name) for name in shapes}
    labels = flags.get("id2label")
    if guided_diffusion.is_classifier(shapes):
        config = guided_diffusion.classifier_config(shapes, flags)
        part = {"classifier": Part(config, pieces)}
        return ClassFile(path, "classifier of guided-diffusion", "", part, {}, labels, opened=tensors)
    config = guided_diffusion.unet_config(shapes, flags)
    scheduler = guided_diffusion.scheduler_config(config, flags)
    part = {"unet": Part(config, pieces)}
    pipeline = guided_diffusion.PIPELINE
    return ClassFile(path, "UNet of guided-diffusion", pipeline, part, scheduler, labels, opened=tensors)


def _ddpm(path: Path, shapes: Shapes, tensors: Tensors | None) -> ClassFile:
    beside = _beside(path) or {}
    try:
        ddpm.check_beside(beside)
    except GencliError as error:
        raise GencliError(f"{path.stem}.json: {error.message}", error.hint) from None
    part, unknown = ddpm.read_ddpm(shapes, beside)
    if unknown:
        raise GencliError(f"it has tensors that DDPM's UNet has not: {some(sorted(unknown))}")
    scheduler = ddpm.scheduler_config(part.config, beside)
    return ClassFile(path, "UNet of DDPM", "DDPMPipeline", {"unet": part}, scheduler, opened=tensors)


def _beside(path: Path) -> Mapping[str, Any] | None:
    file = path.with_suffix(".json")
    return read_json(file) if file.is_file() else None
