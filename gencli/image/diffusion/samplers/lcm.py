"""Latent consistency models (Luo et al. 2023, arXiv 2310.04378): from any noise level to x0 in one step, then anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.errors import UsageError
from gencli.image.diffusion.samplers import Sample, Sampler
from gencli.image.diffusion.schedule import NoiseSchedule, Step, chain

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict

SIGMA_DATA = 0.5  # std that the boundary condition takes data to have


def grid(
    schedule: NoiseSchedule,
    num: int,
    spacing: str | None = None,
    strength: float = 1.0,
    *,
    original_inference_steps: int = 50,
) -> list[Step]:
    """`num` of the O timesteps k·T/O − 1 that the model learned, evenly from the end; `spacing` has no say.

    O: `original_inference_steps`. strength: only the lower fraction of those is drawn from, and all `num` are made.
    Raises UsageError for more steps than there are.
    """
    T, O = schedule.num_train_timesteps, original_inference_steps  # noqa: E741
    if not 1 <= O <= T:
        raise UsageError(f"original_inference_steps = {O}: must be from 1 to {T}")
    if not 0 < strength <= 1:
        raise UsageError(f"strength must be above 0 and at most 1, not {strength}")
    count = int(O * strength)
    if not 1 <= num <= count:
        limit = "" if strength == 1 else f" at strength {strength}"
        raise UsageError(f"{num} steps: sampler lcm can take 1 to {count}{limit}", f"the model learned {O} timesteps")
    timesteps = [(count - i * count // num) * (T // O) - 1 for i in range(num)]
    return chain(schedule.at_whole(timesteps), 1.0)


def lcm(
    predict: Predict,
    x: Tensor,
    steps: list[Step],
    *,
    draw_noise: Callable[[], Tensor],
    timestep_scaling: float = 10.0,
) -> Iterator[Sample]:
    """Algorithm 3: f = c_skip·x + c_out·x0 is the image expected, and fresh noise takes it to the next level.

    With τ = `timestep_scaling`·t, c_skip = ½² / (τ² + ½²) and c_out = τ / √(τ² + ½²), so that f is x at t = 0. The last
    step draws no noise.
    """
    for step in steps:
        x0 = predict(x, step.at).x0
        tau = timestep_scaling * step.at.t
        squared = tau**2 + SIGMA_DATA**2
        denoised = SIGMA_DATA**2 / squared * x + tau / math.sqrt(squared) * x0
        x = denoised.clone() if step.next.alpha_cumprod == 1 else step.next.mix(denoised, draw_noise())
        yield Sample(step.index, len(steps), x, denoised)


SAMPLER = Sampler(run=lcm, grid=grid, grid_has_strength=True)
