"""Ancestral sampling with Euler steps in σ, as k-diffusion (Crowson 2022) defined it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.image.diffusion.samplers import Sample
from gencli.image.diffusion.samplers.euler import SAMPLER as EULER
from gencli.image.diffusion.schedule import NoiseSchedule, Step, chain

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict


def grid(schedule: NoiseSchedule, num: int, spacing: str | None = None) -> list[Step]:
    """Euler's grid, always down to σ = 0."""
    return chain([step.at for step in EULER.grid(schedule, num, spacing)], 1.0)


def ancestral(step: Step) -> tuple[float, float]:
    """σ_down = σ'²/σ, and the deviation of the noise that brings it up to σ' again: σ_down² + σ_up² = σ'²."""
    at, to = step.at.sigma, step.next.sigma
    return to**2 / at, to * math.sqrt(1 - (to / at) ** 2)


def euler_a(predict: Predict, x: Tensor, steps: list[Step], *, draw_noise: Callable[[], Tensor]) -> Iterator[Sample]:
    """Each step goes down to σ_down, and noise brings it up to σ' again."""
    for step in steps:
        prediction = predict(x, step.at)
        down, up = ancestral(step)
        x = step.next.sqrt_alpha_cumprod * (prediction.x0 + down * prediction.eps)
        if up > 0:
            x = x + step.next.sqrt_alpha_cumprod * up * draw_noise()
        yield Sample(step.index, len(steps), x, prediction.x0)


SAMPLER = dataclasses.replace(EULER, run=euler_a, grid=grid)
