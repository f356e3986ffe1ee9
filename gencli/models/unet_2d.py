"""The UNet without a text (Ho et al. 2020, arXiv 2006.11239), as UNet2DModel of diffusers.

Attributes are named as the checkpoint names them. B: batch, C, H, W: channels, height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.attention_blocks import OLD_ATTENTION_NAMES, AttentionBlock
from gencli.models.base import BaseConfig, Layout, check_ints
from gencli.models.module import BaseModel
from gencli.models.unet_blocks import (
    Downsample2D,
    Level,
    MidBlock,
    ResnetBlock2D,
    SamplerFactory,
    TimestepEmbedding,
    Upsample2D,
    down_path,
    resampler,
    timestep_embedding,
    up_path,
)
from gencli.models.unet_config_checks import check_levels, check_unet

DOWN = ("AttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D")
UP = ("AttnUpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D")
MID = ("UNetMidBlock2D", None)


@dataclass(frozen=True)
class UNet2DConfig(BaseConfig):
    """config.json of an unconditional UNet; defaults are those of the class in diffusers.

    attention_head_dim: the size of a head here; null means one head. attn_norm_num_groups: of the mid block only.
    """

    ONLY: ClassVar = {
        "time_embedding_type": ("positional",),
        "downsample_type": ("conv",),
        "upsample_type": ("conv",),
    }
    INERT = frozenset({"num_train_timesteps"})  # read for learned time embeddings only

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D",) + ("AttnDownBlock2D",) * 3
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D",) * 3 + ("UpBlock2D",)
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    num_class_embeds: int | None = None

    def check(self) -> None:
        check_levels(self, DOWN, UP)
        for key in ("time_embedding_dim", "attention_head_dim", "attn_norm_num_groups", "num_class_embeds"):
            if getattr(self, key) is not None:
                check_ints(self, {key: 2**16})
        check_unet(self, MID)
        types = zip(self.down_block_types, self.up_block_types[::-1], strict=True)
        attended = [w for w, t in zip(self.block_out_channels, types, strict=True) if DOWN[0] in t or UP[0] in t]
        if self.mid_block_type is not None and self.add_attention:
            attended.append(self.block_out_channels[-1])
            groups = self.attn_norm_num_groups
            if groups and self.block_out_channels[-1] % groups:
                width = self.block_out_channels[-1]
                raise GencliError(f"config.json: attn_norm_num_groups = {groups} does not divide {width} channels")
        for width in attended:
            if width % (self.attention_head_dim or 1):
                raise GencliError(
                    f"config.json: attention_head_dim = {self.attention_head_dim} does not divide {width} channels"
                )


class UNet2DModel(BaseModel):
    def __init__(self, config: UNet2DConfig):
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        groups, eps = config.norm_num_groups, config.norm_eps
        temb_channels = config.time_embedding_dim or 4 * widths[0]
        scale_shift = config.resnet_time_scale_shift == "scale_shift"
        resnet = partial(
            ResnetBlock2D,
            groups=groups,
            eps=eps,
            temb_channels=temb_channels,
            scale_shift=scale_shift,
            dropout=config.dropout,
        )
        attentions = [
            partial(AttentionBlock, heads=width // (config.attention_head_dim or width), groups=groups, eps=eps)
            for width in widths
        ]
        last, layers = len(widths) - 1, [config.layers_per_block] * len(widths)

        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], temb_channels)
        if config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, temb_channels)
        halve, double = partial(Downsample2D, padding=config.downsample_padding), Upsample2D

        def level(i: int, kind: str, plain: SamplerFactory, direction: Literal["up", "down"]) -> Level:
            sampler = resampler(resnet, direction) if kind in (DOWN[2], UP[2]) else plain
            return Level(resnet, attentions[i] if kind in (DOWN[0], UP[0]) else None, sampler)

        down = [level(i, kind, halve, "down") for i, kind in enumerate(config.down_block_types)]
        self.down_blocks = down_path(widths, layers, down)
        if config.mid_block_type is not None:
            factor = config.mid_block_scale_factor
            attention = partial(
                attentions[last],
                groups=config.attn_norm_num_groups or (None if scale_shift else groups),
                rescale_output_factor=factor,
            )
            self.mid_block = MidBlock(
                widths[last],
                resnet=partial(resnet, output_scale_factor=factor),
                attention=attention if config.add_attention else None,
            )
        up = [level(i, kind, double, "up") for i, kind in enumerate(config.up_block_types[::-1])]
        self.up_blocks = up_path(widths, layers, up)
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps=eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return the prediction (B, C, H, W) for a noisy sample (B, C, H, W) at timesteps (B,), and classes (B,) if the
        model has classes. Timesteps may be fractional."""
        if self.config.center_input_sample:
            sample = 2 * sample - 1
        waves = timestep_embedding(
            timestep.expand(sample.shape[0]),
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        temb = self.time_embedding(waves.to(sample.dtype))
        if self.config.num_class_embeds is not None:
            assert class_labels is not None
            temb = temb + self.class_embedding(class_labels.to(sample.device).expand(len(sample)))
        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            x, states = block(x, temb, None)
            skips += states
        if self.config.mid_block_type is not None:
            x = self.mid_block(x, temb)
        for block in self.up_blocks:
            x = block(x, temb, None, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


LAYOUT = Layout(renames=OLD_ATTENTION_NAMES)
Config, Model = UNet2DConfig, UNet2DModel
