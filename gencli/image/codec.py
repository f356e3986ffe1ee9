"""Between images and what a network draws: latents, by an autoencoder, or the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gencli.image.files.pictures import from_picture, to_picture
from gencli.models.autoencoder_blocks import Autoencoder

SKETCH = 24  # latents a side of a sketch


@dataclass(frozen=True)
class LatentDistribution:
    """The latents of an image: mean and std, (1, C, h, w); std None where they are certain."""

    mean: Tensor
    std: Tensor | None = None

    def sample(self, draw_noise: Callable[[], Tensor], batch: int) -> Tensor:
        """(B, C, h, w). Draws noise only if there is a std."""
        if self.std is None:
            return self.mean.expand(batch, -1, -1, -1)
        return self.mean + self.std * draw_noise()


@dataclass(frozen=True)
class Codec:
    """vae: None for networks in pixels. channels: of an image in pixels. factor: pixels a side of one latent."""

    vae: Autoencoder | None
    channels: int
    factor: int
    device: torch.device

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of an image's latents, or of the image itself if there is no autoencoder."""
        channels = self.channels if self.vae is None else self.vae.latent_channels
        return channels, height // self.factor, width // self.factor

    def encode(self, picture: Image.Image, hidden: Tensor | None = None) -> LatentDistribution:
        """The latents of an image (1, C, h, w), scaled as the network knows them.

        hidden (1, 1, H, W): where it is 1 the image is grey instead. A VQ autoencoder's latents have no std; without an
        autoencoder they are the image itself.
        """
        config = None if self.vae is None else self.vae.config
        x = from_picture(picture, self.channels if config is None else config.in_channels)
        x = (x if hidden is None else x * (hidden < 0.5)).to(self.device)
        if self.vae is None:
            return LatentDistribution(x)
        encoded = self.vae.encode(x)
        mean, logvar = encoded if isinstance(encoded, tuple) else (encoded, None)
        shift, scale = self._scaling
        return LatentDistribution((mean - shift) * scale, None if logvar is None else (logvar / 2).exp() * scale)

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Image.Image:
        """The image of one (1, C, h, w). Raises GencliError when it holds values that are not numbers."""
        return to_picture(self.pixels(latents, tiled=tiled)[0])

    def pixels(self, latents: Tensor, *, tiled: bool = False) -> Tensor:
        """Images (B, 3, H, W) in about −1..1 of latents (B, C, h, w)."""
        if self.vae is None:
            return latents
        z = self.unscale(latents.float())
        return self.vae.decode_tiled(z) if tiled else self.vae.decode(z)

    def unscale(self, latents: Tensor) -> Tensor:
        """The network's latents as the autoencoder knows them."""
        shift, scale = self._scaling
        return latents / scale + shift

    @cached_property
    def _scaling(self) -> tuple[Tensor | float, Tensor | float]:
        """Shift and scale between the autoencoder's latents z and the network's, (z - shift) · scale."""
        assert self.vae is not None
        config = self.vae.config
        stated = [getattr(config, key, None) for key in ("latents_mean", "latents_std")]
        if stated[0] is None:
            return config.shift_factor or 0.0, config.scaling_factor
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=self.device).view(1, -1, 1, 1) for values in stated
        )
        return mean, config.scaling_factor / std

    def sketch(self, latents: Tensor) -> Image.Image:
        """A small image of one (1, C, h, w), for little time: its latents are averaged to a few first."""
        if self.vae is None:
            return to_picture(latents[0])
        shrink = max(latents.shape[2:]) / SKETCH
        if shrink > 1:
            height, width = (max(round(side / shrink), 1) for side in latents.shape[2:])
            latents = F.adaptive_avg_pool2d(latents, (height, width))
        return self.decode(latents)
