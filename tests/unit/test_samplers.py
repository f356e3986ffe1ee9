"""The samplers as mathematics: orders of convergence, variances, relations between them, and the registry.

The data are one Gaussian per value, N(MEAN, DEVIATION²), for which the best ε is known exactly.
"""

import math
import operator
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gencli.errors import GencliError, UsageError
from gencli.image.diffusion import samplers
from gencli.image.diffusion.guidance import Denoiser, Prediction
from gencli.image.diffusion.samplers import Sample
from gencli.image.diffusion.schedule import NoiseSchedule, Point, Step
from tests.oracles.prediction_types import to_output

MEAN, DEVIATION = 0.4, 0.7


def exact(x: Tensor, point: Point) -> Prediction:
    """E[x0 | x] and E[ε | x]."""
    spread = point.alpha_cumprod * DEVIATION**2 + 1 - point.alpha_cumprod  # of x
    eps = point.sqrt_one_minus_alpha_cumprod * (x - point.sqrt_alpha_cumprod * MEAN) / spread
    x0 = MEAN + point.sqrt_alpha_cumprod * DEVIATION**2 * (x - point.sqrt_alpha_cumprod * MEAN) / spread
    return Prediction(x0, eps)


def flow(x: Tensor, start: Point, end: Point) -> Tensor:
    """Where the probability flow takes x: the same number of standard deviations from the mean."""
    first, last = (math.sqrt(at.alpha_cumprod * DEVIATION**2 + 1 - at.alpha_cumprod) for at in (start, end))
    return end.sqrt_alpha_cumprod * MEAN + last * (x - start.sqrt_alpha_cumprod * MEAN) / first


def ode_solution(x: Tensor, start: Point) -> Tensor:
    """Where the probability flow takes x at ᾱ = 1."""
    return flow(x, start, Point(-1.0, 1.0))


def run(
    name: str, x: Tensor, steps: list[Step], noise: Callable[[], Tensor] | None = None, **options: object
) -> Tensor:
    *_, last = samplers.get(name)(exact, x, steps, draw_noise=noise or (lambda: torch.randn_like(x)), **options)
    return last.x


def errors(name: str, numbers: list[int], **options: bool) -> list[float]:
    schedule, sampler = NoiseSchedule(), samplers.get(name)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    found = []
    for num in numbers:
        steps = sampler.steps(schedule, num, "trailing", **options)
        found.append((run(name, x, steps) - ode_solution(x, steps[0].at)).abs().max().item())
    return found


def orders(found: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in pairwise(found)]


def test_ddim_is_of_first_order() -> None:
    found = errors("ddim", [5, 10, 20, 40, 125, 250, 500])
    assert found == sorted(found, reverse=True)
    assert orders(errors("ddim", [25, 50, 100, 200])) == pytest.approx([1, 1, 1], abs=0.2)


def test_euler_is_of_first_order() -> None:
    assert orders(errors("euler", [25, 50, 100, 200], karras=True)) == pytest.approx([1, 1, 1], abs=0.2)


def test_dpmpp_2m_is_of_second_order() -> None:
    found = errors("dpmpp_2m", [20, 40, 80, 160], karras=True)
    assert all(1.8 < order < 2.5 for order in orders(found))
    assert found[-1] < 0.1 * errors("euler", [160], karras=True)[0]


@pytest.mark.parametrize(("name", "least", "most"), [("heun", 1.8, 2.4), ("unipc", 2.0, 3.5), ("lms", 2.8, 4.2)])
def test_second_order_and_more(name: str, least: float, most: float) -> None:
    """Before the step to σ = 0, which is one of Euler's or less. UniC-2 has an order more than UniP-2; lms begins with
    a step of first order."""
    schedule, sampler, found = NoiseSchedule(), samplers.get(name), []
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for num in (20, 40, 80, 160):
        steps = sampler.steps(schedule, num, "trailing", karras=True)
        *_, before, _ = sampler(exact, x, steps, draw_noise=lambda: x)
        found.append((before.x - flow(x, steps[0].at, steps[-1].at)).abs().max().item())
    assert all(least < order < most for order in orders(found)), orders(found)


