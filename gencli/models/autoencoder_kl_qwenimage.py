"""The autoencoder of Qwen-Image, which is Wan 2.1's for videos (arXiv 2503.20314), for one image, as
AutoencoderKLQwenImage of diffusers.

Its convolutions look at earlier frames too, of which an image has none: zeros stand for them, so that of each kernel
only the slice of the last frame counts, and the convolution is one of two axes. What halves or doubles the number of
frames leaves a first frame as it is, and is not read.
B: batch, H, W: height and width of an image, h, w: of its latents, C: latent channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.autoencoder_blocks import Autoencoder
from gencli.models.base import BaseConfig, Layout, Rename, check_ints

MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
    -0.9497, 0.2503, -0.2921,
)  # fmt: skip
STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
    2.8251, 1.916,
)  # fmt: skip


@dataclass(frozen=True)
class AutoencoderKLQwenImageConfig(BaseConfig):
    """config.json of Qwen-Image's autoencoder; defaults are those of the class in diffusers.

    latents_mean, latents_std: for the caller; the latents of the transformer are (z − mean) / std.
    """

    ONLY: ClassVar = {"attn_scales": ([],)}
    INERT = frozenset({"dropout"})

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    input_channels: int = 3
    latents_mean: tuple[float, ...] = MEAN
    latents_std: tuple[float, ...] = STD

    scaling_factor: ClassVar[float] = 1.0
    shift_factor: ClassVar[float | None] = None

    def check(self) -> None:
        check_ints(self, {"base_dim": 1024, "z_dim": 1024, "dim_mult": 64, "num_res_blocks": 16, "input_channels": 16})
        levels, halves = self.dim_mult, self.temperal_downsample
        if not isinstance(levels, tuple) or not 2 <= len(levels) <= 8:
            raise GencliError(f"config.json: dim_mult = {levels!r:.80} is not supported")
        if not isinstance(halves, tuple) or len(halves) != len(levels) - 1:
            raise GencliError(f"config.json: temperal_downsample = {halves!r:.80} is not one for each halving")
        for key, least in (("latents_mean", -1e6), ("latents_std", 1e-6)):
            value = getattr(self, key)
            if not isinstance(value, tuple) or len(value) != self.z_dim:
                raise GencliError(f"config.json: {key} = {value!r:.80} is not a list of {self.z_dim} numbers")
            if not all(type(one) in (int, float) and least <= one <= 1e6 for one in value):
                raise GencliError(f"config.json: {key} = {value!r:.80} has a value out of range")

    @property
    def in_channels(self) -> int:
        return self.input_channels

    @property
    def out_channels(self) -> int:
        return self.input_channels

    @property
    def latent_channels(self) -> int:
        return self.z_dim

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        return tuple(self.base_dim * factor for factor in self.dim_mult)


class RMSNorm(nn.Module):
    """The norm over the channels at every place."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for x (B, C, H, W)."""
        return F.normalize(x, dim=1) * (len(self.gamma) ** 0.5 * self.gamma)[:, None, None]


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = RMSNorm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = RMSNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', H, W) for x (B, C, H, W)."""
        y = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class AttentionBlock(nn.Module):
    """Self-attention of one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = RMSNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for x (B, C, H, W)."""
        q, k, v = (one.flatten(2).transpose(1, 2)[:, None] for one in self.to_qkv(self.norm(x)).chunk(3, dim=1))
        y = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj(y.transpose(1, 2).reshape(x.shape))


class MidBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList([AttentionBlock(channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Resample(nn.Module):
    """Half the height and width, or twice."""

    def __init__(self, inputs: int, outputs: int, before: nn.Module, *, stride: int):
        super().__init__()
        self.resample = nn.Sequential(before, nn.Conv2d(inputs, outputs, 3, stride, padding=stride % 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


def halving(channels: int) -> Resample:
    return Resample(channels, channels, nn.ZeroPad2d((0, 1, 0, 1)), stride=2)


def doubling(channels: int) -> Resample:
    return Resample(channels, channels // 2, nn.Upsample(scale_factor=2.0, mode="nearest-exact"), stride=1)


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderKLQwenImageConfig):
        super().__init__()
        widths = (config.base_dim, *config.block_out_channels)
        self.conv_in = nn.Conv2d(config.input_channels, widths[0], 3, padding=1)
        blocks: list[nn.Module] = []
        for level, (inputs, outputs) in enumerate(itertools.pairwise(widths), 1):
            blocks += [ResidualBlock(outputs if i else inputs, outputs) for i in range(config.num_res_blocks)]
            blocks += [halving(outputs)] if level < len(config.dim_mult) else []
        self.down_blocks = nn.ModuleList(blocks)
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = RMSNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return what latents are made of, (B, 2 C, h, w), for images x (B, 3, H, W)."""
        return finished(self, through(self.conv_in(x), [*self.down_blocks, self.mid_block]))


class UpBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, layers: int, *, last: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(outputs if i else inputs, outputs) for i in range(layers))
        self.upsamplers = nn.ModuleList([] if last else [doubling(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        return through(x, [*self.resnets, *self.upsamplers])


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderKLQwenImageConfig):
        super().__init__()
        widths, layers = config.block_out_channels[::-1], config.num_res_blocks + 1
        self.conv_in = nn.Conv2d(config.z_dim, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0])
        inputs = (widths[0], *(width // 2 for width in widths[:-1]))
        self.up_blocks = nn.ModuleList(
            UpBlock(before, width, layers, last=level == len(widths))
            for level, (before, width) in enumerate(zip(inputs, widths, strict=True), 1)
        )
        self.norm_out = RMSNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.input_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Return (B, 3, H, W) for latents z (B, C, h, w)."""
        return finished(self, through(self.conv_in(z), [self.mid_block, *self.up_blocks]))


def through(x: Tensor, layers: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Return what layers, one after the other, make of x."""
    for layer in layers:
        x = layer(x)
    return x


def finished(end: Encoder | Decoder, x: Tensor) -> Tensor:
    return end.conv_out(F.silu(end.norm_out(x)))


class AutoencoderKLQwenImage(Autoencoder):
    config: AutoencoderKLQwenImageConfig

    def __init__(self, config: AutoencoderKLQwenImageConfig):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.z_dim, config.z_dim, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance (B, C, h, w), unscaled, of the latents of images (B, 3, H, W) in -1..1."""
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in -1..1 of latents (B, C, h, w), unscaled."""
        return self.decoder(self.post_quant_conv(z)).clamp(-1, 1)


def last_frame(kernel: Tensor) -> Tensor:
    """Return the slice (out, in, rows, columns) of the last frame of a kernel (out, in, frames, rows, columns); that of
    a convolution without frames as it is."""
    return kernel[:, :, -1] if kernel.ndim == 5 else kernel


LAYOUT = Layout(
    renames=(
        Rename(r"(.*conv(?:1|2|_in|_out|_shortcut)?)\.weight", r"\1.weight", last_frame),
        Rename(r"(.*)\.gamma", r"\1.gamma", torch.Tensor.flatten),
    ),
    drops=(r".*\.time_conv\.(weight|bias)",),
)
Config, Model = AutoencoderKLQwenImageConfig, AutoencoderKLQwenImage
