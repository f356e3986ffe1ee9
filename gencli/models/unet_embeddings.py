"""What the UNets of systems of several stages read beside the time: texts and images as one vector or as tokens.

Named as the checkpoints of diffusers name them. B: batch, L, D: tokens of a context and their width, E: width of the
time embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gencli.models.attention import multi_head_attention


class AttentionPooling(nn.Module):
    """States (B, L, D) → (B, D): their mean attends to itself and to all of them."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(1, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        first = x.mean(dim=1, keepdim=True) + self.positional_embedding
        x = torch.cat([first, x], dim=1)
        return multi_head_attention(self.q_proj(first), self.k_proj(x), self.v_proj(x), self.heads)[:, 0]


class TextTimeEmbedding(nn.Module):
    """The states of a text (B, L, D) → (B, E), pooled as Imagen does (Saharia et al. 2022, section 2.1)."""

    def __init__(self, width: int, temb_channels: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.pool = AttentionPooling(width, heads)
        self.proj = nn.Linear(width, temb_channels)
        self.norm2 = nn.LayerNorm(temb_channels)

    def forward(self, states: Tensor) -> Tensor:
        return self.norm2(self.proj(self.pool(self.norm1(states))))


class ImageTimeEmbedding(nn.Module):
    """The embedding of an image (B, D) → (B, E) (Kandinsky 2.2)."""

    def __init__(self, width: int, temb_channels: int):
        super().__init__()
        self.image_proj = nn.Linear(width, temb_channels)
        self.image_norm = nn.LayerNorm(temb_channels)

    def forward(self, embeds: Tensor) -> Tensor:
        return self.image_norm(self.image_proj(embeds))


class ImageProjection(nn.Module):
    """The embedding of an image (B, D) → tokens (B, L, context) (Kandinsky 2.2)."""

    def __init__(self, width: int, context_channels: int, tokens: int = 32):
        super().__init__()
        self.tokens = tokens
        self.image_embeds = nn.Linear(width, tokens * context_channels)
        self.norm = nn.LayerNorm(context_channels)

    def forward(self, embeds: Tensor) -> Tensor:
        return self.norm(self.image_embeds(embeds).unflatten(-1, (self.tokens, -1)))
