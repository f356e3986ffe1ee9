"""Denoising diffusion implicit models (Song, Meng & Ermon 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.errors import UsageError
from gencli.image.diffusion.samplers import Sample, Sampler
from gencli.image.diffusion.schedule import Step

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict


def ddim(
    predict: Predict,
    x: Tensor,
    steps: list[Step],
    *,
    draw_noise: Callable[[], Tensor],
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
) -> Iterator[Sample]:
    """Equation 12, with σ of equation 16: eta 0 draws no noise, eta 1 has the variance of DDPM.

    use_clipped_model_output: ε is made anew from x0 within its limits, as guided-diffusion does.
    Raises UsageError for an eta outside 0 to 1.
    """
    if not 0 <= eta <= 1:
        raise UsageError(f"eta must be from 0 to 1, not {eta}")
    for step in steps:
        t, p = step.at, step.next
        prediction = predict(x, t)
        x0, eps = prediction.x0, prediction.eps
        if use_clipped_model_output:
            eps = (x - t.sqrt_alpha_cumprod * x0) / t.sqrt_one_minus_alpha_cumprod
        variance = (1 - p.alpha_cumprod) / (1 - t.alpha_cumprod) * (1 - t.alpha_cumprod / p.alpha_cumprod)
        sigma = eta * math.sqrt(variance)
        x = p.sqrt_alpha_cumprod * x0 + math.sqrt(max(0.0, 1 - p.alpha_cumprod - sigma**2)) * eps
        if sigma > 0:
            x = x + sigma * draw_noise()
        yield Sample(step.index, len(steps), x, x0)


SAMPLER = Sampler(run=ddim)
