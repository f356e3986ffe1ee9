"""diffusers' schedulers; that of DPM++ SDE without torchsde, which gives it nothing but a path of noise."""

from __future__ import annotations

import functools
import importlib
import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from tests.oracles.libraries import diffusers

SDE = "DPMSolverSDEScheduler"


class InNumpy:
    """Has a class look for timesteps in arrays: the tensors that it hands to numpy take six times as long."""

    def _sigma_to_t(self, sigma: Any, log_sigmas: Any) -> Any:
        return super()._sigma_to_t(np.asarray(sigma), np.asarray(log_sigmas))  # type: ignore[misc]


@functools.cache
def scheduler_class(name: str) -> Any:
    """A scheduler's class, by its name."""
    if name.startswith("KDPM2"):
        return type(name, (InNumpy, getattr(diffusers, name)), {})
    if name != SDE:
        return getattr(diffusers, name)
    importlib.import_module("diffusers")  # before: it looks for the real one
    sys.modules.setdefault("torchsde", ModuleType("torchsde"))
    return getattr(importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde"), SDE)


class Path:
    """W(end) − W(start), divided by its deviation, of one Brownian path per step: asked to the middle, then to the
    end. draw: draws normal noise, in that order."""

    def __init__(self, draw: Callable[[], Tensor]):
        self.draw, self.half = draw, None

    def __call__(self, start: Tensor, end: Tensor) -> Tensor:
        start, end = float(start), float(end)
        if self.half is None:
            self.half = (end, self.draw(), self.draw())
            return self.half[1]
        (middle, first, second), self.half = self.half, None
        return (math.sqrt(start - middle) * first + math.sqrt(middle - end) * second) / math.sqrt(start - end)
