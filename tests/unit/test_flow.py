"""Flow matching as mathematics: noise levels, coordinates, orders of convergence on an exact Gaussian."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from gencli.errors import GencliError, UsageError
from gencli.image.diffusion import samplers
from gencli.image.diffusion.flow import FlowSchedule, schedule_of
from gencli.image.diffusion.guidance import Denoiser
from gencli.image.diffusion.schedule import NoiseSchedule

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
MEAN, DEVIATION = 0.4, 0.7
FOLLOW = sorted(set(samplers.names()) - {"lcm", "tcd"})


def velocity(x: Tensor, t: Tensor, context: object = None) -> Tensor:
    """E[ε − x0 | x] at σ = t / 1000, for data of N(MEAN, DEVIATION²)."""
    sigma = float(t.flatten()[0]) / 1000
    spread = (1 - sigma) ** 2 * DEVIATION**2 + sigma**2
    off = (x - (1 - sigma) * MEAN) / spread
    return sigma * off - MEAN - (1 - sigma) * DEVIATION**2 * off


def walk(name: str, schedule: NoiseSchedule, num: int, x: Tensor) -> Tensor:
    sampler = samplers.get(name)
    predict, generator = Denoiser(velocity, schedule), torch.Generator().manual_seed(1)
    *_, last = sampler(
        predict,
        x,
        sampler.steps(schedule, num, "trailing"),
        draw_noise=lambda: torch.randn(x.shape, generator=generator, dtype=x.dtype),
    )
    return last.x


def test_noise_levels() -> None:
    schedule = schedule_of({**FLOW, "shift": 3.0})
    assert isinstance(schedule, FlowSchedule)
    steps = schedule.steps(8)
    sigmas = [1, 21 / 22, 0.9, 15 / 18, 0.75, 9 / 14, 0.5, 0.3, 0]
    assert [step.at.t / 1000 for step in steps] == pytest.approx(sigmas[:-1])
    assert (steps[0].at.alpha_cumprod, steps[-1].next.alpha_cumprod) == (0, 1)
    for step, sigma in zip(steps, sigmas, strict=False):
        root = math.hypot(1 - sigma, sigma)
        assert step.at.sqrt_alpha_cumprod == pytest.approx((1 - sigma) / root, abs=1e-12)
        assert step.at.sqrt_one_minus_alpha_cumprod == pytest.approx(sigma / root)


def test_eulers_step_in_sigma_is_that_of_ddim() -> None:
    schedule, x = (
        schedule_of({**FLOW, "shift": 3.0}),
        torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 3, 3),
    )
    for num in (1, 2, 7):
        expected, levels = x, [*(step.at.t / 1000 for step in schedule.steps(num)), 0.0]
        for at, to in itertools.pairwise(levels):
            expected = expected + (to - at) * velocity(expected, torch.tensor(1000 * at))
        for name in ("euler", "ddim"):
            torch.testing.assert_close(walk(name, schedule, num, x), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("name", "least"), [("euler", 0.8), ("heun", 1.7), ("dpmpp_2m", 1.7), ("unipc", 1.7)])
def test_orders_of_convergence(name: str, least: float) -> None:
    """From noise alone, at σ = 1, to where the probability flow leads."""
    schedule, x = schedule_of(FLOW), torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 3, 3)
    errors = [(walk(name, schedule, num, x) - (MEAN + DEVIATION * x)).abs().max().item() for num in (40, 80, 160, 320)]
    assert math.log2(errors[0] / errors[-1]) / 3 > least, errors


@pytest.mark.parametrize("name", FOLLOW)
def test_every_sampler_follows(name: str) -> None:
    schedule, x = schedule_of({**FLOW, "shift": 3.0}), torch.randn(2, 1, 3, 3, dtype=torch.float64)
    for num in (1, 2, 3, 8, 100, 1000):
        assert walk(name, schedule, num, x).isfinite().all()


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_samplers_of_counted_timesteps_say_that_they_cannot(name: str) -> None:
    with pytest.raises(UsageError, match="counts the timesteps") as refusal:
        samplers.get(name).steps(schedule_of(FLOW), 4)
    assert "dpmpp_2m" in (refusal.value.hint or "")


def test_what_a_flow_cannot_follow() -> None:
    schedule = schedule_of(FLOW)
    for name in ("euler", "dpmpp_2m", "heun"):
        with pytest.raises(UsageError, match="karras"):
            samplers.get(name).steps(schedule, 4, "trailing", karras=True)
    with pytest.raises(UsageError, match="spacing leading"):
        schedule.steps(4, "leading")
    for num in (0, 1001):
        with pytest.raises(UsageError, match="1 to 1000"):
            schedule.steps(num)


@pytest.mark.parametrize(
    "raw",
    [
        {"invert_sigmas": True}, {"use_beta_sigmas": True}, {"use_karras_sigmas": True}, {"stochastic_sampling": True},
        {"time_shift_type": "linear"}, {"shift": 0.0}, {"shift": "3"}, {"use_dynamic_shifting": "yes"},
        {"max_image_seq_len": 256}, {"prediction_type": "epsilon"}, {"beta_start": 0.1}, {"nonesuch": 1},
        {"shift_terminal": 1.5}, {"law": "steps"},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(raw: dict) -> None:
    with pytest.raises(GencliError) as refusal:
        schedule_of({**FLOW, **raw})
    assert list(raw)[-1] in refusal.value.message
