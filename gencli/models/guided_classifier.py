"""The noisy-image classifier of guided-diffusion (Dhariwal & Nichol 2021): half of its UNet, and a vector of logits.

B: batch, C, H, W: channels, height and width, K: classes, T: positions of the smallest level and their mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import Layout
from gencli.models.guided_blocks import GuidedConfig, GuidedEncoder, attend, norm

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
HIDDEN = 2048  # of the spatial pools


@dataclass(frozen=True)
class GuidedClassifierConfig(GuidedConfig):
    """out_channels: the number of classes. pool: how positions become one vector."""

    pool: str = "attention"

    def check(self) -> None:
        super().check()
        if self.pool not in POOLS:
            raise GencliError(f"pool = {self.pool!r:.80} is not supported", f"gencli knows {', '.join(POOLS)}")
        if self.pool == "attention" and self.num_head_channels == -1:
            raise GencliError("pool = 'attention' needs num_head_channels")


class AttentionPool2d(nn.Module):
    """Attention of the mean to all positions, as in CLIP's image encoder: (B, C, h, w) → (B, K)."""

    def __init__(self, side: int, channels: int, head_channels: int, out_channels: int):
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.empty(channels, side**2 + 1))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = torch.cat([x.mean(dim=-1, keepdim=True), x], dim=-1) + self.positional_embedding  # (B, C, T)
        x = attend(self.qkv_proj(x), self.heads, new_order=True)  # always, here
        return self.c_proj(x[:, :, :1])[:, :, 0]


class GuidedClassifierModel(GuidedEncoder):
    config: GuidedClassifierConfig

    def __init__(self, config: GuidedClassifierConfig):
        super().__init__(config)
        width, classes = config.widths[-1], config.out_channels
        features = sum(self.skip_channels) + width
        if config.pool == "attention":
            side = config.image_size >> (len(config.widths) - 1)
            pool = AttentionPool2d(side, width, config.num_head_channels, classes)
            self.out = nn.Sequential(norm(width), nn.SiLU(), pool)
        elif config.pool == "adaptive":
            projection = nn.Conv2d(width, classes, 1)
            self.out = nn.Sequential(norm(width), nn.SiLU(), nn.AdaptiveAvgPool2d(1), projection, nn.Flatten())
        elif config.pool == "spatial":
            self.out = nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
        else:
            last = nn.Linear(HIDDEN, classes)
            self.out = nn.Sequential(nn.Linear(features, HIDDEN), norm(HIDDEN), nn.SiLU(), last)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Return logits (B, K) of noisy images (B, C, H, W) at timesteps (B,). H and W are image_size."""
        emb = self.embed(timesteps, x)
        means = []
        for block in [*self.input_blocks, self.middle_block]:
            x = block(x, emb)
            means.append(x.mean(dim=(2, 3)))
        return self.out(torch.cat(means, dim=1) if self.config.pool.startswith("spatial") else x)


LAYOUT = Layout()
Config, Model = GuidedClassifierConfig, GuidedClassifierModel
