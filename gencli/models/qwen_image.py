"""The transformer of Qwen-Image (Wu et al. 2025, arXiv 2508.02324), of two streams, as QwenImageTransformer2DModel of
diffusers.

B: batch, C, H, W: channels, height and width of the latents, of which 2 × 2 are a token, L: tokens of a text, T: of
both, D: width.
"""

from __future__ import annotations

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
    WAVES,
    Embedding,
    FeedForward,
    JointAttention,
    Modulation,
    Rotation,
    both_streams,
    centred,
    check_axes,
    modulated,
    rotation,
    waves,
)
from gencli.models.module import BaseModel

THETA, PATCH = 10000.0, 2
PLACES = 4096  # on each axis, before and after the middle


@dataclass(frozen=True)
class QwenImageConfig(BaseConfig):
    """config.json of Qwen-Image; defaults are those of the class in diffusers.

    zero_cond_t: whether the images that it looks at have a time of their own, 0 (Qwen-Image-Edit-2511).
    `use_additional_t_cond` and `use_layer3d_rope` are of Qwen-Image-Layered.
    """

    ONLY: ClassVar = {
        "patch_size": (PATCH,),
        "guidance_embeds": (False,),
        "use_additional_t_cond": (False,),
        "use_layer3d_rope": (False,),
    }
    INERT = frozenset({"pooled_projection_dim"})  # in the file of Qwen-Image, which has no pooled text

    in_channels: int = 64
    out_channels: int | None = 16
    num_layers: int = 60
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 3584
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    zero_cond_t: bool = False

    def check(self) -> None:
        check_ints(self, {"in_channels": 1024, "num_layers": 256, "attention_head_dim": 2**10})
        check_ints(self, {"num_attention_heads": 2**10, "joint_attention_dim": 2**17, "axes_dims_rope": 2**10})
        check_flags(self)
        check_axes(self.axes_dims_rope, 3, self.attention_head_dim)
        if self.in_channels != PATCH**2 * self.makes:
            makes = f"out_channels = {self.out_channels}"
            raise GencliError(f"config.json: in_channels = {self.in_channels} are not 2 × 2 latents of {makes}")

    @property
    def makes(self) -> int:
        """Channels of the velocity of a latent."""
        return self.in_channels if self.out_channels is None else self.out_channels

    @property
    def width(self) -> int:
        """D."""
        return self.num_attention_heads * self.attention_head_dim


def modulation(width: int) -> nn.Sequential:
    """What makes shift, scale and gate of the attention, then of the feed-forward network."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))


class Block(nn.Module):
    def __init__(self, config: QwenImageConfig):
        super().__init__()
        width = config.width
        self.img_mod, self.txt_mod = modulation(width), modulation(width)
        self.attn = JointAttention(width, config.attention_head_dim, EPS, bias=True)
        self.img_mlp, self.txt_mlp = FeedForward(width), FeedForward(width)

    def forward(
        self, image: Tensor, text: Tensor, by: Rotation, time: Tensor, still: Tensor | None, drawn: int
    ) -> tuple[Tensor, Tensor]:
        """Return the next states of an image (B, T, D) and a text (B, L, D), at a time (B, D). still (B, D): the
        time of all tokens behind the first `drawn`, where they have another."""
        of_image, of_text = (one(time)[:, None].chunk(6, dim=-1) for one in (self.img_mod, self.txt_mod))
        if still is not None:
            others = self.img_mod(still)[:, None].chunk(6, dim=-1)
            counts = drawn, image.shape[1] - drawn
            of_image = tuple(
                torch.cat([one.expand(-1, count, -1) for one, count in zip(pair, counts, strict=True)], dim=1)
                for pair in zip(of_image, others, strict=True)
            )
        return both_streams(image, text, by, of_image, of_text, self.attn, self.img_mlp, self.txt_mlp)


class TimeEmbedding(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.timestep_embedder = Embedding(WAVES, width)


class QwenImageTransformer2DModel(BaseModel):
    def __init__(self, config: QwenImageConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.time_text_embed = TimeEmbedding(width)
        self.txt_norm = RMSNorm(config.joint_attention_dim, EPS)
        self.img_in = nn.Linear(config.in_channels, width)
        self.txt_in = nn.Linear(config.joint_attention_dim, width)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm_out = Modulation(width, 2)
        self.proj_out = nn.Linear(width, PATCH**2 * config.makes)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        caption: Tensor,
        lengths: Tensor,
        references: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity ε − x0 (B, C, H, W) at x (B, C, H, W) and timesteps (B,) of 1000 σ, for states of texts
        (B, L, E) of which the first `lengths` (B,) tokens count. Those of one length run together.
        references, places: tokens of images to look at, and where they are (see `flow_blocks.look_at`).

        Raises GencliError for an image or a text with more tokens than there are places for.
        """
        timesteps, caption, lengths = (one.expand(len(x), *one.shape[1:]) for one in (timesteps, caption, lengths))
        out = torch.empty_like(x)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0].to(x.device)
            states = caption[rows.to(caption.device), :length].to(x.device, x.dtype)
            seen = None if references is None else references.to(x.device, x.dtype).expand(len(x), -1, -1)[rows]
            out[rows] = self._alike(x[rows], timesteps[rows], states, seen, places)
        return out

    def _alike(
        self, x: Tensor, timesteps: Tensor, states: Tensor, references: Tensor | None, places: Tensor | None
    ) -> Tensor:
        height, width = x.shape[2] // PATCH, x.shape[3] // PATCH
        drawn, tokens = height * width, F.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2)
        where = F.pad(centred(height, width, x.device), (1, 0))
        if references is not None and places is not None:
            tokens, where = torch.cat([tokens, references], dim=1), torch.cat([where, places[0].to(x.device)])
        by = self._rotation(where, states.shape[1])
        embed = self.time_text_embed.timestep_embedder
        time = embed(waves(timesteps, x.dtype))
        stands = self.config.zero_cond_t and tokens.shape[1] > drawn
        still = embed(waves(torch.zeros_like(timesteps), x.dtype)) if stands else None
        text, image = self.txt_in(self.txt_norm(states)), self.img_in(tokens)
        for block in self.transformer_blocks:
            image, text = block(image, text, by, time, still, drawn)
        scaled, shift = self.norm_out(time)
        out = self.proj_out(modulated(image[:, :drawn], (shift, scaled)))
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (height, width)), PATCH)

    def _rotation(self, where: Tensor, length: int) -> Rotation:
        """Of a text's tokens, which lie on the diagonal from the edge of the widest image on, and then of the images'
        (T, 3), of which the middles are at 0."""
        edge = int(where[:, 1:].max()) + 1
        if edge + length > PLACES:
            raise GencliError(
                f"images whose edge is at token {edge} and a text of {length} reach place {edge + length}, and this "
                f"model knows {PLACES}"
            )
        text = torch.arange(edge, edge + length, device=where.device)[:, None].expand(-1, 3)
        return rotation(torch.cat([text, where]), self.config.axes_dims_rope, THETA)


OVERFLOWS_IN_HALF = True
LAYOUT = Layout()
Config, Model = QwenImageConfig, QwenImageTransformer2DModel
