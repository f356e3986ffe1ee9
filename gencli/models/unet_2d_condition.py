"""The UNet that reads a text: Stable Diffusion 1, 2 (Rombach et al. 2022) and XL (Podell et al. 2023), and models made
faster from them, as diffusers' UNet2DConditionModel.

Attributes are named as the checkpoint names them. B: batch, C, H, W: a latent's channels, height and width, L, D: the
text's tokens and their width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.attention_blocks import Transformer2DModel
from gencli.models.base import Layout, check_flags, check_ints, check_numbers, read_config
from gencli.models.module import BaseModel
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
DEPTHS = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")

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
    "addition_embed_type_num_heads",  # read with other kinds of addition_embed_type alone
    "upcast_attention",  # scores are always made in float32
}


@dataclass(frozen=True)
class UNet2DConditionConfig:
    """config.json of a text-conditioned UNet; defaults are those of diffusers' class.

    Where a tuple stands for an int it has one value a level, widest pictures first. `attention_head_dim` is the NUMBER
    of heads (diffusers issue 2011); `num_attention_heads`, which later configs have beside it, says the same.
    `transformer_layers_per_block` may have a tuple for each attention of a level, and then `reverse_…`, deepest level
    first, has those of the way up. `addition_embed_type` text_time: SDXL's pooled text and numbers of
    `addition_time_embed_dim` waves each. `time_cond_proj_dim`: width of a latent consistency model's guidance.
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
    transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    use_linear_projection: bool = False
    resnet_time_scale_shift: str = "default"
    time_embedding_dim: int | None = None
    time_cond_proj_dim: int | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> UNet2DConditionConfig:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        depths = {key: _tuples(value) for key, value in raw.items() if key in DEPTHS}
        config = read_config(cls, {**raw, **depths}, inert=INERT, only=ONLY)
        config.check()
        return config

    def check(self) -> None:
        """Bounds that any real model keeps, so that a hostile config allocates nothing."""
        check_levels(self, DOWN, UP)
        bounds = {"in_channels": 1024, "out_channels": 1024, "cross_attention_dim": 2**14, "layers_per_block": 16}
        check_ints(self, bounds | {"attention_head_dim": 2**10})
        check_ints(self, {"downsample_padding": 1}, least=0)
        numbers = {"norm_eps": (0.0, 1.0), "mid_block_scale_factor": (1e-6, 1e6), "dropout": (0.0, 1.0)}
        check_numbers(self, numbers | {"freq_shift": (0.0, 1.0)})
        for key in ("time_embedding_dim", "num_attention_heads", "time_cond_proj_dim"):
            if getattr(self, key) is not None:
                check_ints(self, {key: 2**15})
        for key in ("layers_per_block", "cross_attention_dim", "attention_head_dim"):
            self.levels(key)
        for level, layers in enumerate(self.levels("layers_per_block")):
            self.depths(level, layers)
            self.depths(level, layers + 1, up=True)
        self._check_addition()
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

    def _check_addition(self) -> None:
        if self.addition_embed_type is None:
            return
        if self.addition_embed_type != "text_time":
            raise refuse("addition_embed_type", self.addition_embed_type, "gencli knows text_time")
        check_ints(self, {"addition_time_embed_dim": 2**15, "projection_class_embeddings_input_dim": 2**15})

    def depths(self, level: int, attentions: int, *, up: bool = False) -> tuple[int, ...]:
        """Transformer layers of each of a level's `attentions`, on the way down or up. Raises GencliError."""
        own = up and self.reverse_transformer_layers_per_block is not None
        depth = self.levels(DEPTHS[own])[-1 - level if own else level]
        depths = depth if isinstance(depth, tuple) else (depth,) * attentions
        if len(depths) != attentions or not all(type(one) is int and 0 <= one <= 64 for one in depths):
            raise GencliError(
                f"config.json: {DEPTHS[own]} has {depth!r:.80} for level {level + 1}",
                f"it has {attentions} attentions, each of 0 to 64 layers" + " on the way up" * up,
            )
        return depths

    def levels(self, key: str) -> tuple[Any, ...]:
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


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class DownPath(BaseModel):
    """The way down and the middle of a UNet, which its ControlNets have too."""

    def __init__(self, config: UNet2DConditionConfig):
        super().__init__()
        self.config = config
        widths, layers = config.block_out_channels, config.levels("layers_per_block")
        resnet, last = _resnet(config), len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], config.temb_channels, config.time_cond_proj_dim)
        if config.addition_embed_type == "text_time":
            self.add_embedding = TimestepEmbedding(
                config.projection_class_embeddings_input_dim or 0, config.temb_channels
            )
        self.down_blocks = nn.ModuleList(
            DownBlock(
                widths[max(level - 1, 0)],
                width,
                layers[level],
                resnet=resnet,
                attention=_attention(config, level, config.depths(level, layers[level]))
                if config.down_block_types[level] == "CrossAttnDownBlock2D"
                else None,
                downsample_padding=config.downsample_padding if level < last else None,
            )
            for level, width in enumerate(widths)
        )
        if config.mid_block_type is not None:
            crossed = config.mid_block_type == "UNetMidBlock2DCrossAttn"
            self.mid_block = MidBlock(
                widths[last],
                resnet=partial(resnet, output_scale_factor=config.mid_block_scale_factor),
                attention=_attention(config, last, config.depths(last, layers[last])) if crossed else None,
                resnets=2 if crossed else 1,
            )

    def embed_time(self, timestep: Tensor, sample: Tensor, cond: Tensor | None = None) -> Tensor:
        """The embedding (B, E) of timesteps (B,) or (1,), in the dtype of the sample (B, C, H, W).

        cond (B or 1, G): what a latent consistency model is told of its guidance.
        """
        waves = timestep_embedding(
            timestep.expand(sample.shape[0]),
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        return self.time_embedding(waves.to(sample.dtype), None if cond is None else cond.to(sample.dtype))

    def embed_added(self, text_embeds: Tensor, time_ids: Tensor, sample: Tensor) -> Tensor:
        """SDXL's embedding (B, E) of a pooled text (B, P) and of numbers (B or 1, N), each as waves of its own."""
        waves = timestep_embedding(
            time_ids.flatten(),
            self.config.addition_time_embed_dim,  # type: ignore[arg-type]
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        waves = waves.reshape(len(time_ids), -1).expand(len(text_embeds), -1)
        return self.add_embedding(torch.cat([text_embeds, waves], dim=1).to(sample.dtype))

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
        resnet, last = _resnet(config), len(widths) - 1
        self.up_blocks = nn.ModuleList(
            UpBlock(
                widths[min(level + 1, last)],
                widths[level],
                [widths[level]] * layers[level] + [widths[max(level - 1, 0)]],
                resnet=resnet,
                attention=_attention(config, level, config.depths(level, layers[level] + 1, up=True))
                if config.up_block_types[last - level] == "CrossAttnUpBlock2D"
                else None,
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
        *,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        timestep_cond: Tensor | None = None,
    ) -> Tensor:
        """The prediction (B, C, H, W) for a noisy sample (B, C, H, W) at timesteps (B,) given a text (B, L, D).

        Timesteps may be fractions. Any height and width does: a level of an odd size is upsampled to that size again.
        down_residuals and mid_residual, from ControlNets, are added to what the way up begins from and reads.
        SDXL is told the pooled text (B, P) and six numbers (B, 6) too, a latent consistency model its guidance (B, G).
        """
        if self.config.center_input_sample:
            sample = 2 * sample - 1
        temb = self.embed_time(timestep, sample, timestep_cond)
        if text_embeds is not None and time_ids is not None:
            temb = temb + self.embed_added(text_embeds, time_ids, sample)
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


def _attention(config: UNet2DConditionConfig, level: int, depths: Sequence[int]) -> AttentionFactory:
    """Makes a level's attentions, one a call, with as many layers each as `depths` says in turn."""
    layers = iter(depths)
    return lambda channels: Transformer2DModel(
        channels,
        config.heads[level],
        layers=next(layers),
        context_channels=config.levels("cross_attention_dim")[level],
        groups=config.norm_num_groups,
        linear=config.use_linear_projection,
    )


LAYOUT = Layout()
Config, Model = UNet2DConditionConfig, UNet2DConditionModel
