"""The UNet that reads a text: Stable Diffusion 1 and 2 (Rombach et al. 2022), as diffusers' UNet2DConditionModel.

Attributes are named as the checkpoint names them. B: batch, C, H, W: a latent's channels, height and width, L, D: the
text's tokens and their width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.attention_blocks import Transformer2DModel
from gencli.models.base import Layout, check_flags, check_ints, check_numbers, read_config
from gencli.models.unet_blocks import (
    AttentionFactory,
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

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D")
MID = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)

# Keys that are understood at these values alone; a key that is not named anywhere is refused unless it is null.
ONLY: dict[str, tuple[Any, ...]] = {
    "dual_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
}
INERT = {
    "addition_embed_type_num_heads",  # read with addition_embed_type alone
    "upcast_attention",  # scores are always made in float32
}


@dataclass(frozen=True)
class UNet2DConditionConfig:
    """config.json of a text-conditioned UNet; defaults are those of diffusers' class.

    Where a tuple stands for an int it has one value a level, widest pictures first. `attention_head_dim` is the NUMBER
    of heads (diffusers issue 2011); `num_attention_heads`, which later configs have beside it, says the same.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    dropout: float = 0.0
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    use_linear_projection: bool = False
    resnet_time_scale_shift: str = "default"
    time_embedding_dim: int | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> UNet2DConditionConfig:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        config = read_config(cls, raw, inert=INERT, only=ONLY)
        config.check()
        return config

    def check(self) -> None:
        """Bounds that any real model keeps, so that a hostile config allocates nothing."""
        check_levels(self, DOWN, UP)
        bounds = {"in_channels": 1024, "out_channels": 1024, "cross_attention_dim": 2**14, "layers_per_block": 16}
        check_ints(self, bounds | {"transformer_layers_per_block": 16, "attention_head_dim": 2**10})
        check_ints(self, {"downsample_padding": 1}, least=0)
        numbers = {"norm_eps": (0.0, 1.0), "mid_block_scale_factor": (1e-6, 1e6), "dropout": (0.0, 1.0)}
        check_numbers(self, numbers | {"freq_shift": (0.0, 1.0)})
        for key in ("time_embedding_dim", "num_attention_heads"):
            if getattr(self, key) is not None:
                check_ints(self, {key: 2**15})
        for key in ("layers_per_block", "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim"):
            self.levels(key)
        check_sample_size(self)
        check_flags(self)
        if self.only_cross_attention and self.only_cross_attention != (False,) * len(self.block_out_channels):
            raise refuse("only_cross_attention", self.only_cross_attention)
        if self.mid_block_type not in MID:
            raise refuse("mid_block_type", self.mid_block_type, f"gencli knows {', '.join(map(str, MID))}")
        if self.resnet_time_scale_shift not in ("default", "scale_shift"):
            raise refuse("resnet_time_scale_shift", self.resnet_time_scale_shift)
        for width, heads in zip(self.block_out_channels, self.heads, strict=True):
            if width % heads:
                raise GencliError(f"config.json: block_out_channels has {width}, no multiple of its {heads} heads")

    def levels(self, key: str) -> tuple[int, ...]:
        """A value for each level, from a key that is one number or one number a level. Raises GencliError."""
        value = getattr(self, key)
        count = len(self.block_out_channels)
        if isinstance(value, tuple) and len(value) != count:
            raise GencliError(f"config.json: {key} has {len(value)} entries, block_out_channels {count}")
        return value if isinstance(value, tuple) else (value,) * count

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        return self.levels("attention_head_dim" if self.num_attention_heads is None else "num_attention_heads")

    @property
    def temb_channels(self) -> int:
        """Width of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]


class DownPath(nn.Module):
    """The way down and the middle of a UNet, which its ControlNets have too."""

    def __init__(self, config: UNet2DConditionConfig):
        super().__init__()
        self.config = config
        widths, layers = config.block_out_channels, config.levels("layers_per_block")
        resnet, attentions = _resnet(config), _attentions(config)
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], config.temb_channels)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                widths[max(level - 1, 0)],
                width,
                layers[level],
                resnet=resnet,
                attention=attentions[level] if config.down_block_types[level] == "CrossAttnDownBlock2D" else None,
                downsample_padding=config.downsample_padding if level < last else None,
            )
            for level, width in enumerate(widths)
        )
        if config.mid_block_type is not None:
            crossed = config.mid_block_type == "UNetMidBlock2DCrossAttn"
            self.mid_block = MidBlock(
                widths[last],
                resnet=partial(resnet, output_scale_factor=config.mid_block_scale_factor),
                attention=attentions[last] if crossed else None,
                resnets=2 if crossed else 1,
            )

    def embed_time(self, timestep: Tensor, sample: Tensor) -> Tensor:
        """The embedding (B, E) of timesteps (B,) or (1,), in the dtype of the sample (B, C, H, W)."""
        waves = timestep_embedding(
            timestep.expand(sample.shape[0]),
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        return self.time_embedding(waves.to(sample.dtype))

    def descend(self, x: Tensor, temb: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """From what `conv_in` gave to the middle's output, and every state on the way down, the first one included."""
        skips = [x]
        for block in self.down_blocks:
            x, states = block(x, temb, context)
            skips += states
        if self.config.mid_block_type is not None:
            x = self.mid_block(x, temb, context)
        return x, skips


