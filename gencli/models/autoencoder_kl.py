"""The KL autoencoder of latent diffusion (Rombach et al. 2022): pictures to latents and back.

Attributes are named as diffusers' checkpoints name them.
B: batch, H, W: height and width of a picture, h, w: of its latents, C: latent channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.attention_blocks import OLD_ATTENTION_NAMES, AttentionBlock
from gencli.models.base import Layout, check_flags, check_ints, check_numbers, read_config
from gencli.models.unet_blocks import (
    Downsample2D,
    MidBlock,
    ResnetBlock2D,
    Upsample2D,
    check_levels,
    check_sample_size,
)

EPS = 1e-6  # of every norm here; no config key changes it


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """config.json of an autoencoder; defaults are those of diffusers' class.

    `scaling_factor` and `shift_factor` are for the caller: the UNet's latents are (z - shift_factor) · scaling_factor.
    `force_upcast` asks for float32 where half precision overflows.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] | None = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> AutoencoderKLConfig:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        config = read_config(cls, raw)
        config.check()
        return config

    def check(self) -> None:
        """Bounds that any real model keeps, so that a hostile config allocates nothing."""
        check_levels(self, ("DownEncoderBlock2D",), ("UpDecoderBlock2D",))
        check_ints(self, {"in_channels": 256, "out_channels": 256, "latent_channels": 1024, "layers_per_block": 16})
        check_numbers(self, {"scaling_factor": (1e-6, 1e6)})
        if self.shift_factor is not None:
            check_numbers(self, {"shift_factor": (-1e6, 1e6)})
        check_sample_size(self)
        check_flags(self)


class DownEncoderBlock2D(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, layers: int, *, groups: int, downsample: bool):
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(
            ResnetBlock2D(widths[i], widths[i + 1], groups=groups, eps=EPS) for i in range(layers)
        )
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels, padding=0)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for module in [*self.resnets, *self.downsamplers]:
            x = module(x)
        return x


class UpDecoderBlock2D(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, layers: int, *, groups: int, upsample: bool):
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(
            ResnetBlock2D(widths[i], widths[i + 1], groups=groups, eps=EPS) for i in range(layers)
        )
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for module in [*self.resnets, *self.upsamplers]:
            x = module(x)
        return x


def _mid_block(config: AutoencoderKLConfig, channels: int) -> MidBlock:
    groups = config.norm_num_groups
    return MidBlock(
        channels,
        resnet=partial(ResnetBlock2D, groups=groups, eps=EPS),
        attention=partial(AttentionBlock, heads=1, groups=groups, eps=EPS) if config.mid_block_add_attention else None,
    )


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        widths = config.block_out_channels
        groups, layers = config.norm_num_groups, config.layers_per_block
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownEncoderBlock2D(before, width, layers, groups=groups, downsample=level < len(widths) - 1)
            for level, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.mid_block = _mid_block(config, widths[-1])
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        widths = config.block_out_channels[::-1]
        groups, layers = config.norm_num_groups, config.layers_per_block + 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = _mid_block(config, widths[0])
        self.up_blocks = nn.ModuleList(
            UpDecoderBlock2D(before, width, layers, groups=groups, upsample=level < len(widths) - 1)
            for level, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.use_post_quant_conv else nn.Identity()

    @property
    def scale(self) -> int:
        """Pixels a latent place, along each side."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) in -1..1 → mean and log variance of their latents, (B, C, h, w) each, unscaled."""
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, h, w), unscaled → pictures (B, 3, H, W), about -1..1."""
        return self.decoder(self.post_quant_conv(z))

    def decode_tiled(self, z: Tensor, tile: int = 64, overlap: int = 16) -> Tensor:
        """`decode` in square tiles of `tile` latent places that share `overlap` of them, faded into each other.

        Memory is the picture's and one tile's. Latents no larger than a tile give exactly `decode`'s picture; larger
        ones nearly: the norms and the attention see one tile at a time.
        Raises ValueError unless 0 <= overlap <= tile / 2.
        """
        if not 0 <= 2 * overlap <= tile or tile < 1:
            raise ValueError(f"overlap {overlap} of tiles of {tile}")
        B, _, h, w = z.shape
        f = self.scale
        x = z.new_zeros(B, self.config.out_channels, h * f, w * f)
        for top, bottom in _spans(h, tile, overlap):
            down = _fade(top, bottom, h, overlap, f).to(z)[:, None]
            for left, right in _spans(w, tile, overlap):
                across = _fade(left, right, w, overlap, f).to(z)
                part = self.decode(z[:, :, top:bottom, left:right])
                x[:, :, top * f : bottom * f, left * f : right * f] += part * down * across
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Pictures through the mean of their latents and back."""
        return self.decode(self.encode(x)[0])


def _spans(size: int, tile: int, overlap: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the tiles along a side: all but the last are whole, neighbours share `overlap`."""
    for start in range(0, max(size - overlap, 1), tile - overlap):
        yield start, min(start + tile, size)


def _fade(start: int, end: int, size: int, overlap: int, scale: int) -> Tensor:
    """Weights of a tile's pixels along a side, float32: straight ramps where it shares some; all tiles' sum to 1."""
    weights = torch.ones((end - start) * scale)
    ramp = torch.arange(overlap * scale) / max(overlap * scale, 1)
    if start > 0:
        weights[: len(ramp)] = ramp
    if end < size:
        weights[len(weights) - len(ramp) :] = 1 - ramp
    return weights


LAYOUT = Layout(renames=OLD_ATTENTION_NAMES)
Config, Model = AutoencoderKLConfig, AutoencoderKL
