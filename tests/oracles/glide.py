"""GLIDE by its formulas (Nichol et al. 2021, arXiv 2112.10741): text transformer, UNet, and both ways of sampling, with
the names of OpenAI's files; no library has it. Knows nothing of gencli."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.guided_reference import Reference
from tests.oracles.guided_sampling import alphas, picture

Encode = Callable[[str], list[int]]
FAST27 = [997, 800, 799, 600, 599, 500, 400, 399, 377, 355, 333, 311, 288, 266, 244, 222, 200, 199, 177, 155, 133, 111]
FAST27 += [88, 66, 44, 22, 0]
HEAD = 64


@dataclass
class Glide(Reference):
    """One file: a UNet whose attention reads a text too, and the transformer that reads it."""

    head: int | None = HEAD
    text_width: int = 128
    places: int = 16
    words: int = 384
    layers: int = 2

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        C = x.shape[-1]
        return (x - mean) / torch.sqrt(var + 1e-5) * self.p(f"{name}.weight", C) + self.p(f"{name}.bias", C)

    def affine(self, name: str, x: Tensor, out: int) -> Tensor:
        return x @ self.p(f"{name}.weight", out, x.shape[-1]).T + self.p(f"{name}.bias", out)

    def text(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """States (1, T, W) and the projection of the last of them (1, E)."""
        W, T = self.text_width, self.places
        words, places = self.p("token_embedding.weight", self.words, W), self.p("positional_embedding", T, W)
        padding = self.p("padding_embedding", T, W)
        x = torch.stack([words[ids[i]] + places[i] if i < len(ids) else padding[i] for i in range(T)])
        for layer in range(self.layers):
            name = f"transformer.resblocks.{layer}"
            rows = self.affine(f"{name}.attn.c_qkv", self.layer_norm(f"{name}.ln_1", x), 3 * W)
            mixed = []
            for h in range(W // HEAD):
                q, k, v = (rows[:, (3 * h + i) * HEAD :][:, :HEAD] for i in range(3))
                mixed.append(torch.softmax(q @ k.T / math.sqrt(HEAD), dim=-1) @ v)
            x = x + self.affine(f"{name}.attn.c_proj", torch.cat(mixed, 1), W)
            inner = self.affine(f"{name}.mlp.c_fc", self.layer_norm(f"{name}.ln_2", x), 4 * W)
            gelu = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
            x = x + self.affine(f"{name}.mlp.c_proj", gelu, W)
        x = self.layer_norm("final_ln", x)
        return x[None], self.affine("transformer_proj", x[-1:], 4 * self.channels)

    def attention(self, name: str, x: Tensor) -> Tensor:
        C, W = x.shape[1], self.text_width
        flat = self.norm(f"{name}.norm", x).flatten(2)
        qkv = F.conv1d(flat, self.p(f"{name}.qkv.weight", 3 * C, C, 1), self.p(f"{name}.qkv.bias", 3 * C))
        weight, bias = self.p(f"{name}.encoder_kv.weight", 2 * C, W, 1), self.p(f"{name}.encoder_kv.bias", 2 * C)
        told = F.conv1d(self.states.transpose(1, 2), weight, bias)
        parts = []
        for h in range(C // HEAD):
            q, k, v = (qkv[:, (3 * h + i) * HEAD :][:, :HEAD] for i in range(3))
            more_k, more_v = (told[:, (2 * h + i) * HEAD :][:, :HEAD] for i in range(2))
            k, v = torch.cat([more_k, k], 2), torch.cat([more_v, v], 2)
            parts.append(v @ torch.softmax(q.transpose(1, 2) @ k / math.sqrt(HEAD), dim=-1).transpose(1, 2))
        h = torch.cat(parts, 1)
        h = F.conv1d(h, self.p(f"{name}.proj_out.weight", C, C, 1), self.p(f"{name}.proj_out.bias", C))
        return x + h.reshape(x.shape)

    def embed(self, t: Tensor) -> Tensor:
        return super().embed(t) + self.pooled

    def told(self, x: Tensor, t: float, ids: list[int]) -> tuple[Tensor, Tensor]:
        """ε and v of one image, told a text."""
        self.states, self.pooled = self.text(ids)
        eps, v = self.unet(x, torch.tensor([t])).split(3, 1)
        return eps, v


@dataclass
class Known:
    """What the inpainting forms are given: an image (1, 3, H, W) and where it is known (1, 1, H, W)."""

    image: Tensor
    mask: Tensor

    def channels(self) -> Tensor:
        return torch.cat([self.image * self.mask, self.mask], 1)

    def paste(self, x0: Tensor) -> Tensor:
        return x0 * (1 - self.mask) + self.image * self.mask


@torch.no_grad()
def draw(
    network: Glide,
    ids: list[int],
    empty: list[int],
    *,
    scale: float,
    steps: int,
    seed: int = 3,
    side: int = 8,
    known: Known | None = None,
) -> Tensor:
    """Base: ancestral steps, ε guided, variance of the text's half. The image (1, 3, H, W) in −1..1."""
    abar, draws = alphas("cosine"), torch.Generator("cpu").manual_seed(seed)
    x = torch.randn((1, 3, side, side), generator=draws)
    return _ancestral(x, [round(999 * i / (steps - 1)) for i in range(steps)][::-1], abar, draws, known, (
        lambda x, t: _guided(network, x, t, ids, empty, scale, None if known is None else known.channels())
    ))  # fmt: skip


