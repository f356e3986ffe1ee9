"""The transformer of Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206), of two streams that attend to
both, as SD3Transformer2DModel of diffusers.

B: batch, C, H, W: channels, height and width of the latents, of which 2 × 2 are a token, L: tokens of a text, D: width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import BaseConfig, Layout, check_ints
from gencli.models.flow_blocks import (
    EPS,
    FeedForward,
    JointAttention,
    Modulation,
    TimeTextEmbedding,
    attend,
    heads,
    modulated,
    norm_of_heads,
)
from gencli.models.module import BaseModel

PATCH = 2


@dataclass(frozen=True)
class SD3Config(BaseConfig):
    """config.json of Stable Diffusion 3; defaults are those of the class in diffusers. dual_attention_layers: numbers
    of the blocks where the image attends to itself, too."""

    ONLY: ClassVar = {"patch_size": (PATCH,), "qk_norm": (None, "rms_norm")}

    sample_size: int = 128
    in_channels: int = 16
    out_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    pos_embed_max_size: int = 96
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None

    def check(self) -> None:
        check_ints(self, {"sample_size": 2**12, "in_channels": 1024, "num_layers": 256, "attention_head_dim": 2**10})
        check_ints(self, {"num_attention_heads": 2**10, "joint_attention_dim": 2**17, "pooled_projection_dim": 2**17})
        check_ints(self, {"pos_embed_max_size": 2**12, "caption_projection_dim": 2**20, "out_channels": 1024})
        if self.caption_projection_dim != self.width:
            raise GencliError(
                f"config.json: caption_projection_dim = {self.caption_projection_dim} is not the width of {self.width}"
            )
        if self.out_channels != self.in_channels:
            raise GencliError(f"config.json: out_channels = {self.out_channels} is not in_channels")
        layers = self.dual_attention_layers
        if not isinstance(layers, tuple) or not all(type(one) is int and 0 <= one < self.num_layers for one in layers):
            raise GencliError(f"config.json: dual_attention_layers = {layers!r:.60} are no numbers of its layers")

    @property
    def width(self) -> int:
        """D."""
        return self.num_attention_heads * self.attention_head_dim


class Attention(nn.Module):
    """Attention of the image to itself."""

    def __init__(self, width: int, size: int, *, normed: bool):
        super().__init__()
        self.size = size
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q, self.norm_k = (norm_of_heads(size, EPS, normed=normed) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k = heads(self.to_q(x), self.size, self.norm_q), heads(self.to_k(x), self.size, self.norm_k)
        return self.to_out[0](attend(q, k, heads(self.to_v(x), self.size), None))


class JointBlock(nn.Module):
    """last: whether nothing reads the text after it."""

    def __init__(self, config: SD3Config, *, dual: bool, last: bool):
        super().__init__()
        width, size, normed = config.width, config.attention_head_dim, config.qk_norm is not None
        self.dual, self.last = dual, last
        self.norm1 = Modulation(width, 9 if dual else 6)
        self.norm1_context = Modulation(width, 2 if last else 6)
        self.attn = JointAttention(width, size, EPS, bias=True, normed=normed, last=last)
        if dual:
            self.attn2 = Attention(width, size, normed=normed)
        self.ff = FeedForward(width)
        if not last:
            self.ff_context = FeedForward(width)

    def forward(self, image: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next states of an image (B, H · W / 4, D) and a text (B, L, D)."""
        of_image, of_text = self.norm1(time), self.norm1_context(time)
        shifted = of_text[::-1] if self.last else of_text[:2]  # whose scale comes first
        y, y_text = self.attn(modulated(image, of_image[:2]), modulated(text, shifted), None)
        y2 = of_image[8] * self.attn2(modulated(image, of_image[6:8])) if self.dual else 0.0
        image = image + of_image[2] * y + y2
        image = image + of_image[5] * self.ff(modulated(image, of_image[3:5]))
        if self.last:
            return image, text
        text = text + of_text[2] * y_text
        return image, text + of_text[5] * self.ff_context(modulated(text, of_text[3:5]))


class PatchEmbedding(nn.Module):
    """2 × 2 latents as tokens, at their places around the middle of the largest image."""

    def __init__(self, config: SD3Config):
        super().__init__()
        self.most = config.pos_embed_max_size
        self.proj = nn.Conv2d(config.in_channels, config.width, PATCH, stride=PATCH)
        self.pos_embed = nn.Parameter(torch.empty(1, self.most**2, config.width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H · W / 4, D) for x (B, C, H, W). Raises GencliError for an image that is too large."""
        height, width = x.shape[2] // PATCH, x.shape[3] // PATCH
        if max(height, width) > self.most:
            raise GencliError(f"this model draws at most {self.most} tokens of 2 × 2 latents a side")
        top, left = (self.most - height) // 2, (self.most - width) // 2
        places = self.pos_embed.view(self.most, self.most, -1)[top : top + height, left : left + width]
        return self.proj(x).flatten(2).transpose(1, 2) + places.flatten(0, 1).to(x.dtype)


class SD3Transformer2DModel(BaseModel):
    def __init__(self, config: SD3Config):
        super().__init__()
        self.config = config
        width, count = config.width, config.num_layers
        self.pos_embed = PatchEmbedding(config)
        self.time_text_embed = TimeTextEmbedding(width, config.pooled_projection_dim)
        self.context_embedder = nn.Linear(config.joint_attention_dim, width)
        self.transformer_blocks = nn.ModuleList(
            JointBlock(config, dual=i in config.dual_attention_layers, last=i == count - 1) for i in range(count)
        )
        self.norm_out = Modulation(width, 2)
        self.proj_out = nn.Linear(width, PATCH**2 * config.out_channels)

    def forward(self, x: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, text_embeds: Tensor) -> Tensor:
        """Return the velocity ε − x0 (B, C, H, W) at x (B, C, H, W) and timesteps (B,) of 1000 σ, for states of texts
        (B, L, E) and pooled ones (B, P). Raises GencliError for an image that is too large."""
        batch, height, width = len(x), x.shape[2] // PATCH, x.shape[3] // PATCH
        states, pooled = (
            one.to(x.device, x.dtype).expand(batch, *one.shape[1:]) for one in (encoder_hidden_states, text_embeds)
        )
        time = self.time_text_embed(timesteps.expand(batch), pooled)
        image, text = self.pos_embed(x), self.context_embedder(states)
        for block in self.transformer_blocks:
            image, text = block(image, text, time)
        out = self.proj_out(modulated(image, self.norm_out(time)[::-1]))  # whose scale comes first
        # A token has its channels last: (B, H/2, W/2, 2, 2, C).
        out = out.unflatten(2, (PATCH, PATCH, -1)).unflatten(1, (height, width))
        return out.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3).contiguous()


OVERFLOWS_IN_HALF = True
LAYOUT = Layout()
Config, Model = SD3Config, SD3Transformer2DModel
