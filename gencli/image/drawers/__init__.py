"""Image models that do not denoise: GANs, and those that draw tokens one after another. One file each. No torch.

To add one: a subclass of `base.Drawer` as `DRAWER` in a file of this folder, and its row here.
"""

from __future__ import annotations

from importlib import import_module

from gencli.checkpoints.checkpoint import Checkpoint
from gencli.image.drawers.base import Drawer

# `family` of a checkpoint → module of this package
DRAWERS = {
    "imagegpt": "imagegpt",
    "biggan-deep": "biggan",
    "janus": "janus",
    "multi_modality": "janus",
    "dalle-mini": "min_dalle",
}


def is_drawer(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint is of this kind."""
    return checkpoint.family in DRAWERS and checkpoint.kind == "image"


def open_drawer(checkpoint: Checkpoint) -> Drawer:
    """Read the small files of such a checkpoint. Raise GencliError for what is broken or at odds."""
    if checkpoint.problem is not None:
        raise checkpoint.problem
    module = import_module(f"gencli.image.drawers.{DRAWERS[checkpoint.family]}")
    drawer: Drawer = module.DRAWER.read(checkpoint)
    return drawer
