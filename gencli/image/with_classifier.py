"""A checkpoint beside a classifier of noisy pictures that leads it, told before any weight is read. No torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from gencli.checkpoints.class_file import ClassFile, open_class_file
from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.checkpoint import Checkpoint
from gencli.image.prompts.classes import classes_of, read_names
from gencli.json_files import read_json

KIND = "EncoderUNetModel"


def with_classifier(checkpoint: Checkpoint, source: Source, *, allow_pickle: bool = False) -> Checkpoint:
    """The checkpoint with a part "classifier": a file of guided-diffusion, or a folder with config.json and weights.

    Raises GencliError for what is no such classifier, and for one that cannot judge this checkpoint's pictures.
    """
    path = source.path
    config, labels, file = _of_file(path, allow_pickle) if source.kind == "file" else _of_folder(path)
    names = read_names(labels)
    network = checkpoint.configs[checkpoint.family.network]
    if checkpoint.family.autoencoder is not None or network.get("in_channels", 3) != config.get("in_channels", 3):
        raise GencliError(
            f"{path} judges pictures in pixels, of {config.get('in_channels', 3)} channels, and {checkpoint.name} "
            "draws others",
            "classifiers are for models such as guided-diffusion's",
        )
    known, told = classes_of(config, names), checkpoint.network_classes
    if known is not None and told is not None and known.count != told.count:
        raise GencliError(f"{path} tells {known.count} classes apart, and {checkpoint.name} is told {told.count}")
    return dataclasses.replace(
        checkpoint,
        parts={**checkpoint.parts, "classifier": path},
        configs={**checkpoint.configs, "classifier": config},
        labels=checkpoint.labels or names,
        files=checkpoint.files if file is None else {**checkpoint.files, "classifier": file},
    )


def _of_file(path: Path, allow_pickle: bool) -> tuple[Any, Any, ClassFile]:
    found = open_class_file(path, allow_pickle=allow_pickle)
    if found is None or "classifier" not in found.parts:
        what = f"it is a {found.title}" if found else "its tensors are none of guided-diffusion's"
        raise GencliError(f"{path} is no classifier of noisy pictures: {what}")
    return found.configs["classifier"], found.labels, found


def _of_folder(path: Path) -> tuple[Any, Any, None]:
    config = read_json(path / "config.json")
    if config.get("_class_name") != KIND:
        found = config.get("_class_name") or config.get("model_type")
        raise GencliError(f"{path} is no classifier of noisy pictures but a {found!s:.40}")
    labels = config.pop("id2label", None)
    return config, labels, None
