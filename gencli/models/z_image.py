"""The transformer of Z-Image (Cai et al. 2025, arXiv 2511.22699), which reads an image and a caption as one sequence,
as ZImageTransformer2DModel of diffusers.

B: batch, C, H, W: channels, height and width of the latents, L: tokens of a caption, T: of both, D: width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import BaseConfig, Layout, check_flags, check_ints, check_multiple, check_numbers
from gencli.models.decoder_blocks import RMSNorm
from gencli.models.flow_blocks import WAVES, Rotation, attend, grid, heads, layer_norm, rotation, waves
from gencli.models.module import BaseModel

PATCH, PATCHES = 2, "2-1"  # latents a side of a token, and the name of the layers for that
MULTIPLE = 32  # of which both sequences are
TIME, MIDDLE = 256, 1024  # widths of the time's embedding


@dataclass(frozen=True)
class ZImageConfig(BaseConfig):
    """config.json of Z-Image; defaults are those of the class in diffusers."""

    ONLY: ClassVar = {
        "all_patch_size": ([PATCH],),
        "all_f_patch_size": ([1],),
        "qk_norm": (True,),
        "siglip_feat_dim": (None,),
    }

    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    n_kv_heads: int = 30
    norm_eps: float = 1e-5
    cap_feat_dim: int = 2560
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: tuple[int, ...] = (32, 48, 48)
    axes_lens: tuple[int, ...] = (1024, 512, 512)

    def check(self) -> None:
        check_ints(self, {"in_channels": 1024, "dim": 2**16, "n_layers": 256, "n_heads": 2**10, "n_kv_heads": 2**10})
        check_ints(self, {"cap_feat_dim": 2**16, "axes_dims": 2**10, "axes_lens": 2**16})
        check_ints(self, {"n_refiner_layers": 64}, least=0)
        check_numbers(self, {"norm_eps": (0.0, 1.0), "rope_theta": (1.001, 1e12), "t_scale": (1e-3, 1e6)})
        check_flags(self)
        check_multiple(self, "dim", "n_heads")
        if self.n_kv_heads != self.n_heads:
            raise GencliError(f"config.json: n_kv_heads = {self.n_kv_heads} with {self.n_heads} heads is not supported")
        if any(not isinstance(axes, tuple) or len(axes) != 3 for axes in (self.axes_dims, self.axes_lens)):
            raise GencliError("config.json: axes_dims and axes_lens are of three axes")
        if sum(self.axes_dims) != self.dim // self.n_heads or any(size % 2 for size in self.axes_dims):
            raise GencliError(
                f"config.json: axes_dims = {self.axes_dims} do not fit heads of {self.dim // self.n_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


class Attention(nn.Module):
    def __init__(self, config: ZImageConfig):
        super().__init__()
        self.to_q = nn.Linear(config.dim, config.dim, bias=False)
        self.to_k = nn.Linear(config.dim, config.dim, bias=False)
        self.to_v = nn.Linear(config.dim, config.dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(config.dim, config.dim, bias=False)])
        self.norm_q = RMSNorm(config.head_dim, 1e-5)
        self.norm_k = RMSNorm(config.head_dim, 1e-5)

    def forward(self, x: Tensor, by: Rotation) -> Tensor:
        size = len(self.norm_q.weight)
        q, k = heads(self.to_q(x), size, self.norm_q), heads(self.to_k(x), size, self.norm_k)
        return self.to_out[0](attend(q, k, heads(self.to_v(x), size), by))


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.w1 = nn.Linear(dim, int(dim / 3 * 8), bias=False)
        self.w2 = nn.Linear(int(dim / 3 * 8), dim, bias=False)
        self.w3 = nn.Linear(dim, int(dim / 3 * 8), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Attention and feed-forward, each normed before and after. modulated: by scales and gates of the time."""

    def __init__(self, config: ZImageConfig, *, modulated: bool = True):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config.dim)
        self.attention_norm1 = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm1 = RMSNorm(config.dim, config.norm_eps)
        self.attention_norm2 = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm2 = RMSNorm(config.dim, config.norm_eps)
        if modulated:
            self.adaLN_modulation = nn.Sequential(nn.Linear(min(config.dim, TIME), 4 * config.dim))

    def forward(self, x: Tensor, by: Rotation, time: Tensor | None = None) -> Tensor:
        """Return the next states of x (B, T, D); time (B, 256)."""
        scale: Tensor | float = 1.0
        gate, scale_ff, gate_ff = scale, scale, scale
        if time is not None:
            scale, gate, scale_ff, gate_ff = self.adaLN_modulation(time)[:, None].chunk(4, dim=-1)
            scale, gate, scale_ff, gate_ff = 1 + scale, gate.tanh(), 1 + scale_ff, gate_ff.tanh()
        x = x + gate * self.attention_norm2(self.attention(self.attention_norm1(x) * scale, by))
        return x + gate_ff * self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * scale_ff))


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WAVES, MIDDLE), nn.SiLU(), nn.Linear(MIDDLE, width))

    def forward(self, times: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(waves(times, dtype))


class FinalLayer(nn.Module):
    def __init__(self, config: ZImageConfig):
        super().__init__()
        self.linear = nn.Linear(config.dim, PATCH**2 * config.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(min(config.dim, TIME), config.dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.linear(layer_norm(x, 1e-6) * (1 + self.adaLN_modulation(time)[:, None]))


class ZImageTransformer2DModel(BaseModel):
    def __init__(self, config: ZImageConfig):
        super().__init__()
        self.config = config
        self.all_x_embedder = nn.ModuleDict({PATCHES: nn.Linear(PATCH**2 * config.in_channels, config.dim)})
        self.all_final_layer = nn.ModuleDict({PATCHES: FinalLayer(config)})
        refiners = range(config.n_refiner_layers)
        self.noise_refiner = nn.ModuleList(Block(config) for _ in refiners)
        self.context_refiner = nn.ModuleList(Block(config, modulated=False) for _ in refiners)
        self.t_embedder = TimestepEmbedder(min(config.dim, TIME))
        self.cap_embedder = nn.Sequential(
            RMSNorm(config.cap_feat_dim, config.norm_eps), nn.Linear(config.cap_feat_dim, config.dim)
        )
        self.x_pad_token = nn.Parameter(torch.empty(1, config.dim))
        self.cap_pad_token = nn.Parameter(torch.empty(1, config.dim))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))

    def forward(self, x: Tensor, timesteps: Tensor, caption: Tensor, lengths: Tensor) -> Tensor:
        """Return the velocity ε − x0 (B, C, H, W) at x (B, C, H, W) and timesteps (B,) of 1000 σ, for captions
        (B, L, D) of which the first `lengths` (B,) tokens count. Those of one length run together."""
        timesteps, caption, lengths = (one.expand(len(x), *one.shape[1:]) for one in (timesteps, caption, lengths))
        out = torch.empty_like(x)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0].to(x.device)
            out[rows] = self._alike(x[rows], timesteps[rows], caption[rows, :length].to(x.device))
        return out

    def _alike(self, x: Tensor, timesteps: Tensor, caption: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h, w = H // PATCH, W // PATCH
        patches = x.unflatten(2, (h, PATCH)).unflatten(4, (w, PATCH)).permute(0, 2, 4, 3, 5, 1)  # (B, h, w, 2, 2, C)
        image = self._padded(self.all_x_embedder[PATCHES](patches.reshape(B, h * w, -1)), self.x_pad_token)
        text = self._padded(self.cap_embedder(caption.to(x.dtype)), self.cap_pad_token)
        places = self._places(h, w, image.shape[1], text.shape[1], x.device)
        by_image, by_text = (rotation(one, self.config.axes_dims, self.config.rope_theta) for one in places)
        time = self.t_embedder((1000 - timesteps) / 1000 * self.config.t_scale, x.dtype)
        for block in self.noise_refiner:
            image = block(image, by_image, time)
        for block in self.context_refiner:
            text = block(text, by_text)
        both = torch.cat([image, text], dim=1)
        by = tuple(torch.cat(pair) for pair in zip(by_image, by_text, strict=True))
        for block in self.layers:
            both = block(both, by, time)
        out = -self.all_final_layer[PATCHES](both[:, : h * w], time)
        return out.view(B, h, w, PATCH, PATCH, C).permute(0, 5, 1, 3, 2, 4).reshape(B, C, H, W)

    def _padded(self, tokens: Tensor, pad: Tensor) -> Tensor:
        """Tokens (B, T, D) with so many of `pad` that T is a multiple of 32."""
        missing = -tokens.shape[1] % MULTIPLE
        return torch.cat([tokens, pad.to(tokens.dtype).expand(len(tokens), missing, -1)], dim=1)

    def _places(self, h: int, w: int, image: int, text: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Places on three axes of an image's tokens (image, 3) and of a text's (text, 3). Raises GencliError for more
        than the model knows."""
        for name, size, most in zip(
            ("prompt", "height", "width"), (text + 1, h - 1, w - 1), self.config.axes_lens, strict=True
        ):
            if size >= most:
                raise GencliError(f"{size} tokens of {name} are more than the {most} that this model knows places for")
        in_image = F.pad(grid(h, w, device), (1, 0), value=text + 1)
        in_text = F.pad(torch.arange(1, text + 1, device=device)[:, None], (0, 2))
        return F.pad(in_image, (0, 0, 0, image - h * w)), in_text


OVERFLOWS_IN_HALF = True
LAYOUT = Layout(drops=(r"norm_final\.weight",))
Config, Model = ZImageConfig, ZImageTransformer2DModel
