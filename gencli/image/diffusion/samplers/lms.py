"""Linear multistep steps of fourth order in σ (Adams & Bashforth 1883), as k-diffusion (Crowson 2022) has them."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from gencli.image.diffusion.samplers import Sample
from gencli.image.diffusion.samplers.heun import SAMPLER as HEUN
from gencli.image.diffusion.schedule import Step

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict

ORDER = 4


def lms(predict: Predict, x: Tensor, steps: list[Step], *, draw_noise: Callable[[], Tensor]) -> Iterator[Sample]:
    """x/√ᾱ moves by the integral of the polynomial through its last four derivatives ε; the first steps have fewer.

    A step from infinite σ is Euler's, and its derivative is not kept.
    """
    known = deque[tuple[float, "Tensor"]](maxlen=ORDER)  # σ and ε, the newest first
    for step in steps:
        prediction = predict(x, step.at)
        if step.at.sigma == math.inf:
            x = step.next.mix(prediction.x0, prediction.eps)
        else:
            known.appendleft((step.at.sigma, prediction.eps))
            shares = weights([sigma for sigma, _ in known], step.next.sigma)
            move = sum(share * eps for share, (_, eps) in zip(shares, known, strict=True))
            x = step.next.sqrt_alpha_cumprod * (x / step.at.sqrt_alpha_cumprod + move)
        yield Sample(step.index, len(steps), x, prediction.x0)


def weights(sigmas: Sequence[float], end: float) -> list[float]:
    """The integral from sigmas[0] to `end` of each Lagrange polynomial of at most four `sigmas`, by the two points of
    Gauss, which are exact for cubics."""
    middle, half = (sigmas[0] + end) / 2, (end - sigmas[0]) / 2
    points = [middle - half / math.sqrt(3), middle + half / math.sqrt(3)]

    def value(k: int, at: float) -> float:
        return math.prod((at - other) / (sigmas[k] - other) for j, other in enumerate(sigmas) if j != k)

    return [half * sum(value(k, at) for at in points) for k in range(len(sigmas))]


SAMPLER = dataclasses.replace(HEUN, run=lms)
