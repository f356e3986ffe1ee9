"""What the transformers of flow matching share: norms without weights, attention with norms of q and k and rotary
positions of several axes, that of two streams to both, and the sinusoids of the time.

B: batch, T: tokens, D: size of a head, A: axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.models.decoder_blocks import RMSNorm
from gencli.models.unet_blocks import timestep_embedding

WAVES = 256
Rotation = tuple[Tensor, Tensor]
"""cos and sin (T, 1, D / 2) of the angles of T tokens."""


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Return the layer norm of x without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def waves(times: Tensor, dtype: torch.dtype) -> Tensor:
    """Return cosines and sines (B, 256) of times (B,)."""
    return timestep_embedding(times, WAVES, flip_sin_to_cos=True, freq_shift=0).to(dtype)


def rotation(places: Tensor, sizes: Sequence[int], theta: float) -> Rotation:
    """Return cos and sin for tokens at `places` (T, A), of which axis i turns sizes[i] numbers of each head."""
    angles = []
    for axis, size in enumerate(sizes):
        frequencies = theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles.append(torch.outer(places[:, axis].double().cpu(), frequencies))
    angle = torch.cat(angles, dim=1).to(places.device, torch.float32)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Rotate neighbouring pairs of the numbers of each head of x (B, T, H, D), in float32."""
    (cos, sin), (a, b) = by, x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)


def heads(x: Tensor, size: int, norm: RMSNorm | None = None) -> Tensor:
    """Return x (B, T, H · D) as (B, T, H, D), normed head by head."""
    x = x.unflatten(-1, (-1, size))
    return x if norm is None else norm(x)


def attend(q: Tensor, k: Tensor, v: Tensor, by: Rotation) -> Tensor:
    """Return attention of all tokens to all, (B, T, H · D), for q, k, v (B, T, H, D)."""
    q, k, v = (one.transpose(1, 2) for one in (rotate(q, by), rotate(k, by), v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def grid(height: int, width: int, device: torch.device) -> Tensor:
    """Return row and column of each token of an image, (height · width, 2)."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return torch.cartesian_prod(rows, columns).reshape(-1, 2)


class JointAttention(nn.Module):
    """Attention of text and image to both, each with projections of its own."""

    def __init__(self, width: int, size: int, eps: float, *, bias: bool):
        super().__init__()
        self.size = size
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=bias)])
        self.norm_q, self.norm_k = RMSNorm(size, eps), RMSNorm(size, eps)
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.to_add_out = nn.Linear(width, width, bias=bias)
        self.norm_added_q, self.norm_added_k = RMSNorm(size, eps), RMSNorm(size, eps)

    def forward(self, image: Tensor, text: Tensor, by: Rotation) -> tuple[Tensor, Tensor]:
        """Return what image (B, T, W) and text (B, L, W) find, for the rotation of L + T tokens."""
        size = self.size
        q = heads(self.add_q_proj(text), size, self.norm_added_q), heads(self.to_q(image), size, self.norm_q)
        k = heads(self.add_k_proj(text), size, self.norm_added_k), heads(self.to_k(image), size, self.norm_k)
        v = heads(self.add_v_proj(text), size), heads(self.to_v(image), size)
        both = attend(torch.cat(q, dim=1), torch.cat(k, dim=1), torch.cat(v, dim=1), by)
        length = text.shape[1]
        return self.to_out[0](both[:, length:]), self.to_add_out(both[:, :length])
