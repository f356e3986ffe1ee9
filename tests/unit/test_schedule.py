"""The noise schedule: configs, ᾱ, and the grids for every number of steps."""

import importlib
import json
import math
import operator
import re

import numpy as np
import pytest
import torch

from gencli.errors import GencliError, UsageError
from gencli.image.diffusion import samplers
from gencli.image.diffusion.excerpt import from_strength
from gencli.image.diffusion.schedule import (
    CLASS_DEFAULTS,
    NoiseSchedule,
    Point,
    Step,
    karras_sigmas,
)
from gencli.image.diffusion.spacings import SECTIONS, SPACINGS

STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def check_chain(steps: list[Step], final: float) -> None:
    assert [step.index for step in steps] == list(range(len(steps)))
    points = [step.at for step in steps] + [Point(-1.0, final)]
    assert [step.next for step in steps] == points[1:]
    times, levels = [point.t for point in points], [point.alpha_cumprod for point in points]
    assert all(map(operator.gt, times, times[1:])) and all(map(operator.le, levels, levels[1:]))


@pytest.mark.slow
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("offset", "to_one"), [(0, True), (1, False)])
def test_every_number_of_steps(spacing: str, offset: int, to_one: bool) -> None:
    schedule = NoiseSchedule(steps_offset=offset, set_alpha_to_one=to_one)
    levels = schedule.alphas_cumprod.tolist()
    final = 1.0 if to_one else levels[0]
    for num in [*range(1, 130), *range(130, 1001, 7), 499, 500, 501, 998, 999, 1000]:
        steps = schedule.steps(num, spacing)
        check_chain(steps, final)
        assert len(steps) == num or (spacing == "quadratic" and len(steps) < num)
        times = [int(step.at.t) for step in steps]
        assert times == [step.at.t for step in steps] and min(times) >= 0 and max(times) <= 999
        assert [step.at.alpha_cumprod for step in steps] == [levels[t] for t in times]


@pytest.mark.parametrize("T", [2, 3, 7, 50, 61, 100])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_other_lengths_of_training(T: int, spacing: str) -> None:
    schedule = NoiseSchedule(num_train_timesteps=T, steps_offset=7)
    for num in range(1, T + 1):
        steps = schedule.steps(num, spacing)
        check_chain(steps, 1.0)
        assert len(steps) == num or spacing == "quadratic"
        assert steps[0].at.t < T


@pytest.mark.slow
@pytest.mark.parametrize("name", SECTIONS)
def test_lists_of_steps_are_those_of_their_models(name: str) -> None:
    """diffusers has DeepFloyd IF's; GLIDE's own fast27 begins two timesteps later than IF's."""
    timesteps = importlib.import_module("diffusers.pipelines.deepfloyd_if.timesteps")
    expected = list(getattr(timesteps, f"{name}_timesteps"))
    count = sum(SECTIONS[name])
    assert NoiseSchedule().timesteps(count, name) == ([997, *expected[1:]] if name == "fast27" else expected)
    with pytest.raises(UsageError, match=f"spacing {name} has {count} steps, not 5"):
        NoiseSchedule().timesteps(5, name)


@pytest.mark.slow
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ["euler", "euler_a", "dpmpp_2m"])
def test_every_number_of_steps_in_sigma_space(name: str, spacing: str, karras: bool) -> None:
    sampler = samplers.get(name)
    for raw in [{}, {"rescale_betas_zero_snr": True, "steps_offset": 1}]:
        schedule = NoiseSchedule(**raw)
        for num in [*range(1, 40), *range(40, 1001, 61), 499, 500, 501, 998, 999, 1000]:
            steps = sampler.steps(schedule, num, spacing, karras=karras)
            assert len(steps) == num or (spacing == "quadratic" and len(steps) == len(schedule.timesteps(num, spacing)))
            assert [s.next for s in steps[:-1]] == [s.at for s in steps[1:]]
            assert steps[-1].next == Point(-1.0, 1.0)
            sigmas = [step.at.sigma for step in steps]
            assert all(a > b > 0 for a, b in zip(sigmas, [*sigmas[1:], 1e-9], strict=True))
            assert all(a.t >= b.t for a, b in ((s.at, s.next) for s in steps))
            assert all(0 <= step.at.t <= 999 for step in steps)


