"""Encoder and decoder that the autoencoders of latent diffusion share (Rombach et al. 2022).

Attributes are named as diffusers' checkpoints name them.
B: batch, H, W: height and width of a picture, h, w: of its latents, C: latent channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.attention_blocks import AttentionBlock
from gencli.models.module import BaseModel
from gencli.models.unet_blocks import Downsample2D, MidBlock, ResnetBlock2D, Upsample2D

EPS = 1e-6  # of every norm here; no config key changes it
DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


class Levels(Protocol):
    """What encoder and decoder read of a config."""

    @property
    def in_channels(self) -> int: ...
    @property
    def down_block_types(self) -> tuple[str, ...]: ...
    @property
    def up_block_types(self) -> tuple[str, ...]: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def block_out_channels(self) -> tuple[int, ...]: ...
    @property
    def layers_per_block(self) -> int: ...
    @property
    def norm_num_groups(self) -> int: ...
    @property
    def mid_block_add_attention(self) -> bool: ...


def _attention(channels: int, groups: int) -> AttentionBlock:
    return AttentionBlock(channels, heads=1, groups=groups, eps=EPS)


class DownEncoderBlock2D(nn.Module):
    """DownEncoderBlock2D and AttnDownEncoderBlock2D: residual blocks, each with an attention behind it or not."""

    def __init__(
        self, in_channels: int, out_channels: int, layers: int, *, groups: int, attention: bool, downsample: bool
    ):
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(
            ResnetBlock2D(widths[i], widths[i + 1], groups=groups, eps=EPS) for i in range(layers)
        )
        self.attentions = nn.ModuleList(_attention(out_channels, groups) for _ in range(layers if attention else 0))
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels, padding=0)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        return _level(x, self.resnets, self.attentions, self.downsamplers)


class UpDecoderBlock2D(nn.Module):
    """UpDecoderBlock2D and AttnUpDecoderBlock2D: the same on the way up."""

    def __init__(
        self, in_channels: int, out_channels: int, layers: int, *, groups: int, attention: bool, upsample: bool
    ):
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(
            ResnetBlock2D(widths[i], widths[i + 1], groups=groups, eps=EPS) for i in range(layers)
        )
        self.attentions = nn.ModuleList(_attention(out_channels, groups) for _ in range(layers if attention else 0))
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        return _level(x, self.resnets, self.attentions, self.upsamplers)


def _level(x: Tensor, resnets: nn.ModuleList, attentions: nn.ModuleList, resampler: nn.ModuleList) -> Tensor:
    for i, resnet in enumerate(resnets):
        x = resnet(x)
        x = attentions[i](x) if attentions else x
    return resampler[0](x) if resampler else x


def _mid_block(config: Levels, channels: int) -> MidBlock:
    groups = config.norm_num_groups
    return MidBlock(
        channels,
        resnet=partial(ResnetBlock2D, groups=groups, eps=EPS),
        attention=partial(_attention, groups=groups) if config.mid_block_add_attention else None,
    )


class Encoder(nn.Module):
    def __init__(self, config: Levels, out_channels: int):
        super().__init__()
        widths = config.block_out_channels
        groups, layers = config.norm_num_groups, config.layers_per_block
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownEncoderBlock2D(
                before,
                width,
                layers,
                groups=groups,
                attention=config.down_block_types[level] == DOWN[1],
                downsample=level < len(widths) - 1,
            )
            for level, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.mid_block = _mid_block(config, widths[-1])
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, config: Levels):
        super().__init__()
        widths = config.block_out_channels[::-1]
        groups, layers = config.norm_num_groups, config.layers_per_block + 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = _mid_block(config, widths[0])
        self.up_blocks = nn.ModuleList(
            UpDecoderBlock2D(
                before,
                width,
                layers,
                groups=groups,
                attention=config.up_block_types[level] == UP[1],
                upsample=level < len(widths) - 1,
            )
            for level, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Autoencoder(BaseModel):
    """What callers ask of any autoencoder, beside `encode` and `decode`."""

    config: Any

    @property
    def scale(self) -> int:
        """Pixels a latent place, along each side."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, h, w), unscaled → pictures (B, 3, H, W), about -1..1."""
        raise NotImplementedError

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
