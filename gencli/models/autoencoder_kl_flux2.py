"""The autoencoder of FLUX.2: AutoencoderKL, of whose latents 2 × 2 are one, normed channel by channel, as
AutoencoderKLFlux2 of diffusers.

B: batch, H, W: height and width of an image, h, w: of its latents, C: channels of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.attention_blocks import OLD_ATTENTION_NAMES
from gencli.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from gencli.models.base import Layout, check_numbers

PATCH = 2


@dataclass(frozen=True)
class AutoencoderKLFlux2Config(AutoencoderKLConfig):
    """config.json of FLUX.2's autoencoder; defaults are those of the class in diffusers."""

    ONLY: ClassVar = {
        "patch_size": ([PATCH, PATCH],),
        "decoder_block_out_channels": (None,),
    }
    INERT = frozenset({"batch_norm_momentum"})

    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 32
    sample_size: int | tuple[int, int] | None = 1024
    scaling_factor: float = 1.0
    batch_norm_eps: float = 1e-4

    def check(self) -> None:
        super().check()
        check_numbers(self, {"batch_norm_eps": (0.0, 1.0)})


class Statistics(nn.Module):
    """Mean and variance of each channel of the latents."""

    def __init__(self, channels: int):
        super().__init__()
        self.running_mean = nn.Parameter(torch.empty(channels))
        self.running_var = nn.Parameter(torch.empty(channels))


class AutoencoderKLFlux2(AutoencoderKL):
    config: AutoencoderKLFlux2Config

    def __init__(self, config: AutoencoderKLFlux2Config):
        super().__init__(config)
        self.bn = Statistics(self.latent_channels)

    @property
    def latent_channels(self) -> int:
        """The C of its latents as the network knows them."""
        return PATCH**2 * self.config.latent_channels

    @property
    def scale(self) -> int:
        return PATCH * super().scale

    @property
    def _mean_std(self) -> tuple[Tensor, Tensor]:
        std = (self.bn.running_var + self.config.batch_norm_eps).sqrt()
        return self.bn.running_mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def decode_tiled(self, z: Tensor, tile: int = 64 // PATCH, overlap: int = 16 // PATCH) -> Tensor:
        """As `Autoencoder.decode_tiled`, in tiles of as many pixels."""
        return super().decode_tiled(z, tile, overlap)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents (B, C, h, w) of images (B, 3, H, W) in -1..1: the means, as the pipeline takes them."""
        mean, std = self._mean_std
        return (F.pixel_unshuffle(self.moments(x)[0], PATCH) - mean) / std

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about -1..1, of latents (B, C, h, w)."""
        mean, std = self._mean_std
        return super().decode(F.pixel_shuffle(z * std + mean, PATCH))


LAYOUT = Layout(renames=OLD_ATTENTION_NAMES, drops=(r"bn\.num_batches_tracked",))
Config, Model = AutoencoderKLFlux2Config, AutoencoderKLFlux2
