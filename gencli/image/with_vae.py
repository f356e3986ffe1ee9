"""A checkpoint with another autoencoder in the place of its own, told before any weight is read. No torch before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gencli.checkpoints.find import Source
from gencli.errors import GencliError, UsageError
from gencli.json_files import read_json

if TYPE_CHECKING:
    from gencli.checkpoints.tensors import Tensors
    from gencli.image.checkpoint import Checkpoint


class Opens(Protocol):
    """What holds parts of a checkpoint."""

    def open(self, part: str) -> tuple[Mapping[str, Any], Tensors]:
        """A part's config and tensors. Raises GencliError."""
        ...


@dataclass(frozen=True)
class PartFolder:
    """A part in a folder of its own, outside the checkpoint's."""

    path: Path
    config: Mapping[str, Any]
    allow_pickle: bool

    def open(self, part: str) -> tuple[Mapping[str, Any], Tensors]:
        """Its config and tensors. Raises GencliError."""
        from gencli.checkpoints.weights import open_tensors

        return self.config, open_tensors(self.path, allow_pickle=self.allow_pickle)


def with_vae(checkpoint: Checkpoint, source: Source, *, allow_pickle: bool = False) -> Checkpoint:
    """The checkpoint with the autoencoder of `source`: a file, a folder with a config.json, or the one in a pipeline.

    Raises UsageError for a checkpoint without one, GencliError for what is no autoencoder that fits it.
    """
    from gencli.checkpoints.original.vae_file import open_vae_file

    name = checkpoint.family.autoencoder
    if name is None:
        raise UsageError(f"{checkpoint.name} draws in pixels: --vae cannot be followed")
    old: Mapping[str, Any] = checkpoint.configs.get(name, {})
    path = source.path
    opened: Opens
    config: Mapping[str, Any]
    if source.kind == "file":
        found = open_vae_file(path, old, allow_pickle=allow_pickle)
        config, opened = found.parts["vae"].config, dataclasses.replace(found, parts={name: found.parts["vae"]})
    else:
        path = _folder(path)
        config = read_json(path / "config.json")
        opened = PartFolder(path, config, allow_pickle)
    kind, kinds = config.get("_class_name"), checkpoint.family.parts[name] or frozenset()
    if kind not in kinds:
        raise GencliError(f"--vae {path} is a {kind or config.get('model_type')!s:.40}", f"{' or '.join(kinds)} fits")
    channels = [one.get("latent_channels", 4) for one in (config, old)]
    if old and channels[0] != channels[1]:
        raise GencliError(
            f"--vae {path} makes latents of {channels[0]!s:.20} channels, and {checkpoint.name} knows {channels[1]}"
        )
    return dataclasses.replace(
        checkpoint,
        parts={**checkpoint.parts, name: path},
        configs={**checkpoint.configs, name: config},
        files={**checkpoint.files, name: opened},
    )


def _folder(path: Path) -> Path:
    """Where an autoencoder lies in a folder: at its root, or as a pipeline's part. Raises GencliError."""
    for folder in (path, path / "vae", path / "vqvae"):
        if (folder / "config.json").is_file():
            return folder
    raise GencliError(f"--vae {path} holds no autoencoder: no config.json, and no vae/config.json")
