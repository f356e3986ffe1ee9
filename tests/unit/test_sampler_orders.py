"""How the samplers converge: their orders, means and variances on data whose best prediction is known exactly, and
whole walks for every number of steps."""

import dataclasses
import math
import operator
import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from gencli.image.diffusion import samplers
from gencli.image.diffusion.guidance import Prediction
from gencli.image.diffusion.schedule import NoiseSchedule, Point, Step, chain
from tests.oracles.gaussian import DEVIATION, MEAN, exact, flow, law, laws, ode_solution, reverse, run


def errors(name: str, numbers: list[int], **options: bool) -> list[float]:
    schedule, sampler = NoiseSchedule(), samplers.get(name)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    found = []
    for num in numbers:
        steps = sampler.steps(schedule, num, "trailing", **options)
        found.append((run(name, x, steps) - flow(x, steps[0].at, steps[-1].next)).abs().max().item())
    return found


def orders(found: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in pairwise(found)]


def test_ddim_is_of_first_order() -> None:
    found = errors("ddim", [5, 10, 20, 40, 125, 250, 500])
    assert found == sorted(found, reverse=True)
    assert orders(errors("ddim", [25, 50, 100, 200])) == pytest.approx([1, 1, 1], abs=0.2)


def test_euler_is_of_first_order() -> None:
    assert orders(errors("euler", [25, 50, 100, 200], karras=True)) == pytest.approx([1, 1, 1], abs=0.2)


def test_tcd_without_noise_is_of_first_order() -> None:
    """Algorithm 4 at γ = 0 solves by DDIM's step; with γ each step jumps to (1 − γ) of a timestep, however many there
    are: from a model of ε alone its error then stays."""
    learned = {"original_inference_steps": 1000}
    assert orders(errors("tcd", [25, 50, 100, 200], eta=0.0, **learned)) == pytest.approx([1, 1, 1], abs=0.2)
    variances = []
    for num in (25, 200):
        steps = samplers.get("tcd").steps(NoiseSchedule(), num, eta=0.3, **learned)
        variances.append(laws("tcd", steps, law(steps[0].at))[-1][1] / law(steps[-1].next)[1])
    assert abs(variances[1] - 1) > 0.5 * abs(variances[0] - 1) > 0.01, variances


def test_dpmpp_2m_is_of_second_order() -> None:
    found = errors("dpmpp_2m", [20, 40, 80, 160], karras=True)
    assert all(1.8 < order < 2.5 for order in orders(found))
    assert found[-1] < 0.1 * errors("euler", [160], karras=True)[0]


@pytest.mark.parametrize(
    ("name", "least", "most"), [("heun", 1.8, 2.4), ("dpm2", 1.8, 2.2), ("unipc", 2.0, 3.5), ("lms", 2.8, 4.2)]
)
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


def middling(num: int) -> list[Step]:
    """Steps from σ = 2 down to 0.2, where x forgets its beginning only in part; each with its middle."""
    points = NoiseSchedule().karras_points(num + 1, 2.0, 0.2)
    steps = chain(points[:-1], points[-1].alpha_cumprod)
    middles = NoiseSchedule().at_sigmas([math.sqrt(step.at.sigma * step.next.sigma) for step in steps])
    return [dataclasses.replace(step, middle=middle) for step, middle in zip(steps, middles, strict=True)]


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("dpmpp_2m_sde", 1.8, 2.2), ("dpmpp_3m_sde", 2.0, 2.4), ("dpmpp_sde", 1.8, 2.2), ("euler_a", 0.9, 1.1)],
)
def test_weak_order_of_solvers_of_the_sde(name: str, least: float, most: float) -> None:
    """How fast the variance of x nears that of the reverse process, from a single x: the solvers of DPM-Solver++ have
    second order, ancestral steps first. The mean is right at once, as E[x0 | x] is a martingale of that process."""
    start, off = (2.0, 0.0), []
    for num in (20, 40, 80, 160):
        steps = middling(num)
        (mean, variance), exactly = laws(name, steps, start)[-1], reverse(start, steps[0].at, steps[-1].next)
        assert mean == pytest.approx(exactly[0], abs=1e-12)
        off.append(abs(variance - exactly[1]))
    assert all(least < order < most for order in orders(off)), (off, orders(off))


