"""Data for which the best prediction and every law of x are known exactly: one Gaussian per value, N(MEAN, DEVIATION²).

With it as the model each sampler is affine in x and in its noise, so that the law after each of its steps is exact too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from gencli.image.diffusion import samplers
from gencli.image.diffusion.guidance import Prediction
from gencli.image.diffusion.schedule import Point, Step

MEAN, DEVIATION = 0.4, 0.7
X = TypeVar("X", Tensor, complex)


def spread(point: Point) -> float:
    """The variance of x."""
    return point.alpha_cumprod * DEVIATION**2 + 1 - point.alpha_cumprod


def law(point: Point) -> tuple[float, float]:
    """Mean and variance of x."""
    return point.sqrt_alpha_cumprod * MEAN, spread(point)


def exact(x: X, point: Point) -> Prediction:
    """E[x0 | x] and E[ε | x]."""
    a, s = point.sqrt_alpha_cumprod, point.sqrt_one_minus_alpha_cumprod
    off = (x - a * MEAN) / spread(point)
    return Prediction(MEAN + a * DEVIATION**2 * off, s * off)


def flow(x: X, start: Point, end: Point) -> X:
    """Where the probability flow takes x: the same number of standard deviations from the mean."""
    scale = math.sqrt(spread(end) / spread(start))
    return end.sqrt_alpha_cumprod * MEAN + scale * (x - start.sqrt_alpha_cumprod * MEAN)


def ode_solution(x: X, start: Point) -> X:
    """Where the probability flow takes x at ᾱ = 1."""
    return flow(x, start, Point(-1.0, 1.0))


def reverse(start: tuple[float, float], at: Point, to: Point) -> tuple[float, float]:
    """Mean and variance at `to` of the reverse process, from those at `at`: x there is as if it had been noised to x
    here, so that what it keeps of it is their covariance over the variance here."""
    kept = at.sqrt_alpha_cumprod / to.sqrt_alpha_cumprod * spread(to) / spread(at)
    (here, width), (there, whole) = law(at), law(to)
    return there + kept * (start[0] - here), whole + kept**2 * (start[1] - width)


def run(name: str, x: Tensor, steps: list[Step], noise: Callable[[], Tensor] | None = None, **options) -> Tensor:
    """The last x of a sampler."""
    *_, last = samplers.get(name)(exact, x, steps, draw_noise=noise or (lambda: torch.randn_like(x)), **options)
    return last.x


def laws(
    name: str, steps: list[Step], start: tuple[float, float], predict=exact, **options
) -> list[tuple[float, float]]:
    """Mean and variance of x after each step of a sampler, from those of the first x.

    Each entry of x is a walk of its own: from 0 without noise, from 1 without noise, and from 0 with each draw of noise
    alone, 1 where it is its turn. Their differences are the factors of the first x and of each draw.
    """
    mean, variance = start
    x = torch.zeros(2 + 2 * len(steps), dtype=torch.float64)
    x[1] = 1
    turns = itertools.count(2)

    def draw() -> Tensor:
        noise = torch.zeros_like(x)
        noise[next(turns)] = 1
        return noise

    found = []
    for sample in samplers.get(name)(predict, x, steps, draw_noise=draw, **options):
        origin, (slope, *_), shares = sample.x[0], sample.x[1:] - sample.x[0], sample.x[2:] - sample.x[0]
        found.append((float(origin + slope * mean), float(slope**2 * variance + shares.square().sum())))
    return found
