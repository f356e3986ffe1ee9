"""Denoising diffusion probabilistic models (Ho, Jain & Abbeel 2020), on any falling list of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.errors import GencliError
from gencli.image.diffusion.samplers import Sample, Sampler
from gencli.image.diffusion.schedule import NoiseSchedule, Step

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict


def grid(schedule: NoiseSchedule, num: int, spacing: str | None = None) -> list[Step]:
    """DDIM's timesteps, but always down to ᾱ = 1."""
    return schedule.steps(num, spacing, final=1.0)


def ddpm(
    predict: Predict,
    x: Tensor,
    steps: list[Step],
    *,
    draw_noise: Callable[[], Tensor],
    variance_type: str = "fixed_small",
) -> Iterator[Sample]:
    """Algorithm 2, with the mean of equation 7; α and β are those of the whole step, ᾱ_t / ᾱ_p and 1 − α.

    variance_type: fixed_small is β̃ of equation 7, fixed_large is β; learned_range is between them, in the logarithm,
    as the model says (Nichol & Dhariwal 2021, eq. 15). The last step, to ᾱ = 1, draws no noise.
    A classifier's gradient shifts the mean by so many variances (Dhariwal & Nichol 2021, algorithm 1).
    Raises GencliError where the variance should come from the model and does not.
    """
    learned, before = variance_type == "learned_range", 0.0
    for step in steps:
        t, p = step.at, step.next
        prediction = predict(x, t)
        alpha = t.alpha_cumprod / p.alpha_cumprod
        beta = 1 - alpha
        noise_ratio = (1 - p.alpha_cumprod) / (1 - t.alpha_cumprod)
        x = p.sqrt_alpha_cumprod * beta / (1 - t.alpha_cumprod) * prediction.x0 + math.sqrt(alpha) * noise_ratio * x
        small, last = beta * noise_ratio, p.alpha_cumprod == 1
        if last and learned:  # where β̃ is 0, guided-diffusion's code shifts the mean by the one before
            small = before
        before = small
        std = _std(variance_type, small, beta, prediction.variance) if small else 0.0
        if prediction.gradient is not None:
            x = x + std**2 * prediction.gradient
        if not last:
            x = x + std * draw_noise()
        yield Sample(step.index, len(steps), x, prediction.x0)


def _std(variance_type: str, small: float, large: float, learned: Tensor | None) -> float | Tensor:
    """σ of the noise of one step."""
    if variance_type == "learned_range":
        if learned is None:
            raise GencliError("this model's scheduler expects a variance from the model, which gives none")
        fraction = (learned + 1) / 2
        return (0.5 * (fraction * math.log(large) + (1 - fraction) * math.log(small))).exp()
    return math.sqrt(large if variance_type.startswith("fixed_large") else small)


SAMPLER = Sampler(run=ddpm, grid=grid, shifts_mean=True)
