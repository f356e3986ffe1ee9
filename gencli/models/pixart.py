"""The diffusion transformer of texts, PixArt-α and Σ (Chen et al. 2023, arXiv 2310.00426; 2024, arXiv 2403.04692), as
PixArtTransformer2DModel of diffusers; older files call it Transformer2DModel.

B: batch, C, H, W: channels, height and width of the latents, T: their patches, L: tokens of a text, D: width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.activations import gelu_tanh
from gencli.models.attention import multi_head_attention
from gencli.models.attention_blocks import GELU, FeedForward
from gencli.models.attention_blocks import Attention as SelfAttention
from gencli.models.base import BaseConfig, Layout, check_flags, check_ints, check_numbers
from gencli.models.dit import PatchEmbed, norm, unpatchify
from gencli.models.module import BaseModel
from gencli.models.unet_blocks import TimestepEmbedding, timestep_embedding

WAVES = 256


@dataclass(frozen=True)
class PixArtConfig(BaseConfig):
    """config.json of PixArt; defaults are those of the class in diffusers.

    interpolation_scale: how many times finer the places of patches lie than in a model of 512 pixels.
    use_additional_conditions: whether it is told the image's size.
    """

    ONLY: ClassVar = {
        "norm_type": ("ada_norm_single",),
        "activation_fn": ("gelu-approximate",),
        "norm_elementwise_affine": (False,),
        "attention_type": ("default",),
        "double_self_attention": (False,),
        "only_cross_attention": (False,),
        "use_linear_projection": (False,),
    }
    # There is no GroupNorm, and there are no classes; softmax is always in float32.
    INERT = frozenset({"norm_num_groups", "upcast_attention", "dropout", "num_embeds_ada_norm"})

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = 8
    num_layers: int = 28
    cross_attention_dim: int = 1152
    caption_channels: int = 4096
    attention_bias: bool = True
    sample_size: int = 128
    patch_size: int = 2
    norm_eps: float = 1e-6
    interpolation_scale: float | None = None
    use_additional_conditions: bool | None = None

    def check(self) -> None:
        check_ints(self, {"num_attention_heads": 2**8, "attention_head_dim": 2**10, "in_channels": 1024})
        check_ints(self, {"num_layers": 256, "sample_size": 2**12, "patch_size": 64, "caption_channels": 2**16})
        check_ints(self, {"cross_attention_dim": 2**18} | ({} if self.out_channels is None else {"out_channels": 2048}))
        check_numbers(self, {"norm_eps": (0.0, 1.0)})
        check_flags(self)
        if self.interpolation_scale is not None:
            check_numbers(self, {"interpolation_scale": (1e-3, 1e3)})
        if self.use_additional_conditions not in (None, True, False):
            raise GencliError(f"config.json: use_additional_conditions = {self.use_additional_conditions!r:.40}")
        if self.sample_size % self.patch_size or self.width % 12:
            raise GencliError(f"config.json: {self.width} channels or patches of {self.patch_size} do not fit")
        if self.cross_attention_dim != self.width:
            raise GencliError(f"config.json: cross_attention_dim = {self.cross_attention_dim} is not {self.width}")

    @property
    def width(self) -> int:
        """D."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def reads_size(self) -> bool:
        """Whether it is told the image's size; those of 1024 pixels are, if the config does not say it."""
        told = self.use_additional_conditions
        return self.sample_size == 128 if told is None else told

    @property
    def finer(self) -> float:
        """interpolation_scale, or what its class takes."""
        return max(self.sample_size // 64, 1) if self.interpolation_scale is None else self.interpolation_scale


def sinusoids(numbers: Tensor) -> Tensor:
    """Return waves (…, 256) of numbers (…)."""
    flat = timestep_embedding(numbers.flatten(), WAVES, flip_sin_to_cos=True, freq_shift=0)
    return flat.view(*numbers.shape, WAVES)


class SizeEmbedding(nn.Module):
    """What a step is told: its timestep, and in some models the size of the image."""

    def __init__(self, config: PixArtConfig):
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(WAVES, config.width)
        self.reads_size = config.reads_size
        if config.reads_size:
            self.resolution_embedder = TimestepEmbedding(WAVES, config.width // 3)
            self.aspect_ratio_embedder = TimestepEmbedding(WAVES, config.width // 3)

    def forward(self, timesteps: Tensor, size: Tensor | None, dtype: torch.dtype) -> Tensor:
        emb = self.timestep_embedder(sinusoids(timesteps).to(dtype))
        if not self.reads_size:
            return emb
        assert size is not None
        sides = self.resolution_embedder(sinusoids(size).to(dtype)).flatten(1)
        ratio = self.aspect_ratio_embedder(sinusoids(size[:, :1] / size[:, 1:]).to(dtype)).flatten(1)
        return emb + torch.cat([sides, ratio], dim=1)


class AdaLayerNormSingle(nn.Module):
    """One embedding for all blocks (section 2.3, adaLN-single)."""

    def __init__(self, config: PixArtConfig):
        super().__init__()
        self.emb = SizeEmbedding(config)
        self.linear = nn.Linear(config.width, 6 * config.width)


class Attention(SelfAttention):
    """Attention, to a context with a mask (B, 1, 1, L) that is false for padding."""

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out[0](multi_head_attention(q, k, v, self.heads, mask=mask))


class Block(nn.Module):
    def __init__(self, config: PixArtConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.attn1 = Attention(config.width, config.num_attention_heads, bias=config.attention_bias)
        self.attn2 = Attention(config.width, config.num_attention_heads, bias=config.attention_bias)
        self.ff = FeedForward(config.width, GELU)
        self.scale_shift_table = nn.Parameter(torch.empty(6, config.width))

    def forward(self, x: Tensor, told: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Return the next states of x (B, T, D); told (B, 6, D): by the timestep."""
        told = self.scale_shift_table.to(told.dtype) + told
        shift, scale, gate, shift_ff, scale_ff, gate_ff = told[:, :, None].unbind(1)
        x = x + gate * self.attn1(norm(x, self.eps) * (1 + scale) + shift)
        x = x + self.attn2(x, context, mask)  # of states that are not normed
        return x + gate_ff * self.ff(norm(x, self.eps) * (1 + scale_ff) + shift_ff)


class CaptionProjection(nn.Module):
    def __init__(self, config: PixArtConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.caption_channels, config.width)
        self.linear_2 = nn.Linear(config.width, config.width)

    def forward(self, states: Tensor) -> Tensor:
        return self.linear_2(gelu_tanh(self.linear_1(states)))


class PixArtTransformer2DModel(BaseModel):
    def __init__(self, config: PixArtConfig):
        super().__init__()
        self.config = config
        self.out_channels = config.out_channels or config.in_channels
        self.pos_embed = PatchEmbed(
            config.in_channels, config.width, config.patch_size, config.sample_size // config.patch_size, config.finer
        )
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.empty(2, config.width))
        self.proj_out = nn.Linear(config.width, config.patch_size**2 * self.out_channels)
        self.adaln_single = AdaLayerNormSingle(config)
        self.caption_projection = CaptionProjection(config)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        size: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction (B, out_channels, H, W) for latents (B, C, H, W), timesteps (B,) and states of texts
        (B, L, E) with a mask (B, L), false for padding. size (B or 1, 2): height and width of the image in pixels."""
        size = None if size is None else size.to(x.device).expand(len(x), 2)
        emb = self.adaln_single.emb(timesteps.expand(len(x)), size, x.dtype)
        told = self.adaln_single.linear(F.silu(emb)).unflatten(1, (6, -1))
        context = self.caption_projection(encoder_hidden_states.to(x.device, x.dtype))
        mask = encoder_attention_mask.to(x.device)[:, None, None]
        tokens, height, width = self.pos_embed(x)
        for block in self.transformer_blocks:
            tokens = block(tokens, told, context, mask)
        shift, scale = (self.scale_shift_table.to(x.dtype) + emb[:, None])[:, :, None].unbind(1)
        tokens = self.proj_out(norm(tokens, 1e-6) * (1 + scale) + shift)
        return unpatchify(tokens, height, width, self.config.patch_size, self.out_channels)


LAYOUT = Layout(drops=(r"pos_embed\.pos_embed",))  # positions, which some versions save
Config, Model = PixArtConfig, PixArtTransformer2DModel
