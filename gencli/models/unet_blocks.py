"""Convolutional blocks that UNets and autoencoders share, named as the checkpoints of diffusers name them.

Blocks are built by factories, so that a UNet says once how its residual and attention blocks are made:
`resnet(in_channels, out_channels)`, `attention(channels)`, and `sampler(channels)` for what halves or doubles a level.
Every attention is called as `attention(x, context)`, every sampler as `sampler(x, temb)`, upwards `(x, temb, size)`.
B: batch, C: channels, H, W: height and width, E: width of the time embedding, L, D: context tokens and their width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.activations import ACTIVATIONS

ResnetFactory = Callable[[int, int], nn.Module]
AttentionFactory = Callable[[int], nn.Module]
SamplerFactory = Callable[[int], nn.Module]


def timestep_embedding(timesteps: Tensor, dim: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Return sinusoids (B, dim) in float32 of timesteps (B,), which may be fractional (Ho et al. 2020).

    Sine first, or cosine first with `flip_sin_to_cos`; `freq_shift` 1 makes the last wavelength exactly 2π · 10000.
    """
    half = dim // 2
    # The order of roundings is that of the references: an angle may be 999, where the last digit is 6e-5.
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / (half - freq_shift)
    angles = timesteps.float()[:, None] * torch.exp(exponent)[None]
    waves = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    return F.pad(torch.cat(waves, dim=1), (0, dim % 2))


class TimestepEmbedding(nn.Module):
    def __init__(
        self, in_channels: int, time_embed_dim: int, cond_channels: int | None = None, *, act_fn: str = "silu"
    ):
        """cond_channels: width of a condition beside the time (the guidance scale, of consistency models)."""
        super().__init__()
        self.act = ACTIVATIONS[act_fn]
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        if cond_channels is not None:
            self.cond_proj = nn.Linear(cond_channels, in_channels, bias=False)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the embedding (B, E) of sinusoids x (B, C), of a condition (B, D) too if there is one."""
        if cond is not None:
            x = x + self.cond_proj(cond)
        return self.linear_2(self.act(self.linear_1(x)))


class ResnetBlock2D(nn.Module):
    """GroupNorm, activation and convolution, twice, and a shortcut; the time embedding shifts (and scales) the middle.

    resample: the size changes before the first convolution and on the shortcut (Dhariwal & Nichol 2021): down by means
    of 2×2 positions, up by repetition. skip_time_act: the time embedding comes with its activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        temb_channels: int | None = None,
        scale_shift: bool = False,
        output_scale_factor: float = 1.0,
        dropout: float = 0.0,
        act_fn: str = "silu",
        skip_time_act: bool = False,
        resample: Literal["up", "down"] | None = None,
    ):
        super().__init__()
        self.act, self.skip_time_act, self.resample = ACTIVATIONS[act_fn], skip_time_act, resample
        self.scale_shift = scale_shift
        self.output_scale_factor = output_scale_factor
        self.dropout = dropout
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if temb_channels is not None:
            self.time_emb_proj = nn.Linear(temb_channels, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """size: height and width that `resample` goes up to, unless twice those of x."""
        h = self.act(self.norm1(x))
        if self.resample is not None:
            x, h = (_resize(one, self.resample, size) for one in (x, h))
        h = self.conv1(h)
        if temb is None:
            h = self.norm2(h)
        else:
            shift = self.time_emb_proj(temb if self.skip_time_act else self.act(temb))[:, :, None, None]
            if self.scale_shift:
                scale, shift = shift.chunk(2, dim=1)
                h = self.norm2(h) * (1 + scale) + shift
            else:
                h = self.norm2(h + shift)
        h = self.conv2(F.dropout(self.act(h), self.dropout, self.training))
        h = self.conv_shortcut(x) + h
        return h if self.output_scale_factor == 1 else h / self.output_scale_factor


def _resize(x: Tensor, direction: Literal["up", "down"], size: tuple[int, int] | None) -> Tensor:
    if direction == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, size=size or (2 * x.shape[2], 2 * x.shape[3]), mode="nearest")


class Downsample2D(nn.Module):
    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        if self.padding == 0:
            x = F.pad(x, (0, 1, 0, 1))  # right and bottom only, as in the first DDPM code
        return self.conv(x)


