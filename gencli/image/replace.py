"""A checkpoint with another autoencoder in the place of its own, or beside a classifier. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gencli.checkpoints.checkpoint import Part
from gencli.checkpoints.find import Source
from gencli.checkpoints.formats.autoencoder import read_alone
from gencli.checkpoints.open import open_checkpoint
from gencli.errors import GencliError, UsageError
from gencli.image.checkpoint import Checkpoint
from gencli.image.prompts.classes import classes_of, read_names

CLASSIFIER = "EncoderUNetModel"
NETWORKS = ("dit", "ddpm", "guided-diffusion")  # formats of one network


def with_vae(checkpoint: Checkpoint, source: Source, *, allow_pickle: bool = False) -> Checkpoint:
    """Return the checkpoint with the autoencoder of `source`: a file, a folder with a config.json, or a pipeline's.

    Raise UsageError for a checkpoint without one, GencliError for what is no autoencoder that fits it.
    """
    name = checkpoint.family.autoencoder
    if name is None:
        raise UsageError(f"{checkpoint.name} draws in pixels: --vae cannot be followed")
    old: Mapping[str, Any] = checkpoint.configs.get(name, {})
    part = _autoencoder(source, old, allow_pickle)
    config = part.config
    kind, kinds = config.get("_class_name"), checkpoint.family.parts[name] or frozenset()
    if kind not in kinds:
        found = kind or config.get("model_type")
        raise GencliError(f"--vae {part.path} is a {found!s:.40}", f"{' or '.join(kinds)} fits")
    channels = [one.get("latent_channels", 4) for one in (config, old)]
    if old and channels[0] != channels[1]:
        makes = f"makes latents of {channels[0]!s:.20} channels"
        raise GencliError(f"--vae {part.path} {makes}, and {checkpoint.name} knows {channels[1]}")
    return checkpoint.with_part(name, part, config)


def _autoencoder(source: Source, old: Mapping[str, Any], allow_pickle: bool) -> Part:
    """The autoencoder alone, or a pipeline's. Raises GencliError for what holds none."""
    opened = open_checkpoint(source, allow_pickle=allow_pickle)
    if opened.contents.is_file:
        return read_alone(opened.contents, old)
    if part := opened.find_part("", "vae", "vqvae"):
        return part
    raise GencliError(f"--vae {opened.path} holds no autoencoder: no config.json, and no vae/config.json")


def with_classifier(checkpoint: Checkpoint, source: Source, *, allow_pickle: bool = False) -> Checkpoint:
    """Return the checkpoint with a part "classifier": a file of guided-diffusion, or a folder with config and weights.

    Raise GencliError for what is no such classifier, and for one that cannot judge this checkpoint's pictures.
    """
    part, labels = _classifier(source, allow_pickle)
    path, names = source.path, read_names(labels)
    config = {key: value for key, value in part.config.items() if key != "id2label"}
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
    return dataclasses.replace(checkpoint.with_part("classifier", part, config), labels=checkpoint.labels or names)


def _classifier(source: Source, allow_pickle: bool) -> tuple[Part, Any]:
    """A classifier, and its `id2label`. Raises GencliError for what is none."""
    opened = open_checkpoint(source, allow_pickle=allow_pickle)
    path = opened.path
    if opened.contents.is_file:
        if opened.problem is not None:
            raise opened.problem
        if "classifier" not in opened.parts:
            known = opened.format in NETWORKS
            what = f"it is a {opened.title}" if known else "its tensors are none of guided-diffusion's"
            raise GencliError(f"{path} is no classifier of noisy pictures: {what}")
        return opened.parts["classifier"], opened.labels
    part = opened.only_part("a classifier")
    if part.config.get("_class_name") != CLASSIFIER:
        found = part.config.get("_class_name") or part.config.get("model_type")
        raise GencliError(f"{path} is no classifier of noisy pictures but a {found!s:.40}")
    return part, part.config.get("id2label")
