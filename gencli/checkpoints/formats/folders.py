"""Checkpoints in the folders of transformers and diffusers, and files of weights that no other format knows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gencli.checkpoints import layout
from gencli.checkpoints.checkpoint import NO_CONFIG, Checkpoint, Contents, Hints, Kind, Part, folder_part
from gencli.errors import GencliError
from gencli.models import ARCHITECTURES

if TYPE_CHECKING:
    from gencli.tokens import Tokenizer

INDEX, CONFIG = "model_index.json", "config.json"
PARTS_ALONE = {"clip_text_model", "clip_vision_model", "ldmbert", "t5"}  # `model_type`s that are a part of other models
KINDS: dict[str, Kind] = {"clip": "score", "imagegpt": "image"}  # and those that are whole, but no text


def is_diffusers(contents: Contents) -> bool:
    """Return whether this is a folder with a pipeline: model_index.json names its parts."""
    return not contents.is_file and contents.has(INDEX)


def read_diffusers(contents: Contents, hints: Hints) -> Checkpoint:
    """Read a pipeline's folder."""
    folder = contents.folder
    try:
        index = contents.read_json(INDEX)
        found = layout.parts(contents.files, contents.read_json)
    except GencliError as error:
        return Checkpoint(contents, "other", own_folder=True, problem=error)
    parts = {part.name: folder_part(contents, part.name, folder / part.prefix, part.kind) for part in found}
    tokenizers = {name: partial(_tokenizer, contents, folder / name) for name in parts if "tokenizer" in name}
    labels, family = index.get("id2label"), architecture_of(index)
    return Checkpoint(
        contents, "image", family, parts, tokenizers,
        own_folder=True, index=index, labels=labels, labels_file=folder / INDEX,
    )  # fmt: skip


def is_transformers(contents: Contents) -> bool:
    """Return whether this is the folder of one model: of transformers, or a part of diffusers alone."""
    return not contents.is_file and contents.has(CONFIG)


def read_transformers(contents: Contents, hints: Hints) -> Checkpoint:
    """Read one model's folder. A UNet may have its scheduler beside it (google/ddpm-cifar10-32)."""
    folder, parts = contents.folder, dict[str, Part]()
    if contents.has("scheduler_config.json"):
        parts["scheduler"] = folder_part(contents, "", folder, "scheduler")
    parts[""] = folder_part(contents, "", folder)
    try:
        config = parts[""].config
    except GencliError:  # which is raised again where the config is used
        config = NO_CONFIG
    family = architecture_of(config)
    kind: Kind = "image" if family.startswith("UNet") and "scheduler" in parts else kind_of(config)
    tokenizers = {"tokenizer": partial(_tokenizer, contents, folder)}
    return Checkpoint(
        contents, kind, family, parts, tokenizers, own_folder=True, labels=config.get("id2label"),
        labels_file=folder / CONFIG,
    )  # fmt: skip


def is_folder(contents: Contents) -> bool:
    """Return whether this is any folder."""
    return not contents.is_file


def read_folder(contents: Contents, hints: Hints) -> Checkpoint:
    """Say that a folder is in no known layout."""
    try:
        layout.parts(contents.files, contents.read_json)
    except GencliError as error:
        return Checkpoint(contents, "other", own_folder=True, problem=error)
    return Checkpoint(contents, "other", own_folder=True)


def read_weights(contents: Contents, hints: Hints) -> Checkpoint:
    """Read a file of weights: of the model that a config.json beside it describes, or of nobody knows what."""
    tokenizers = {"tokenizer": partial(_tokenizer, contents, contents.folder)}
    parts, problem = {"": whole_file(contents)}, None
    try:
        assert contents.tensor_file
    except GencliError as error:
        problem = error
    kind: Kind = "other" if problem else "part"
    return Checkpoint(contents, kind, "", parts, tokenizers, own_folder=True, problem=problem)


def whole_file(contents: Contents) -> Part:
    """Return all tensors of a file under their own names, with the config.json beside it if there is one."""
    config = partial(contents.read_json, CONFIG) if contents.has(CONFIG) else lambda: NO_CONFIG
    return Part("", "model", contents.path, config, partial(contents.open_tensors, contents.path))


def architecture_of(config: Mapping[str, object]) -> str:
    """Return the architecture or the pipeline that a config names: `model_type` or `_class_name`; "" for none."""
    return str(config.get("model_type") or config.get("_class_name") or "")


def kind_of(config: Mapping[str, object]) -> Kind:
    """Return what a model with this config is for."""
    name = architecture_of(config)
    if name not in ARCHITECTURES:
        return "other"
    return KINDS.get(name, "part" if name in PARTS_ALONE or "model_type" not in config else "text")


def _tokenizer(contents: Contents, folder: Path) -> Tokenizer:
    from gencli.tokens import load_tokenizer

    return load_tokenizer(folder, contents.read_json)