NUMBERS = [*range(1, 60), *range(60, 1000, 47), 499, 500, 501, 998, 999, 1000]
NO_OLDER = ("heun", "unipc", "lms", "dpmpp_2m_sde", "dpmpp_sde", "lcm", "tcd")  # than those that share their steps
SOLVERS = ("heun", "unipc", "lms", "dpmpp_2m", "ddim", "euler")  # of the probability flow


@pytest.mark.slow
@pytest.mark.parametrize("name", samplers.names())
def test_every_number_of_steps(name: str) -> None:
    """From 1 to 1000, or as many as a model of few steps learned: as many steps, down to noise that is nearly none;
    what follows the probability flow ends where that leads."""
    schedule, sampler = NoiseSchedule(), samplers.get(name)
    x, limit = torch.linspace(-2, 2, 3), 50 if name in ("lcm", "tcd") else 1000
    for num in (num for num in (range(1, 1001) if name in NO_OLDER else NUMBERS) if num <= limit):
        steps = sampler.steps(schedule, num)
        levels, ends = [step.at.alpha_cumprod for step in steps], [step.next.alpha_cumprod for step in steps]
        assert [step.index for step in steps] == list(range(num)) and ends[-1] > 0.999
        assert levels[1:] == ends[:-1] and all(map(operator.le, levels, ends))
    for num in (*range(1, 21), *range(31, limit, 239), limit):
        steps = sampler.steps(schedule, num)
        last = run(name, x.double(), steps)
        assert last.isfinite().all() and last.abs().max() < 12
        if name in SOLVERS and num >= 10:
            assert (last - ode_solution(x, steps[0].at)).abs().max() < 3 / num + 0.05, num


def test_euler_is_the_ode_step_of_ddim() -> None:
    schedule = NoiseSchedule()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    steps = schedule.steps(20)
    torch.testing.assert_close(run("euler", x, steps), run("ddim", x, steps), atol=1e-12, rtol=0)
    # and in σ space, as Karras et al. write it
    sampler = samplers.get("euler")
    for spacing in ("linspace", "leading"):
        steps = sampler.steps(schedule, 12, spacing)
        scaled = x / steps[0].at.sqrt_alpha_cumprod
        for step in steps:
            derivative = exact(step.at.sqrt_alpha_cumprod * scaled, step.at).eps
            scaled = scaled + (step.next.sigma - step.at.sigma) * derivative
        torch.testing.assert_close(run("euler", x, steps), scaled, atol=1e-9, rtol=0)


def moments(steps: list[Step], eta: float) -> tuple[float, float]:
    """Mean and variance after equation 12 of the DDIM paper from N(0, 1): every step is x' = A·x + B + σ·z, exactly."""
    mean, variance = 0.0, 1.0
    for step in steps:
        t, p = step.at.alpha_cumprod, step.next.alpha_cumprod
        sigma = eta * math.sqrt((1 - p) / (1 - t) * (1 - t / p))
        origin, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        ends = []
        for x in (origin, one):
            prediction = exact(x, step.at)
            rest = math.sqrt(max(0.0, 1 - step.next.alpha_cumprod - sigma**2))
            ends.append((step.next.sqrt_alpha_cumprod * prediction.x0 + rest * prediction.eps).item())
        slope = ends[1] - ends[0]
        mean, variance = slope * mean + ends[0], slope**2 * variance + sigma**2
    return mean, variance


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("ddim", {"eta": 0.5}, 0.5),
        ("ddim", {"eta": 1.0}, 1.0),
        ("ddpm", {"variance_type": "fixed_small"}, 1.0),
        ("euler_a", {}, 1.0),
    ],
)
def test_noise_has_the_variance_it_should(name: str, options: dict, share: float) -> None:
    schedule = NoiseSchedule()
    found = [moments(schedule.steps(num, "linspace"), share) for num in (100, 200, 1000)]
    assert found[-1] == pytest.approx((MEAN, DEVIATION**2), rel=0.015)
    lacking = [DEVIATION**2 - variance for _, variance in found]  # fixed_small is a lower bound: first order in 1 / S
    assert 0 < lacking[1] < 0.6 * lacking[0]

    steps, (mean, variance) = schedule.steps(100, "linspace"), found[0]
    count = 40_000
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, dtype=torch.float64, generator=generator)
    x = run(name, x, steps, lambda: torch.randn(count, dtype=torch.float64, generator=generator), **options)
    # chi-squared with `count` degrees of freedom has the deviation √(2 / count), relative: five of them
    assert x.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / count))
    assert x.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / count))


