"""The UNet without a text: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", as diffusers' UNet2DModel.

Attributes are named as the checkpoint names them. B: batch, C, H, W: channels, height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.attention_blocks import OLD_ATTENTION_NAMES, AttentionBlock
from gencli.models.base import Layout, check_flags, check_ints, check_numbers, read_config
from gencli.models.module import BaseModel
from gencli.models.unet_blocks import (
    DownBlock,
    MidBlock,
    ResnetBlock2D,
    TimestepEmbedding,
    UpBlock,
    check_levels,
    check_sample_size,
    refuse,
    timestep_embedding,
)

DOWN = ("AttnDownBlock2D", "DownBlock2D")
UP = ("AttnUpBlock2D", "UpBlock2D")
MID = ("UNetMidBlock2D", None)

# Keys that are understood at these values alone; a key that is not named anywhere is refused unless it is null.
ONLY: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional",),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
}
INERT = {"num_train_timesteps"}  # read for learned time embeddings alone


@dataclass(frozen=True)
class UNet2DConfig:
    """config.json of an unconditional UNet; defaults are those of diffusers' class.

    `attention_head_dim` is the size of a head here; null is one head. `attn_norm_num_groups` is of the middle alone.
    """

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

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> UNet2DConfig:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        config = read_config(cls, raw, inert=INERT, only=ONLY)
        config.check()
        return config

    def check(self) -> None:
        """Bounds that any real model keeps, so that a hostile config allocates nothing."""
        check_levels(self, DOWN, UP)
        check_ints(self, {"in_channels": 1024, "out_channels": 1024, "layers_per_block": 16})
        check_ints(self, {"downsample_padding": 1}, least=0)
        numbers = {"norm_eps": (0.0, 1.0), "mid_block_scale_factor": (1e-6, 1e6), "dropout": (0.0, 1.0)}
        check_numbers(self, numbers | {"freq_shift": (0.0, 1.0)})
        for key in ("time_embedding_dim", "attention_head_dim", "attn_norm_num_groups", "num_class_embeds"):
            if getattr(self, key) is not None:
                check_ints(self, {key: 2**16})
        check_sample_size(self)
        check_flags(self)
        if self.mid_block_type not in MID:
            raise refuse("mid_block_type", self.mid_block_type, f"gencli knows {', '.join(map(str, MID))}")
        if self.resnet_time_scale_shift not in ("default", "scale_shift"):
            raise refuse("resnet_time_scale_shift", self.resnet_time_scale_shift)
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
        groups, eps, layers = config.norm_num_groups, config.norm_eps, config.layers_per_block
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
        last = len(widths) - 1

        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], temb_channels)
        if config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, temb_channels)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                widths[max(level - 1, 0)],
                width,
                layers,
                resnet=resnet,
                attention=attentions[level] if config.down_block_types[level] == "AttnDownBlock2D" else None,
                downsample_padding=config.downsample_padding if level < last else None,
            )
            for level, width in enumerate(widths)
        )
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
        self.up_blocks = nn.ModuleList(
            UpBlock(
                widths[min(level + 1, last)],
                widths[level],
                [widths[level]] * layers + [widths[max(level - 1, 0)]],
                resnet=resnet,
                attention=attentions[level] if config.up_block_types[last - level] == "AttnUpBlock2D" else None,
                upsample=level > 0,
            )
            for level in range(last, -1, -1)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps=eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The prediction (B, C, H, W) for a noisy sample (B, C, H, W) at timesteps (B,), which may be fractions, of
        classes (B,) where it is told such."""
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
