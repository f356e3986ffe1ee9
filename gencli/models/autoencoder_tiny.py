"""The tiny autoencoder (madebyollin's TAESD): the latents of a large one to images and back, in little time and memory.

Attributes are named as the checkpoints of diffusers (AutoencoderTiny) name them.
B: batch, H, W: height and width of an image, h, w: of its latents, C: latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.autoencoder_blocks import Autoencoder
from gencli.models.base import BaseConfig, Layout, check_ints, check_numbers

LIKE = "AutoencoderKL"
RANGE = 3.0  # of latents, to which its decoder bends them


@dataclass(frozen=True)
class AutoencoderTinyConfig(BaseConfig):
    """config.json of a tiny autoencoder; defaults are those of the class in diffusers.

    num_encoder_blocks, num_decoder_blocks: of each level, the encoder's from the image on, the decoder's to it.
    scaling_factor, shift_factor: for the caller, as of AutoencoderKL; its latents are those that the network knows.
    """

    # latent_magnitude and latent_shift: how latents are kept as bytes
    INERT = frozenset({"latent_magnitude", "latent_shift", "force_upcast", "block_out_channels", "sample_size"})
    ONLY: ClassVar = {"act_fn": ("relu",), "upsample_fn": ("nearest",), "upsampling_scaling_factor": (2,)}

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4
    scaling_factor: float = 1.0
    shift_factor: float | None = 0.0

    latents_mean = None  # a KL autoencoder may have some; not a key here

    def check(self) -> None:
        check_ints(self, {"in_channels": 256, "out_channels": 256, "latent_channels": 1024})
        check_ints(self, {"num_encoder_blocks": 64, "num_decoder_blocks": 64}, least=0)
        check_ints(self, {"encoder_block_out_channels": 2**12, "decoder_block_out_channels": 2**12})
        check_numbers(self, {"scaling_factor": (1e-6, 1e6)})
        if self.shift_factor is not None:
            check_numbers(self, {"shift_factor": (-1e6, 1e6)})
        for half in ("encoder", "decoder"):
            widths, blocks = getattr(self, f"{half}_block_out_channels"), getattr(self, f"num_{half}_blocks")
            if not isinstance(widths, tuple) or not isinstance(blocks, tuple) or not 1 <= len(widths) <= 10:
                raise GencliError(f"config.json: {half}_block_out_channels = {widths!r:.80} is not a list of widths")
            if len(blocks) != len(widths) or len(set(widths)) > 1:
                raise GencliError(
                    f"config.json: {half}_block_out_channels = {widths!r:.80}: expected one width for every level, as "
                    f"many as num_{half}_blocks"
                )
        if len(self.encoder_block_out_channels) != len(self.decoder_block_out_channels):
            raise GencliError("config.json: its encoder and its decoder have another number of levels each")

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        return self.decoder_block_out_channels


class Block(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        first, second, third = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels, H, W) for x of the same shape."""
        return F.relu(self.conv(x) + x)


class EncoderTiny(nn.Module):
    def __init__(self, config: AutoencoderTinyConfig):
        super().__init__()
        width, layers = config.encoder_block_out_channels[0], list[nn.Module]()
        for level, blocks in enumerate(config.num_encoder_blocks):
            halves = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
            layers.append(halves if level else nn.Conv2d(config.in_channels, width, 3, padding=1))
            layers += [Block(width) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, config.latent_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return latents (B, C, h, w) of images (B, 3, H, W) in -1..1."""
        return self.layers((x + 1) / 2)


class DecoderTiny(nn.Module):
    def __init__(self, config: AutoencoderTinyConfig):
        super().__init__()
        width, last = config.decoder_block_out_channels[0], len(config.num_decoder_blocks) - 1
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
        for level, blocks in enumerate(config.num_decoder_blocks):
            layers += [Block(width) for _ in range(blocks)]
            if level == last:
                layers.append(nn.Conv2d(width, config.out_channels, 3, padding=1))
            else:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about -1..1, of latents (B, C, h, w)."""
        return self.layers(torch.tanh(z / RANGE) * RANGE) * 2 - 1


class AutoencoderTiny(Autoencoder):
    config: AutoencoderTinyConfig

    def __init__(self, config: AutoencoderTinyConfig):
        super().__init__()
        self.config = config
        self.encoder = EncoderTiny(config)
        self.decoder = DecoderTiny(config)

    def encode(self, x: Tensor) -> Tensor:
        """Return latents (B, C, h, w) of images (B, 3, H, W) in -1..1."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about -1..1, of latents (B, C, h, w)."""
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        """Encode images and decode them."""
        return self.decode(self.encode(x))


LAYOUT = Layout()
Config, Model = AutoencoderTinyConfig, AutoencoderTiny