def test_ddpm_fixed_large_keeps_more_noise() -> None:
    steps = NoiseSchedule().steps(10, "linspace")
    x = torch.randn(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen = []
    for kind in ("fixed_small", "fixed_large"):
        generator = torch.Generator().manual_seed(2)

        def draw(generator: torch.Generator = generator) -> Tensor:
            return torch.randn(x.shape, dtype=x.dtype, generator=generator)

        first, *_ = samplers.get("ddpm")(exact, x, steps, draw_noise=draw, variance_type=kind)
        z = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
        seen.append((first.x, z))
    t, p = steps[0].at.alpha_cumprod, steps[0].next.alpha_cumprod
    beta = 1 - t / p
    small = math.sqrt(beta * (1 - p) / (1 - t))
    torch.testing.assert_close(seen[1][0] - seen[0][0], (math.sqrt(beta) - small) * seen[0][1])


def test_ddpm_is_ddim_at_eta_1() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    steps = NoiseSchedule().steps(30, "trailing")

    def noise() -> Callable[[], Tensor]:
        generator = torch.Generator().manual_seed(3)
        return lambda: torch.randn(x.shape, dtype=x.dtype, generator=generator)

    ddpm, ddim = run("ddpm", x, steps, noise()), run("ddim", x, steps, noise(), eta=1.0)
    torch.testing.assert_close(ddpm, ddim, atol=1e-9, rtol=0)
    ancestral = run("euler_a", x, steps, noise())  # the same variance, in σ space
    torch.testing.assert_close(ancestral, ddim, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "name", [name for name in samplers.names() if name not in ("tcd", "lms")]
)  # they end elsewhere
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "quadratic"])
def test_every_sampler_ends_at_x0(name: str, spacing: str) -> None:
    schedule, sampler = NoiseSchedule(), samplers.get(name)
    x = torch.randn(2, 3, 4, 4)
    for num in (1, 2, 3, 17):
        steps = sampler.steps(schedule, num, spacing)
        samples = list(sampler(exact, x, steps, draw_noise=lambda: torch.randn_like(x)))
        assert [(s.index, s.total) for s in samples] == [(i, len(steps)) for i in range(len(steps))]
        assert all(isinstance(s, Sample) and s.x.shape == s.x0.shape == x.shape for s in samples)
        assert samples[-1].x.dtype == torch.float32
        torch.testing.assert_close(samples[-1].x, samples[-1].x0)  # ᾱ = 1 at the end: nothing is left but x0


@pytest.mark.parametrize("name", samplers.names())
def test_samplers_are_lazy_and_leave_their_input_alone(name: str) -> None:
    calls = []

    def predict(x: Tensor, point: Point) -> Prediction:
        calls.append(point)
        return exact(x, point)

    x = torch.randn(1, 1, 2, 2)
    before = x.clone()
    sampler = samplers.get(name)
    steps = sampler.steps(NoiseSchedule(), 5)
    walk = sampler(predict, x, steps, draw_noise=lambda: torch.randn_like(x))
    assert calls == []
    for step in steps:
        calls.clear()
        next(walk)
        assert calls[0] == step.at  # it may ask further times on the way to step.next
        assert all(point.t >= 0 for point in calls)
    assert list(walk) == []
    torch.testing.assert_close(x, before, atol=0, rtol=0)


@pytest.mark.parametrize("name", samplers.names())
def test_samplers_go_on_from_a_changed_x(name: str) -> None:
    seen = []

    def predict(x: Tensor, point: Point) -> Prediction:
        seen.append(x.clone())
        return exact(x, point)

    sampler = samplers.get(name)
    steps = sampler.steps(NoiseSchedule(), 3)
    for sample in sampler(predict, torch.randn(1, 1, 2, 2), steps, draw_noise=lambda: torch.zeros(1, 1, 2, 2)):
        assert sample.index == 0 or (seen[0] == 0.25).all()
        seen.clear()
        before = sample.x0.clone()
        sample.x.fill_(0.25)
        torch.testing.assert_close(sample.x0, before)


