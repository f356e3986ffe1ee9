"""The noise schedule of a checkpoint: betas → ᾱ → a list of steps, each of which knows its noise level and the next.

Coordinates are variance-preserving throughout: x_t = √ᾱ_t · x0 + √(1−ᾱ_t) · ε (Ho et al. 2020, eq. 4). T is the number
of timesteps in training, S that of steps in sampling; t counts from 0, the least noise, to T − 1.
No torch in here: what a request asks is held against it before torch is imported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from gencli.errors import GencliError, UsageError
from gencli.image.diffusion.spacings import ALL, SECTIONS, sections
from gencli.models.base import read_config

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

FILE = "scheduler_config.json"
CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "timestep_spacing": ALL,
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"),
    "final_sigmas_type": ("zero", "sigma_min"),
}

# What a scheduler class takes for a field that the file leaves out, where that is not NoiseSchedule's own default.
_SIGMA_SPACE: dict[str, object] = {"timestep_spacing": "linspace", "clip_sample": False}
_K_DIFFUSION: dict[str, object] = {**_SIGMA_SPACE, "beta_start": 0.00085, "beta_end": 0.012}
_LATENT: dict[str, object] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CLASS_DEFAULTS: dict[str, dict[str, object]] = {
    "DDIMScheduler": {},
    "DDIMParallelScheduler": {},
    "DDPMScheduler": {},
    "DDPMParallelScheduler": {},
    "UnCLIPScheduler": {
        "beta_schedule": "squaredcos_cap_v2",
        "timestep_spacing": "linspace",
        "variance_type": "fixed_small_log",
    },
    "LCMScheduler": {**_LATENT, "clip_sample": False},
    "TCDScheduler": {**_LATENT, "clip_sample": False},
    "PNDMScheduler": {"clip_sample": False, "set_alpha_to_one": False},
    "EulerDiscreteScheduler": _SIGMA_SPACE,
    "EulerAncestralDiscreteScheduler": _SIGMA_SPACE,
    "DPMSolverMultistepScheduler": _SIGMA_SPACE,
    "DPMSolverSinglestepScheduler": {**_SIGMA_SPACE, "lower_order_final": False},
    "DEISMultistepScheduler": _SIGMA_SPACE,
    "UniPCMultistepScheduler": _SIGMA_SPACE,
    "LMSDiscreteScheduler": _SIGMA_SPACE,
    "HeunDiscreteScheduler": _K_DIFFUSION,
    "DPMSolverSDEScheduler": _K_DIFFUSION,
    "KDPM2DiscreteScheduler": _K_DIFFUSION,
    "KDPM2AncestralDiscreteScheduler": _K_DIFFUSION,
}
FLOW = "FlowMatchEulerDiscreteScheduler"
ONE_WAY = {"UnCLIPScheduler": "linspace", FLOW: "trailing"}  # classes without that field
TINY = 1e-12
BOUNDS: dict[str, tuple[float, float]] = {  # whole numbers where the lower one is whole
    "num_train_timesteps": (2, 2**16),
    "steps_offset": (0, 2**16),
    "original_inference_steps": (1, 2**16),
    "timestep_scaling": (TINY, 1e9),
    "beta_start": (TINY, 1.0),
    "beta_end": (TINY, 1.0),
    "clip_sample_range": (TINY, math.inf),
    "dynamic_thresholding_ratio": (TINY, 1.0),
    "sample_max_value": (TINY, math.inf),
}
# How the scheduler that the file names would solve: gencli's sampler is the caller's choice, not the checkpoint's.
INERT = (
    "solver_order", "solver_type", "algorithm_type", "skip_prk_steps",
    "predict_x0", "disable_corrector", "solver_p", "noise_sampler_seed", "flow_shift", "time_shift_type",
    "tensor_format", "timestep_values",
)  # fmt: skip
ONLY: dict[str, tuple[object, ...]] = {
    "predict_epsilon": (True,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "lambda_min_clipped": (-math.inf, "-Infinity"),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
}


def named_spacing(raw: Mapping[str, object]) -> str | None:
    """How steps lie on the schedule of a scheduler_config.json, if it says so, by its field or by a class that has one
    way only; otherwise a sampler has its own."""
    said = raw.get("timestep_spacing")
    return said if isinstance(said, str) else ONE_WAY.get(str(raw.get("_class_name")))


@dataclass(frozen=True)
class Point:
    """One noise level: the timestep that the model is told (a float; −1 after the last step) and its ᾱ, 0 to 1."""

    t: float
    alpha_cumprod: float

    @property
    def sqrt_alpha_cumprod(self) -> float:
        """√ᾱ, the factor of x0 in x."""
        return math.sqrt(self.alpha_cumprod)

    @property
    def sqrt_one_minus_alpha_cumprod(self) -> float:
        """√(1−ᾱ), the factor of ε in x."""
        return math.sqrt(1 - self.alpha_cumprod)

    @property
    def sigma(self) -> float:
        """√((1−ᾱ)/ᾱ), the noise per signal, as Karras et al. 2022 count it; infinite at zero SNR."""
        alpha_cumprod = self.alpha_cumprod  # and not by the two above: thousands of steps ask for it
        return math.sqrt(1 - alpha_cumprod) / math.sqrt(alpha_cumprod) if alpha_cumprod else math.inf

    def mix(self, x0: Tensor, eps: Tensor) -> Tensor:
        """x at this noise level: √ᾱ · x0 + √(1−ᾱ) · ε."""
        return self.sqrt_alpha_cumprod * x0 + self.sqrt_one_minus_alpha_cumprod * eps


@dataclass(frozen=True)
class Step:
    """From one noise level down to the next; `index` counts from 0. A step's `next` is the following step's `at`.

    middle: a noise level on the way, for samplers that stop there.
    """

    index: int
    at: Point
    next: Point
    middle: Point | None = None


@dataclass(frozen=True)
class NoiseSchedule:
    """A checkpoint's scheduler_config.json, under its own field names; the defaults are DDIMScheduler's."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    final_sigmas_type: str = "zero"
    use_karras_sigmas: bool = False
    lower_order_final: bool = True  # these two: of DPM-Solver++, whether its last step is of first order
    euler_at_final: bool = False
    variance_type: str = "fixed_small"
    use_clipped_model_output: bool = False  # no key of diffusers': how guided-diffusion's models are sampled with DDIM
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    original_inference_steps: int = 50  # these two: of latent consistency models
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_config(cls, raw: Mapping[str, object]) -> NoiseSchedule:
        """The schedule that a scheduler_config.json describes, whichever of the known scheduler classes it names.

        An absent or null field takes that class's default (DDIMScheduler's when no class is named).
        Raises GencliError for an unknown class, for keys that change the mathematics and are not supported, and for
        values out of range.
        """
        name = raw.get("_class_name", "DDIMScheduler")
        if not isinstance(name, str) or name not in CLASS_DEFAULTS:
            raise GencliError(
                f"{FILE}: scheduler class {name!r} is not supported",
                f"gencli knows the noise schedules of {', '.join([*CLASS_DEFAULTS, FLOW])}",
            )
        given = {key: value for key, value in raw.items() if value is not None}
        return read_config(cls, {**CLASS_DEFAULTS[name], **given}, inert=INERT, only=ONLY, file=FILE)

    def for_image(self, tokens: int, law: str) -> NoiseSchedule:
        """The schedule for an image of so many tokens: the same, but for some of flow matching."""
        return self

    @cached_property
    def betas(self) -> NDArray[np.float64]:
        """β_t before any rescaling to zero terminal SNR, float64 (T,)."""
        start, end, T = self.beta_start, self.beta_end, self.num_train_timesteps
        if self.trained_betas is not None:
            return np.array(self.trained_betas, dtype=np.float64)
        if self.beta_schedule == "linear":  # Ho et al. 2020
            return np.linspace(start, end, T)
        if self.beta_schedule == "scaled_linear":  # Rombach et al. 2022, who call it linear
            return np.linspace(start**0.5, end**0.5, T) ** 2
        # squaredcos_cap_v2: Nichol & Dhariwal 2021, eq. 17
        f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], 0.999)

    @cached_property
    def alphas_cumprod(self) -> NDArray[np.float64]:
        """ᾱ_t = Π (1 − β), float64 (T,), falling; its last is 0 with `rescale_betas_zero_snr`."""
        alphas_cumprod = (1 - self.betas).cumprod(0)
        if self.rescale_betas_zero_snr:  # Lin et al. 2023, algorithm 1
            root = np.sqrt(alphas_cumprod)
            alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        if not (alphas_cumprod[:-1] > 0).all():
            raise GencliError(f"{FILE}: these betas leave no signal long before the last timestep")
        return alphas_cumprod

    @property
    def final_alpha_cumprod(self) -> float:
        """ᾱ after the last step of DDIM: 1, or that of t = 0 where the checkpoint says so."""
        return 1.0 if self.set_alpha_to_one else float(self.alphas_cumprod[0])

    @property
    def karras(self) -> bool:
        """Whether samplers in σ space place their steps by `karras_sigmas` unless told otherwise."""
        return self.use_karras_sigmas

    def timesteps(self, num: int, spacing: str | None = None) -> Sequence[float]:
        """`num` timesteps of 0 … T − 1, strictly falling (num = 1 … T); the checkpoint's spacing unless one is named.

        leading:   multiples of T // S from 0 up, plus `steps_offset` as far as that stays below T.
        trailing:  from T − 1 down by T / S, rounded (Lin et al. 2023).
        linspace:  both 0 and T − 1, and evenly between, rounded (one step: 0 alone).
        quadratic: squares of even steps up to √(0.8 T), the DDIM paper's other grid. Steps that round to the same
                   timestep count once, so fewer than `num` may come (49 of 50, 96 of 100, 688 of 1000 at T = 1000).
        fast27 and others: lists that somebody made (`spacings.SECTIONS`), of as many steps as their name says.
        Raises UsageError for another spacing or a number out of range.
        """
        T, spacing = self.num_train_timesteps, spacing or self.timestep_spacing
        if not 1 <= num <= T:
            raise UsageError(f"{num} steps: this model can take 1 to {T}", f"it was trained with {T} timesteps")
        if spacing == "leading":
            grid = np.arange(num) * (T // num)
            grid += min(self.steps_offset, T - 1 - int(grid[-1]))
        elif spacing == "trailing":
            # the rounded end of arange may add an entry below 0
            grid = np.round(np.arange(T, 0, -T / num))[:num][::-1] - 1
        elif spacing == "linspace":
            grid = np.round(np.linspace(0, T - 1, num))
        elif spacing == "quadratic":
            grid = np.unique((np.linspace(0, math.sqrt(0.8 * T), num) ** 2).astype(np.int64))
        elif spacing in SECTIONS:
            if num != sum(SECTIONS[spacing]):
                hint = "another spacing, such as linspace, takes any number"
                raise UsageError(f"spacing {spacing} has {sum(SECTIONS[spacing])} steps, not {num}", hint)
            grid = np.array(sections(spacing, T))
        else:
            raise UsageError(f"no spacing {spacing!r}", f"gencli knows {', '.join(ALL)}")
        return [int(t) for t in grid[::-1]]

    def steps(self, num: int, spacing: str | None = None, *, final: float | None = None) -> list[Step]:
        """The steps of DDIM: each of `timesteps` to the next, the last to ᾱ = `final` (None: the checkpoint's)."""
        points = self.at_whole([int(t) for t in self.timesteps(num, spacing)])
        return chain(points, self.final_alpha_cumprod if final is None else final)

    def at_whole(self, timesteps: Sequence[int]) -> list[Point]:
        """The noise levels of whole timesteps."""
        levels = self.alphas_cumprod[timesteps].tolist()
        return [Point(float(t), level) for t, level in zip(timesteps, levels, strict=True)]

    # What samplers in σ space make their grids from.

    @cached_property
    def sigmas(self) -> NDArray[np.float64]:
        """√((1−ᾱ)/ᾱ), float64 (T,), rising. Zero terminal SNR counts as ᾱ = 2⁻²⁴ here, so that σ stays finite."""
        alphas_cumprod = self.alphas_cumprod.copy()
        if alphas_cumprod[-1] == 0:
            alphas_cumprod[-1] = min(2.0**-24, alphas_cumprod[-2] / 2)
        return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)

    @property
    def final_sigma(self) -> float:
        """σ after the last step in σ space: 0, or that of t = 0 where the checkpoint says so."""
        return 0.0 if self.final_sigmas_type == "zero" else float(self.sigmas[0])

    def at_times(self, timesteps: Sequence[float]) -> list[Point]:
        """The noise levels of timesteps that may be fractions: σ is linear between whole ones."""
        sigmas = np.interp(timesteps, np.arange(len(self.sigmas)), self.sigmas)
        return [Point(float(t), 1 / (1 + float(sigma) ** 2)) for t, sigma in zip(timesteps, sigmas, strict=True)]

    def at_sigmas(self, sigmas: Sequence[float]) -> list[Point]:
        """The noise levels σ, with the timesteps, fractions, of each: log σ is linear between whole ones."""
        timesteps = np.interp(np.log(sigmas), np.log(self.sigmas), np.arange(len(self.sigmas)))
        return [Point(float(t), 1 / (1 + sigma**2)) for t, sigma in zip(timesteps, sigmas, strict=True)]

    def karras_points(self, num: int, first: float | None = None, last: float | None = None) -> list[Point]:
        """`num` noise levels even in the 7th root of σ, from `first` to `last` (None: the ends of the schedule)."""
        first, last = first or float(self.sigmas[-1]), last or float(self.sigmas[0])
        return self.at_sigmas(karras_sigmas(first, last, num))


