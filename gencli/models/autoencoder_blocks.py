"""Encoder and decoder that the autoencoders of latent diffusion share (Rombach et al. 2022).

Attributes are named as the checkpoints of diffusers name them.
B: batch, H, W: height and width of an image, h, w: of its latents, C: latent channels.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.attention_blocks import Attention, AttentionBlock, to_image, to_tokens
from gencli.models.module import BaseModel
from gencli.models.unet_blocks import Downsample2D, MidBlock, ResnetBlock2D, Upsample2D

EPS = 1e-6  # of every norm here; no config key changes it
DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


class SizedConfig(Protocol):
    """What tells the sizes of an autoencoder's images and latents, and the scale of these."""

    @property
    def in_channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def block_out_channels(self) -> tuple[int, ...]: ...
    @property
    def scaling_factor(self) -> float: ...
    @property
    def shift_factor(self) -> float | None: ...


class AutoencoderConfig(SizedConfig, Protocol):
    """What encoder and decoder read of a config."""

    @property
    def down_block_types(self) -> tuple[str, ...]: ...
    @property
    def up_block_types(self) -> tuple[str, ...]: ...
    @property
    def layers_per_block(self) -> int: ...
    @property
    def norm_num_groups(self) -> int: ...
    @property
    def mid_block_add_attention(self) -> bool: ...


@dataclass(frozen=True)
class Blocks:
    """How the blocks of an encoder or decoder are made: of two widths, and of one."""

    resnet: Callable[[int, int], nn.Module]
    attention: Callable[[int], nn.Module]


def blocks(groups: int) -> Blocks:
    """Residual blocks and attention with norms over `groups` of channels."""
    resnet = partial(ResnetBlock2D, groups=groups, eps=EPS)
    return Blocks(resnet, partial(AttentionBlock, heads=1, groups=groups, eps=EPS))


class SpatialNorm(nn.Module):
    """GroupNorm whose scale and shift at every position are read off the latents there (Zheng et al. 2022, "MoVQ",
    arXiv 2209.09002)."""

    def __init__(self, channels: int, latent_channels: int):
        super().__init__()
        self.norm_layer = nn.GroupNorm(32, channels, eps=EPS)
        self.conv_y = nn.Conv2d(latent_channels, channels, 1)
        self.conv_b = nn.Conv2d(latent_channels, channels, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return (B, C, H, W) for x (B, C, H, W) and latents z (B, C', h, w)."""
        z = F.interpolate(z, size=x.shape[2:], mode="nearest")
        return self.norm_layer(x) * self.conv_y(z) + self.conv_b(z)


class SpatialResnet(nn.Module):
    """A residual block with such norms."""

    def __init__(self, in_channels: int, out_channels: int, latent_channels: int):
        super().__init__()
        self.norm1 = SpatialNorm(in_channels, latent_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = SpatialNorm(out_channels, latent_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return (B, C, H, W) for x (B, C', H, W) and latents z."""
        h = self.conv1(F.silu(self.norm1(x, z)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h, z)))


class SpatialAttention(AttentionBlock):
    """Self-attention with such a norm."""

    def __init__(self, channels: int, latent_channels: int):
        super().__init__(channels, 1, groups=None, eps=EPS)
        self.spatial_norm = SpatialNorm(channels, latent_channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return (B, C, H, W) for x (B, C, H, W). context (B, C', h, w): the latents."""
        return x + to_image(Attention.forward(self, to_tokens(self.spatial_norm(x, context))), like=x)


def spatial_blocks(latent_channels: int) -> Blocks:
    return Blocks(
        partial(SpatialResnet, latent_channels=latent_channels),
        partial(SpatialAttention, latent_channels=latent_channels),
    )


class Level(nn.Module):
    """DownEncoderBlock2D and UpDecoderBlock2D, or with Attn: residual blocks, each with an attention or none."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        made: Blocks,
        *,
        attention: bool,
        resample: Downsample2D | Upsample2D | None,
    ):
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(made.resnet(widths[i], widths[i + 1]) for i in range(layers))
        self.attentions = nn.ModuleList(made.attention(out_channels) for _ in range(layers if attention else 0))
        self.downsamplers = nn.ModuleList([resample] if isinstance(resample, Downsample2D) else [])
        self.upsamplers = nn.ModuleList([resample] if isinstance(resample, Upsample2D) else [])

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Return (B, C', H', W') for x (B, C, H, W): half or twice the size, or the same. z: latents that norms read
        (`SpatialNorm`)."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, z)
            x = self.attentions[i](x, z) if self.attentions else x
        for resample in (*self.downsamplers, *self.upsamplers):
            x = resample(x)
        return x


def _levels(
    widths: Sequence[int],
    layers: int,
    made: Blocks,
    attended: Sequence[bool],
    resample: Callable[[int], Downsample2D | Upsample2D],
) -> nn.ModuleList:
    return nn.ModuleList(
        Level(
            widths[max(i - 1, 0)],
            width,
            layers,
            made,
            attention=attended[i],
            resample=resample(width) if i < len(widths) - 1 else None,
        )
        for i, width in enumerate(widths)
    )


def _mid_block(config: AutoencoderConfig, channels: int, made: Blocks) -> MidBlock:
    attention = made.attention if config.mid_block_add_attention else None
    return MidBlock(channels, resnet=made.resnet, attention=attention)


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig, out_channels: int):
        super().__init__()
        widths = config.block_out_channels
        groups, layers = config.norm_num_groups, config.layers_per_block
        made = blocks(groups)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        attended = [kind == DOWN[1] for kind in config.down_block_types]
        self.down_blocks = _levels(widths, layers, made, attended, partial(Downsample2D, padding=0))
        self.mid_block = _mid_block(config, widths[-1], made)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return what latents are made of, (B, out_channels, h, w), for images x (B, 3, H, W)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """spatial: channels of the latents that its norms read, None for ordinary norms."""

    def __init__(self, config: AutoencoderConfig, spatial: int | None = None):
        super().__init__()
        widths = config.block_out_channels[::-1]
        groups, layers = config.norm_num_groups, config.layers_per_block + 1
        made = blocks(groups) if spatial is None else spatial_blocks(spatial)
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = _mid_block(config, widths[0], made)
        attended = [kind == UP[1] for kind in config.up_block_types]
        self.up_blocks = _levels(widths, layers, made, attended, Upsample2D)
        ordinary = nn.GroupNorm(groups, widths[-1], eps=EPS) if spatial is None else None
        self.conv_norm_out = ordinary or SpatialNorm(widths[-1], spatial or 1)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Return (B, out_channels, H, W) for x (B, latent_channels, h, w) and latents z that its norms read."""
        x = self.mid_block(self.conv_in(x), z, z)
        for block in self.up_blocks:
            x = block(x, z)
        return self.conv_out(F.silu(self.conv_norm_out(x) if z is None else self.conv_norm_out(x, z)))


class Autoencoder(BaseModel, abc.ABC):
    """Base class of autoencoders: what callers need besides `encode` and `decode`."""

    config: SizedConfig

    @property
    def scale(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        """The C of its latents."""
        return self.config.latent_channels

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return latents (B, C, h, w), unscaled, of images (B, 3, H, W) in -1..1, or their mean and log variance."""

    @abc.abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about -1..1, of latents (B, C, h, w), unscaled."""

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
