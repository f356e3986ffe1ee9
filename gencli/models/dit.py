"""The diffusion transformer (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", arXiv 2212.09748), as
DiTTransformer2DModel of diffusers; older files call it Transformer2DModel.

B: batch, C, H, W: channels, height and width of the latents, T: their patches, D: width of the transformer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.attention_blocks import GELU, Attention, FeedForward
from gencli.models.base import BaseConfig, Layout, check_flags, check_ints, check_numbers
from gencli.models.module import BaseModel
from gencli.models.unet_blocks import TimestepEmbedding, timestep_embedding

WAVES = 256  # sinusoids of the timestep


@dataclass(frozen=True)
class DiTConfig(BaseConfig):
    """config.json of a DiT; defaults are those of the class in diffusers. num_embeds_ada_norm: the number of classes;
    one more class, of that number, means "none".

    freq_shift is no key of diffusers' files. Its class embeds timesteps with 1; the original code, with which the
    released weights were trained, with 0, which is used for files of the original form.
    """

    ONLY: ClassVar = {
        "norm_type": ("ada_norm_zero",),
        "activation_fn": ("gelu-approximate",),
        "norm_elementwise_affine": (False,),
        "attention_type": ("default",),
        "double_self_attention": (False,),
        "only_cross_attention": (False,),
        "use_linear_projection": (False,),
        "use_additional_conditions": (None, False),
        "interpolation_scale": (None, 1, 1.0),
    }
    # There is no GroupNorm; softmax is always in float32.
    INERT = frozenset({"norm_num_groups", "upcast_attention", "dropout"})

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = None
    num_layers: int = 28
    attention_bias: bool = True
    sample_size: int = 32
    patch_size: int = 2
    num_embeds_ada_norm: int = 1000
    norm_eps: float = 1e-5
    freq_shift: float = 1

    def check(self) -> None:
        check_ints(self, {"num_attention_heads": 2**8, "attention_head_dim": 2**10, "in_channels": 1024})
        check_ints(self, {"num_layers": 256, "sample_size": 2**12, "patch_size": 64, "num_embeds_ada_norm": 2**20})
        if self.out_channels is not None:
            check_ints(self, {"out_channels": 2048})
        check_numbers(self, {"norm_eps": (0.0, 1.0), "freq_shift": (0.0, 1.0)})
        check_flags(self)
        if self.sample_size % self.patch_size:
            raise GencliError(f"config.json: patch_size = {self.patch_size} does not divide {self.sample_size}")
        if self.width % 4:
            raise GencliError(f"config.json: {self.width} channels have no sines and cosines of two axes")

    @property
    def width(self) -> int:
        """D."""
        return self.num_attention_heads * self.attention_head_dim


class PatchEmbed(nn.Module):
    """Patches as tokens, with their places. base, finer: see `positions`."""

    def __init__(self, in_channels: int, width: int, patch_size: int, base: int, finer: float = 1.0):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.base, self.finer = base, finer
        self.positions: dict[tuple[int, int], Tensor] = {}  # of the last size

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Return tokens (B, h · w, D) of latents (B, C, H, W), and h and w."""
        patches = self.proj(x)
        height, width = patches.shape[2:]
        if (height, width) not in self.positions:
            self.positions = {(height, width): positions(patches.shape[1], height, width, self.base, self.finer)}
        places = self.positions[height, width].to(x.device)
        return (patches.flatten(2).transpose(1, 2) + places).to(x.dtype), height, width


class LabelEmbedding(nn.Module):
    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)  # the last one means no class

    def forward(self, class_labels: Tensor) -> Tensor:
        return self.embedding_table(class_labels)


class TimestepLabelEmbedding(nn.Module):
    def __init__(self, config: DiTConfig):
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(WAVES, config.width)
        self.class_embedder = LabelEmbedding(config.num_embeds_ada_norm, config.width)

    def forward(self, waves: Tensor, class_labels: Tensor) -> Tensor:
        return self.timestep_embedder(waves) + self.class_embedder(class_labels)


