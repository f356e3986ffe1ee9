"""DiT's, guided-diffusion's and DDPM's own files: one network in one file, in safetensors or in a pickle.

They hold neither a noise schedule nor names of classes, nor (DiT) the autoencoder; a JSON file beside one, of the same
name, may say what it does not (see `original.guided_diffusion`, `original.ddpm`) and name the classes as `id2label`.
No torch before a pickle is opened or a part read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gencli.checkpoints.layout import find_pickles, some
from gencli.checkpoints.original import ddpm, dit, guided_diffusion
from gencli.checkpoints.original.rows import Part, Shapes
from gencli.checkpoints.tensors import Piece, RenamedTensors, TensorFile, Tensors
from gencli.checkpoints.weights import open_file
from gencli.errors import GencliError
from gencli.json_files import read_json

PICKLE_HINT = (
    "--allow-pickle reads its tensors and nothing else; a safetensors file with the same names is read without it"
)


@dataclass(frozen=True)
class ClassFile:
    """What a file holds. title: in words. pipeline: a key of `image.families.FAMILIES`, "" for a classifier. parts: its
    network, by the name of its part. scheduler: as scheduler_config.json. labels: `id2label`, where there is one.
    notes: what is to be told of it. file: the open file."""

    file: TensorFile
    title: str
    pipeline: str
    parts: Mapping[str, Part]
    scheduler: Mapping[str, Any]
    labels: Any = None
    notes: tuple[str, ...] = ()

    @property
    def configs(self) -> dict[str, Mapping[str, Any]]:
        """Part → its config.json, and the scheduler's."""
        return {**{name: part.config for name, part in self.parts.items()}, "scheduler": self.scheduler}

    def open(self, part: str) -> tuple[Mapping[str, Any], Tensors]:
        """A part's config, and its tensors by the names of the module's. Raises GencliError."""
        found = self.parts[part]
        return found.config, RenamedTensors(self.file, found.pieces)


def open_named(path: Path, *, allow_pickle: bool) -> TensorFile:
    """Open a file of tensors. Raises GencliError for a broken one, and for a pickle that may not be opened."""
    if find_pickles([path.name]) and not allow_pickle:
        raise GencliError(f"{path} is a pickle, which may run code when it is opened", PICKLE_HINT)
    return open_file(path)


def open_class_file(path: Path, *, allow_pickle: bool = False) -> ClassFile | None:
    """What a file of DiT, guided-diffusion or DDPM (ermongroup's) holds; None when it is of none of them.

    Raises GencliError, in one line, for a broken file, a pickle that may not be opened, tensors that are missing
    or not known, and for a file that does not say enough of itself.
    """
    file = open_named(path, allow_pickle=allow_pickle)
    shapes = file.shapes
    kinds = {"a DiT": dit.is_dit(shapes), "DDPM's UNet": ddpm.is_ddpm(shapes)}
    kinds["one of guided-diffusion"] = guided_diffusion.is_unet(shapes) or guided_diffusion.is_classifier(shapes)
    seen = [kind for kind, is_one in kinds.items() if is_one]
    if not seen:
        return None
    try:
        if len(seen) > 1:
            raise GencliError(f"its tensors are those of two networks, {' and '.join(seen)}")
        read = {"a DiT": _dit, "DDPM's UNet": _ddpm}.get(seen[0], _guided)
        return read(path, shapes, file)
    except GencliError as error:
        raise GencliError(f"{path}: {error.message}", error.hint) from None


def _dit(path: Path, shapes: Shapes, file: TensorFile) -> ClassFile:
    part, unknown = dit.read_dit(shapes)
    if unknown:
        raise GencliError(f"it has tensors that a DiT has not: {some(sorted(unknown))}")
    beside = _beside(path) or {}
    if wrong := sorted(key for key in beside if key != "id2label"):
        raise GencliError(f"{path.stem}.json: not supported: {', '.join(wrong)[:200]}")
    parts = {"transformer": part}
    return ClassFile(file, "DiT", "DiTPipeline", parts, dit.SCHEDULER, beside.get("id2label"))


def _guided(path: Path, shapes: Shapes, file: TensorFile) -> ClassFile:
    """A UNet, or a classifier. Tensors that its config does not explain are refused when it is loaded."""
    flags = guided_diffusion.flags(path.stem, _beside(path))
    pieces = {name: Piece(name) for name in shapes}
    labels = flags.get("id2label")
    if guided_diffusion.is_classifier(shapes):
        config = guided_diffusion.classifier_config(shapes, flags)
        part = {"classifier": Part(config, pieces)}
        return ClassFile(file, "classifier of guided-diffusion", "", part, {}, labels)
    config = guided_diffusion.unet_config(shapes, flags)
    scheduler = guided_diffusion.scheduler_config(config, flags)
    part = {"unet": Part(config, pieces)}
    pipeline = guided_diffusion.PIPELINE
    return ClassFile(file, "UNet of guided-diffusion", pipeline, part, scheduler, labels)


def _ddpm(path: Path, shapes: Shapes, file: TensorFile) -> ClassFile:
    beside = _beside(path) or {}
    try:
        ddpm.check_beside(beside)
    except GencliError as error:
        raise GencliError(f"{path.stem}.json: {error.message}", error.hint) from None
    part, unknown = ddpm.read_ddpm(shapes, beside)
    if unknown:
        raise GencliError(f"it has tensors that DDPM's UNet has not: {some(sorted(unknown))}")
    scheduler = ddpm.scheduler_config(part.config, beside)
    return ClassFile(file, "UNet of DDPM", "DDPMPipeline", {"unet": part}, scheduler)


def _beside(path: Path) -> Mapping[str, Any] | None:
    beside = path.with_suffix(".json")
    return read_json(beside) if beside.is_file() else None
