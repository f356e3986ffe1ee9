"""Samplers, one file each. A new one is a new file NAME.py with a generator function of the same name,

    def NAME(predict, x, steps, *, draw_noise, …options) -> Iterator[Sample]

and a last line `SAMPLER = Sampler(run=NAME, …)`. `predict(x, point)` returns a `guidance.Prediction`, and may be called
several times per step; x (B, C, H, W) are the first latents, `draw_noise()` draws a tensor like x. Coordinates are
always variance-preserving: x = √ᾱ · x0 + √(1−ᾱ) · ε. The keyword arguments of `run` and of `grid` are the sampler's
options; an option's type is that of its default (float, bool or str).
Finding names needs no torch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gencli.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.diffusion.guidance import Predict
    from gencli.image.diffusion.schedule import NoiseSchedule, Step

# Names elsewhere, as `_plain` leaves them → ours: the web UI's, k-diffusion's and ComfyUI's, diffusers' classes.
ALIASES = {
    "eulerancestral": "euler_a", "eulerdiscrete": "euler", "eulerancestraldiscrete": "euler_a",
    "flowmatcheulerdiscrete": "euler", "heundiscrete": "heun", "flowmatchheundiscrete": "heun", "lmsdiscrete": "lms",
    "kdpm2discrete": "dpm2", "kdpm2ancestraldiscrete": "dpm2_a", "dpm2ancestral": "dpm2_a",
    "dpmsolvermultistep": "dpmpp_2m", "dpmsolversde": "dpmpp_sde", "dpmpp2msdegpu": "dpmpp_2m_sde",
    "dpmpp3msdegpu": "dpmpp_3m_sde", "dpmpp2sancestral": "dpmpp_2s_a", "dpmppsdegpu": "dpmpp_sde",
    "unipcmultistep": "unipc", "unipcbh2": "unipc", "ddimparallel": "ddim", "ddpmparallel": "ddpm",
}  # fmt: skip
# Names elsewhere, in the same form, of methods that gencli lacks: none of them is a slip for one that it has.
LACKING = frozenset({
    "plms", "pndm", "ipndm", "ipndmv", "deis", "deismultistep", "dpmfast", "dpmadaptive", "dpmsolversinglestep",
    "heunpp2", "restart", "sasolver", "edmeuler", "edmdpmsolvermultistep", "ersde", "seeds2", "seeds3", "resmultistep",
    "gradientestimation", "eulercfgpp", "dpmpp2mcfgpp", "ddimcfgpp", "scoresdeve",
})  # fmt: skip
KARRAS = re.compile(r"[ _](?:karras|k)$")


@dataclass(frozen=True)
class Sample:
    """After step `index` (from 0) of `total`: x at the next noise level, and the x0 that the model expected.

    The sampler continues from this very x, so that a caller may change it in place (inpainting does).
    """

    index: int
    total: int
    x: Tensor
    x0: Tensor


def names() -> list[str]:
    """The names of all samplers, which are those of their files."""
    return list(_names(*((folder, os.stat(folder).st_mtime_ns) for folder in __path__)))


@functools.lru_cache(4)
def _names(*folders: tuple[str, int]) -> list[str]:
    """What lies in folders, as they were changed last: a request is checked many times, and listing takes 3 ms."""
    return sorted(module.name for module in pkgutil.iter_modules([folder for folder, _ in folders]))


def find(text: str) -> tuple[str, bool | None]:
    """The name of a sampler that is called so here or elsewhere ("DPM++ 2M Karras", "EulerDiscreteScheduler"), and
    whether Karras' noise levels belong to it: None where the text says nothing of them. Raises UsageError."""
    low = text.strip().lower()
    words = KARRAS.sub("", low)
    known = {**ALIASES, **{_plain(name): name for name in names()}}
    if (name := known.get(_plain(words))) is None:
        close = None if _plain(words) in LACKING else nearest(_plain(words), known)
        hint = f"did you mean {known[close]}?" if close else f"gencli has {', '.join(names())}"
        raise UsageError(f"no sampler {text!r:.80}", hint)
    return name, True if words != low else None


def _plain(text: str) -> str:
    """A name without what others write differently."""
    return re.sub("[^a-z0-9]", "", text.replace("++", "pp").removeprefix("k_")).removesuffix("scheduler")


def get(name: str) -> Sampler:
    """The sampler of that name. Raises UsageError for an unknown one."""
    sampler: Sampler = importlib.import_module(f"{__name__}.{find(name)[0]}").SAMPLER
    return sampler


def ddim_grid(schedule: NoiseSchedule, num: int, spacing: str | None = None) -> list[Step]:
    """The schedule's own steps."""
    return schedule.steps(num, spacing)


def unscaled(noise: Tensor, steps: list[Step], spacing: str) -> Tensor:
    """The noise itself."""
    return noise


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One file of this package.

    run: the generator function. grid(schedule, num, spacing, *, …options): its steps; with `grid_has_strength` also
    `strength`, how it changes an image (else it takes the last num · strength: see `from_strength`). initial(noise,
    steps, spacing): the first x, when it begins from noise alone. limits: which of the checkpoint's limits on x0 hold
    for it. spacing: the one when neither request nor checkpoint names one. in_sigma: whether it solves in σ space,
    x / √ᾱ. shifts_mean: whether it applies a classifier's gradient itself.
    """

    run: Callable[..., Iterator[Sample]]
    grid: Callable[..., list[Step]] = ddim_grid
    grid_has_strength: bool = False
    initial: Callable[[Tensor, list[Step], str], Tensor] = unscaled
    limits: frozenset[str] = frozenset({"clip", "threshold"})
    spacing: str = "leading"
    in_sigma: bool = False
    shifts_mean: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def options(self) -> dict[str, object]:
        """Every option and its default."""
        return {**_options_of(self.run), **_options_of(self.grid)}

    def settings(self, schedule: NoiseSchedule, given: Mapping[str, object]) -> dict[str, object]:
        """All options: as given, else the checkpoint's field of that name, else the default.

        Raises UsageError for an option that this sampler does not have.
        """
        options = self.options
        if unknown := [name for name in given if name not in options]:
            has = f"it has {', '.join(options)}" if options else "it has none"
            raise UsageError(f"sampler {self.name} has no option {', '.join(unknown)}", has)
        return {name: given.get(name, getattr(schedule, name, default)) for name, default in options.items()}

    def steps(
        self,
        schedule: NoiseSchedule,
        num: int,
        spacing: str | None = None,
        strength: float | None = None,
        **options: object,
    ) -> list[Step]:
        """The steps of this sampler, in the checkpoint's spacing unless one is named. Ignores options of `run`.

        strength: how much an image is changed. Raises UsageError if that leaves no step.
        """
        from gencli.image.diffusion.excerpt import from_strength

        options = {name: options[name] for name in _options_of(self.grid) if name in options}
        if strength is not None and self.grid_has_strength:
            return self.grid(schedule, num, spacing, strength, **options)
        steps = self.grid(schedule, num, spacing, **options)
        begun = schedule.prediction_type == "flow"
        return steps if strength is None else from_strength(steps, strength, begun=begun)

    def __call__(
        self, predict: Predict, x: Tensor, steps: list[Step], *, draw_noise: Callable[[], Tensor], **options: object
    ) -> Iterator[Sample]:
        """Walk the steps and yield after each. Ignores options of `grid`."""
        options = {name: options[name] for name in _options_of(self.run) if name in options}
        return self.run(predict, x, steps, draw_noise=draw_noise, **options)


def _options_of(function: Callable[..., object]) -> dict[str, object]:
    """The keyword-only arguments of a sampler's function, and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "draw_noise"}
