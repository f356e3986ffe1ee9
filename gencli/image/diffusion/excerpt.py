"""Some of all steps: where an image is changed, and where a second network continues. No torch."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from gencli.errors import UsageError
from gencli.image.diffusion.schedule import Step


def from_strength(steps: Sequence[Step], strength: float, *, begun: bool = False) -> list[Step]:
    """The last S · strength of S steps, counted anew from 0: where an image is changed, not made from noise.

    begun: whether a part of a step counts as a whole one, as in diffusers' pipelines of flow matching, or as none.
    Raises UsageError for a strength outside (0, 1] or so small that no step is left.
    """
    if not 0 < strength <= 1:
        raise UsageError(f"strength must be above 0 and at most 1, not {strength}")
    count = min(int(len(steps) * strength), len(steps))
    if begun:
        count = len(steps) - min(int(len(steps) - len(steps) * strength), len(steps) - 1)
    if count < 1:
        enough = next(n for n in itertools.count(math.ceil(1 / strength)) if int(n * strength) >= 1)
        thousandths = next(n for n in itertools.count(10_000 // len(steps)) if int(len(steps) * (n / 10_000)) >= 1)
        raise UsageError(
            f"strength {strength} of {len(steps)} steps leaves no step",
            f"at least {enough} steps, or strength {thousandths / 10_000:g}",
        )
    rest = steps[len(steps) - count :]
    return [dataclasses.replace(step, index=index) for index, step in enumerate(rest)]


def window(steps: Sequence[Step], num_train_timesteps: int, start: float = 0.0, end: float = 1.0) -> list[Step]:
    """The steps between two fractions of denoising, as diffusers' `denoising_start` and `denoising_end` choose them (by
    their timesteps), counted anew from 0. Raises UsageError if there is none."""
    T = num_train_timesteps
    high, low = (round(T - fraction * T) for fraction in (start, end))
    chosen = [step for step in steps if (start == 0 or step.at.t < high) and (end == 1 or step.at.t >= low)]
    if not chosen:
        raise UsageError(f"none of {len(steps)} steps lies between {start:g} and {end:g} of the denoising")
    return [dataclasses.replace(step, index=index) for index, step in enumerate(chosen)]
