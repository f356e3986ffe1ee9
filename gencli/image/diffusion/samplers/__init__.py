"""Samplers, one file each. A new one is a new file NAME.py with a generator function of the same name,

    def NAME(predict, x, steps, *, noise, …options) -> Iterator[Sample]

`predict(x, point)` is a `guidance.Denoiser`, x (B, C, H, W) what to begin from, `noise()` draws a tensor like x.
Coordinates are variance-preserving, always: x = √ᾱ · x0 + √(1−ᾱ) · ε. Where its definition needs it, the file has too

    steps(schedule, num, spacing=None, *, …options) -> list[Step]    its own grid (else the schedule's); where it has a
        parameter `strength` too, this is how it changes a picture (else it takes the last int(num · strength) steps)
    initial(noise, steps, spacing) -> Tensor                         x to begin from (else the noise itself)
    LIMITS                                                           limits on x0 it keeps (else "clip", "threshold")
    SPACING                                                          where a checkpoint names none (else "leading")
    SHIFTS_MEAN                                                      whether a classifier's gradient is its own affair

Keyword arguments are the sampler's options; the type of a default is the option's. Finding names needs no torch.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gencli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict
    from gencli.image.diffusion.schedule import NoiseSchedule, Step


@dataclass(frozen=True)
class Sample:
    """After step `index` (from 0) of `total`: x at the next noise level, and the x0 that the model expected.

    The sampler goes on from this very x, so that a caller may change it in place (inpainting does).
    """

    index: int
    total: int
    x: Tensor
    x0: Tensor


def names() -> list[str]:
    """The samplers there are, by their files."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def options(name: str) -> dict[str, Any]:
    """The options of a sampler and their defaults."""
    return get(name).options


def get(name: str) -> Sampler:
    """The sampler of that name. Raises UsageError for an unknown one."""
    if name not in names():
        raise UsageError(f"no sampler {name!r}", f"gencli has {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    return Sampler(
        name,
        run=getattr(module, name),
        grid=getattr(module, "steps", _steps),
        initial=getattr(module, "initial", _initial),
        limits=getattr(module, "LIMITS", frozenset({"clip", "threshold"})),
        spacing=getattr(module, "SPACING", "leading"),
        shifts_mean=getattr(module, "SHIFTS_MEAN", False),
    )


@dataclass(frozen=True)
class Sampler:
    """One file of this package: its generator function, grid, beginning, limits and spacing (see above)."""

    name: str
    run: Callable[..., Iterator[Sample]]
    grid: Callable[..., list[Step]]
    initial: Callable[[Tensor, list[Step], str], Tensor]
    limits: frozenset[str]
    spacing: str = "leading"
    shifts_mean: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Every option and its default: the keyword arguments of the generator function and of the grid."""
        return {**_keywords(self.run), **_keywords(self.grid)}

    def settings(self, schedule: NoiseSchedule, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options: as given, else as the checkpoint has them (a field of that name), else their defaults.

        Raises UsageError for an option that this sampler does not have.
        """
        if unknown := [name for name in given if name not in self.options]:
            has = f"it has {', '.join(self.options)}" if self.options else "it has none"
            raise UsageError(f"sampler {self.name} has no option {', '.join(unknown)}", has)
        return {name: given.get(name, getattr(schedule, name, default)) for name, default in self.options.items()}

    def steps(
        self,
        schedule: NoiseSchedule,
        num: int,
        spacing: str | None = None,
        strength: float | None = None,
        **options: Any,
    ) -> list[Step]:
        """The steps of this sampler; the checkpoint's spacing unless one is named. Options of `run` are let pass.

        strength: those that change a picture by so much. Raises UsageError for one that leaves no step.
        """
        from gencli.image.diffusion.schedule import from_strength

        options = _taken(self.grid, options)
        if strength is None:
            return self.grid(schedule, num, spacing, **options)
        if "strength" in inspect.signature(self.grid).parameters:
            return self.grid(schedule, num, spacing, strength, **options)
        return from_strength(self.grid(schedule, num, spacing, **options), strength)

    def __call__(
        self, predict: Predict, x: Tensor, steps: list[Step], *, noise: Callable[[], Tensor], **options: Any
    ) -> Iterator[Sample]:
        """Walk the steps, yielding after each. Options of `steps` are let pass."""
        return self.run(predict, x, steps, noise=noise, **_taken(self.run, options))


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "noise"}


def _taken(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in _keywords(function)}


def _steps(schedule: NoiseSchedule, num: int, spacing: str | None = None) -> list[Step]:
    return schedule.steps(num, spacing)


def _initial(noise: Tensor, steps: list[Step], spacing: str) -> Tensor:
    return noise