@pytest.mark.parametrize("name", ["dpm2_a", "dpmpp_2s_a"])
def test_ancestral_steps_by_two_predictions(name: str) -> None:
    """The second prediction is for σ', the middle of a step of the probability flow to σ_down: with the noise after it
    mean and variance near the reverse process's in first order."""
    start, off = (2.0, 0.0), []
    for num in (20, 40, 80, 160):
        steps = middling(num)
        found, exactly = laws(name, steps, start)[-1], reverse(start, steps[0].at, steps[-1].next)
        off.append([abs(one - other) for one, other in zip(found, exactly, strict=True)])
    for errors_of_one in zip(*off, strict=True):
        assert all(0.9 < order < 1.3 for order in orders(list(errors_of_one))), off


def test_3m_sde_is_exact_where_x0_is_linear() -> None:
    """In λ, whatever x, from the second step on: it then moves by ∫ 2 e^(−2 (h − τ)) x0(λ + τ) dτ from 0 to h."""

    def x0(point: Point, after: float = 0.0) -> float:
        place = after - math.log(point.sigma)
        return 0.3 + 0.5 * place

    def predict(x: torch.Tensor, point: Point) -> Prediction:
        return Prediction(torch.full_like(x, x0(point)), x)

    steps, x = middling(9), torch.linspace(-1, 1, 3, dtype=torch.float64)
    still = torch.zeros_like(x)
    nodes, shares = np.polynomial.legendre.leggauss(20)
    walk = samplers.get("dpmpp_3m_sde")(predict, x, steps, draw_noise=lambda: still)
    for step, sample in zip(steps, walk, strict=True):
        decay = step.next.sigma / step.at.sigma
        h = -math.log(decay)
        rates = [2 * math.exp(-h * (1 - node)) * x0(step.at, h * (node + 1) / 2) for node in nodes]
        ratio = step.next.sqrt_one_minus_alpha_cumprod / step.at.sqrt_one_minus_alpha_cumprod
        expected = ratio * decay * x + step.next.sqrt_alpha_cumprod * h / 2 * float(np.dot(shares, rates))
        off = (sample.x - expected).abs().max().item()
        assert (off < 1e-12) is (step.index >= 1), (step.index, off)
        x = sample.x.clone()


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd_keeps_the_law_of_a_model_that_jumps_along_the_flow(eta: float) -> None:
    """Which is what such a model learns: with f(x, t, s) exact, x has the right law after every step, whatever γ and
    the number of steps, as the noise that each adds is that from s to its end (Zheng et al. 2024, algorithm 4)."""
    for num in (1, 2, 3, 8, 50):
        steps = samplers.get("tcd").steps(NoiseSchedule(), num, eta=eta)
        middles = {step.at: step.middle for step in steps}

        def jump(x: torch.Tensor, at: Point, middles: dict = middles) -> Prediction:
            """The x0 and ε of which x is at its level, and what the flow makes of x is at the middle."""
            middle, there = middles[at], flow(x, at, middles[at])
            a, s = at.sqrt_alpha_cumprod, at.sqrt_one_minus_alpha_cumprod
            b, r = middle.sqrt_alpha_cumprod, middle.sqrt_one_minus_alpha_cumprod
            return Prediction((s * there - r * x) / (s * b - r * a), (b * x - a * there) / (s * b - r * a))

        for step, found in zip(steps, laws("tcd", steps, law(steps[0].at), jump), strict=True):
            assert found == pytest.approx(law(step.next), abs=1e-9)