class Upsample2D(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, temb: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Upsample to twice the height and width, or to `size`: that of a level with odd sides before it was halved."""
        return self.conv(_resize(x, "up", size))


def _modules(modules: list[nn.Module]) -> nn.ModuleList | None:
    return nn.ModuleList(modules) if modules else None


class DownBlock(nn.Module):
    """DownBlock2D, ResnetDownsampleBlock2D, and those with attention; they differ in how size changes and attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        *,
        resnet: ResnetFactory,
        attention: AttentionFactory | None,
        sampler: SamplerFactory | None,
    ):
        """sampler: None for the last level, which is not halved."""
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(resnet(widths[i], widths[i + 1]) for i in range(layers))
        self.attentions = _modules([attention(out_channels) for _ in range(layers)] if attention else [])
        self.downsamplers = _modules([sampler(out_channels)] if sampler else [])

    def forward(self, x: Tensor, temb: Tensor, context: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Return the output of the level, and the states that the up blocks read (skip connections)."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            if self.attentions is not None:
                x = self.attentions[i](x, context)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x, temb)
            skips.append(x)
        return x, skips


class UpBlock(nn.Module):
    """UpBlock2D, ResnetUpsampleBlock2D, and those with attention; they differ in how size changes and attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        skip_channels: list[int],
        *,
        resnet: ResnetFactory,
        attention: AttentionFactory | None,
        sampler: SamplerFactory | None,
    ):
        """skip_channels: widths of the states of the down blocks, one per residual block, in the order of use."""
        super().__init__()
        widths = [in_channels] + [out_channels] * len(skip_channels)
        self.resnets = nn.ModuleList(resnet(widths[i] + skip, out_channels) for i, skip in enumerate(skip_channels))
        self.attentions = _modules([attention(out_channels) for _ in skip_channels] if attention else [])
        self.upsamplers = _modules([sampler(out_channels)] if sampler else [])

    def forward(self, x: Tensor, temb: Tensor, context: Tensor | None, skips: list[Tensor]) -> Tensor:
        """skips: the remaining states of the down blocks; this level takes its own from the end."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), temb)
            if self.attentions is not None:
                x = self.attentions[i](x, context)
        if self.upsamplers is not None:
            size = (skips[-1].shape[2], skips[-1].shape[3])
            x = self.upsamplers[0](x, temb, size)
        return x


class MidBlock(nn.Module):
    """UNetMidBlock2D and UNetMidBlock2DCrossAttn: residual block, attention if any, residual block."""

    def __init__(self, channels: int, *, resnet: ResnetFactory, attention: AttentionFactory | None, resnets: int = 2):
        super().__init__()
        self.attentions = _modules([attention(channels)] if attention else [])
        self.resnets = nn.ModuleList(resnet(channels, channels) for _ in range(resnets))

    def forward(self, x: Tensor, temb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        x = self.resnets[0](x, temb)
        if self.attentions is not None:
            x = self.attentions[0](x, context)
        for resnet in [*self.resnets][1:]:
            x = resnet(x, temb)
        return x


@dataclass(frozen=True)
class Level:
    """How the blocks of one level are made: residual blocks and attentions, and what halves or doubles the size."""

    resnet: ResnetFactory
    attention: AttentionFactory | None
    sampler: SamplerFactory


class Resampling(Protocol):
    """Makes a residual block that doubles or halves the size."""

    def __call__(
        self, in_channels: int, out_channels: int, /, *, resample: Literal["up", "down"] | None = None
    ) -> nn.Module: ...


def resampler(resnet: Resampling, direction: Literal["up", "down"]) -> SamplerFactory:
    """Return what changes the size after a level within a residual block."""
    return lambda channels: resnet(channels, channels, resample=direction)


def down_path(widths: Sequence[int], layers: Sequence[int], levels: Sequence[Level]) -> nn.ModuleList:
    """Make the down blocks of a UNet: one per width, with `layers` residual blocks and an attention or none."""
    last = len(widths) - 1
    return nn.ModuleList(
        DownBlock(
            widths[max(i - 1, 0)],
            width,
            layers[i],
            resnet=levels[i].resnet,
            attention=levels[i].attention,
            sampler=levels[i].sampler if i < last else None,
        )
        for i, width in enumerate(widths)
    )


def up_path(widths: Sequence[int], layers: Sequence[int], levels: Sequence[Level]) -> nn.ModuleList:
    """Make the up blocks of a UNet, deepest first; the arguments are those of `down_path`, largest level first."""
    last = len(widths) - 1
    return nn.ModuleList(
        UpBlock(
            widths[min(i + 1, last)],
            widths[i],
            [widths[i]] * layers[i] + [widths[max(i - 1, 0)]],
            resnet=levels[i].resnet,
            attention=levels[i].attention,
            sampler=levels[i].sampler if i > 0 else None,
        )
        for i in range(last, -1, -1)
    )
