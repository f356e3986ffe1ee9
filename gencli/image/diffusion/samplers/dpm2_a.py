"""DPM-Solver-2 with ancestral noise, as k-diffusion (Crowson 2022) has it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.image.diffusion.samplers import Sample
from gencli.image.diffusion.samplers.euler_a import ancestral
from gencli.image.diffusion.samplers.heun import SAMPLER as HEUN
from gencli.image.diffusion.schedule import Step

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict


def dpm2_a(predict: Predict, x: Tensor, steps: list[Step], *, draw_noise: Callable[[], Tensor]) -> Iterator[Sample]:
    """`dpm2` down to σ_down = σ'²/σ, then noise up to σ' again as in `euler_a`: σ' is the middle of σ and σ_down.

    The step to σ = 0, and one from infinite σ, is that of `euler_a`.
    """
    for step in steps:
        prediction = predict(x, step.at)
        down, up = ancestral(step)
        if step.next.t < 0 or step.at.sigma == math.inf:
            moved = prediction.x0 + down * prediction.eps
        else:
            eps = predict(step.next.mix(prediction.x0, prediction.eps), step.next).eps
            moved = x / step.at.sqrt_alpha_cumprod + (down - step.at.sigma) * eps
        x = step.next.sqrt_alpha_cumprod * (moved + up * draw_noise() if up > 0 else moved)
        yield Sample(step.index, len(steps), x, prediction.x0)


SAMPLER = dataclasses.replace(HEUN, run=dpm2_a)
