"""The transformer of FLUX.2 (Black Forest Labs 2025), of two streams and then one, as Flux2Transformer2DModel of
diffusers.

B: batch, C, H, W: channels, height and width of the latents, L: tokens of a text, T: of both, D: width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.base import BaseConfig, Layout, check_flags, check_ints, check_numbers
from gencli.models.decoder_blocks import RMSNorm
from gencli.models.flow_blocks import (
    WAVES,
    JointAttention,
    Rotation,
    attend,
    beside,
    check_axes,
    heads,
    layer_norm,
    rotation,
    waves,
)
from gencli.models.module import BaseModel


@dataclass(frozen=True)
class Flux2Config(BaseConfig):
    """config.json of FLUX.2; defaults are those of the class in diffusers (FLUX.2 dev's)."""

    ONLY: ClassVar = {
        "patch_size": (1,),
        "out_channels": (None,),
        "timestep_guidance_channels": (WAVES,),
        "guidance_embeds": (False,),  # of FLUX.2 dev, which is told the guidance as a number
    }

    in_channels: int = 128
    num_layers: int = 8
    num_single_layers: int = 48
    attention_head_dim: int = 128
    num_attention_heads: int = 48
    joint_attention_dim: int = 15360
    mlp_ratio: float = 3.0
    axes_dims_rope: tuple[int, ...] = (32, 32, 32, 32)
    rope_theta: int = 2000
    eps: float = 1e-6

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        return {"guidance_embeds": True, **raw}

    def check(self) -> None:
        check_ints(
            self, {"in_channels": 1024, "num_layers": 256, "num_single_layers": 256, "attention_head_dim": 2**10}
        )
        check_ints(self, {"num_attention_heads": 2**10, "joint_attention_dim": 2**17, "axes_dims_rope": 2**10})
        check_numbers(self, {"mlp_ratio": (0.1, 16), "rope_theta": (1.001, 1e12), "eps": (0.0, 1.0)})
        check_flags(self)
        check_axes(self.axes_dims_rope, 4, self.attention_head_dim)

    @property
    def width(self) -> int:
        """D."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def hidden(self) -> int:
        """The width inside of a feed-forward network."""
        return int(self.width * self.mlp_ratio)


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def gated(x: Tensor) -> Tensor:
    """Return silu(a) · b for the halves of x."""
    a, b = x.chunk(2, dim=-1)
    return F.silu(a) * b


class Embedding(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear_1 = linear(WAVES, width)
        self.linear_2 = linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class TimestepGuidanceEmbedding(nn.Module):
    def __init__(self, config: Flux2Config):
        super().__init__()
        self.timestep_embedder = Embedding(config.width)


class Modulation(nn.Module):
    """Shifts, scales and gates, which all blocks share; (B, count · 3, 1, D) of the embedded time (B, D)."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.count = count
        self.linear = linear(width, 3 * count * width)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(time)).unflatten(-1, (3 * self.count, 1, -1)).unbind(1)


class FeedForward(nn.Module):
    def __init__(self, config: Flux2Config):
        super().__init__()
        self.linear_in = linear(config.width, 2 * config.hidden)
        self.linear_out = linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_out(gated(self.linear_in(x)))


