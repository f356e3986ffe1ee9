"""UniPC (Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework", arXiv 2302.04867): of second order, with
B₂(h) = e^h − 1, for models that predict x0."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gencli.image.diffusion.samplers import Sample
from gencli.image.diffusion.samplers.dpmpp_2m import SAMPLER as DPMPP_2M
from gencli.image.diffusion.schedule import Step

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict


@dataclasses.dataclass
class _Before:
    """What the step before left: its x0, how fast x0 changed before it (per h, as D / r; None: not known), r, h, and
    the factor of what is predicted."""

    x0: Tensor
    change: Tensor | None
    r: float
    h: float
    factor: float

    def correction(self, x0: Tensor) -> Tensor:
        """What the corrector adds to x, now that x0 at the end of that step is known."""
        phi = math.expm1(-self.h)  # B₂(−h)
        b1 = (1 + phi / self.h) / -phi
        if self.change is None:
            return self.factor * 0.5 * (x0 - self.x0)
        b2 = 2 * ((1 + phi / self.h) / self.h - 0.5) / phi
        first = (b2 - b1) / (self.r - 1)
        return self.factor * ((first - 0.5) * self.change + (b1 - first) * (x0 - self.x0))


def unipc(
    predict: Predict,
    x: Tensor,
    steps: list[Step],
    *,
    draw_noise: Callable[[], Tensor],
    lower_order_final: bool = True,
) -> Iterator[Sample]:
    """UniP-2 goes to the next level, where the prediction that is made there corrects x by UniC-2: one per step.

    UniP-2 is the step of `dpmpp_2m`. What was changed in x since its step stays changed.
    """
    before: _Before | None = None
    for step in steps:
        x0 = predict(x, step.at).x0
        if before is not None:
            x = x + before.correction(x0)
        decay = step.next.sigma / step.at.sigma  # e^−h
        h = -math.log(decay) if decay > 0 else math.inf
        factor = step.next.sqrt_alpha_cumprod * (1 - decay)
        change, r = None, 0.0
        if before is not None and h < math.inf and not (lower_order_final and step.index == len(steps) - 1):
            r = -before.h / h
            change = (before.x0 - x0) / r
        ratio = step.next.sqrt_one_minus_alpha_cumprod / step.at.sqrt_one_minus_alpha_cumprod
        x = ratio * x + factor * (x0 if change is None else x0 + 0.5 * change)
        before = _Before(x0, change, r, h, factor) if h < math.inf else None
        yield Sample(step.index, len(steps), x, x0)


SAMPLER = dataclasses.replace(DPMPP_2M, run=unipc)