def test_grids_by_their_formulas() -> None:
    schedule = NoiseSchedule(steps_offset=1)
    assert schedule.timesteps(4, "leading") == [751, 501, 251, 1]
    assert schedule.timesteps(4, "trailing") == [999, 749, 499, 249]
    assert schedule.timesteps(4, "linspace") == [999, 666, 333, 0]
    assert schedule.timesteps(4, "quadratic") == [800, 355, 88, 0]
    assert schedule.timesteps(1000, "leading") == [*range(999, -1, -1)]  # the offset gives way to the last timestep
    # the DDIM paper's code, repeats taken out
    for num in (10, 50, 100, 1000):
        paper = [int(s) for s in np.linspace(0, np.sqrt(1000 * 0.8), num) ** 2]
        assert schedule.timesteps(num, "quadratic") == sorted(set(paper), reverse=True)
    assert [len(schedule.timesteps(num, "quadratic")) for num in (50, 100, 1000)] == [49, 96, 688]
    overlong = [num for num in range(1, 1001) if len(np.arange(1000, 0, -1000 / num)) > num]
    assert len(overlong) == 62  # trap: an entry too many, at −1
    for num in overlong:
        assert len(schedule.timesteps(num, "trailing")) == num
        assert schedule.timesteps(num, "trailing")[-1] >= 0


def test_checkpoint_spacing_and_offset_are_the_default() -> None:
    schedule = NoiseSchedule.from_config(STABLE_DIFFUSION)
    steps = schedule.steps(50)
    assert [step.at.t for step in steps[:2]] == [981, 961]
    assert steps[-1].at.t == 1
    assert steps[-1].next.alpha_cumprod == schedule.alphas_cumprod[0].item()
    assert [step.at.t for step in schedule.steps(3, "trailing")] == [999, 666, 332]


@pytest.mark.parametrize(("num", "spacing"), [(0, None), (-1, "leading"), (1001, "trailing"), (10, "cubic")])
def test_wrong_grids_are_usage_errors(num: int, spacing: str | None) -> None:
    with pytest.raises(UsageError, match=str(num) if spacing != "cubic" else "cubic"):
        NoiseSchedule().steps(num, spacing)


def test_strength_counts_as_diffusers_does() -> None:
    steps = NoiseSchedule().steps(50)
    for strength in (0.02, 0.3, 0.58, 0.8, 0.999, 1.0):
        rest = from_strength(steps, strength)
        count = min(int(50 * strength), 50)
        assert [(s.at, s.next) for s in rest] == [(s.at, s.next) for s in steps[50 - count :]]
        assert [s.index for s in rest] == list(range(count))
    for strength in (0.0, -1.0, 1.1, math.nan, 0.019):
        with pytest.raises(UsageError, match="strength"):
            from_strength(steps, strength)


def test_strength_of_flow_matching_counts_a_begun_step_as_one() -> None:
    steps = NoiseSchedule().steps(50)
    for strength in (1e-30, 0.01, 0.02, 0.3, 0.58, 0.591, 0.8, 0.999, 1.0):
        count = min(math.ceil(round(50 * strength, 9)), 50) or 1
        rest = from_strength(steps, strength, begun=True)
        assert [(s.at, s.next) for s in rest] == [(s.at, s.next) for s in steps[50 - count :]]


def test_points() -> None:
    point = Point(5.0, 0.2)
    assert point.sqrt_alpha_cumprod**2 + point.sqrt_one_minus_alpha_cumprod**2 == pytest.approx(1)
    assert point.sigma == pytest.approx(2)
    assert Point(999.0, 0.0).sigma == math.inf
    x0, eps = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(point.mix(x0, eps), 0.2**0.5 * x0 + 0.8**0.5 * eps)


def test_zero_terminal_snr() -> None:
    schedule = NoiseSchedule.from_config({**STABLE_DIFFUSION, "rescale_betas_zero_snr": True})
    plain = NoiseSchedule.from_config(STABLE_DIFFUSION)
    assert schedule.alphas_cumprod[-1] == 0
    assert schedule.alphas_cumprod[0].item() == pytest.approx(plain.alphas_cumprod[0].item(), rel=1e-12)
    assert (schedule.alphas_cumprod[1:] < schedule.alphas_cumprod[:-1]).all()
    assert schedule.steps(10, "trailing")[0].at == Point(999.0, 0.0)
    assert schedule.sigmas[-1] == pytest.approx(2**12, rel=1e-6)  # ᾱ = 2⁻²⁴ in σ space


def test_karras_spacing() -> None:
    sigmas = karras_sigmas(80.0, 0.002, 18)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7  # Karras et al. 2022, eq. 5
    np.testing.assert_allclose(sigmas, expected, rtol=1e-12)
    schedule = NoiseSchedule()
    points = schedule.at_sigmas(sigmas := schedule.sigmas[[999, 500, 3]].tolist())
    assert [point.t for point in points] == pytest.approx([999, 500, 3])
    assert [point.sigma for point in points] == pytest.approx(sigmas)
    (between,) = schedule.at_sigmas([math.sqrt(schedule.sigmas[3] * schedule.sigmas[4])])
    assert between.t == pytest.approx(3.5)  # fractions
    (half,) = schedule.at_times([3.5])
    assert half.sigma == pytest.approx((schedule.sigmas[3] + schedule.sigmas[4]) / 2)