class DoubleBlock(nn.Module):
    def __init__(self, config: Flux2Config):
        super().__init__()
        self.eps = config.eps
        self.attn = JointAttention(config.width, config.attention_head_dim, config.eps, bias=False)
        self.ff = FeedForward(config)
        self.ff_context = FeedForward(config)

    def forward(
        self, image: Tensor, text: Tensor, by: Rotation, of_image: Sequence[Tensor], of_text: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the next states of an image (B, H · W, D) and a text (B, L, D). of_image, of_text: shift, scale, gate
        of the attention, then of the feed-forward network."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff = of_image
        shift_t, scale_t, gate_t, shift_ff_t, scale_ff_t, gate_ff_t = of_text
        y, y_text = self.attn(
            layer_norm(image, self.eps) * (1 + scale) + shift, layer_norm(text, self.eps) * (1 + scale_t) + shift_t, by
        )
        image, text = image + gate * y, text + gate_t * y_text
        image = image + gate_ff * self.ff(layer_norm(image, self.eps) * (1 + scale_ff) + shift_ff)
        return image, text + gate_ff_t * self.ff_context(layer_norm(text, self.eps) * (1 + scale_ff_t) + shift_ff_t)


class ParallelAttention(nn.Module):
    """Attention and a feed-forward network beside each other, with one projection in and one out."""

    def __init__(self, config: Flux2Config):
        super().__init__()
        width, size, eps = config.width, config.attention_head_dim, config.eps
        self.size, self.parts = size, (width, width, width, 2 * config.hidden)
        self.to_qkv_mlp_proj = linear(width, sum(self.parts))
        self.norm_q, self.norm_k = RMSNorm(size, eps), RMSNorm(size, eps)
        self.to_out = linear(width + config.hidden, width)

    def forward(self, x: Tensor, by: Rotation) -> Tensor:
        q, k, v, ff = self.to_qkv_mlp_proj(x).split(self.parts, dim=-1)
        q, k = heads(q, self.size, self.norm_q), heads(k, self.size, self.norm_k)
        return self.to_out(torch.cat([attend(q, k, heads(v, self.size), by), gated(ff)], dim=-1))


class SingleBlock(nn.Module):
    def __init__(self, config: Flux2Config):
        super().__init__()
        self.eps = config.eps
        self.attn = ParallelAttention(config)

    def forward(self, x: Tensor, by: Rotation, modulation: Sequence[Tensor]) -> Tensor:
        shift, scale, gate = modulation
        return x + gate * self.attn(layer_norm(x, self.eps) * (1 + scale) + shift, by)


class AdaLayerNormContinuous(nn.Module):
    def __init__(self, config: Flux2Config):
        super().__init__()
        self.eps = config.eps
        self.linear = linear(config.width, 2 * config.width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.linear(F.silu(time))[:, None].chunk(2, dim=-1)
        return layer_norm(x, self.eps) * (1 + scale) + shift


class Flux2Transformer2DModel(BaseModel):
    def __init__(self, config: Flux2Config):
        super().__init__()
        self.config = config
        width = config.width
        self.time_guidance_embed = TimestepGuidanceEmbedding(config)
        self.double_stream_modulation_img = Modulation(width, 2)
        self.double_stream_modulation_txt = Modulation(width, 2)
        self.single_stream_modulation = Modulation(width, 1)
        self.x_embedder = linear(config.in_channels, width)
        self.context_embedder = linear(config.joint_attention_dim, width)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.num_single_layers))
        self.norm_out = AdaLayerNormContinuous(config)
        self.proj_out = linear(width, config.in_channels)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        encoder_hidden_states: Tensor,
        references: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity ε − x0 (B, C, H, W) at x (B, C, H, W) and timesteps (B,) of 1000 σ, for states of texts
        (B, L, E). references, places: tokens of images to look at, and where they are (see `flow_blocks.look_at`)."""
        height, width = x.shape[2:]
        text = self.context_embedder(encoder_hidden_states.to(x.device, x.dtype).expand(len(x), -1, -1))
        tokens, where = beside(x, references, places)
        image, of_image = self.x_embedder(tokens), F.pad(where, (0, 1))
        of_text = F.pad(torch.arange(text.shape[1], device=x.device)[:, None], (3, 0))
        by = rotation(torch.cat([of_text, of_image]), self.config.axes_dims_rope, self.config.rope_theta)
        time = self.time_guidance_embed.timestep_embedder(waves(timesteps.expand(len(x)), x.dtype))
        mod_image, mod_text = self.double_stream_modulation_img(time), self.double_stream_modulation_txt(time)
        for block in self.transformer_blocks:
            image, text = block(image, text, by, mod_image, mod_text)
        both, modulation = torch.cat([text, image], dim=1), self.single_stream_modulation(time)
        for block in self.single_transformer_blocks:
            both = block(both, by, modulation)
        out = self.proj_out(self.norm_out(both[:, text.shape[1] :][:, : height * width], time))
        return out.transpose(1, 2).unflatten(2, (height, width)).contiguous()


OVERFLOWS_IN_HALF = True
LAYOUT = Layout()
Config, Model = Flux2Config, Flux2Transformer2DModel
