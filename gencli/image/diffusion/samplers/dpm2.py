"""DPM-Solver-2 in σ, as k-diffusion (Crowson 2022) has it: the midpoint method of Karras et al. 2022, algorithm 2
without churn, with the middle in log σ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.image.diffusion.samplers import Sample
from gencli.image.diffusion.samplers.dpmpp_sde import SAMPLER as DPMPP_SDE
from gencli.image.diffusion.schedule import Step

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict


def dpm2(predict: Predict, x: Tensor, steps: list[Step], *, draw_noise: Callable[[], Tensor]) -> Iterator[Sample]:
    """x/√ᾱ moves by its derivative ε in the middle of the step, where Euler's step leads: two predictions per step.

    The step to σ = 0, and one from infinite σ, is Euler's alone.
    """
    for step in steps:
        prediction = predict(x, step.at)
        if step.middle is None:
            x = step.next.mix(prediction.x0, prediction.eps)
        else:
            eps = predict(step.middle.mix(prediction.x0, prediction.eps), step.middle).eps
            move = (step.next.sigma - step.at.sigma) * eps
            x = step.next.sqrt_alpha_cumprod * (x / step.at.sqrt_alpha_cumprod + move)
        yield Sample(step.index, len(steps), x, prediction.x0)


SAMPLER = dataclasses.replace(DPMPP_SDE, run=dpm2)
