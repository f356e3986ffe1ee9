"""Convolutional blocks that UNets and autoencoders share, named as the checkpoints of diffusers name them.

Blocks are built by two factories, so that a UNet says once how its residual and attention blocks are made:
`resnet(in_channels, out_channels)` and `attention(channels)`. Every attention is called as `attention(x, context)`.
B: batch, C: channels, H, W: height and width, E: width of the time embedding, L, D: context tokens and their width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import check_flags, check_ints, check_numbers

ResnetFactory = Callable[[int, int], nn.Module]
AttentionFactory = Callable[[int], nn.Module]


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
    def __init__(self, in_channels: int, time_embed_dim: int, cond_channels: int | None = None):
        """cond_channels: width of a condition beside the time (the guidance scale, of consistency models)."""
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        if cond_channels is not None:
            self.cond_proj = nn.Linear(cond_channels, in_channels, bias=False)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is not None:
            x = x + self.cond_proj(cond)
        return self.linear_2(F.silu(self.linear_1(x)))


class ResnetBlock2D(nn.Module):
    """GroupNorm, SiLU and convolution, twice, and a shortcut; the time embedding shifts (and scales) the middle."""

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
    ):
        super().__init__()
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

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if temb is None:
            h = self.norm2(h)
        else:
            shift = self.time_emb_proj(F.silu(temb))[:, :, None, None]
            if self.scale_shift:
                scale, shift = shift.chunk(2, dim=1)
                h = self.norm2(h) * (1 + scale) + shift
            else:
                h = self.norm2(h + shift)
        h = self.conv2(F.dropout(F.silu(h), self.dropout, self.training))
        h = self.conv_shortcut(x) + h
        return h if self.output_scale_factor == 1 else h / self.output_scale_factor


class Downsample2D(nn.Module):
    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.padding == 0:
            x = F.pad(x, (0, 1, 0, 1))  # right and bottom only, as in the first DDPM code
        return self.conv(x)


class Upsample2D(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Upsample to twice the height and width, or to `size`: that of a level with odd sides before it was halved."""
        size = size or (2 * x.shape[2], 2 * x.shape[3])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


def _modules(modules: list[nn.Module]) -> nn.ModuleList | None:
    return nn.ModuleList(modules) if modules else None


