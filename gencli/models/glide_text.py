"""GLIDE's text transformer (Nichol et al. 2021, arXiv 2112.10741, section 4), which is trained with its UNet.

Attributes are named as OpenAI's files name them. B: batch, T: places of a text, W: width, E: of what is added to the
UNet's time embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.base import BaseConfig, Layout, check_ints, check_multiple
from gencli.models.guided_blocks import attend
from gencli.models.module import BaseModel


@dataclass(frozen=True)
class GlideTextConfig(BaseConfig):
    """What the shapes of a file tell; its heads are always 64 wide. text_ctx: T. projection_dim: E."""

    vocab_size: int
    text_ctx: int
    width: int
    num_layers: int
    projection_dim: int
    head_channels: int = 64

    def check(self) -> None:
        check_ints(self, {"vocab_size": 2**22, "text_ctx": 2**14, "width": 2**14, "num_layers": 2**10})
        check_ints(self, {"projection_dim": 2**16, "head_channels": 2**10})
        check_multiple(self, "width", "head_channels")


class SelfAttention(nn.Module):
    """Every place sees every other. c_qkv: q, k and v of each head in turn."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, W) for x (B, T, W)."""
        return self.c_proj(attend(self.c_qkv(x).transpose(1, 2), self.heads, new_order=False).transpose(1, 2))


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, W) for x (B, T, W)."""
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Self-attention and feed-forward, each normed before and added."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, W) for x (B, T, W)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, config: GlideTextConfig):
        super().__init__()
        heads = config.width // config.head_channels
        self.resblocks = nn.ModuleList(Block(config.width, heads) for _ in range(config.num_layers))


class GlideTextModel(BaseModel):
    """padding_embedding: what stands at the places after the end of a text."""

    def __init__(self, config: GlideTextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.text_ctx, config.width))
        self.padding_embedding = nn.Parameter(torch.empty(config.text_ctx, config.width))
        self.transformer = Transformer(config)
        self.final_ln = nn.LayerNorm(config.width)
        self.transformer_proj = nn.Linear(config.width, config.projection_dim)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states (B, T, W) of token ids (B, T) and the projection (B, E) of the last place's. mask (B, T):
        false after the end of a text."""
        x = torch.where(mask[..., None], self.token_embedding(ids) + self.positional_embedding, self.padding_embedding)
        for block in self.transformer.resblocks:
            x = block(x)
        states = self.final_ln(x)
        return states, self.transformer_proj(states[:, -1])


LAYOUT = Layout()
Config, Model = GlideTextConfig, GlideTextModel
