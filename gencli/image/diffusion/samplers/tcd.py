"""Trajectory consistency models (Zheng et al. 2024, arXiv 2402.19159): from any noise level to any other, then anew."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.errors import UsageError
from gencli.image.diffusion.samplers import Sample
from gencli.image.diffusion.samplers.lcm import SAMPLER as LCM
from gencli.image.diffusion.schedule import NoiseSchedule, Step, chain

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict


def grid(
    schedule: NoiseSchedule,
    num: int,
    spacing: str | None = None,
    strength: float = 1.0,
    *,
    original_inference_steps: int = 50,
    eta: float = 0.3,
) -> list[Step]:
    """LCM's timesteps, down to that of t = 0. The middle of a step is at (1 − eta) of its end's timestep.

    Raises UsageError for an eta outside 0 to 1.
    """
    if not 0 <= eta <= 1:
        raise UsageError(f"eta must be from 0 to 1, not {eta}")
    steps = LCM.grid(schedule, num, spacing, strength, original_inference_steps=original_inference_steps)
    steps = chain([step.at for step in steps], schedule.at_whole([0])[0].alpha_cumprod)
    middles = schedule.at_whole([math.floor((1 - eta) * max(step.next.t, 0.0)) for step in steps])
    return [dataclasses.replace(step, middle=middle) for step, middle in zip(steps, middles, strict=True)]


def tcd(predict: Predict, x: Tensor, steps: list[Step], *, draw_noise: Callable[[], Tensor]) -> Iterator[Sample]:
    """Algorithm 4: to the middle of each step without noise, and up to its end again with fresh noise."""
    for step in steps:
        prediction, middle = predict(x, step.at), step.middle or step.next
        x = middle.mix(prediction.x0, prediction.eps)
        kept = step.next.alpha_cumprod / middle.alpha_cumprod
        if kept < 1:
            x = math.sqrt(kept) * x + math.sqrt(1 - kept) * draw_noise()
        yield Sample(step.index, len(steps), x, prediction.x0)


SAMPLER = dataclasses.replace(LCM, run=tcd, grid=grid, limits=frozenset())
