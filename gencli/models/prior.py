"""The prior of unCLIP (Ramesh et al. 2022, arXiv 2204.06125, section 2.2): a causal transformer that predicts the CLIP
embedding of an image from a text, as PriorTransformer of diffusers.

Attributes are named as the checkpoint names them. B: batch, L: tokens of the text, E: embedding_dim, C: width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.attention import multi_head_attention
from gencli.models.attention_blocks import Attention
from gencli.models.base import BaseConfig, Layout, check_ints
from gencli.models.module import BaseModel
from gencli.models.unet_blocks import TimestepEmbedding, timestep_embedding


@dataclass(frozen=True)
class PriorConfig(BaseConfig):
    """config.json of a prior; defaults are those of the class in diffusers. num_embeddings: L. additional_embeddings:
    the places after the text: its pooled embedding, the time, the noisy embedding, and the one that is read off."""

    INERT = frozenset({"dropout"})
    ONLY: ClassVar = {
        "time_embed_act_fn": ("silu",),
        "norm_in_type": (None,),
        "embedding_proj_norm_type": (None,),
        "encoder_hid_proj_type": ("linear",),
        "added_emb_type": ("prd",),
        "additional_embeddings": (4,),
        "time_embed_dim": (None,),
        "embedding_proj_dim": (None,),
        "clip_embed_dim": (None,),
    }

    num_attention_heads: int = 32
    attention_head_dim: int = 64
    num_layers: int = 20
    embedding_dim: int = 768
    num_embeddings: int = 77

    def check(self) -> None:
        check_ints(self, {"num_attention_heads": 2**10, "attention_head_dim": 2**10, "num_layers": 2**8})
        check_ints(self, {"embedding_dim": 2**14, "num_embeddings": 2**12})

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


class GELU(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(GELU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PriorBlock(nn.Module):
    """Self-attention and feed-forward, each normed before and added."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn1 = Attention(config.width, config.num_attention_heads, bias=True)
        self.norm3 = nn.LayerNorm(config.width)
        self.ff = FeedForward(config.width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the next states (B, T, C) of x (B, T, C). mask (B, 1, T, T): true where a position is seen."""
        h, own = self.norm1(x), self.attn1
        x = x + own.to_out[0](multi_head_attention(own.to_q(h), own.to_k(h), own.to_v(h), own.heads, mask=mask))
        return x + self.ff(self.norm3(x))


class PriorTransformer(BaseModel):
    """clip_mean, clip_std: of image embeddings; it predicts them normed by these."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        width, embedding = config.width, config.embedding_dim
        self.time_embedding = TimestepEmbedding(width, width)
        self.proj_in = nn.Linear(embedding, width)
        self.embedding_proj = nn.Linear(embedding, width)
        self.encoder_hidden_states_proj = nn.Linear(embedding, width)
        self.positional_embedding = nn.Parameter(torch.empty(1, config.num_embeddings + 4, width))
        self.prd_embedding = nn.Parameter(torch.empty(1, 1, width))
        self.transformer_blocks = nn.ModuleList(PriorBlock(config) for _ in range(config.num_layers))
        self.norm_out = nn.LayerNorm(width)
        self.proj_to_clip_embeddings = nn.Linear(width, embedding)
        self.clip_mean = nn.Parameter(torch.empty(1, embedding))
        self.clip_std = nn.Parameter(torch.empty(1, embedding))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        *,
        proj_embedding: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
    ) -> Tensor:
        """Return the embedding x0 (B, E) of images for noisy ones (B, E) at timesteps (B,), pooled texts (B, E), their
        states (B, L, E) and a mask (B, L), false for padding."""
        dtype, batch = hidden_states.dtype, len(hidden_states)
        waves = timestep_embedding(timestep, self.config.width, flip_sin_to_cos=True, freq_shift=0)
        further = [
            self.embedding_proj(proj_embedding.to(dtype)),
            self.time_embedding(waves.to(dtype)).expand(batch, -1),
            self.proj_in(hidden_states),
            self.prd_embedding[0].expand(batch, -1),
        ]
        states = self.encoder_hidden_states_proj(encoder_hidden_states.to(dtype))
        x = torch.cat([states, torch.stack(further, dim=1)], dim=1) + self.positional_embedding
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        mask = seen & F.pad(attention_mask, (0, 4), value=True)[:, None, None]
        for block in self.transformer_blocks:
            x = block(x, mask)
        return self.proj_to_clip_embeddings(self.norm_out(x)[:, -1])


LAYOUT = Layout()
Config, Model = PriorConfig, PriorTransformer
