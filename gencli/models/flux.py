"""The transformer of FLUX.1 (Black Forest Labs 2024), of two streams and then one, as FluxTransformer2DModel of
diffusers.

B: batch, C, H, W: channels, height and width of the latents, of which 2 × 2 are a token, L: tokens of a text, T: of
both, D: width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import BaseConfig, Layout, check_flags, check_ints
from gencli.models.decoder_blocks import RMSNorm
from gencli.models.flow_blocks import (
    EPS,
    MLP_RATIO,
    FeedForward,
    JointAttention,
    Modulation,
    Rotation,
    TimeTextEmbedding,
    attend,
    beside,
    both_streams,
    check_axes,
    heads,
    modulated,
    rotation,
)
from gencli.models.module import BaseModel

THETA, PATCH = 10000.0, 2


@dataclass(frozen=True)
class FluxConfig(BaseConfig):
    """config.json of FLUX.1; defaults are those of the class in diffusers (FLUX.1 schnell's)."""

    ONLY: ClassVar = {"patch_size": (1,)}

    in_channels: int = 64
    out_channels: int | None = None
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    def check(self) -> None:
        check_ints(
            self, {"in_channels": 1024, "num_layers": 256, "num_single_layers": 256, "attention_head_dim": 2**10}
        )
        check_ints(self, {"num_attention_heads": 2**10, "joint_attention_dim": 2**17, "pooled_projection_dim": 2**17})
        check_ints(self, {"axes_dims_rope": 2**10})
        check_flags(self)
        check_axes(self.axes_dims_rope, 3, self.attention_head_dim)
        for key, channels in (("in_channels", self.in_channels), ("out_channels", self.makes)):
            if channels % PATCH**2:
                raise GencliError(f"config.json: {key} = {channels} are no 2 × 2 latents")

    @property
    def makes(self) -> int:
        """Channels of the velocity of 2 × 2 latents."""
        return self.in_channels if self.out_channels is None else self.out_channels

    @property
    def width(self) -> int:
        """D."""
        return self.num_attention_heads * self.attention_head_dim


class DoubleBlock(nn.Module):
    def __init__(self, config: FluxConfig):
        super().__init__()
        width = config.width
        self.norm1, self.norm1_context = Modulation(width, 6), Modulation(width, 6)
        self.attn = JointAttention(width, config.attention_head_dim, EPS, bias=True)
        self.ff, self.ff_context = FeedForward(width), FeedForward(width)

    def forward(self, image: Tensor, text: Tensor, by: Rotation, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next states of an image (B, H · W / 4, D) and a text (B, L, D)."""
        of_image, of_text = self.norm1(time), self.norm1_context(time)
        return both_streams(image, text, by, of_image, of_text, self.attn, self.ff, self.ff_context)


class SingleAttention(nn.Module):
    def __init__(self, width: int, size: int):
        super().__init__()
        self.size = size
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(size, EPS), RMSNorm(size, EPS)

    def forward(self, x: Tensor, by: Rotation) -> Tensor:
        q, k = heads(self.to_q(x), self.size, self.norm_q), heads(self.to_k(x), self.size, self.norm_k)
        return attend(q, k, heads(self.to_v(x), self.size), by)


class SingleStream(nn.Module):
    """Attention and a feed-forward network beside each other, with one projection out, of heads of `size`."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.proj_mlp = nn.Linear(width, MLP_RATIO * width)
        self.proj_out = nn.Linear((1 + MLP_RATIO) * width, width)
        self.attn = SingleAttention(width, size)

    def through(self, x: Tensor, by: Rotation, of_both: Sequence[Tensor]) -> Tensor:
        """Return the next states of text and image (B, T, D). of_both: shift, scale and gate (B, 1, D)."""
        *shifted, gate = of_both
        y = modulated(x, shifted)
        inner = F.gelu(self.proj_mlp(y), approximate="tanh")
        return x + gate * self.proj_out(torch.cat([self.attn(y, by), inner], dim=-1))


class SingleBlock(SingleStream):
    def __init__(self, config: FluxConfig):
        super().__init__(config.width, config.attention_head_dim)
        self.norm = Modulation(config.width, 3)

    def forward(self, x: Tensor, by: Rotation, time: Tensor) -> Tensor:
        """Return the next states of text and image (B, T, D)."""
        return self.through(x, by, self.norm(time))


class FluxTransformer2DModel(BaseModel):
    def __init__(self, config: FluxConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.time_text_embed = TimeTextEmbedding(width, config.pooled_projection_dim, guidance=config.guidance_embeds)
        self.context_embedder = nn.Linear(config.joint_attention_dim, width)
        self.x_embedder = nn.Linear(config.in_channels, width)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.num_single_layers))
        self.norm_out = Modulation(width, 2)
        self.proj_out = nn.Linear(width, config.makes)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        guidance: Tensor | None = None,
        references: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity ε − x0 (B, C, H, W) at x (B, C, H, W) and timesteps (B,) of 1000 σ, for states of texts
        (B, L, E) and pooled ones (B, P). guidance (B,) or (1,): its scale, for a model that is told it. references,
        places: tokens of images to look at, and where they are (see `flow_blocks.look_at`)."""
        batch, height, width = len(x), x.shape[2] // PATCH, x.shape[3] // PATCH
        states, pooled = (
            one.to(x.device, x.dtype).expand(batch, *one.shape[1:]) for one in (encoder_hidden_states, text_embeds)
        )
        scale = None if guidance is None else 1000 * guidance.to(x.device).expand(batch)
        time = self.time_text_embed(timesteps.expand(batch), pooled, scale)
        text = self.context_embedder(states)
        tokens, where = beside(F.pixel_unshuffle(x, PATCH), references, places)
        image = self.x_embedder(tokens)
        by = rotation(F.pad(where, (0, 0, text.shape[1], 0)), self.config.axes_dims_rope, THETA)  # a text is at 0
        for block in self.transformer_blocks:
            image, text = block(image, text, by, time)
        both = torch.cat([text, image], dim=1)
        for block in self.single_transformer_blocks:
            both = block(both, by, time)
        scaled, shift = self.norm_out(time)
        drawn = both[:, text.shape[1] :][:, : height * width]
        out = self.proj_out(modulated(drawn, (shift, scaled)))
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (height, width)), PATCH).contiguous()


OVERFLOWS_IN_HALF = True
LAYOUT = Layout()
Config, Model = FluxConfig, FluxTransformer2DModel