def test_config_defaults_are_those_of_the_class() -> None:
    assert NoiseSchedule.from_config({}) == NoiseSchedule.from_config({"_class_name": "DDIMScheduler"})
    assert NoiseSchedule.from_config({}).clip_sample
    assert not NoiseSchedule.from_config({"_class_name": "PNDMScheduler"}).set_alpha_to_one
    assert not NoiseSchedule.from_config({"_class_name": "EulerDiscreteScheduler"}).clip_sample
    assert NoiseSchedule.from_config({"_class_name": "LMSDiscreteScheduler"}).timestep_spacing == "linspace"
    given = {"_class_name": "LMSDiscreteScheduler", "timestep_spacing": "trailing", "clip_sample": None}
    assert NoiseSchedule.from_config(given).timestep_spacing == "trailing"
    assert not NoiseSchedule.from_config(given).clip_sample  # null is the class's default too
    trained = NoiseSchedule.from_config({"trained_betas": [0.1, 0.2], "num_train_timesteps": 2})
    np.testing.assert_allclose(trained.alphas_cumprod, [0.9, 0.72], rtol=1e-12)


def test_inert_keys_are_known() -> None:
    raw = {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "algorithm_type": "dpmsolver", "x": None}
    raw |= {"solver_type": "heun", "lower_order_final": True, "lambda_min_clipped": -math.inf, "variance_type": None}
    assert NoiseSchedule.from_config(json.loads(json.dumps(raw))) == NoiseSchedule(
        timestep_spacing="linspace", clip_sample=False
    )


@pytest.mark.parametrize(
    "raw",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"_class_name": ["DDIMScheduler"]},
        {"beta_schedule": "sigmoid"},
        {"beta_schedule": ["linear"]},
        {"prediction_type": "flow_prediction"},
        {"timestep_spacing": "uniform"},
        {"variance_type": "learned"},
        {"use_beta_sigmas": True},
        {"use_flow_sigmas": True},
        {"lambda_min_clipped": -5.1},
        {"timestep_type": "continuous"},
        {"predict_epsilon": False},
        {"snr_shift_scale": 3.0},
        {"sigma_max": 700.0},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": 1000.0},
        {"num_train_timesteps": True},
        {"beta_start": "0.1"},
        {"beta_end": 1.5},
        {"beta_start": math.nan},
        {"clip_sample": "yes"},
        {"steps_offset": -1},
        {"dynamic_thresholding_ratio": 2},
        {"trained_betas": [0.1, 0.2]},
        {"trained_betas": "linear"},
        {"trained_betas": [0.1, 2.0], "num_train_timesteps": 2},
        {"trained_betas": [0.1, "x"], "num_train_timesteps": 2},
    ],
    ids=lambda raw: ",".join(f"{key}={value}" for key, value in raw.items()),
)
def test_what_is_not_supported_is_refused_by_name(raw: dict) -> None:
    with pytest.raises(GencliError) as refusal:
        NoiseSchedule.from_config(raw)
    assert "scheduler_config.json" in refusal.value.message
    assert (next(iter(raw)) if "_class_name" not in raw else "class") in refusal.value.message


def test_betas_that_leave_nothing_are_refused() -> None:
    with pytest.raises(GencliError, match="no signal"):
        NoiseSchedule(beta_start=0.9, beta_end=0.99).steps(10)


@pytest.mark.parametrize("name", sorted(CLASS_DEFAULTS))
def test_every_class_gives_a_schedule(name: str) -> None:
    alphas_cumprod = NoiseSchedule.from_config({"_class_name": name}).alphas_cumprod
    assert alphas_cumprod.dtype == np.float64
    assert (np.diff(alphas_cumprod) < 0).all()


@pytest.mark.parametrize("count", [1, 3, 7, 9, *range(11, 15), 50, 300, 999])
@pytest.mark.parametrize("strength", [0.0009, 0.001, 0.1, 0.29, 0.3333])
def test_what_the_hint_of_a_strength_says_works(count: int, strength: float) -> None:
    steps = NoiseSchedule().steps(count)
    if int(count * strength) >= 1:
        return
    with pytest.raises(UsageError) as refusal:
        from_strength(steps, strength)
    enough, larger = re.findall(r"[\d.]+", refusal.value.hint or "")
    assert len(from_strength(steps, float(larger))) == 1
    if int(enough) <= 1000:
        assert len(from_strength(NoiseSchedule().steps(int(enough)), strength)) == 1
