"""What holds for all samplers, relations between them, and the registry. How they converge: test_sampler_orders.py."""

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gencli.errors import GencliError, UsageError
from gencli.image.diffusion import samplers
from gencli.image.diffusion.guidance import Denoiser, Prediction
from gencli.image.diffusion.samplers import Sample
from gencli.image.diffusion.schedule import NoiseSchedule, Point
from tests.oracles.gaussian import DEVIATION, MEAN, exact, run
from tests.oracles.prediction_types import to_output


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


@pytest.mark.parametrize("karras", [False, True])
def test_dpmpp_2s_a_in_sigma_space(karras: bool) -> None:
    """As k-diffusion has it, over t = −log σ: half a step to the middle of σ and σ_down, then all of it from there."""
    sampler, x = samplers.get("dpmpp_2s_a"), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    steps = sampler.steps(NoiseSchedule(), 9, karras=karras)
    draws = [torch.randn_like(x) for _ in steps]
    there = iter(draws)
    found = [sample.x.clone() for sample in sampler(exact, x, steps, draw_noise=lambda: next(there))]

    def x0(scaled: Tensor, sigma: float) -> Tensor:
        point = Point(1.0, 1 / (1 + sigma**2))
        return exact(scaled * point.sqrt_alpha_cumprod, point).x0

    scaled = x / steps[0].at.sqrt_alpha_cumprod
    for step, noise, one in zip(steps[:-1], draws, found, strict=False):
        sigma, to = step.at.sigma, step.next.sigma
        up = min(to, math.sqrt(to**2 * (sigma**2 - to**2) / sigma**2))
        down = math.sqrt(to**2 - up**2)
        h = math.log(sigma / down)
        middle = sigma * math.exp(-h / 2)
        half = middle / sigma * scaled - math.expm1(-h / 2) * x0(scaled, sigma)
        scaled = down / sigma * scaled - math.expm1(-h) * x0(half, middle) + up * noise
        torch.testing.assert_close(one, scaled * step.next.sqrt_alpha_cumprod, atol=1e-9, rtol=0)


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
    for name in ("ddim", "euler", "dpmpp_2m", "heun", "dpm2", "lms", "unipc"):
        assert len(list(samplers.get(name)(exact, x, steps, draw_noise=never))) == 3
    with pytest.raises(AssertionError, match="noise was drawn"):
        list(samplers.get("ddim")(exact, x, steps, draw_noise=never, eta=0.1))
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="eta"):
            list(samplers.get("ddim")(exact, x, steps, draw_noise=never, eta=eta))


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
        ("uni_pc", ("unipc", None)), ("dpm++2m", ("dpmpp_2m", None)), ("DPM2 a Karras", ("dpm2_a", True)),
        ("DPM++ 2S a", ("dpmpp_2s_a", None)), ("DPM++ 3M SDE Karras", ("dpmpp_3m_sde", True)),
        ("KDPM2AncestralDiscreteScheduler", ("dpm2_a", None)), ("dpmpp_2s_ancestral", ("dpmpp_2s_a", None)),
        ("dpm_2_ancestral", ("dpm2_a", None)), ("KDPM2DiscreteScheduler", ("dpm2", None)),
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
    for name in ("heun", "lms", "dpmpp_sde", "dpm2", "dpm2_a", "dpmpp_2s_a", "dpmpp_3m_sde"):
        assert samplers.get(name).options == {"karras": False}
    with pytest.raises(UsageError, match="nonesuch"):
        samplers.get("nonesuch")
    with pytest.raises(UsageError) as caught:
        samplers.get("eulr")
    assert caught.value.hint == "did you mean euler?"
    for name in ("PLMS", "PNDMScheduler", "DPM fast", "DPM adaptive Karras", "Restart", "DEISMultistepScheduler"):
        with pytest.raises(UsageError) as caught:
            samplers.find(name)  # methods that gencli lacks: their names are no slips
        assert caught.value.hint == f"gencli has {', '.join(samplers.names())}", name


def test_settings_come_from_the_caller_then_the_checkpoint() -> None:
    checkpoint = NoiseSchedule(use_karras_sigmas=True, variance_type="fixed_large")
    assert samplers.get("euler").settings(checkpoint, {}) == {"karras": True}
    assert samplers.get("euler").settings(checkpoint, {"karras": False}) == {"karras": False}
    assert samplers.get("ddpm").settings(checkpoint, {}) == {"variance_type": "fixed_large"}
    assert samplers.get("ddim").settings(checkpoint, {"eta": 1.0})["eta"] == 1.0
    with pytest.raises(UsageError, match="eta"):
        samplers.get("euler").settings(checkpoint, {"eta": 1.0})


@pytest.mark.parametrize("name", [name for name in samplers.names() if samplers.get(name).in_sigma])
def test_what_belongs_together_in_sigma_space(name: str) -> None:
    """Which k-diffusion's samplers are written in: x0 is not limited, and x begins as the grid does."""
    sampler, euler = samplers.get(name), samplers.get("euler")
    assert (sampler.limits, sampler.spacing, sampler.initial) == (frozenset(), "linspace", euler.initial)
    steps, theirs = (one.steps(NoiseSchedule(), 7, "linspace") for one in (sampler, euler))
    levels, wanted = ([step.at.alpha_cumprod for step in some] for some in (steps, theirs))
    assert levels == pytest.approx(wanted, rel=0.05)


def test_names_need_no_torch() -> None:
    code = "import sys; from gencli.image.diffusion import samplers; samplers.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
