"""ControlNet (Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models"), arXiv
2302.05543), as the class in diffusers.

A copy of a UNet's down blocks reads the noisy sample and an image of edges, depth or poses; its outputs are added to
the skip connections of the UNet. Attributes are named as the checkpoint names them. B: batch, C, H, W: channels, height
and width of the latents, L, D: tokens of the text and their width.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import Layout, check_ints
from gencli.models.unet_2d_condition import DownPath
from gencli.models.unet_2d_condition_config import UNet2DConditionConfig
from gencli.models.unet_config_checks import refuse

# Fields of the config of a UNet that a ControlNet cannot have.
UNET_ONLY = (
    "out_channels", "up_block_types", "center_input_sample", "dropout", "time_embedding_dim", "time_cond_proj_dim",
    "reverse_transformer_layers_per_block", "time_embedding_act_fn", "class_embed_type", "num_class_embeds",
    "encoder_hid_dim", "encoder_hid_dim_type", "cross_attention_norm",
)  # fmt: skip


@dataclass(frozen=True)
class ControlNetConfig(UNet2DConditionConfig):
    """config.json of a ControlNet; keys of a UNet mean the same, and defaults are those of the class in diffusers.

    conditioning_embedding_out_channels: widths of the small network that brings the image to the size of the latents;
    each after the first halves it. global_pool_conditions: outputs are averaged over all positions (and the caller
    keeps them from the unconditional half of guidance).
    """

    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: str = "rgb"
    global_pool_conditions: bool = False

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        if odd := [key for key in UNET_ONLY if raw.get(key) is not None]:
            raise refuse(odd[0], raw[odd[0]], "a ControlNet has no such part")
        down = raw.get("down_block_types", cls.down_block_types)
        up = ["UpBlock2D"] * len(down) if isinstance(down, list | tuple) else None  # for `check`: it has no up blocks
        return super().prepare({**raw, "up_block_types": up})

    def check(self) -> None:
        super().check()
        widths = self.conditioning_embedding_out_channels
        if not isinstance(widths, tuple) or not 1 <= len(widths) <= 8:
            raise GencliError(
                f"config.json: conditioning_embedding_out_channels = {widths!r:.80} is not a list of 1 to 8"
            )
        check_ints(self, {"conditioning_embedding_out_channels": 2**14, "conditioning_channels": 64})
        if self.controlnet_conditioning_channel_order not in ("rgb", "bgr"):
            order = self.controlnet_conditioning_channel_order
            raise refuse("controlnet_conditioning_channel_order", order, "gencli knows rgb and bgr")
        if self.mid_block_type is None:
            raise refuse("mid_block_type", None)
        if self.addition_embed_type not in (None, "text_time"):
            raise refuse("addition_embed_type", self.addition_embed_type, "gencli knows text_time in a ControlNet")
        if self.only_cross_attention is not False:
            raise refuse("only_cross_attention", self.only_cross_attention)

    @property
    def scale(self) -> int:
        """Pixels of the image per latent, along each side."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)

    @property
    def skip_channels(self) -> list[int]:
        """Widths of the states that it adds to, first to last; a UNet that it fits has the same."""
        widths, layers = self.block_out_channels, self.levels("layers_per_block")
        last = len(widths) - 1
        levels = [[width] * (layers[i] + (i < last)) for i, width in enumerate(widths)]
        return [widths[0], *(width for level in levels for width in level)]


class ControlNetConditioningEmbedding(nn.Module):
    """Images (B, 3, s·H, s·W) in 0..1 → (B, channels, H, W)."""

    def __init__(self, in_channels: int, channels: int, widths: tuple[int, ...]):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, width in itertools.pairwise(widths):
            self.blocks.append(nn.Conv2d(before, before, 3, padding=1))
            self.blocks.append(nn.Conv2d(before, width, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in [self.conv_in, *self.blocks]:
            x = F.silu(conv(x))
        return self.conv_out(x)


class ControlNetModel(DownPath):
    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig):
        super().__init__(config)
        widths = config.block_out_channels
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            config.conditioning_channels, widths[0], config.conditioning_embedding_out_channels
        )
        # training starts these convolutions from zero, so that a new ControlNet adds nothing
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in config.skip_channels)
        self.controlnet_mid_block = nn.Conv2d(widths[-1], widths[-1], 1)

    def embed(self, image: Tensor) -> Tensor:
        """Return the `hint` (B, C', H, W), the same at every step, of an image (B, 3, s·H, s·W) in 0..1."""
        if self.config.controlnet_conditioning_channel_order == "bgr":
            image = image.flip(1)
        return self.controlnet_cond_embedding(image)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        hint: Tensor,
        *,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return what to add to the skip connections of a UNet, and to the output of its mid block.

        sample (B, C, H, W): noisy latents. timestep (B,). encoder_hidden_states (B, L, D): the text. hint (B or 1, C',
        H, W): from `embed`. text_embeds (B, P), time_ids (B, 6): pooled text and sizes for SDXL.
        """
        temb = self.embed_time(timestep, sample)
        if text_embeds is not None and time_ids is not None:
            temb = temb + self.embed_added(text_embeds, time_ids, sample)
        x, skips = self.descend(self.conv_in(sample) + hint, temb, encoder_hidden_states)
        down = [conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        middle = self.controlnet_mid_block(x)
        if self.config.global_pool_conditions:
            return [state.mean((2, 3), keepdim=True) for state in down], middle.mean((2, 3), keepdim=True)
        return down, middle


LAYOUT = Layout()
Config, Model = ControlNetConfig, ControlNetModel
