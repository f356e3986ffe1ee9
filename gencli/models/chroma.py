"""The transformer of Chroma (lodestone-rock 2025): FLUX.1 without a pooled text, whose shifts, scales and gates one
small network makes of the time and their number, as ChromaTransformer2DModel of diffusers.

B: batch, C, H, W: channels, height and width of the latents, of which 2 × 2 are a token, L: tokens of a text, T: of
both, D: width, M: shifts, scales and gates of all blocks.
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
    Embedding,
    FeedForward,
    JointAttention,
    Rotation,
    both_streams,
    check_axes,
    grid,
    modulated,
    rotation,
)
from gencli.models.flux import PATCH, THETA, SingleStream
from gencli.models.module import BaseModel
from gencli.models.unet_blocks import timestep_embedding

DOUBLE, SINGLE, LAST = 6, 3, 2  # shifts, scales and gates of a stream in a block of two, in one of one, and at the end


@dataclass(frozen=True)
class ChromaConfig(BaseConfig):
    """config.json of Chroma; defaults are those of the class in diffusers.

    approximator_…: of the network that makes shifts, scales and gates, of which `approximator_num_channels` are the
    numbers that it reads for each.
    """

    ONLY: ClassVar = {"patch_size": (1,)}

    in_channels: int = 64
    out_channels: int | None = None
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    approximator_num_channels: int = 64
    approximator_hidden_dim: int = 5120
    approximator_layers: int = 5

    def check(self) -> None:
        check_ints(
            self, {"in_channels": 1024, "num_layers": 256, "num_single_layers": 256, "attention_head_dim": 2**10}
        )
        check_ints(self, {"num_attention_heads": 2**10, "joint_attention_dim": 2**17, "axes_dims_rope": 2**10})
        check_ints(self, {"approximator_num_channels": 2**12, "approximator_hidden_dim": 2**16})
        check_ints(self, {"approximator_layers": 64})
        check_flags(self)
        check_axes(self.axes_dims_rope, 3, self.attention_head_dim)
        if self.out_channels not in (None, self.in_channels) or self.in_channels % PATCH**2:
            makes = f"out_channels = {self.out_channels}"
            raise GencliError(f"config.json: in_channels = {self.in_channels} with {makes} is not supported")
        if self.approximator_num_channels % 8:
            channels = self.approximator_num_channels
            raise GencliError(f"config.json: approximator_num_channels = {channels} is not a multiple of 8")

    @property
    def width(self) -> int:
        """D."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def modulations(self) -> int:
        """M."""
        return SINGLE * self.num_single_layers + 2 * DOUBLE * self.num_layers + LAST


class Approximator(nn.Module):
    def __init__(self, config: ChromaConfig):
        super().__init__()
        hidden, layers = config.approximator_hidden_dim, range(config.approximator_layers)
        self.in_proj = nn.Linear(config.approximator_num_channels, hidden)
        self.layers = nn.ModuleList(Embedding(hidden, hidden) for _ in layers)
        self.norms = nn.ModuleList(RMSNorm(hidden, torch.finfo(torch.float32).eps) for _ in layers)
        self.out_proj = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return shifts, scales and gates (B, M, D) of what is said of each, (B, M, channels)."""
        x = self.in_proj(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x))
        return self.out_proj(x)


class DoubleBlock(nn.Module):
    def __init__(self, config: ChromaConfig):
        super().__init__()
        self.attn = JointAttention(config.width, config.attention_head_dim, EPS, bias=True)
        self.ff, self.ff_context = FeedForward(config.width), FeedForward(config.width)

    def forward(
        self, image: Tensor, text: Tensor, by: Rotation, of_image: Sequence[Tensor], of_text: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the next states of an image (B, H · W / 4, D) and a text (B, L, D), see `both_streams`."""
        return both_streams(image, text, by, of_image, of_text, self.attn, self.ff, self.ff_context)


class SingleBlock(SingleStream):
    def __init__(self, config: ChromaConfig):
        super().__init__(config.width, config.attention_head_dim)

    def forward(self, x: Tensor, by: Rotation, of_both: Sequence[Tensor]) -> Tensor:
        """Return the next states of text and image (B, T, D), see `SingleStream`."""
        return self.through(x, by, of_both)


class ChromaTransformer2DModel(BaseModel):
    def __init__(self, config: ChromaConfig):
        super().__init__()
        self.config = config
        self.distilled_guidance_layer = Approximator(config)
        self.context_embedder = nn.Linear(config.joint_attention_dim, config.width)
        self.x_embedder = nn.Linear(config.in_channels, config.width)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.num_single_layers))
        self.proj_out = nn.Linear(config.width, config.in_channels)

    def forward(self, x: Tensor, timesteps: Tensor, caption: Tensor, lengths: Tensor) -> Tensor:
        """Return the velocity ε − x0 (B, C, H, W) at x (B, C, H, W) and timesteps (B,) of 1000 σ, for states of texts
        (B, L, E) of which the first `lengths` (B,) tokens count. Those of one length run together."""
        timesteps, caption, lengths = (one.expand(len(x), *one.shape[1:]) for one in (timesteps, caption, lengths))
        out = torch.empty_like(x)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0].to(x.device)
            states = caption[rows.to(caption.device), :length].to(x.device, x.dtype)
            out[rows] = self._alike(x[rows], timesteps[rows], states)
        return out

    def _alike(self, x: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        config, length = self.config, states.shape[1]
        height, width = x.shape[2] // PATCH, x.shape[3] // PATCH
        singles, doubles = SINGLE * config.num_single_layers, DOUBLE * config.num_layers
        by_time = self.distilled_guidance_layer(self._of_each(timesteps).to(x.dtype))
        of_both, of_image, of_text, last = (
            part.unsqueeze(2).unbind(1) for part in by_time.split([singles, doubles, doubles, LAST], dim=1)
        )
        text = self.context_embedder(states)
        image = self.x_embedder(F.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2))
        places = F.pad(grid(height, width, x.device), (1, 0, length, 0))  # a text is at 0
        by = rotation(places, config.axes_dims_rope, THETA)
        for i, block in enumerate(self.transformer_blocks):
            own = slice(DOUBLE * i, DOUBLE * (i + 1))
            image, text = block(image, text, by, of_image[own], of_text[own])
        both = torch.cat([text, image], dim=1)
        for i, block in enumerate(self.single_transformer_blocks):
            both = block(both, by, of_both[SINGLE * i : SINGLE * (i + 1)])
        out = self.proj_out(modulated(both[:, length:], last))
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (height, width)), PATCH)

    def _of_each(self, timesteps: Tensor) -> Tensor:
        """Return what the approximator reads for each of its outputs, (B, M, channels): sinusoids of the time, of a
        guidance of 0, and of 1000 times the number of the output."""
        channels, count = self.config.approximator_num_channels, self.config.modulations
        numbers = 1000 * torch.arange(count, device=timesteps.device)
        time, guidance, number = (
            timestep_embedding(one, size, flip_sin_to_cos=True, freq_shift=0)
            for one, size in (
                (timesteps, channels // 4),
                (torch.zeros_like(timesteps), channels // 4),
                (numbers, channels // 2),
            )
        )
        told = torch.cat([time, guidance], dim=1)[:, None].expand(-1, count, -1)
        return torch.cat([told, number.expand(len(timesteps), -1, -1)], dim=2)


OVERFLOWS_IN_HALF = True
LAYOUT = Layout()
Config, Model = ChromaConfig, ChromaTransformer2DModel