def _guided(
    network: Glide, x: Tensor, t: float, ids: list[int], empty: list[int], scale: float, beside: Tensor | None
) -> tuple[Tensor, Tensor]:
    whole = x if beside is None else torch.cat([x, beside], 1)
    eps, v = network.told(whole, t, ids)
    if scale == 1:
        return eps, v
    without, _ = network.told(whole, t, empty)
    return without + scale * (eps - without), v


def _ancestral(
    x: Tensor,
    grid: list[int],
    abar: np.ndarray,
    draws: torch.Generator,
    known: Known | None,
    predict: Callable[[Tensor, float], tuple[Tensor, Tensor]],
) -> Tensor:
    for i, t in enumerate(grid):
        a, b = abar[t], abar[grid[i + 1]] if i + 1 < len(grid) else 1.0
        eps, v = predict(x, float(t))
        x0 = ((x - math.sqrt(1 - a) * eps) / math.sqrt(a)).clamp(-1, 1)
        x0 = x0 if known is None else known.paste(x0)
        beta = 1 - a / b
        mean = math.sqrt(b) * beta / (1 - a) * x0 + math.sqrt(a / b) * (1 - b) / (1 - a) * x
        if i + 1 == len(grid):
            return mean
        share, small = (v + 1) / 2, beta * (1 - b) / (1 - a)
        std = torch.exp(0.5 * (share * math.log(beta) + (1 - share) * math.log(small)))
        x = mean + std * torch.randn(x.shape, generator=draws)
    return x


@torch.no_grad()
def enlarge(
    network: Glide, small: Tensor, ids: list[int], draws: torch.Generator, known: Known | None = None
) -> Tensor:
    """Upsampler: beside the quantised small image, resized; DDIM with ε of the clipped x0, or ancestral steps where
    something is known; 27 steps."""
    abar, side = alphas("linear"), 4 * small.shape[2]
    levels = torch.round((small.clamp(-1, 1) + 1) * 127.5) / 127.5 - 1
    large = F.interpolate(levels, (side, side), mode="bilinear", align_corners=False)
    x = 0.997 * torch.randn((1, 3, side, side), generator=draws)
    if network.inputs == 10:
        beside = torch.zeros(1, 4, side, side) if known is None else known.channels()
        large = torch.cat([beside, large], 1)
        return _ancestral(x, FAST27, abar, draws, known, lambda x, t: network.told(torch.cat([x, large], 1), t, ids))
    for i, t in enumerate(FAST27):
        a, b = abar[t], abar[FAST27[i + 1]] if i + 1 < len(FAST27) else 1.0
        eps, _ = network.told(torch.cat([x, large], 1), float(t), ids)
        x0 = ((x - math.sqrt(1 - a) * eps) / math.sqrt(a)).clamp(-1, 1)
        eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        x = math.sqrt(b) * x0 + math.sqrt(1 - b) * eps
    return x


def both(
    base: Glide, upsampler: Glide, ids: list[int], empty: list[int], *, scale: float, steps: int, seed: int = 3
) -> np.ndarray:
    """Both stages from one seed: the upsampler's noise follows the base's."""
    small = draw(base, ids, empty, scale=scale, steps=steps, seed=seed)
    return picture(enlarge(upsampler, small, ids, after(seed, small.shape[2], steps)))


def after(seed: int, side: int, steps: int) -> torch.Generator:
    """The generator of a seed once the base has drawn from it."""
    draws = torch.Generator("cpu").manual_seed(seed)
    for _ in range(steps):
        torch.randn((1, 3, side, side), generator=draws)
    return draws
