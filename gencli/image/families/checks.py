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
    if channels not in (1, 3):
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


def latent_diffusion(checkpoint: Checkpoint) -> None:
    """Raises GencliError for a UNet that reads other channels than its latents have, or other texts than it is told."""
    unet, vqvae = checkpoint.configs["unet"], checkpoint.configs["vqvae"]
    if vqvae["_class_name"] == "VQModel":
        channels = vqvae.get("vq_embed_dim") or vqvae.get("latent_channels", 3)
    else:
        channels = vqvae.get("latent_channels", 4)
    if unet.get("in_channels", 3 if checkpoint.prompt == "none" else 4) != channels:
        raise GencliError(
            f"{checkpoint.folder}: a UNet with in_channels = {unet.get('in_channels')} is not supported",
            f"its autoencoder has {channels} channels",
        )
    if "bert" in checkpoint.configs:
        reads, told = unet.get("cross_attention_dim", 1280), checkpoint.configs["bert"].get("d_model", 1280)
        if reads != told:
            raise GencliError(
                f"{checkpoint.folder}: a UNet with cross_attention_dim = {reads!s:.40} and a text encoder with "
                f"d_model = {told!s:.40} do not fit each other"
            )