@pytest.mark.parametrize(
    "name", [name for name in samplers.names() if name not in ("lcm", "tcd")]
)  # those want models of their kind
def test_zero_terminal_snr(name: str) -> None:
    schedule = NoiseSchedule(rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False)
    sampler = samplers.get(name)

    def model(x: Tensor, t: Tensor, context: object) -> Tensor:
        level = schedule.alphas_cumprod[int(t[0])].item()
        point = Point(float(t[0]), level)
        prediction = exact(x, point)
        return to_output("v_prediction", prediction.x0, prediction.eps, point)

    steps = sampler.steps(schedule, 100, "trailing")
    x = torch.randn(1, 1, 50, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    predict = Denoiser(model, schedule, limits=sampler.limits)
    *_, last = sampler(
        predict, x, steps, draw_noise=lambda: torch.randn(x.shape, dtype=torch.float64, generator=generator)
    )
    assert last.x.mean().item() == pytest.approx(MEAN, abs=0.1)
    assert last.x.std().item() == pytest.approx(DEVIATION, rel=0.1)


def test_epsilon_at_zero_terminal_snr() -> None:
    schedule = NoiseSchedule(rescale_betas_zero_snr=True, clip_sample=False)
    x = torch.randn(1, 1, 2, 2)
    predict = Denoiser(lambda x, t, context: 0.5 * x, schedule)
    with pytest.raises(GencliError, match="zero terminal SNR"):
        list(samplers.get("ddim")(predict, x, schedule.steps(4, "trailing"), draw_noise=lambda: x))
    for name, spacing in [("ddim", "leading"), ("euler", "trailing")]:
        sampler = samplers.get(name)
        *_, last = sampler(predict, x, sampler.steps(schedule, 4, spacing), draw_noise=lambda: x)
        assert last.x.isfinite().all()


def test_ddim_without_eta_draws_no_noise() -> None:
    def never() -> Tensor:
        raise AssertionError("noise was drawn")

    x, steps = torch.randn(1, 1, 2, 2), NoiseSchedule().steps(3)
    for name in ("ddim", "euler", "dpmpp_2m", "heun", "lms", "unipc"):
        assert len(list(samplers.get(name)(exact, x, steps, draw_noise=never))) == 3
    with pytest.raises(AssertionError, match="noise was drawn"):
        list(samplers.get("ddim")(exact, x, steps, draw_noise=never, eta=0.1))
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="eta"):
            list(samplers.get("ddim")(exact, x, steps, draw_noise=never, eta=eta))


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_sde"])
def test_solvers_of_the_sde_end_with_the_variance_of_the_data(name: str) -> None:
    """From the noise of the beginning; in 100 steps, and nearer than ancestral steps of first order."""
    schedule, count, found = NoiseSchedule(), 40_000, {}
    for one in ("euler_a", name):
        sampler, generator = samplers.get(one), torch.Generator().manual_seed(5)
        steps = sampler.steps(schedule, 100, "linspace")
        x = torch.randn(count, dtype=torch.float64, generator=generator)
        x = run(one, x, steps, lambda g=generator: torch.randn(count, dtype=torch.float64, generator=g))
        found[one] = abs(x.var().item() / DEVIATION**2 - 1), x.mean().item()
    assert found[name][0] < 5 * math.sqrt(2 / count) < found["euler_a"][0]
    assert found[name][1] == pytest.approx(MEAN, abs=5 * DEVIATION / math.sqrt(count))


