"""Whether the configs of a checkpoint go together, told before any weight is read. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gencli.errors import GencliError

if TYPE_CHECKING:
    from gencli.image.checkpoint import Checkpoint


def nothing(checkpoint: Checkpoint) -> None:
    """All goes together."""


def pixels(checkpoint: Checkpoint) -> None:
    """Raises GencliError for a UNet that reads other channels than a picture has."""
    channels = checkpoint.configs["unet"].get("in_channels", 3)
    if channels != 3:
        raise GencliError(f"{checkpoint.folder}: a UNet with in_channels = {channels} is not supported")


def latents(checkpoint: Checkpoint) -> None:
    """Raises GencliError for a UNet that reads other channels than its latents have."""
    unet, channels = checkpoint.configs["unet"], checkpoint.configs["vae"].get("latent_channels", 4)
    if unet.get("in_channels", 4) != channels:
        what = "an inpainting UNet that reads the mask" if unet.get("in_channels") == 9 else "a UNet"
        raise GencliError(
            f"{checkpoint.folder}: {what} with in_channels = {unet.get('in_channels')} is not supported",
            f"its autoencoder has {channels} channels; ordinary UNets paint by mask too",
        )
