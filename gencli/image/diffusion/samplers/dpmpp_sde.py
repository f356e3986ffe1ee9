"""DPM-Solver++ for the reverse SDE with a stop in the middle of each step (Lu et al. 2022, "DPM-Solver++"), as
"DPM++ SDE" of k-diffusion (Crowson 2022)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.image.diffusion.samplers import Sample
from gencli.image.diffusion.samplers.heun import SAMPLER as HEUN
from gencli.image.diffusion.schedule import NoiseSchedule, Point, Step

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict


def grid(schedule: NoiseSchedule, num: int, spacing: str | None = None, *, karras: bool = False) -> list[Step]:
    """Heun's grid. The middle of a step is the geometric mean of its σ; the last step has none, nor has one from
    infinite σ."""
    steps = HEUN.grid(schedule, num, spacing, karras=karras)
    products = [step.at.sigma * step.next.sigma for step in steps]  # 0 for the last step; infinite, or NaN, as σ is
    whole = [step for step, product in zip(steps, products, strict=True) if 0 < product < math.inf]
    middles = schedule.at_sigmas([math.sqrt(product) for product in products if 0 < product < math.inf])
    known = {step.index: middle for step, middle in zip(whole, middles, strict=True)}
    return [Step(step.index, step.at, step.next, known.get(step.index)) for step in steps]


def dpmpp_sde(predict: Predict, x: Tensor, steps: list[Step], *, draw_noise: Callable[[], Tensor]) -> Iterator[Sample]:
    """To the middle by x0, from the beginning to the end by the x0 predicted there: two predictions per step.

    The noise of both is of one path W, whose time is σ: W(σ') − W(σ), divided by its deviation.
    """
    for step in steps:
        prediction = predict(x, step.at)
        if (middle := step.middle) is None:
            x = _move(x, prediction.x0, step.at, step.next, draw_noise() if step.next.sigma > 0 else None)
        else:
            first, second = draw_noise(), draw_noise()
            x0 = predict(_move(x, prediction.x0, step.at, middle, first), middle).x0
            share = (step.at.sigma - middle.sigma) / (step.at.sigma - step.next.sigma)
            path = math.sqrt(share) * first + math.sqrt(1 - share) * second
            x = _move(x, x0, step.at, step.next, path)
        yield Sample(step.index, len(steps), x, prediction.x0)


def _move(x: Tensor, x0: Tensor, at: Point, to: Point, noise: Tensor | None) -> Tensor:
    """From `at` down to σ_down = σ'²/σ along x0, and by noise up to σ' again; noise None: where σ' is 0."""
    decay = to.sigma / at.sigma
    scale = to.sqrt_one_minus_alpha_cumprod / at.sqrt_one_minus_alpha_cumprod * decay
    x = scale * x + to.sqrt_alpha_cumprod * (1 - decay**2) * x0
    return x if noise is None else x + to.sqrt_one_minus_alpha_cumprod * math.sqrt(1 - decay**2) * noise


SAMPLER = dataclasses.replace(HEUN, run=dpmpp_sde, grid=grid)
