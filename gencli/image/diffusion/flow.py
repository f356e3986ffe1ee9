"""The noise levels of flow matching (Lipman et al. 2022, arXiv 2210.02747; Esser et al. 2024, arXiv 2403.03206).

x_σ = (1 − σ) · x0 + σ · ε, and the model, told t = 1000 σ, predicts v = ε − x0. Divided by r = √((1−σ)² + σ²), that is
x of a variance-preserving schedule with √ᾱ = (1 − σ) / r, in which the step of Euler in σ is that of DDIM without
noise: all samplers run in those coordinates, unchanged (see `guidance.Denoiser`). No torch in here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gencli.errors import GencliError, UsageError
from gencli.image.diffusion.schedule import FILE, FLOW, NoiseSchedule, Point, Step, chain
from gencli.models.base import check_flags, check_ints, check_numbers, read_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

ONLY: dict[str, tuple[object, ...]] = {
    "invert_sigmas": (False,),
    "use_karras_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "stochastic_sampling": (False,),
    "time_shift_type": ("exponential",),
}
OTHER = "samplers that solve in σ, as euler, heun or dpmpp_2m, and ddim follow such models"


@dataclass(frozen=True, kw_only=True)
class FlowSchedule(NoiseSchedule):
    """scheduler_config.json of FlowMatchEulerDiscreteScheduler.

    tokens: of the image, for `use_dynamic_shifting`: as many as the network's sequence has. law: how the shift grows
    with them, "linear" between the two ends that the config gives (FLUX.1), or "steps" as FLUX.2 does, where it also
    falls with the number of steps; or "twice", where there is none and the noise levels are shifted from even ones
    between the first and the last that training had, shifted (Stable Diffusion 3).
    """

    LAWS: ClassVar = ("linear", "steps", "twice")

    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    prediction_type: str = "flow"
    timestep_spacing: str = "trailing"
    clip_sample: bool = False
    tokens: int = 4096
    law: str = "linear"

    def __post_init__(self) -> None:
        check_flags(self)
        check_ints(self, {"num_train_timesteps": 2**16, "base_image_seq_len": 2**20, "max_image_seq_len": 2**20})
        check_numbers(self, {"shift": (1e-3, 1e3), "base_shift": (-10, 10), "max_shift": (-10, 10)})
        if self.shift_terminal is not None:
            check_numbers(self, {"shift_terminal": (0.0, 0.999)})
        if self.max_image_seq_len <= self.base_image_seq_len:
            raise GencliError(f"{FILE}: max_image_seq_len = {self.max_image_seq_len} is not above base_image_seq_len")

    @classmethod
    def from_config(cls, raw: Mapping[str, object]) -> FlowSchedule:
        """The schedule of a scheduler_config.json. Raises GencliError for keys that change the mathematics and are not
        supported, and for values out of range."""
        off = {key for key in ONLY if raw.get(key) is False}
        given = {key: value for key, value in raw.items() if value is not None and key not in off}
        foreign = {field.name for field in dataclasses.fields(NoiseSchedule)} - {"num_train_timesteps"}
        if wrong := sorted((foreign | {"tokens", "law"}) & given.keys()):
            raise GencliError(f"{FILE}: {wrong[0]} = {given[wrong[0]]!r:.40} is not supported with flow matching")
        return read_config(cls, given, only=ONLY, file=FILE)

    def for_image(self, tokens: int, law: str) -> FlowSchedule:
        """The schedule for an image of so many tokens, by one of LAWS."""
        return dataclasses.replace(self, tokens=tokens, law=law)

    def sigmas_of(self, num: int) -> NDArray[np.float64]:
        """σ of `num` steps, float64, falling from 1: even from 1 to 1 / num (or see `law`), then shifted."""
        factor = math.exp(self._mu(num)) if self.use_dynamic_shifting else self.shift
        least = 1 / num
        if self.law == "twice" and not self.use_dynamic_shifting:
            least = factor / (self.num_train_timesteps + factor - 1)
        sigmas = np.linspace(1, least, num)
        sigmas = factor * sigmas / (1 + (factor - 1) * sigmas)
        if self.shift_terminal is not None:
            sigmas = 1 - (1 - sigmas) * ((1 - self.shift_terminal) / (1 - sigmas[-1]) if num > 1 else 0)
        return sigmas

    def _mu(self, num: int) -> float:
        """The logarithm of the shift."""
        if self.law != "steps":
            share = (self.tokens - self.base_image_seq_len) / (self.max_image_seq_len - self.base_image_seq_len)
            return self.base_shift + share * (self.max_shift - self.base_shift)
        at_200 = 1.6927e-4 * self.tokens + 0.45666666  # black-forest-labs' fits, for 200 steps and for 10
        at_10 = 8.73809524e-5 * self.tokens + 1.89833333
        return at_200 if self.tokens > 4300 else at_200 + (num - 200) * (at_200 - at_10) / 190

    def timesteps(self, num: int, spacing: str | None = None) -> Sequence[float]:
        """1000 σ of the steps (at 1000 timesteps in training). Raises UsageError for another spacing than trailing."""
        if (spacing or self.timestep_spacing) != self.timestep_spacing:
            raise UsageError(f"--spacing {spacing}: the steps of flow matching lie as trailing ones")
        if not 1 <= num <= self.num_train_timesteps:
            raise UsageError(f"{num} steps: this model can take 1 to {self.num_train_timesteps}")
        return [float(sigma) * self.num_train_timesteps for sigma in self.sigmas_of(num)]

    def steps(self, num: int, spacing: str | None = None, *, final: float | None = None) -> list[Step]:
        """The steps of `timesteps`, the last to x0."""
        return chain(self.at_times(self.timesteps(num, spacing)), 1.0)

    def at_whole(self, timesteps: Sequence[int]) -> list[Point]:
        """Raises UsageError: that is for samplers of models that learned a few counted timesteps."""
        raise UsageError("this sampler counts the timesteps of a noise schedule, which flow matching has not", OTHER)

    def at_times(self, timesteps: Sequence[float]) -> list[Point]:
        """The noise levels of timesteps."""
        return [_point(t, t / self.num_train_timesteps) for t in timesteps]

    def at_sigmas(self, sigmas: Sequence[float]) -> list[Point]:
        """The noise levels σ / (1 − σ), which are the noise per signal."""
        flows = [ratio / (1 + ratio) for ratio in sigmas]
        return [_point(self.num_train_timesteps * sigma, sigma) for sigma in flows]

    def karras_points(self, num: int, first: float | None = None, last: float | None = None) -> list[Point]:
        """Raises UsageError: Karras' noise levels begin where some signal is left."""
        raise UsageError("--karras: flow matching has noise levels of its own", "leave it out")


def schedule_of(raw: Mapping[str, object]) -> NoiseSchedule:
    """The schedule that a scheduler_config.json describes, of flow matching or another. Raises GencliError."""
    return (FlowSchedule if raw.get("_class_name") == FLOW else NoiseSchedule).from_config(raw)


def _point(t: float, sigma: float) -> Point:
    return Point(t, (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2))
