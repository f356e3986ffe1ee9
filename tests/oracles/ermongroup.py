"""Ho et al. 2020's UNet as ermongroup/ddim and pesser/pytorch_diffusion lay it out, written out as formulas.

`weights` makes a state dict with their names, `unet` is the network on it, `ddpm_steps` and `ddim_steps` walk down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS, EPS = 32, 1e-6


def weights(
    ch: int = 32, mult: Sequence[int] = (1, 2, 2), blocks: int = 1, attends: Sequence[int] = (1,), seed: int = 0
):
    """Seeded tensors of a UNet with levels `ch * mult` wide, attention at the levels in `attends` and in the middle."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        fan = math.prod(shape[1:]) or 1
        made[f"{name}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(fan)
        made[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=generator)

    def norm(name: str, width: int) -> None:
        made[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        made[f"{name}.bias"] = 0.2 * torch.randn(width, generator=generator)

    def block(name: str, before: int, width: int) -> None:
        norm(f"{name}.norm1", before)
        add(f"{name}.conv1", width, before, 3, 3)
        add(f"{name}.temb_proj", width, 4 * ch)
        norm(f"{name}.norm2", width)
        add(f"{name}.conv2", width, width, 3, 3)
        if before != width:
            add(f"{name}.nin_shortcut", width, before, 1, 1)

    def attention(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            add(f"{name}.{part}", width, width, 1, 1)

    add("temb.dense.0", 4 * ch, ch)
    add("temb.dense.1", 4 * ch, 4 * ch)
    add("conv_in", ch, 3, 3, 3)
    widths = [ch * m for m in mult]
    skips, width = [ch], ch
    for level, out in enumerate(widths):
        for i in range(blocks):
            block(f"down.{level}.block.{i}", width, out)
            width = out
            skips.append(width)
            if level in attends:
                attention(f"down.{level}.attn.{i}", width)
        if level < len(widths) - 1:
            add(f"down.{level}.downsample.conv", width, width, 3, 3)
            skips.append(width)
    block("mid.block_1", width, width)
    attention("mid.attn_1", width)
    block("mid.block_2", width, width)
    for level, out in reversed([*enumerate(widths)]):
        for i in range(blocks + 1):
            block(f"up.{level}.block.{i}", width + skips.pop(), out)
            width = out
            if level in attends:
                attention(f"up.{level}.attn.{i}", width)
        if level:
            add(f"up.{level}.upsample.conv", width, width, 3, 3)
    norm("norm_out", width)
    add("conv_out", 3, width, 3, 3)
    return made


@torch.no_grad()
def unet(w: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
    """ε of x (B, 3, H, W) at timesteps t (B,)."""
    ch = w["conv_in.weight"].shape[0]
    frequencies = torch.exp(torch.arange(ch // 2) * -(math.log(10000) / (ch // 2 - 1)))
    angles = t.float()[:, None] * frequencies
    temb = torch.cat([angles.sin(), angles.cos()], dim=1)
    temb = _linear(w, "temb.dense.1", F.silu(_linear(w, "temb.dense.0", temb)))
    levels = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("down."))
    hs = [_conv(w, "conv_in", x, padding=1)]
    for level in range(levels):
        for i in _count(w, f"down.{level}.block"):
            h = _block(w, f"down.{level}.block.{i}", hs[-1], temb)
            hs.append(_attention(w, f"down.{level}.attn.{i}", h))
        if level < levels - 1:
            hs.append(_conv(w, f"down.{level}.downsample.conv", F.pad(hs[-1], (0, 1, 0, 1)), stride=2))
    h = _block(w, "mid.block_1", hs[-1], temb)
    h = _block(w, "mid.block_2", _attention(w, "mid.attn_1", h), temb)
    for level in reversed(range(levels)):
        for i in _count(w, f"up.{level}.block"):
            h = _block(w, f"up.{level}.block.{i}", torch.cat([h, hs.pop()], dim=1), temb)
            h = _attention(w, f"up.{level}.attn.{i}", h)
        if level:
            h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            h = _conv(w, f"up.{level}.upsample.conv", h, padding=1)
    return _conv(w, "conv_out", F.silu(_norm(w, "norm_out", h)), padding=1)


def _count(w: dict[str, Tensor], prefix: str) -> range:
    return range(1 + max(int(name.split(".")[3]) for name in w if name.startswith(f"{prefix}.")))


def _linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _conv(w: dict[str, Tensor], name: str, x: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride, padding=padding)


def _norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    B, C, H, W = x.shape
    groups = x.reshape(B, GROUPS, -1)
    groups = groups - groups.mean(2, keepdim=True)
    groups = groups / (groups.square().mean(2, keepdim=True) + EPS).sqrt()
    weight, bias = (w[f"{name}.{kind}"].view(1, C, 1, 1) for kind in ("weight", "bias"))
    return groups.view(B, C, H, W) * weight + bias


def _block(w: dict[str, Tensor], name: str, x: Tensor, temb: Tensor) -> Tensor:
    h = _conv(w, f"{name}.conv1", F.silu(_norm(w, f"{name}.norm1", x)), padding=1)
    h = h + _linear(w, f"{name}.temb_proj", F.silu(temb))[:, :, None, None]
    h = _conv(w, f"{name}.conv2", F.silu(_norm(w, f"{name}.norm2", h)), padding=1)
    return h + (_conv(w, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)


def _attention(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    if f"{name}.q.weight" not in w:
        return x
    h = _norm(w, f"{name}.norm", x)
    q, k, v = (_conv(w, f"{name}.{part}", h).flatten(2) for part in "qkv")  # (B, C, H W)
    shares = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(2)  # (B, queries, keys)
    h = (v @ shares.transpose(1, 2)).view(x.shape)
    return x + _conv(w, f"{name}.proj_out", h)


# --- sampling, ε → picture

Epsilon = Callable[[Tensor, Tensor], Tensor]


def alphas_cumprod(T: int = 1000) -> Tensor:
    return (1 - torch.linspace(0.0001, 0.02, T, dtype=torch.float64)).cumprod(0)


def _pairs(timesteps: Sequence[int]) -> Iterator[tuple[int, float, float]]:
    levels = alphas_cumprod()
    for i, t in enumerate(timesteps):
        last = i == len(timesteps) - 1
        yield t, levels[t].item(), 1.0 if last else levels[timesteps[i + 1]].item()


def ddim_steps(model: Epsilon, x: Tensor, timesteps: Sequence[int], *, clip: bool) -> Tensor:
    """Song et al. 2021, equation 12 at η = 0; falling timesteps. clip: x0 to −1 … 1, as google/ddpm-* ask for."""
    for t, here, there in _pairs(timesteps):
        eps = model(x, torch.full((len(x),), t))
        x0 = (x - math.sqrt(1 - here) * eps) / math.sqrt(here)
        x0 = x0.clamp(-1, 1) if clip else x0
        x = math.sqrt(there) * x0 + math.sqrt(1 - there) * eps
    return x


def ddpm_steps(
    model: Epsilon, x: Tensor, timesteps: Sequence[int], noise: Callable[[], Tensor], *, large: bool
) -> Tensor:
    """Ho et al. 2020, algorithm 2, with x0 clipped as their code does; large: β for the variance, and else β̃."""
    for t, here, there in _pairs(timesteps):
        eps = model(x, torch.full((len(x),), t))
        x0 = ((x - math.sqrt(1 - here) * eps) / math.sqrt(here)).clamp(-1, 1)
        beta = 1 - here / there
        mean = math.sqrt(there) * beta / (1 - here) * x0 + math.sqrt(1 - beta) * (1 - there) / (1 - here) * x
        variance = beta if large else beta * (1 - there) / (1 - here)
        x = mean + math.sqrt(variance) * noise() if there < 1 else mean
    return x
