"""The UNet conditioned on a text: Stable Diffusion 1, 2 (Rombach et al. 2022, arXiv 2112.10752) and XL (Podell et al.
2023, arXiv 2307.01952), and models distilled from them; those of unCLIP (Ramesh et al. 2022, arXiv 2204.06125), Imagen
(Saharia et al. 2022, arXiv 2205.11487) and their upscalers; as UNet2DConditionModel of diffusers.

Attributes are named as the checkpoint names them. B: batch, C, H, W: channels, height and width of the latents, L, D:
tokens of the text and their width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from gencli.models.activations import ACTIVATIONS
from gencli.models.attention_blocks import AddedKeysAttention, Context, Transformer2DModel
from gencli.models.base import Layout
from gencli.models.module import BaseModel
from gencli.models.unet_2d_condition_config import CROSSED, RESAMPLED, SIMPLE, UNet2DConditionConfig
from gencli.models.unet_blocks import (
    AttentionFactory,
    Downsample2D,
    Level,
    MidBlock,
    ResnetBlock2D,
    TimestepEmbedding,
    Upsample2D,
    down_path,
    resampler,
    timestep_embedding,
    up_path,
)
from gencli.models.unet_embeddings import ImageProjection, ImageTimeEmbedding, TextTimeEmbedding


class DownPath(BaseModel):
    """The down blocks and the mid block of a UNet, which its ControlNets have too."""

    def __init__(self, config: UNet2DConditionConfig):
        super().__init__()
        self.config = config
        widths, layers, last = config.block_out_channels, config.levels("layers_per_block"), config.last_level
        embed = partial(TimestepEmbedding, act_fn=config.act_fn)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = embed(widths[0], config.temb_channels, config.time_cond_proj_dim)
        if config.addition_embed_type == "text_time":
            self.add_embedding: nn.Module = TimestepEmbedding(
                config.projection_class_embeddings_input_dim or 0, config.temb_channels
            )
        levels = [
            _level(config, i, kind, config.depths(i, layers[i]), "down")
            for i, kind in enumerate(config.down_block_types)
        ]
        self.down_blocks = down_path(widths, layers, levels)
        if config.mid_block_type is not None:
            attention = _attention(
                config, last, config.mid_block_type, config.depths(last, layers[last]), config.mid_only_cross_attention
            )
            resnet = _resnet(config, config.mid_block_type)
            self.mid_block = MidBlock(
                widths[last],
                resnet=partial(resnet, output_scale_factor=config.mid_block_scale_factor),
                attention=attention,
                resnets=2 if attention else 1,
            )

    def embed_time(self, timestep: Tensor, sample: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the embedding (B, E) of timesteps (B,) or (1,), in the dtype of the sample (B, C, H, W).

        cond (B or 1, G): the guidance embedding of a latent consistency model.
        """
        waves = self._waves(timestep, sample)
        return self.time_embedding(waves, None if cond is None else cond.to(sample.dtype))

    def _waves(self, timestep: Tensor, sample: Tensor) -> Tensor:
        """Sinusoids (B, C) of timesteps (B,) or (1,), in the dtype of the sample (B, …)."""
        waves = timestep_embedding(
            timestep.expand(sample.shape[0]),
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        return waves.to(sample.dtype)

    def embed_added(self, text_embeds: Tensor, time_ids: Tensor, sample: Tensor) -> Tensor:
        """Return SDXL's embedding (B, E) of pooled texts (B, P) and of numbers (B or 1, N), each as sinusoids."""
        assert self.config.addition_time_embed_dim is not None
        waves = timestep_embedding(
            time_ids.flatten(),
            self.config.addition_time_embed_dim,
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        waves = waves.reshape(len(time_ids), -1).expand(len(text_embeds), -1)
        return self.add_embedding(torch.cat([text_embeds, waves], dim=1).to(sample.dtype))

    def descend(self, x: Tensor, temb: Tensor, context: Context) -> tuple[Tensor, list[Tensor]]:
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
        self._make_embeddings(config)
        levels = [
            _level(config, i, kind, config.depths(i, layers[i] + 1, up=True), "up")
            for i, kind in enumerate(config.up_block_types[::-1])
        ]
        self.up_blocks = up_path(widths, layers, levels)
        self.act = ACTIVATIONS[config.act_fn]
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def _make_embeddings(self, config: UNet2DConditionConfig) -> None:
        """What is added to the time embedding, and what becomes the context, beside what ControlNets have."""
        temb, width = config.temb_channels, config.encoder_hid_dim or 0
        if config.class_embed_type == "timestep":
            self.class_embedding: nn.Module = TimestepEmbedding(
                config.block_out_channels[0], temb, act_fn=config.act_fn
            )
        elif config.class_embed_type == "projection":
            self.class_embedding = TimestepEmbedding(config.projection_class_embeddings_input_dim or 0, temb)
        elif config.class_embed_type is None and config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, temb)
        if config.addition_embed_type == "text":
            self.add_embedding = TextTimeEmbedding(config.text_width, temb, config.addition_embed_type_num_heads)
        elif config.addition_embed_type == "image":
            self.add_embedding = ImageTimeEmbedding(width, temb)
        reads = config.levels("cross_attention_dim")[0]
        if config.encoder_hid_dim_type == "text_proj":
            self.encoder_hid_proj: nn.Module = nn.Linear(width, reads)
        elif config.encoder_hid_dim_type == "image_proj":
            self.encoder_hid_proj = ImageProjection(width, reads)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        down_residuals: Sequence[Tensor] | None = None,
        mid_residual: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        image_embeds: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        timestep_cond: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction (B, C, H, W) for a noisy sample (B, C, H, W) at timesteps (B,) and a text (B, L, D).

        Timesteps may be fractional. Height and width may be any: a level of an odd size is upsampled to that size.
        down_residuals, mid_residual: of ControlNets, added to the skip connections and to the output of the mid block.
        text_embeds (B, P), time_ids (B, 6): pooled text and sizes for SDXL. timestep_cond (B, G): the guidance
        embedding of a latent consistency model. class_labels: see `class_embed_type`, (B, E), or (B,). image_embeds
        (B, P): of an image, in place of a text. attention_mask (B, L): false for tokens that nothing attends to.
        """
        if self.config.center_input_sample:
            sample = 2 * sample - 1
        temb = self.embed_time(timestep, sample, timestep_cond)
        for added in self._added(sample, encoder_hidden_states, class_labels, image_embeds, text_embeds, time_ids):
            temb = temb + added
        if self.config.time_embedding_act_fn is not None:
            temb = ACTIVATIONS[self.config.time_embedding_act_fn](temb)
        if self.config.encoder_hid_dim_type is not None:
            from_image = self.config.encoder_hid_dim_type == "image_proj"
            encoder_hidden_states = self.encoder_hid_proj(image_embeds if from_image else encoder_hidden_states)
        assert encoder_hidden_states is not None
        context: Context = encoder_hidden_states
        if attention_mask is not None:
            context = encoder_hidden_states, attention_mask
        x, skips = self.descend(self.conv_in(sample), temb, context)
        if down_residuals is not None:
            skips = [skip + residual for skip, residual in zip(skips, down_residuals, strict=True)]
        if mid_residual is not None:
            x = x + mid_residual
        for block in self.up_blocks:
            x = block(x, temb, context, skips)
        return self.conv_out(self.act(self.conv_norm_out(x)))

    def _added(
        self,
        sample: Tensor,
        states: Tensor | None,
        class_labels: Tensor | None,
        image_embeds: Tensor | None,
        text_embeds: Tensor | None,
        time_ids: Tensor | None,
    ) -> Iterator[Tensor]:
        """What is added to the time embedding, (B, E) each."""
        kind, addition = self.config.class_embed_type, self.config.addition_embed_type
        if class_labels is not None:
            if kind == "timestep":
                class_labels = self._waves(class_labels, sample)
            given = class_labels.to(sample.device, None if kind is None else sample.dtype)
            yield given if kind == "identity" else self.class_embedding(given)
        if addition == "text_time" and text_embeds is not None and time_ids is not None:
            yield self.embed_added(text_embeds, time_ids, sample)
        elif addition == "text":
            yield self.add_embedding(states)
        elif addition == "image":
            yield self.add_embedding(image_embeds)


def _level(
    config: UNet2DConditionConfig, level: int, kind: str, depths: Sequence[int], direction: Literal["up", "down"]
) -> Level:
    """Return how the down or up block of a level is made."""
    resnet = _resnet(config, kind)
    plain = Upsample2D if direction == "up" else partial(Downsample2D, padding=config.downsample_padding)
    only = bool(config.levels("only_cross_attention")[level])
    attention = _attention(config, level, kind, depths, only)
    return Level(resnet, attention, resampler(resnet, direction) if kind in RESAMPLED else plain)


def _resnet(config: UNet2DConditionConfig, kind: str) -> partial[ResnetBlock2D]:
    resampled = kind in RESAMPLED
    return partial(
        ResnetBlock2D,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        temb_channels=config.temb_channels,
        scale_shift=config.resnet_time_scale_shift == "scale_shift",
        dropout=config.dropout,
        act_fn=config.act_fn,
        skip_time_act=resampled and config.resnet_skip_time_act,
        output_scale_factor=config.resnet_out_scale_factor if resampled else 1.0,
    )


def _attention(
    config: UNet2DConditionConfig, level: int, kind: str, depths: Sequence[int], only_cross_attention: bool
) -> AttentionFactory | None:
    """Return a function that makes a level's attentions, one per call, with the next of `depths` as its layers."""
    reads, groups = config.levels("cross_attention_dim")[level], config.norm_num_groups
    if kind in SIMPLE:
        return lambda channels: AddedKeysAttention(
            channels,
            channels // config.levels("attention_head_dim")[level],
            context_channels=reads,
            groups=groups,
            only_context=only_cross_attention,
            normed=config.cross_attention_norm is not None,
        )
    if kind not in CROSSED:
        return None
    layers = iter(depths)
    return lambda channels: Transformer2DModel(
        channels,
        config.heads[level],
        layers=next(layers),
        context_channels=reads,
        groups=groups,
        linear=config.use_linear_projection,
        only_context=only_cross_attention,
    )


LAYOUT = Layout()
Config, Model = UNet2DConditionConfig, UNet2DConditionModel
