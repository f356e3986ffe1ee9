"""What the transformers of flow matching share: norms without weights, attention with norms of q and k and rotary
positions of several axes, that of two streams to both, and the sinusoids of the time.

B: batch, T: tokens, D: size of a head, A: axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.decoder_blocks import RMSNorm
from gencli.models.unet_blocks import timestep_embedding

WAVES = 256
EPS, MLP_RATIO = 1e-6, 4  # of FLUX.1 and Stable Diffusion 3
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


def heads(x: Tensor, size: int, norm: nn.Module | None = None) -> Tensor:
    """Return x (B, T, H · D) as (B, T, H, D), normed head by head."""
    x = x.unflatten(-1, (-1, size))
    return x if norm is None else norm(x)


def attend(q: Tensor, k: Tensor, v: Tensor, by: Rotation | None) -> Tensor:
    """Return attention of all tokens to all, (B, T, H · D), for q, k, v (B, T, H, D). by: None rotates nothing."""
    if by is not None:
        q, k = rotate(q, by), rotate(k, by)
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def check_axes(axes: Sequence[int], count: int, size: int) -> None:
    """Raise GencliError unless `axes_dims_rope` of a config split a head of `size` numbers into `count` even ones."""
    if not isinstance(axes, tuple) or len(axes) != count or any(one % 2 for one in axes):
        raise GencliError(f"config.json: axes_dims_rope = {axes!r:.60} are not {count} even numbers")
    if sum(axes) != size:
        raise GencliError(f"config.json: axes_dims_rope = {axes} do not fit heads of {size}")


Places = Callable[[int, int, torch.device], Tensor]


def grid(height: int, width: int, device: torch.device) -> Tensor:
    """Return row and column of each token of an image, (height · width, 2)."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return torch.cartesian_prod(rows, columns).reshape(-1, 2)


def centred(height: int, width: int, device: torch.device) -> Tensor:
    """Return row and column of each token of an image, (height · width, 2), counted from its middle."""
    return grid(height, width, device) - torch.tensor([height - height // 2, width - width // 2], device=device)


def look_at(latents: Sequence[Tensor], plane: int, place: Places = grid) -> dict[str, Tensor]:
    """Return what a transformer reads of images beside the one that it draws: `references`, the tokens (1, N, C) of all
    of them, of latents (1, C, h, w) each, and `places` (1, N, 3), where image i is on plane (i + 1) · `plane`.
    place: `grid` or `centred`."""
    tokens = [one.flatten(2).transpose(1, 2) for one in latents]
    places = [
        F.pad(place(one.shape[2], one.shape[3], one.device), (1, 0), value=plane * (i + 1))
        for i, one in enumerate(latents)
    ]
    return {"references": torch.cat(tokens, dim=1), "places": torch.cat(places)[None]}


def beside(x: Tensor, references: Tensor | None, places: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the tokens (B, T, C) of x (B, C, H, W) and of images to look at, and their places (T, 3)."""
    tokens, where = x.flatten(2).transpose(1, 2), F.pad(grid(x.shape[2], x.shape[3], x.device), (1, 0))
    if references is None or places is None:
        return tokens, where
    seen = references.to(x.device, x.dtype).expand(len(x), -1, -1)
    return torch.cat([tokens, seen], dim=1), torch.cat([where, places[0].to(x.device)])


def norm_of_heads(size: int, eps: float, *, normed: bool) -> nn.Module:
    return RMSNorm(size, eps) if normed else nn.Identity()


class JointAttention(nn.Module):
    """Attention of text and image to both, each with projections of its own. normed: whether q and k are. last: whether
    nothing reads the text after it."""

    def __init__(self, width: int, size: int, eps: float, *, bias: bool, normed: bool = True, last: bool = False):
        super().__init__()
        self.size = size
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=bias)])
        self.norm_q, self.norm_k = (norm_of_heads(size, eps, normed=normed) for _ in range(2))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.to_add_out = nn.Identity() if last else nn.Linear(width, width, bias=bias)
        self.norm_added_q, self.norm_added_k = (norm_of_heads(size, eps, normed=normed) for _ in range(2))

    def forward(self, image: Tensor, text: Tensor, by: Rotation | None) -> tuple[Tensor, Tensor]:
        """Return what image (B, T, W) and text (B, L, W) find, for the rotation of L + T tokens."""
        size = self.size
        q = heads(self.add_q_proj(text), size, self.norm_added_q), heads(self.to_q(image), size, self.norm_q)
        k = heads(self.add_k_proj(text), size, self.norm_added_k), heads(self.to_k(image), size, self.norm_k)
        v = heads(self.add_v_proj(text), size), heads(self.to_v(image), size)
        both = attend(torch.cat(q, dim=1), torch.cat(k, dim=1), torch.cat(v, dim=1), by)
        length = text.shape[1]
        return self.to_out[0](both[:, length:]), self.to_add_out(both[:, :length])


class Embedding(nn.Module):
    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class TimeTextEmbedding(nn.Module):
    """The time, the pooled text of P numbers and, of a model that is told it, the guidance; (B, W)."""

    def __init__(self, width: int, pooled: int, *, guidance: bool = False):
        super().__init__()
        self.timestep_embedder = Embedding(WAVES, width)
        if guidance:
            self.guidance_embedder = Embedding(WAVES, width)
        self.text_embedder = Embedding(pooled, width)

    def forward(self, timesteps: Tensor, text: Tensor, guidance: Tensor | None = None) -> Tensor:
        """timesteps, guidance (B,): of which 1000 are 1. text (B, P)."""
        time = self.timestep_embedder(waves(timesteps, text.dtype))
        if guidance is not None:
            time = time + self.guidance_embedder(waves(guidance, text.dtype))
        return time + self.text_embedder(text)


class Modulation(nn.Module):
    """`count` shifts, scales and gates (B, 1, W) of the embedded time and text (B, W)."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.count = count
        self.linear = nn.Linear(width, count * width)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(time)).unflatten(-1, (self.count, 1, -1)).unbind(1)


class Projection(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        inner = MLP_RATIO * width
        self.net = nn.ModuleList([Projection(width, inner), nn.Identity(), nn.Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


def both_streams(
    image: Tensor,
    text: Tensor,
    by: Rotation,
    of_image: Sequence[Tensor],
    of_text: Sequence[Tensor],
    attn: JointAttention,
    ff: nn.Module,
    ff_text: nn.Module,
) -> tuple[Tensor, Tensor]:
    """Return the next states of an image (B, T, W) and a text (B, L, W) after a block of two streams. of_image,
    of_text: shift, scale and gate of the attention, then of the feed-forward network, (B, 1, W) each."""
    y, y_text = attn(modulated(image, of_image[:2]), modulated(text, of_text[:2]), by)
    image, text = image + of_image[2] * y, text + of_text[2] * y_text
    image = image + of_image[5] * ff(modulated(image, of_image[3:5]))
    return image, text + of_text[5] * ff_text(modulated(text, of_text[3:5]))


def modulated(x: Tensor, by: Sequence[Tensor]) -> Tensor:
    """Return the layer norm of x, shifted and scaled."""
    shift, scale = by
    return layer_norm(x, EPS) * (1 + scale) + shift
