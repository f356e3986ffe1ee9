"""DPM-Solver++(2M) for the reverse SDE (Lu et al. 2022, "DPM-Solver++", section 6): "DPM++ 2M SDE" of k-diffusion."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.image.diffusion.samplers import Sample
from gencli.image.diffusion.samplers.dpmpp_2m import SAMPLER as DPMPP_2M
from gencli.image.diffusion.samplers.dpmpp_2m import Extrapolation
from gencli.image.diffusion.schedule import Step

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict


def dpmpp_2m_sde(
    predict: Predict,
    x: Tensor,
    steps: list[Step],
    *,
    draw_noise: Callable[[], Tensor],
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[Sample]:
    """x' = (s'/s) e^−h · x + a' · (1 − e^−2h) · D + s' · √(1 − e^−2h) · noise, with the letters of `dpmpp_2m`."""
    extrapolate = Extrapolation(len(steps), lower_order_final=lower_order_final, euler_at_final=euler_at_final)
    for step in steps:
        x0 = predict(x, step.at).x0
        decay = step.next.sigma / step.at.sigma  # e^−h
        at, to = step.at.sqrt_one_minus_alpha_cumprod, step.next.sqrt_one_minus_alpha_cumprod
        x = to / at * decay * x + step.next.sqrt_alpha_cumprod * (1 - decay**2) * extrapolate(x0, step)
        if to > 0:
            x = x + to * math.sqrt(1 - decay**2) * draw_noise()
        yield Sample(step.index, len(steps), x, x0)


SAMPLER = dataclasses.replace(DPMPP_2M, run=dpmpp_2m_sde)