def test_the_middle_of_a_step_lies_within_it() -> None:
    schedule = NoiseSchedule()
    for name, options in (("dpmpp_sde", {}), ("dpmpp_sde", {"karras": True}), ("tcd", {"eta": 0.5})):
        *steps, last = samplers.get(name).steps(schedule, 10, "trailing", **options)
        assert all(step.next.alpha_cumprod <= step.middle.alpha_cumprod for step in steps) is (name == "tcd")
        if name == "dpmpp_sde":
            assert last.middle is None
            for step in steps:
                assert step.middle.sigma**2 == pytest.approx(step.at.sigma * step.next.sigma)
                assert step.next.t < step.middle.t < step.at.t


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", True)), ("DPM++ 2M SDE", ("dpmpp_2m_sde", None)),
        ("DPM++ SDE Karras", ("dpmpp_sde", True)), ("Euler a", ("euler_a", None)), ("UniPC", ("unipc", None)),
        ("LMS Karras", ("lms", True)), ("DPMSolverMultistepScheduler", ("dpmpp_2m", None)),
        ("EulerAncestralDiscreteScheduler", ("euler_a", None)), ("UniPCMultistepScheduler", ("unipc", None)),
        ("TCDScheduler", ("tcd", None)), ("FlowMatchEulerDiscreteScheduler", ("euler", None)),
        ("k_euler_ancestral", ("euler_a", None)), ("dpmpp_2m_sde_k", ("dpmpp_2m_sde", True)),
        ("uni_pc", ("unipc", None)), ("dpm++2m", ("dpmpp_2m", None)),
    ],
)  # fmt: skip
def test_names_elsewhere(text: str, found: tuple[str, bool | None]) -> None:
    assert samplers.find(text) == found


def test_learned_range_lies_between_the_fixed_variances() -> None:
    steps = NoiseSchedule().steps(10, "linspace")[:1]
    x, z = torch.randn(1, 3, 4, 4, dtype=torch.float64), torch.ones(1, 3, 4, 4, dtype=torch.float64)

    def learned(share: float) -> Callable[[Tensor, Point], Prediction]:
        return lambda x, point: Prediction(exact(x, point).x0, exact(x, point).eps, torch.full_like(x, share))

    def first(predict: Callable[[Tensor, Point], Prediction], kind: str) -> Tensor:
        return next(samplers.get("ddpm")(predict, x, steps, draw_noise=lambda: z, variance_type=kind)).x

    torch.testing.assert_close(first(learned(-1), "learned_range"), first(exact, "fixed_small"))
    torch.testing.assert_close(first(learned(1), "learned_range"), first(exact, "fixed_large"))
    torch.testing.assert_close(first(learned(1), "learned_range"), first(exact, "fixed_large_log"))
    with pytest.raises(GencliError, match="variance"):
        first(exact, "learned_range")


def test_registry() -> None:
    assert {"ddim", "ddpm", "dpmpp_2m", "euler", "euler_a", "lcm"} <= set(samplers.names())
    assert [samplers.get(name).name for name in samplers.names()] == samplers.names()
    assert samplers.get("ddim").options == {"eta": 0.0, "use_clipped_model_output": False}
    assert samplers.get("ddpm").options == {"variance_type": "fixed_small"}
    assert samplers.get("euler").options == {"karras": False}
    last = {"lower_order_final": True, "euler_at_final": False}
    assert samplers.get("dpmpp_2m").options == {"karras": False, **last}
    assert samplers.get("euler_a").options == {}
    assert samplers.get("dpmpp_2m_sde").options == {"karras": False, **last}
    assert samplers.get("unipc").options == {"karras": False, "lower_order_final": True}
    assert samplers.get("tcd").options == {"original_inference_steps": 50, "eta": 0.3}
    assert all(samplers.get(name).options == {"karras": False} for name in ("heun", "lms", "dpmpp_sde"))
    with pytest.raises(UsageError, match="nonesuch"):
        samplers.get("nonesuch")
    with pytest.raises(UsageError) as caught:
        samplers.get("eulr")
    assert caught.value.hint == "did you mean euler?"


def test_settings_come_from_the_caller_then_the_checkpoint() -> None:
    checkpoint = NoiseSchedule(use_karras_sigmas=True, variance_type="fixed_large")
    assert samplers.get("euler").settings(checkpoint, {}) == {"karras": True}
    assert samplers.get("euler").settings(checkpoint, {"karras": False}) == {"karras": False}
    assert samplers.get("ddpm").settings(checkpoint, {}) == {"variance_type": "fixed_large"}
    assert samplers.get("ddim").settings(checkpoint, {"eta": 1.0})["eta"] == 1.0
    with pytest.raises(UsageError, match="eta"):
        samplers.get("euler").settings(checkpoint, {"eta": 1.0})


def test_names_need_no_torch() -> None:
    code = "import sys; from gencli.image.diffusion import samplers; samplers.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