def karras_sigmas(first: float, last: float, num: int, rho: float = 7.0) -> list[float]:
    """`num` values of σ from `first` down to `last`, even in σ^(1/ρ) (Karras et al. 2022, eq. 5)."""
    roots = np.linspace(first ** (1 / rho), last ** (1 / rho), num)
    return [float(sigma) for sigma in roots**rho]


def chain(points: Sequence[Point], final_alpha_cumprod: float) -> list[Step]:
    """Steps from each point to the following one, and from the last to ᾱ = `final_alpha_cumprod` at t = −1."""
    ends = [*points[1:], Point(-1.0, final_alpha_cumprod)]
    return [Step(index, at, end) for index, (at, end) in enumerate(zip(points, ends, strict=True))]


def _check(schedule: NoiseSchedule) -> None:
    """Raises GencliError for a value that no schedule can have, naming its field."""
    for field in dataclasses.fields(schedule):
        name, value = field.name, getattr(schedule, field.name)
        if name in CHOICES:
            if value not in CHOICES[name]:
                raise _wrong(name, value, f"gencli knows {', '.join(CHOICES[name])}")
        elif name in BOUNDS:
            low, high = BOUNDS[name]
            kinds = (int,) if isinstance(low, int) else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                raise _wrong(name, value, f"it must be a {'whole ' * (kinds == (int,))}number from {low} to {high}")
        elif name != "trained_betas" and not isinstance(value, bool):
            raise _wrong(name, value, "it must be true or false")
    betas, T = schedule.trained_betas, schedule.num_train_timesteps
    if betas is not None:
        if not isinstance(betas, tuple) or not all(isinstance(beta, float) and 0 < beta < 1 for beta in betas):
            raise GencliError(f"{FILE}: trained_betas must be numbers between 0 and 1")
        if len(betas) != T:
            raise GencliError(f"{FILE}: {len(betas)} trained_betas do not fit num_train_timesteps = {T}")


def _wrong(name: str, value: object, hint: str) -> GencliError:
    return GencliError(f"{FILE}: {name} = {value!r} is not supported", hint)