class AdaLayerNormZero(nn.Module):
    """Shifts, scales and gates of a block, from the timestep and the class (section 3.2, adaLN-Zero).

    In diffusers each block has embeddings of its own; in released files they are all the same.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.emb = TimestepLabelEmbedding(config)
        self.linear = nn.Linear(config.width, 6 * config.width)

    def forward(self, waves: Tensor, class_labels: Tensor) -> Tensor:
        """Return (B, 6, 1, D) for sinusoids (B, 256) and classes (B,): shift, scale, gate of attention, of `ff`."""
        return self.linear(F.silu(self.emb(waves, class_labels))).unflatten(1, (6, 1, -1))


class DiTBlock(nn.Module):
    def __init__(self, config: DiTConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.norm1 = AdaLayerNormZero(config)
        self.attn1 = Attention(config.width, config.num_attention_heads, bias=config.attention_bias)
        self.ff = FeedForward(config.width, GELU)

    def forward(self, x: Tensor, waves: Tensor, class_labels: Tensor) -> Tensor:
        """Return the next states (B, T, D) of x (B, T, D), for sinusoids (B, 256) and classes (B,)."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self.norm1(waves, class_labels).unbind(1)
        x = x + gate * self.attn1(norm(x, 1e-6) * (1 + scale) + shift)  # in diffusers norm_eps is of the second only
        return x + gate_ff * self.ff(norm(x, self.eps) * (1 + scale_ff) + shift_ff)


class DiTTransformer2DModel(BaseModel):
    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.out_channels = config.out_channels or config.in_channels
        self.pos_embed = PatchEmbed(
            config.in_channels, config.width, config.patch_size, config.sample_size // config.patch_size
        )
        self.transformer_blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.num_layers))
        self.proj_out_1 = nn.Linear(config.width, 2 * config.width)
        self.proj_out_2 = nn.Linear(config.width, config.patch_size**2 * self.out_channels)

    def forward(self, x: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        """Return the prediction (B, out_channels, H, W) for latents (B, C, H, W), timesteps (B,) and classes (B,).

        Timesteps may be fractional. H and W are multiples of the patch size; for sizes other than the model's the
        positions are scaled.
        """
        waves = timestep_embedding(
            timesteps.expand(len(x)), WAVES, flip_sin_to_cos=True, freq_shift=self.config.freq_shift
        ).to(x.dtype)
        class_labels = class_labels.to(x.device).expand(len(x))
        tokens, height, width = self.pos_embed(x)
        for block in self.transformer_blocks:
            tokens = block(tokens, waves, class_labels)
        emb: nn.Module = self.transformer_blocks[0].get_submodule("norm1.emb")
        shift, scale = self.proj_out_1(F.silu(emb(waves, class_labels)))[:, None].chunk(2, dim=-1)
        tokens = self.proj_out_2(norm(tokens, 1e-6) * (1 + scale) + shift)
        return unpatchify(tokens, height, width, self.config.patch_size, self.out_channels)


def norm(x: Tensor, eps: float) -> Tensor:
    """Return the layer norm of x without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def unpatchify(tokens: Tensor, height: int, width: int, size: int, channels: int) -> Tensor:
    """Return the image (B, C, h · size, w · size) of tokens (B, h · w, size · size · C)."""
    out = tokens.unflatten(1, (height, width)).unflatten(3, (size, size, channels))  # (B, h, w, size, size, C)
    return out.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), channels, height * size, width * size)


def positions(dim: int, height: int, width: int, base: int, finer: float = 1.0) -> Tensor:
    """Return sines and cosines of each patch's column, then of its row: (height · width, dim) in float32.

    If a side has another number of patches than `base`, they are spread evenly over the same range. finer: how many
    times nearer to each other they lie.
    """
    rows = torch.arange(height, dtype=torch.float32) / (height / base) / finer
    columns = torch.arange(width, dtype=torch.float32) / (width / base) / finer
    frequencies = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))

    def waves(places: Tensor) -> Tensor:
        angles = torch.outer(places.double(), frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (places, dim / 2)

    across = waves(columns)[None, :].expand(height, -1, -1)
    down = waves(rows)[:, None].expand(-1, width, -1)
    return torch.cat([across, down], dim=2).flatten(0, 1).float()


LAYOUT = Layout(drops=(r"pos_embed\.pos_embed",))  # positions, which some versions save
Config, Model = DiTConfig, DiTTransformer2DModel