NUMBERS = [*range(1, 60), *range(60, 1000, 47), 499, 500, 501, 998, 999, 1000]
SOLVERS = ("heun", "dpm2", "unipc", "lms", "dpmpp_2m", "ddim", "euler")  # of the probability flow
GRIDS = ("heun", "unipc", "dpmpp_sde", "lcm", "tcd")  # the newer ones, of which every number is tried
# whose grid is another's
SHARED = {"lms": "heun", "dpm2": "dpmpp_sde", "dpm2_a": "heun", "dpmpp_2s_a": "heun", "dpmpp_2m_sde": "unipc",
          "dpmpp_3m_sde": "unipc"}  # fmt: skip
X = 2 + 2j


def ends(found: complex) -> tuple[float, float, float]:
    """What is made of 2, 0 and −2 by a map that is affine, and linear in X's imaginary part, as it makes `found` of
    X: what is real is of data as they are, what is imaginary is of data whose mean is 0."""
    return found.real, found.real - found.imag, found.real - 2 * found.imag


@pytest.mark.slow
@pytest.mark.parametrize("name", samplers.names())
def test_every_number_of_steps(name: str, request: pytest.FixtureRequest) -> None:
    """From 1 to 1000, or as many as a model of few steps learned: as many steps, down to noise that is nearly none;
    x stays finite and small, and what follows the probability flow ends where that leads.

    Walks of all numbers take two minutes: with --every-step. x is a number of Python's, as tensors take ten times as
    long.
    """
    schedule, sampler, generator = NoiseSchedule(), samplers.get(name), random.Random(0)
    every = request.config.getoption("every_step")
    learned = {"original_inference_steps": 1000} if name == "tcd" and every else {}
    limit, walked = 50 if name in ("lcm", "tcd") and not learned else 1000, range(1, 1001) if every else NUMBERS
    assert name not in SHARED or sampler.grid is samplers.get(SHARED[name]).grid
    for num in range(1, limit + 1) if name in GRIDS else walked:  # lcm and tcd walk all that they learned
        steps = sampler.steps(schedule, num, **learned)
        levels, nexts = [step.at.alpha_cumprod for step in steps], [step.next.alpha_cumprod for step in steps]
        assert [step.index for step in steps] == list(range(num)) and nexts[-1] > 0.999
        assert levels[1:] == nexts[:-1] and all(map(operator.le, levels, nexts))
        if num not in walked:
            continue
        x = torch.tensor(X, dtype=torch.complex128) if name == "lcm" else X
        *_, last = sampler(exact, x, steps, draw_noise=lambda: generator.gauss(0, 1))
        assert all(abs(one) < 12 for one in ends(complex(last.x)))
        if name in SOLVERS and num >= 10:
            assert max(map(abs, ends(last.x - ode_solution(X, steps[0].at)))) < 3 / num + 0.05, num


def moments(steps: list[Step], eta: float) -> tuple[float, float]:
    """Mean and variance after equation 12 of the DDIM paper from N(0, 1): every step is x' = A·x + B + σ·z, exactly."""
    mean, variance = 0.0, 1.0
    for step in steps:
        t, p = step.at.alpha_cumprod, step.next.alpha_cumprod
        sigma = eta * math.sqrt((1 - p) / (1 - t) * (1 - t / p))
        ends = []
        for x in (0.0, 1.0):
            prediction = exact(x, step.at)
            rest = math.sqrt(max(0.0, 1 - step.next.alpha_cumprod - sigma**2))
            ends.append(step.next.sqrt_alpha_cumprod * prediction.x0 + rest * prediction.eps)
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
    assert laws(name, schedule.steps(100, "linspace"), (0.0, 1.0), **options)[-1] == pytest.approx(found[0], abs=1e-9)


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_sde"])
def test_solvers_of_the_sde_end_with_the_variance_of_the_data(name: str) -> None:
    """From the noise of the beginning; in 100 steps, and nearer than ancestral steps of first order."""
    found = {}
    for one in ("euler_a", name):
        steps = samplers.get(one).steps(NoiseSchedule(), 100, "linspace")
        mean, variance = laws(one, steps, (0.0, 1.0))[-1]
        found[one] = abs(variance / DEVIATION**2 - 1), mean
    assert found[name][0] < 0.035 < found["euler_a"][0], found
    assert found[name][1] == pytest.approx(MEAN, abs=0.0175)
