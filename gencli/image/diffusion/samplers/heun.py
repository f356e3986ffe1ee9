"""Heun's method on the probability-flow ODE in σ (Karras et al. 2022, algorithm 1 without churn)."""

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


def grid(schedule: NoiseSchedule, num: int, spacing: str | None = None, *, karras: bool = False) -> list[Step]:
    """Euler's grid, always down to σ = 0."""
    return chain([step.at for step in EULER.grid(schedule, num, spacing, karras=karras)], 1.0)


def heun(predict: Predict, x: Tensor, steps: list[Step], *, draw_noise: Callable[[], Tensor]) -> Iterator[Sample]:
    """x/√ᾱ moves by the mean of its derivatives ε before and after a step of Euler: two predictions per step.

    The step to σ = 0, and one from infinite σ, is Euler's alone.
    """
    for step in steps:
        prediction = predict(x, step.at)
        x = step.next.mix(prediction.x0, prediction.eps)
        if step.next.t >= 0 and step.at.sigma < math.inf:
            half = (step.next.sigma - step.at.sigma) / 2
            x = x + step.next.sqrt_alpha_cumprod * half * (predict(x, step.next).eps - prediction.eps)
        yield Sample(step.index, len(steps), x, prediction.x0)


SAMPLER = dataclasses.replace(EULER, run=heun, grid=grid)
