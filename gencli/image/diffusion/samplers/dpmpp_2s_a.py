"""DPM-Solver++(2S) with ancestral noise (Lu et al. 2022, "DPM-Solver++", algorithm 1): "DPM++ 2S a" of k-diffusion
(Crowson 2022)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.image.diffusion.samplers import Sample
from gencli.image.diffusion.samplers.euler_a import ancestral
from gencli.image.diffusion.samplers.heun import SAMPLER as HEUN
from gencli.image.diffusion.schedule import Step

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict


def dpmpp_2s_a(predict: Predict, x: Tensor, steps: list[Step], *, draw_noise: Callable[[], Tensor]) -> Iterator[Sample]:
    """From σ to σ_down = σ'²/σ by the x0 that is predicted at σ', the middle of both, then noise up to σ' again.

    Two predictions per step; the step to σ = 0 takes x0 alone.
    """
    for step in steps:
        prediction = predict(x, step.at)
        x0, (down, up) = prediction.x0, ancestral(step)
        if step.next.t >= 0:
            x0 = predict(step.next.mix(x0, prediction.eps), step.next).x0
        moved = down / step.at.sqrt_one_minus_alpha_cumprod * x + (1 - down / step.at.sigma) * x0
        x = step.next.sqrt_alpha_cumprod * (moved + up * draw_noise() if up > 0 else moved)
        yield Sample(step.index, len(steps), x, prediction.x0)


SAMPLER = dataclasses.replace(HEUN, run=dpmpp_2s_a)
