"""DPM-Solver++(3M) for the reverse SDE: "DPM++ 3M SDE" of k-diffusion (Crowson 2022).

diffusers' `sde-dpmsolver++` with `solver_order=3` has −½ for +½ in the factor of D2, which so does not vanish with the
step; the tests show it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.image.diffusion.samplers import Sample
from gencli.image.diffusion.samplers.dpmpp_2m import SAMPLER as DPMPP_2M
from gencli.image.diffusion.schedule import Step

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict


def dpmpp_3m_sde(
    predict: Predict, x: Tensor, steps: list[Step], *, draw_noise: Callable[[], Tensor]
) -> Iterator[Sample]:
    """x' = (s'/s) e^−h · x + a' · ((1 − e^−2h) · x0 + φ₂ · D1 − φ₃ · D2) + s' · √(1 − e^−2h) · noise, with the letters
    of `dpmpp_2m`.

    D1 and D2 are the first and half the second derivative of x0 by λ, times h and h², told by this x0 and the two
    before; φ₂ = 1 − (1 − e^−2h) / 2h and φ₃ = φ₂ / 2h − ½ (an x0 that is quadratic in λ would have twice that; it is
    k-diffusion's). The first step has neither, the second no D2, and the step to σ = 0 takes x0 alone.
    """
    known = deque[tuple["Tensor", float]](maxlen=2)  # x0 and h of the steps before, the newest first
    for step in steps:
        x0 = predict(x, step.at).x0
        decay = step.next.sigma / step.at.sigma  # e^−h
        at, to = step.at.sqrt_one_minus_alpha_cumprod, step.next.sqrt_one_minus_alpha_cumprod
        drift = (1 - decay**2) * x0
        if decay > 0:
            h = -math.log(decay)
            drift = drift + _corrections(x0, h, known)
            known.appendleft((x0, h))
        x = to / at * decay * x + step.next.sqrt_alpha_cumprod * drift
        if to > 0:
            x = x + to * math.sqrt(1 - decay**2) * draw_noise()
        yield Sample(step.index, len(steps), x, x0)


def _corrections(x0: Tensor, h: float, known: deque[tuple[Tensor, float]]) -> Tensor | float:
    """φ₂ · D1 − φ₃ · D2, as far as the steps before tell."""
    if not known:
        return 0.0
    z = 2 * h
    second = 1 + math.expm1(-z) / z
    before, r0 = known[0][0], known[0][1] / h
    slope = (x0 - before) / r0
    if len(known) == 1:
        return second * slope
    older, r1 = known[1][0], known[1][1] / h
    change = slope - (before - older) / r1
    return second * (slope + change * r0 / (r0 + r1)) - (second / z - 0.5) * change / (r0 + r1)


SAMPLER = dataclasses.replace(DPMPP_2M, run=dpmpp_3m_sde)
