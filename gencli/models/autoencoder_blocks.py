"""Encoder and decoder that the autoencoders of latent diffusion share (Rombach et al. 2022).

Attributes are named as the checkpoints of diffusers name them.
B: batch, H, W: height and width of an image, h, w: of its latents, C: latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.attention_blocks import AttentionBlock
from gencli.models.module import BaseModel
from gencli.models.unet_blocks import Downsample2D, MidBlock, ResnetBlock2D, Upsample2D

EPS = 1e-6  # of every norm here; no config key changes it
DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


class AutoencoderConfig(Protocol):
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


class Level(nn.Module):
    """DownEncoderBlock2D and UpDecoderBlock2D, or with Attn: residual blocks, each with an attention or none."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        *,
        groups: int,
        attention: bool,
        resample: Downsample2D | Upsample2D | None,
    ):
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(
            ResnetBlock2D(widths[i], widths[i + 1], groups=groups, eps=EPS) for i in range(layers)
        )
        self.attentions = nn.ModuleList(_attention(out_channels, groups) for _ in range(layers if attention else 0))
        self.downsamplers = nn.ModuleList([resample] if isinstance(resample, Downsample2D) else [])
        self.upsamplers = nn.ModuleList([resample] if isinstance(resample, Upsample2D) else [])

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', H', W') for x (B, C, H, W): half or twice the size, or the same."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            x = self.attentions[i](x) if self.attentions else x
        for resample in (*self.downsamplers, *self.upsamplers):
            x = resample(x)
        return x


def _levels(
    widths: Sequence[int],
    layers: int,
    groups: int,
    attended: Sequence[bool],
    resample: Callable[[int], Downsample2D | Upsample2D],
) -> nn.ModuleList:
    return nn.ModuleList(
        Level(
            widths[max(i - 1, 0)],
            width,
            layers,
            groups=groups,
            attention=attended[i],
            resample=resample(width) if i < len(widths) - 1 else None,
        )
        for i, width in enumerate(widths)
    )


def _mid_block(config: AutoencoderConfig, channels: int) -> MidBlock:
    groups = config.norm_num_groups
    return MidBlock(
        channels,
        resnet=partial(ResnetBlock2D, groups=groups, eps=EPS),
        attention=partial(_attention, groups=groups) if config.mid_block_add_attention else None,
    )


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig, out_channels: int):
        super().__init__()
        widths = config.block_out_channels
        groups, layers = config.norm_num_groups, config.layers_per_block
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        attended = [kind == DOWN[1] for kind in config.down_block_types]
        self.down_blocks = _levels(widths, layers, groups, attended, partial(Downsample2D, padding=0))
        self.mid_block = _mid_block(config, widths[-1])
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return what latents are made of, (B, out_channels, h, w), for images x (B, 3, H, W)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths = config.block_out_channels[::-1]
        groups, layers = config.norm_num_groups, config.layers_per_block + 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = _mid_block(config, widths[0])
        attended = [kind == UP[1] for kind in config.up_block_types]
        self.up_blocks = _levels(widths, layers, groups, attended, Upsample2D)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W) of latents z (B, C, h, w)."""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Autoencoder(BaseModel):
    """Base class of autoencoders: what callers need besides `encode` and `decode`."""

    config: AutoencoderConfig

    @property
    def scale(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about -1..1, of latents (B, C, h, w), unscaled."""
        raise NotImplementedError

    def decode_tiled(self, z: Tensor, tile: int = 64, overlap: int = 16) -> Tensor:
        """Decode in square tiles of `tile` latents a side that overlap by `overlap` and are blended there.

        Takes the memory of the image and one tile. Latents no larger than a tile give exactly the image of `decode`;
        larger ones nearly, as the norms and the attention see one tile at a time.
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
    """Yield (start, end) of the tiles along a side: all but the last are whole, neighbours share `overlap`."""
    for start in range(0, max(size - overlap, 1), tile - overlap):
        yield start, min(start + tile, size)


def _fade(start: int, end: int, size: int, overlap: int, scale: int) -> Tensor:
    """Return float32 weights of a tile's pixels along a side: linear ramps where tiles overlap, which sum to 1."""
    weights = torch.ones((end - start) * scale)
    ramp = torch.arange(overlap * scale) / max(overlap * scale, 1)
    if start > 0:
        weights[: len(ramp)] = ramp
    if end < size:
        weights[len(weights) - len(ramp) :] = 1 - ramp
    return weights
