"""The vision tower of Qwen 2.5 VL (Bai et al. 2025, arXiv 2502.13923): patches of an image → states that the text model
reads in the place of words. Most of its layers attend within windows.

h, w: rows and columns of patches, N: h · w, W: width, M: patches that become one state, C: width of the text model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import BaseConfig, check_ints, check_multiple
from gencli.models.decoder_blocks import RMSNorm
from gencli.models.flow_blocks import grid

EPS, THETA = 1e-6, 10000.0


@dataclass(frozen=True)
class VisionConfig(BaseConfig):
    """`vision_config`; defaults are those of the class in transformers."""

    ONLY: ClassVar = {
        "hidden_act": ("silu",),
        "in_channels": (3,),
        "in_chans": (3,),
        "model_type": ("qwen2_5_vl", "qwen2_5_vl_vision"),
    }
    INERT = frozenset(
        {"initializer_range", "tokens_per_second", "spatial_patch_size", "rope_parameters", "dtype", "torch_dtype"}
    )

    depth: int = 32
    hidden_size: int = 3584
    intermediate_size: int = 3420
    num_heads: int = 16
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112
    out_hidden_size: int = 3584
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)

    def check(self) -> None:
        check_ints(self, {"depth": 256, "hidden_size": 2**16, "intermediate_size": 2**20, "num_heads": 1024})
        check_ints(self, {"patch_size": 256, "spatial_merge_size": 16, "temporal_patch_size": 16, "window_size": 2**14})
        check_ints(self, {"out_hidden_size": 2**16})
        check_ints(self, {"fullatt_block_indexes": 256}, least=0)
        check_multiple(self, "hidden_size", "num_heads")
        if self.head_dim % 4:
            raise GencliError(f"config.json: heads of {self.head_dim} cannot be turned by row and column")
        if self.window_size < self.factor:
            raise GencliError(f"config.json: window_size = {self.window_size} is less than a state's {self.factor}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def factor(self) -> int:
        """Pixels a side of a state of the text model."""
        return self.patch_size * self.spatial_merge_size


class PatchEmbed(nn.Module):
    """Of an image, which stands for all frames that the checkpoint's convolution reads: the sum of its slices."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.proj = nn.Linear(3 * config.patch_size**2, config.hidden_size, bias=False)


def of_one_image(kernel: Tensor) -> Tensor:
    """Return a kernel (W, 3, frames, P, P) for frames that are all the same, as a matrix (W, 3 · P²)."""
    return kernel.float().sum(dim=2).flatten(1).to(kernel.dtype) if kernel.ndim == 5 else kernel


class Attention(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.size = config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], lengths: list[int]) -> Tensor:
        """x (N, W), of which neighbours attend to each other in groups of `lengths`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.size)).unbind(1)  # (N, heads, size) each
        q, k = turned(q, angles), turned(k, angles)
        parts = zip(*(one.transpose(0, 1)[None].split(lengths, dim=2) for one in (q, k, v)), strict=True)
        found = [F.scaled_dot_product_attention(*part) for part in parts]
        return self.proj(torch.cat(found, dim=2)[0].transpose(0, 1).flatten(1))


def turned(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs (i, i + D / 2) of the numbers of each head of x (N, H, D), in float32."""
    (cos, sin), (a, b) = angles, x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class MLP(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.norm1, self.norm2 = (RMSNorm(config.hidden_size, EPS) for _ in range(2))
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], lengths: list[int]) -> Tensor:
        x = x + self.attn(self.norm1(x), angles, lengths)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """M neighbouring patches (N, W) → one state (N / M, C)."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = RMSNorm(config.hidden_size, EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.out_hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).view(-1, self.mlp[0].in_features))


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.merger = Merger(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the states (N / M, C), row by row, of an image (3, H, W) whose sides are whole multiples of
        `config.factor`."""
        config, side = self.config, self.config.spatial_merge_size
        rows, columns = (size // config.factor for size in pixels.shape[1:])
        order, lengths = self._windows(rows, columns, pixels.device)
        x = self._grouped(F.pixel_unshuffle(pixels, config.patch_size).permute(1, 2, 0))[order].flatten(0, 1)
        places = grid(rows * side, columns * side, pixels.device).view(rows * side, columns * side, 2)
        angles = self._angles(self._grouped(places)[order].flatten(0, 1))
        x = self.patch_embed.proj(x)
        for number, block in enumerate(self.blocks):
            x = block(x, angles, [len(x)] if number in config.fullatt_block_indexes else lengths)
        return self.merger(x)[order.argsort()]

    def _grouped(self, x: Tensor) -> Tensor:
        """(h, w, …) → (N / M, M, …)."""
        side = self.config.spatial_merge_size
        x = x.unflatten(1, (-1, side)).unflatten(0, (-1, side)).transpose(1, 2)
        return x.flatten(2, 3).flatten(0, 1)

    def _windows(self, rows: int, columns: int, device: torch.device) -> tuple[Tensor, list[int]]:
        """The order of states, window by window, and how many patches are in each."""
        side = self.config.window_size // self.config.factor
        at = grid(rows, columns, device) // side
        window = at[:, 0] * (columns // side + 1) + at[:, 1]
        lengths = torch.unique(window, return_counts=True)[1] * self.config.spatial_merge_size**2
        return window.argsort(stable=True), lengths.tolist()

    def _angles(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (N, 1, D / 2) for patches at rows and columns (N, 2), in float32."""
        half = self.config.head_dim // 2
        frequencies = 1.0 / (THETA ** (torch.arange(0, half, 2, device=places.device).float() / half))
        angles = (places[..., None].float() * frequencies).flatten(1)[:, None]
        return angles.cos(), angles.sin()


def vision_config(raw: Mapping[str, object]) -> VisionConfig:
    """Read `vision_config` of a config.json. Raises GencliError."""
    inner = raw.get("vision_config")
    if not isinstance(inner, Mapping):
        raise GencliError("config.json has no vision_config, and so no tower that reads images")
    return VisionConfig.from_dict(inner)
