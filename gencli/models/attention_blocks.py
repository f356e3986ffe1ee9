"""Attention over images, named as the checkpoints of diffusers name it: alone, or in a small transformer.

B: batch, T: tokens (H · W of an image), C: channels, L, D: tokens of the context and their width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.activations import gelu_tanh
from gencli.models.attention import multi_head_attention
from gencli.models.base import Rename, squeeze_conv

# What a UNet's attentions attend to: (B, L, D), or with a mask (B, L) that is false for tokens that count for nothing.
Context = Tensor | tuple[Tensor, Tensor]


def to_tokens(x: Tensor) -> Tensor:
    """Return (B, H W, C), contiguous, of (B, C, H, W); a view if x is channels-last."""
    return x.flatten(2).transpose(1, 2).contiguous()


def to_image(tokens: Tensor, like: Tensor) -> Tensor:
    """Return (B, C, H, W) of (B, H W, C), in the size and memory layout of `like`: mixed layouts cost time later."""
    image = tokens.transpose(1, 2).unflatten(2, like.shape[2:])
    return image if like.is_contiguous(memory_format=torch.channels_last) else image.contiguous()


class Attention(nn.Module):
    """Multi-head attention of x (B, T, C) to itself or to a context (B, L, D)."""

    def __init__(self, channels: int, heads: int, *, context_channels: int | None = None, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=bias)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return (B, T, C) for x (B, T, C)."""
        context = x if context is None else context
        return self.to_out[0](multi_head_attention(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


class AttentionBlock(Attention):
    """Self-attention over the positions of an image (B, C, H, W), normed before and added to it."""

    def __init__(
        self, channels: int, heads: int, *, groups: int | None, eps: float, rescale_output_factor: float = 1.0
    ):
        super().__init__(channels, heads, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps) if groups else nn.Identity()
        self.rescale_output_factor = rescale_output_factor

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """`context` is not read; it is there because all attentions of a UNet are called alike."""
        y = x + to_image(super().forward(to_tokens(self.group_norm(x))), like=x)
        return y if self.rescale_output_factor == 1 else y / self.rescale_output_factor


class AddedKeysAttention(nn.Module):
    """Attention of the positions of an image (B, C, H, W) to a context (B, L, D) and to each other, in one softmax
    (GLIDE; Nichol et al. 2021, arXiv 2112.10741), normed before and added to the image.

    only_context: not to each other. normed: the context is normed too, over groups of its channels.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        context_channels: int,
        groups: int,
        only_context: bool = False,
        normed: bool = False,
    ):
        super().__init__()
        self.heads, self.only_context = heads, only_context
        self.group_norm = nn.GroupNorm(groups, channels)
        self.norm_cross = nn.GroupNorm(32, context_channels) if normed else None
        self.to_q = nn.Linear(channels, channels)
        if not only_context:
            self.to_k = nn.Linear(channels, channels)
            self.to_v = nn.Linear(channels, channels)
        self.add_k_proj = nn.Linear(context_channels, channels)
        self.add_v_proj = nn.Linear(context_channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Context) -> Tensor:
        h, mask = to_tokens(self.group_norm(x)), None
        if isinstance(context, tuple):
            context, mask = context
            mask = mask if self.only_context else F.pad(mask, (0, h.shape[1]), value=True)
            mask = mask[:, None, None]
        if self.norm_cross is not None:
            context = self.norm_cross(context.transpose(1, 2)).transpose(1, 2)
        k, v = self.add_k_proj(context), self.add_v_proj(context)
        if not self.only_context:
            k, v = torch.cat([k, self.to_k(h)], dim=1), torch.cat([v, self.to_v(h)], dim=1)
        return x + to_image(self.to_out[0](multi_head_attention(self.to_q(h), k, v, self.heads, mask=mask)), like=x)


class GEGLU(nn.Module):
    """A gated linear unit (Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class GELU(nn.Module):
    """A linear layer and its activation, one module in diffusers."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return gelu_tanh(self.proj(x))


class FeedForward(nn.Module):
    def __init__(self, channels: int, activation: type[GEGLU | GELU] = GEGLU):
        super().__init__()
        # the checkpoints count a dropout between the two
        self.net = nn.Sequential(activation(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward: each normed before and added. only_context: the first
    attends to the context too."""

    def __init__(self, channels: int, heads: int, context_channels: int, *, only_context: bool = False):
        super().__init__()
        self.only_context = only_context
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, context_channels=context_channels if only_context else None)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_channels=context_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x), context if self.only_context else None)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nn.Module):
    """Transformer blocks over the positions of an image (B, C, H, W) that attend to a context (B, L, D).

    The projections around them are 1×1 convolutions (Stable Diffusion 1) or linear layers (2): the same mathematics,
    but another shape in the file.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        layers: int,
        context_channels: int,
        groups: int,
        linear: bool,
        only_context: bool = False,
    ):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, heads, context_channels, only_context=only_context) for _ in range(layers)
        )
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm(x)
        h = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, context)
        h = to_image(self.proj_out(h), like=x) if self.linear else self.proj_out(to_image(h, like=x))
        return x + h


# Files from before diffusers 0.15 have other names for the projections of an AttentionBlock, and some of those that
# were converted from Latent Diffusion store them as 1×1 convolutions.
OLD_ATTENTION_NAMES = tuple(
    Rename(rf"(.*attentions\.\d+)\.{names}\.{kind}", rf"\1.{new}.{kind}", squeeze_conv if kind == "weight" else None)
    for names, new in (
        ("(?:query|to_q)", "to_q"),
        ("(?:key|to_k)", "to_k"),
        ("(?:value|to_v)", "to_v"),
        (r"(?:proj_attn|to_out\.0)", "to_out.0"),
    )
    for kind in ("weight", "bias")
)
