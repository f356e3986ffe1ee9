"""The UNet conditioned on a text: Stable Diffusion 1, 2 (Rombach et al. 2022, arXiv 2112.10752) and XL (Podell et al.
2023, arXiv 2307.01952), and models distilled from them, as UNet2DConditionModel of diffusers.

Attributes are named as the checkpoint names them. B: batch, C, H, W: channels, height and width of the latents, L, D:
tokens of the text and their width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.attention_blocks import Transformer2DModel
from gencli.models.base import BaseConfig, Layout, check_ints
from gencli.models.module import BaseModel
from gencli.models.unet_blocks import (
    AttentionFactory,
    MidBlock,
    ResnetBlock2D,
    TimestepEmbedding,
    check_levels,
    check_unet,
    down_path,
    refuse,
    timestep_embedding,
    up_path,
)

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D")
MID = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)
DEPTHS = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")


@dataclass(frozen=True)
class UNet2DConditionConfig(BaseConfig):
    """config.json of a text-conditioned UNet; defaults are those of the class in diffusers.

    Where a tuple may stand for an int it has one value per level, largest images first. attention_head_dim: the NUMBER
    of heads (diffusers issue 2011), like num_attention_heads, which later configs have beside it.
    transformer_layers_per_block: may have a tuple per attention of a level; then `reverse_…`, deepest level first, is
    of the up blocks. addition_embed_type: text_time for SDXL's pooled text and numbers with `addition_time_embed_dim`
    sinusoids each. time_cond_proj_dim: width of the guidance embedding of a latent consistency model.
    """

    ONLY: ClassVar = {
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
    # The first is read with other kinds of addition_embed_type only; softmax is always in float32.
    INERT = frozenset({"addition_embed_type_num_heads", "upcast_attention"})

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
    def prepare(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**raw, **{key: _tuples(value) for key, value in raw.items() if key in DEPTHS}}

    def check(self) -> None:
        check_levels(self, DOWN, UP)
        check_unet(self, MID)
        check_ints(self, {"cross_attention_dim": 2**14, "attention_head_dim": 2**10})
        for key in ("time_embedding_dim", "num_attention_heads", "time_cond_proj_dim"):
            if getattr(self, key) is not None:
                check_ints(self, {key: 2**15})
        for key in ("layers_per_block", "cross_attention_dim", "attention_head_dim"):
            self.levels(key)
        for level, layers in enumerate(self.levels("layers_per_block")):
            self.depths(level, layers)
            self.depths(level, layers + 1, up=True)
        if self.addition_embed_type is not None:
            if self.addition_embed_type != "text_time":
                raise refuse("addition_embed_type", self.addition_embed_type, "gencli knows text_time")
            check_ints(self, {"addition_time_embed_dim": 2**15, "projection_class_embeddings_input_dim": 2**15})
        if self.only_cross_attention and self.only_cross_attention != (False,) * len(self.block_out_channels):
            raise refuse("only_cross_attention", self.only_cross_attention)
        for width, heads in zip(self.block_out_channels, self.heads, strict=True):
            if width % heads:
                raise GencliError(f"config.json: block_out_channels has {width}, no multiple of its {heads} heads")

    def depths(self, level: int, attentions: int, *, up: bool = False) -> tuple[int, ...]:
        """Return the layers of each of a level's `attentions`, in the down or up blocks. Raises GencliError."""
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
        """Return a value per level of a key that is one number or one number per level. Raises GencliError."""
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
    """The down blocks and the mid block of a UNet, which its ControlNets have too."""

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
        attentions = [
            _attention(config, level, config.depths(level, layers[level])) if kind == DOWN[0] else None
            for level, kind in enumerate(config.down_block_types)
        ]
        padding = config.downsample_padding
        self.down_blocks = down_path(widths, layers, resnet=resnet, attentions=attentions, padding=padding)
        if config.mid_block_type is not None:
            crossed = config.mid_block_type == MID[0]
            self.mid_block = MidBlock(
                widths[last],
                resnet=partial(resnet, output_scale_factor=config.mid_block_scale_factor),
                attention=_attention(config, last, config.depths(last, layers[last])) if crossed else None,
                resnets=2 if crossed else 1,
            )

    def embed_time(self, timestep: Tensor, sample: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the embedding (B, E) of timesteps (B,) or (1,), in the dtype of the sample (B, C, H, W).

        cond (B or 1, G): the guidance embedding of a latent consistency model.
        """
        waves = timestep_embedding(
            timestep.expand(sample.shape[0]),
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        return self.time_embedding(waves.to(sample.dtype), None if cond is None else cond.to(sample.dtype))

    def embed_added(self, text_embeds: Tensor, time_ids: Tensor, sample: Tensor) -> Tensor:
        """Return SDXL's embedding (B, E) of pooled texts (B, P) and of numbers (B or 1, N), each as sinusoids."""
        waves = timestep_embedding(
            time_ids.flatten(),
            self.config.addition_time_embed_dim,  # type: ignore[arg-type]
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        waves = waves.reshape(len(time_ids), -1).expand(len(text_embeds), -1)
        return self.add_embedding(torch.cat([text_embeds, waves], dim=1).to(sample.dtype))

    def descend(self, x: Tensor, temb: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the output of the mid block for the output x of `conv_in`, and the skip connections, x first."""
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
        attentions = [
            _attention(config, level, config.depths(level, layers[level] + 1, up=True)) if kind == UP[0] else None
            for level, kind in enumerate(config.up_block_types[::-1])
        ]
        self.up_blocks = up_path(widths, layers, resnet=_resnet(config), attentions=attentions)
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
        """Return the prediction (B, C, H, W) for a noisy sample (B, C, H, W) at timesteps (B,) and a text (B, L, D).

        Timesteps may be fractional. Height and width may be any: a level of an odd size is upsampled to that size.
        down_residuals, mid_residual: of ControlNets, added to the skip connections and to the output of the mid block.
        text_embeds (B, P), time_ids (B, 6): pooled text and sizes for SDXL. timestep_cond (B, G): the guidance
        embedding of a latent consistency model.
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
    """Return a function that makes a level's attentions, one per call, with the next of `depths` as its layers."""
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
