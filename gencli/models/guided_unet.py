"""The UNet of guided-diffusion ("ADM"; Dhariwal & Nichol 2021, arXiv 2105.05233), with or without classes.

It is another network than UNet2DModel of diffusers: sizes change inside residual blocks, q, k and v are one tensor, and
its files do not say their own config (`checkpoints.formats` infers it). GLIDE's UNets (Nichol et al. 2021, arXiv
2112.10741) are such ones that read a text. B: batch, C, H, W: channels, height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gencli.models.base import Layout, check_ints
from gencli.models.guided_blocks import GuidedConfig, GuidedEncoder, Layers, Upsample, norm


@dataclass(frozen=True)
class GuidedUNetConfig(GuidedConfig):
    """num_classes None: an unconditional model. num_heads_upsample: heads of the up blocks, −1: as elsewhere."""

    num_classes: int | None = None
    num_heads_upsample: int = -1

    def check(self) -> None:
        super().check()
        if self.num_classes is not None:
            check_ints(self, {"num_classes": 2**20})
        if self.num_heads_upsample != -1:
            check_ints(self, {"num_heads_upsample": 2**10})
        for level, width in enumerate(self.widths):
            if 1 << level in self.attention_resolutions:
                self.heads_up(width)

    def heads_up(self, channels: int) -> int:
        """Return the number of attention heads over `channels` in the up blocks. Raises GencliError as `heads`."""
        if self.num_head_channels != -1 or self.num_heads_upsample == -1:
            return self.heads(channels)
        return type(self)(**{**vars(self), "num_heads": self.num_heads_upsample}).heads(channels)


class GuidedUNetModel(GuidedEncoder):
    config: GuidedUNetConfig

    def __init__(self, config: GuidedUNetConfig):
        super().__init__(config)
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, 4 * config.model_channels)
        skips = list(self.skip_channels)
        width = config.widths[-1]
        blocks = []
        for level, out in reversed(list(enumerate(config.widths))):
            for i in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [self.resblock(width + skips.pop(), out)]
                width = out
                if 1 << level in config.attention_resolutions:
                    layers.append(self.attend(width, config.heads_up(width)))
                if level and i == config.num_res_blocks:
                    layers.append(self.resblock(width, width, up=True) if config.resblock_updown else Upsample(width))
                blocks.append(Layers(*layers))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, config.out_channels, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        class_labels: Tensor | None = None,
        *,
        encoder_hidden_states: Tensor | None = None,
        text_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction (B, out_channels, H, W) for noisy images (B, C, H, W), timesteps (B,) and classes (B,),
        or the states (B, L, D) of texts and what is added to the time embedding of each (B, E).

        H and W are multiples of the downsampling factor.
        """
        emb, context = self.embed(timesteps, x), None
        if self.config.num_classes is not None:
            assert class_labels is not None
            emb = emb + self.label_emb(class_labels.to(x.device).expand(len(x)))
        if self.config.encoder_channels is not None:
            assert encoder_hidden_states is not None and text_embeds is not None
            emb, context = emb + text_embeds.to(x.dtype), encoder_hidden_states.to(x.dtype).transpose(1, 2)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, context)
            skips.append(x)
        x = self.middle_block(x, emb, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, context)
        return self.out(x)


LAYOUT = Layout()
Config, Model = GuidedUNetConfig, GuidedUNetModel