class DownBlock(nn.Module):
    """DownBlock2D, AttnDownBlock2D and CrossAttnDownBlock2D, which differ only in the attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        *,
        resnet: ResnetFactory,
        attention: AttentionFactory | None,
        downsample_padding: int | None,
    ):
        """downsample_padding: None for the last level, which is not halved."""
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(resnet(widths[i], widths[i + 1]) for i in range(layers))
        self.attentions = _modules([attention(out_channels) for _ in range(layers)] if attention else [])
        down = [] if downsample_padding is None else [Downsample2D(out_channels, downsample_padding)]
        self.downsamplers = _modules([*down])

    def forward(self, x: Tensor, temb: Tensor, context: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Return the output of the level, and the states that the up blocks read (skip connections)."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            if self.attentions is not None:
                x = self.attentions[i](x, context)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class UpBlock(nn.Module):
    """UpBlock2D, AttnUpBlock2D and CrossAttnUpBlock2D, which differ only in the attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        skip_channels: list[int],
        *,
        resnet: ResnetFactory,
        attention: AttentionFactory | None,
        upsample: bool,
    ):
        """skip_channels: widths of the states of the down blocks, one per residual block, in the order of use."""
        super().__init__()
        widths = [in_channels] + [out_channels] * len(skip_channels)
        self.resnets = nn.ModuleList(resnet(widths[i] + skip, out_channels) for i, skip in enumerate(skip_channels))
        self.attentions = _modules([attention(out_channels) for _ in skip_channels] if attention else [])
        self.upsamplers = _modules([Upsample2D(out_channels)] if upsample else [])

    def forward(self, x: Tensor, temb: Tensor, context: Tensor | None, skips: list[Tensor]) -> Tensor:
        """skips: the remaining states of the down blocks; this level takes its own from the end."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), temb)
            if self.attentions is not None:
                x = self.attentions[i](x, context)
        if self.upsamplers is not None:
            size = (skips[-1].shape[2], skips[-1].shape[3])
            x = self.upsamplers[0](x, size)
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


def down_path(
    widths: Sequence[int],
    layers: Sequence[int],
    *,
    resnet: ResnetFactory,
    attentions: Sequence[AttentionFactory | None],
    padding: int,
) -> nn.ModuleList:
    """Make the down blocks of a UNet: one per width, with `layers` residual blocks and an attention or none."""
    last = len(widths) - 1
    return nn.ModuleList(
        DownBlock(
            widths[max(level - 1, 0)],
            width,
            layers[level],
            resnet=resnet,
            attention=attentions[level],
            downsample_padding=padding if level < last else None,
        )
        for level, width in enumerate(widths)
    )


def up_path(
    widths: Sequence[int],
    layers: Sequence[int],
    *,
    resnet: ResnetFactory,
    attentions: Sequence[AttentionFactory | None],
) -> nn.ModuleList:
    """Make the up blocks of a UNet, deepest level first; the arguments are those of `down_path`."""
    last = len(widths) - 1
    return nn.ModuleList(
        UpBlock(
            widths[min(level + 1, last)],
            widths[level],
            [widths[level]] * layers[level] + [widths[max(level - 1, 0)]],
            resnet=resnet,
            attention=attentions[level],
            upsample=level > 0,
        )
        for level in range(last, -1, -1)
    )


# --- checks that the configs of these models share


def refuse(key: str, value: Any, hint: str | None = None) -> GencliError:
    return GencliError(f"config.json: {key} = {value!r} is not supported", hint)


def check_levels(config: Any, down: tuple[str, ...], up: tuple[str, ...]) -> None:
    """Raise GencliError unless the levels of a UNet or autoencoder fit: a known block type per width, whole groups."""
    for key, known in (("block_out_channels", None), ("down_block_types", down), ("up_block_types", up)):
        value = getattr(config, key)
        if not isinstance(value, tuple) or not 1 <= len(value) <= 8:
            raise GencliError(f"config.json: {key} = {value!r} is no list of 1 to 8")
        for name in value:
            if known is not None and name not in known:
                raise refuse(key, name, f"gencli knows {', '.join(known)}")
        if len(value) != len(config.block_out_channels):
            raise GencliError(
                f"config.json: {key} has {len(value)} entries, block_out_channels {len(config.block_out_channels)}"
            )
    check_ints(config, {"block_out_channels": 2**14, "norm_num_groups": 2**14})
    for width in config.block_out_channels:
        if width % config.norm_num_groups:
            groups = config.norm_num_groups
            raise GencliError(f"config.json: block_out_channels has {width}, no multiple of norm_num_groups = {groups}")
    if config.act_fn not in ("silu", "swish"):
        raise refuse("act_fn", config.act_fn, "gencli knows silu and swish, which are one")


def check_unet(config: Any, mid_blocks: tuple[str | None, ...]) -> None:
    """Raise GencliError unless what the configs of all UNets have beside their levels is supported."""
    check_ints(config, {"in_channels": 1024, "out_channels": 1024, "layers_per_block": 16})
    check_ints(config, {"downsample_padding": 1}, least=0)
    numbers = {"norm_eps": (0.0, 1.0), "mid_block_scale_factor": (1e-6, 1e6), "dropout": (0.0, 1.0)}
    check_numbers(config, numbers | {"freq_shift": (0.0, 1.0)})
    check_sample_size(config)
    check_flags(config)
    if config.mid_block_type not in mid_blocks:
        raise refuse("mid_block_type", config.mid_block_type, f"gencli knows {', '.join(map(str, mid_blocks))}")
    if config.resnet_time_scale_shift not in ("default", "scale_shift"):
        raise refuse("resnet_time_scale_shift", config.resnet_time_scale_shift)


def check_sample_size(config: Any) -> None:
    """Raise GencliError unless `sample_size` is a side, a height and a width, or None."""
    if config.sample_size is not None:
        check_ints(config, {"sample_size": 2**14})
        if isinstance(config.sample_size, tuple) and len(config.sample_size) != 2:
            raise GencliError(f"config.json: sample_size = {config.sample_size!r} is no height and width")
