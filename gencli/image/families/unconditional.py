"""A UNet alone, in pixels (Ho et al. 2020): pictures without a prompt."""

from __future__ import annotations

from gencli.image.checkpoint import Checkpoint
from gencli.image.families.base import Loader


def load(checkpoint: Checkpoint, loader: Loader) -> None:
    """Nothing is asked for."""
