"""DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.image.diffusion.samplers import Sample, Sampler
from gencli.image.diffusion.schedule import NoiseSchedule, Point, Step, chain

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict


def grid(schedule: NoiseSchedule, num: int, spacing: str | None = None, *, karras: bool = False) -> list[Step]:
    """As diffusers places them: the timesteps of S + 1 steps without the last (leading and linspace), so that the step
    to σ = 0 does not begin at t = 0. All T timesteps where S = T.

    karras: σ even in its 7th root over the whole schedule, each told to the model as the nearest whole timestep, so
    that several steps may name the same one. (With squaredcos_cap_v2 diffusers cuts the fraction off, and so starts at
    t = 998.)
    """
    spacing = spacing or schedule.timestep_spacing
    extra = spacing in ("leading", "linspace") and num < schedule.num_train_timesteps
    timesteps = schedule.timesteps(num + 1, spacing)[:-1] if extra else schedule.timesteps(num, spacing)
    points = schedule.at_times(timesteps)
    if karras:
        points = [Point(float(round(point.t)), point.alpha_cumprod) for point in schedule.karras_points(num)]
    return chain(points, 1 / (1 + schedule.final_sigma**2))


class Extrapolation:
    """D = x0 + (h / 2h₋₁) (x0 − x0₋₁) extrapolates x0 to the middle of the step from the step before; the first step
    has none before it, and the last, to σ = 0, takes x0 alone; so it does as in diffusers with `euler_at_final`, and
    with `lower_order_final` where there are fewer than 15 steps."""

    def __init__(self, count: int, *, lower_order_final: bool, euler_at_final: bool):
        self.last = count - 1 if euler_at_final or (lower_order_final and count < 15) else count
        self.x0: Tensor | None = None
        self.h = 0.0

    def __call__(self, x0: Tensor, step: Step) -> Tensor:
        """D of a step; those before it have been asked for."""
        D, decay = x0, step.next.sigma / step.at.sigma
        if decay > 0:
            h = -math.log(decay)
            if self.x0 is not None and step.index != self.last:
                D = x0 + h / (2 * self.h) * (x0 - self.x0)
            self.x0, self.h = x0, h
        return D


def dpmpp_2m(
    predict: Predict,
    x: Tensor,
    steps: list[Step],
    *,
    draw_noise: Callable[[], Tensor],
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[Sample]:
    """x' = (s'/s) · x + a' · (1 − e^−h) · D, with a = √ᾱ, s = √(1−ᾱ), λ = log(a/s) and h = λ' − λ; for D see
    `Extrapolation`.
    """
    extrapolate = Extrapolation(len(steps), lower_order_final=lower_order_final, euler_at_final=euler_at_final)
    for step in steps:
        x0 = predict(x, step.at).x0
        decay = step.next.sigma / step.at.sigma  # e^−h
        ratio = step.next.sqrt_one_minus_alpha_cumprod / step.at.sqrt_one_minus_alpha_cumprod
        x = ratio * x + step.next.sqrt_alpha_cumprod * (1 - decay) * extrapolate(x0, step)
        yield Sample(step.index, len(steps), x, x0)


SAMPLER = Sampler(run=dpmpp_2m, grid=grid, limits=frozenset({"threshold"}), spacing="linspace")
