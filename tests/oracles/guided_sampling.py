"""guided-diffusion's two ways of sampling, written out by their formulas, with and without a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.oracles.guided_reference import Reference

Lead = Callable[[Tensor, float], Tensor]
"""lead(x, t): a classifier's gradient."""


def cosine(t: int) -> float:
    return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2


def alphas(kind: str) -> np.ndarray:
    """ᾱ of Ho et al. 2020, and of Nichol & Dhariwal 2021 (equation 17), in numpy's float64."""
    if kind == "linear":
        return np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))
    return np.cumprod([1 - min(1 - cosine(t + 1) / cosine(t), 0.999) for t in range(1000)])


@torch.no_grad()
def sample(
    network: Reference,
    grid: list[int],
    kind: str,
    label: int | None = None,
    *,
    lead: Lead | None = None,
    side: int = 16,
) -> np.ndarray:
    """p_sample of guided-diffusion: x0 clipped, mean and variance of the posterior of the whole step (Nichol & Dhariwal
    2021, equations 11 and 15), `lead(x, t)` a classifier's gradient (Dhariwal & Nichol 2021, algorithm 1)."""
    abar = alphas(kind)
    draws = torch.Generator("cpu").manual_seed(3)
    x = torch.randn((1, 3, side, side), generator=draws)
    y = None if label is None else torch.tensor([label])
    levels = [abar[t] for t in grid]
    small_before = 0.0
    for i, t in enumerate(grid):
        a, b = levels[i], levels[i + 1] if i + 1 < len(grid) else 1.0
        eps, v = network.unet(x, torch.tensor([float(t)]), y).split(3, 1)
        x0 = ((x - math.sqrt(1 - a) * eps) / math.sqrt(a)).clamp(-1, 1)
        beta = 1 - a / b
        mean = math.sqrt(b) * beta / (1 - a) * x0 + math.sqrt(a / b) * (1 - b) / (1 - a) * x
        small = beta * (1 - b) / (1 - a) if i + 1 < len(grid) else small_before
        small_before = small
        share = (v + 1) / 2
        variance = torch.exp(share * math.log(beta) + (1 - share) * math.log(small))
        if lead is not None:
            mean = mean + variance * lead(x, float(t))
        x = mean if i + 1 == len(grid) else mean + variance.sqrt() * torch.randn(x.shape, generator=draws)
    return picture(x)


@torch.no_grad()
def sample_ddim(
    network: Reference,
    grid: list[int],
    kind: str,
    label: int | None = None,
    *,
    lead: Lead | None = None,
    side: int = 16,
) -> np.ndarray:
    """ddim_sample of guided-diffusion: ε made anew from the clipped x0, then led (algorithm 2)."""
    abar = alphas(kind)
    x = torch.randn((1, 3, side, side), generator=torch.Generator("cpu").manual_seed(3))
    y = None if label is None else torch.tensor([label])
    for i, t in enumerate(grid):
        a, b = abar[t], abar[grid[i + 1]] if i + 1 < len(grid) else 1.0
        eps = network.unet(x, torch.tensor([float(t)]), y)[:, :3]
        x0 = ((x - math.sqrt(1 - a) * eps) / math.sqrt(a)).clamp(-1, 1)
        eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        if lead is not None:
            eps = eps - math.sqrt(1 - a) * lead(x, float(t))
            x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        x = math.sqrt(b) * x0 + math.sqrt(1 - b) * eps
    return picture(x)


def picture(x: Tensor) -> np.ndarray:
    """(1, 3, H, W) of −1 to 1 → (H, W, 3) of bytes."""
    return ((x[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def lead(network: Reference, label: int, scale: float) -> Lead:
    """`lead` of `sample`: s · ∇ log p by the reference's functions."""

    def gradient(x: Tensor, t: float) -> Tensor:
        with torch.enable_grad():
            leaf = x.float().clone().requires_grad_(True)
            chosen = network.classifier(leaf, torch.tensor([t])).log_softmax(-1)[0, label]
            return scale * torch.autograd.grad(chosen, leaf)[0]

    return gradient
