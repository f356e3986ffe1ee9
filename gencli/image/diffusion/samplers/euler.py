"""Euler's method on the probability-flow ODE in σ (Karras et al. 2022, algorithm 1 without churn)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.image.diffusion.samplers import Sample, Sampler
from gencli.image.diffusion.schedule import NoiseSchedule, Step, chain

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict


def grid(schedule: NoiseSchedule, num: int, spacing: str | None = None, *, karras: bool = False) -> list[Step]:
    """The schedule's timesteps, linspace not rounded; with `karras`, σ even in its 7th root between their ends."""
    spacing = spacing or schedule.timestep_spacing
    timesteps = schedule.timesteps(num, spacing)
    if spacing == "linspace" and num > 1:
        top = schedule.num_train_timesteps - 1
        timesteps = [top * i / (num - 1) for i in reversed(range(num))]
    points = schedule.at_times(timesteps)
    if karras:
        points = schedule.karras_points(num, points[0].sigma, points[-1].sigma)
    return chain(points, 1 / (1 + schedule.final_sigma**2))


def initial(noise: Tensor, steps: list[Step], spacing: str) -> Tensor:
    """x to begin from: σ · noise in σ space for linspace and trailing, which begin at the last timestep.

    In our coordinates that is √(1−ᾱ) · noise; for other spacings the noise itself.
    """
    return steps[0].at.sqrt_one_minus_alpha_cumprod * noise if spacing in ("linspace", "trailing") else noise


def euler(predict: Predict, x: Tensor, steps: list[Step], *, draw_noise: Callable[[], Tensor]) -> Iterator[Sample]:
    """x/√ᾱ moves along its derivative by σ, which is ε: from x0 + σ·ε to x0 + σ'·ε.

    That is the step of DDIM with eta 0; what differs is the grid, the beginning and that x0 is never clipped.
    """
    for step in steps:
        prediction = predict(x, step.at)
        x = step.next.mix(prediction.x0, prediction.eps)
        yield Sample(step.index, len(steps), x, prediction.x0)


SAMPLER = Sampler(run=euler, grid=grid, initial=initial, limits=frozenset(), spacing="linspace", in_sigma=True)