class UNet2DConditionModel(DownPath):
    def __init__(self, config: UNet2DConditionConfig):
        super().__init__(config)
        widths, layers = config.block_out_channels, config.levels("layers_per_block")
        resnet, attentions = _resnet(config), _attentions(config)
        last = len(widths) - 1
        self.up_blocks = nn.ModuleList(
            UpBlock(
                widths[min(level + 1, last)],
                widths[level],
                [widths[level]] * layers[level] + [widths[max(level - 1, 0)]],
                resnet=resnet,
                attention=attentions[level] if config.up_block_types[last - level] == "CrossAttnUpBlock2D" else None,
                upsample=level > 0,
            )
            for level in range(last, -1, -1)
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        down_residuals: Sequence[Tensor] | None = None,
        mid_residual: Tensor | None = None,
    ) -> Tensor:
        """The prediction (B, C, H, W) for a noisy sample (B, C, H, W) at timesteps (B,) given a text (B, L, D).

        Timesteps may be fractions. Any height and width does: a level of an odd size is upsampled to that size again.
        down_residuals and mid_residual, from ControlNets, are added to what the way up begins from and reads.
        """
        if self.config.center_input_sample:
            sample = 2 * sample - 1
        temb = self.embed_time(timestep, sample)
        x, skips = self.descend(self.conv_in(sample), temb, encoder_hidden_states)
        if down_residuals is not None:
            skips = [skip + residual for skip, residual in zip(skips, down_residuals, strict=True)]
        if mid_residual is not None:
            x = x + mid_residual
        for block in self.up_blocks:
            x = block(x, temb, encoder_hidden_states, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def _resnet(config: UNet2DConditionConfig) -> partial[ResnetBlock2D]:
    return partial(
        ResnetBlock2D,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        temb_channels=config.temb_channels,
        scale_shift=config.resnet_time_scale_shift == "scale_shift",
        dropout=config.dropout,
    )


def _attentions(config: UNet2DConditionConfig) -> list[AttentionFactory]:
    """How the attention of each level is made."""
    return [
        partial(
            Transformer2DModel,
            heads=config.heads[level],
            layers=config.levels("transformer_layers_per_block")[level],
            context_channels=config.levels("cross_attention_dim")[level],
            groups=config.norm_num_groups,
            linear=config.use_linear_projection,
        )
        for level in range(len(config.block_out_channels))
    ]


LAYOUT = Layout()
Config, Model = UNet2DConditionConfig, UNet2DConditionModel
