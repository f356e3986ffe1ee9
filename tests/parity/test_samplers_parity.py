"""Schedules, grids and samplers against diffusers, with a cheap function in the model's place.

diffusers computes ᾱ in float32 and gencli in float64, hence the tolerances. Where diffusers takes a wrong previous
timestep (its DDIM with linspace, or trailing at S that do not divide T) the formula written out below is the oracle.
"""

import copy
import functools
import inspect
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gencli.image.diffusion import samplers
from gencli.image.diffusion.excerpt import from_strength
from gencli.image.diffusion.guidance import Denoiser, dynamic_threshold
from gencli.image.diffusion.schedule import CLASS_DEFAULTS, NoiseSchedule
from tests.oracles.sde import SDE, Path, scheduler_class

T = 1000
SPACINGS = ("leading", "trailing", "linspace")
KINDS = ("epsilon", "v_prediction", "sample")
SCHEDULES: dict[str, dict[str, Any]] = {
    "ddpm": {"beta_schedule": "linear"},
    "sd": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "dpmpp_sde": SDE,
    "heun": "HeunDiscreteScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2_a": "KDPM2AncestralDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}
ALGORITHM = {"dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"}}
CLIPPING = [name for name in CLASSES if "clip" in samplers.get(name).limits]


def model(kind: str) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A smooth function of x and t, bounded like the quantity it stands for."""

    def function(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        t = t.to(x.dtype).reshape(-1, 1, 1, 1)
        if kind == "epsilon":
            return 0.9 * torch.tanh(1.2 * x + 0.1 * torch.cos(t / 90))
        if kind == "v_prediction":
            return torch.sin(1.5 * x + t / 300)
        return 0.8 * torch.tanh(x) + 0.05 * torch.cos(t / 50)

    return function


def noise(seed: int = 0) -> Tensor:
    return torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


@functools.lru_cache(32)
def made(name: str, raw: tuple[tuple[str, Any], ...]) -> Any:
    """A scheduler that is not used: some classes compute all thousand timesteps in their beginning."""
    return scheduler_class(CLASSES[name])(num_train_timesteps=T, **ALGORITHM.get(name, {}), **dict(raw))


def scheduler(name: str, raw: dict[str, Any]) -> Any:
    """A scheduler of its own: `set_timesteps` makes anew whatever steps change."""
    return copy.copy(made(name, tuple(raw.items())))


def with_floats(reference: Any) -> None:
    """Have diffusers' LMS integrate over Python's floats, in the place of tensors, which take thirty times as long."""
    integrate = reference.get_lms_coefficient

    def coefficient(*place: int) -> float:
        sigmas = reference.sigmas
        reference.sigmas = sigmas.tolist()
        try:
            return integrate(*place)
        finally:
            reference.sigmas = sigmas

    reference.get_lms_coefficient = coefficient


def by_diffusers(
    reference: Any, num: int, *, strength: float = 1.0, x0: Tensor | None = None, **options: Any
) -> Tensor:
    """The loop of diffusers' pipelines (their img2img where there is an x0)."""
    if options.get("eta"):  # in float32 its 1 − ᾱ − σ² rounds below 0 on some CPUs at η = 1, and x becomes NaN
        reference.alphas_cumprod = reference.alphas_cumprod.double()
    reference.set_timesteps(num)
    begin = (num - min(int(num * strength), num)) * reference.order
    timesteps = reference.timesteps[begin:]
    if hasattr(reference, "set_begin_index"):
        reference.set_begin_index(begin)
    x = noise() * reference.init_noise_sigma if x0 is None else reference.add_noise(x0, noise(), timesteps[:1])
    function, generator = model(reference.config.prediction_type), torch.Generator().manual_seed(1)
    if hasattr(reference, "get_lms_coefficient"):
        with_floats(reference)
    reference.noise_sampler = Path(lambda: torch.randn(x.shape, generator=generator))  # where there is one
    if "generator" in inspect.signature(reference.step).parameters:
        options["generator"] = generator
    if "generator" not in options or "algorithm_type" in reference.config:  # others would draw another noise
        x = x.double()  # so that what is computed of float32's ᾱ and σ loses no more digits
    for t in timesteps:
        output = function(reference.scale_model_input(x, t), t)
        x = reference.step(output, t, x, **options).prev_sample
    return x.float()


def by_gencli(
    name: str, raw: dict[str, Any], num: int, *, strength: float = 1.0, x0: Tensor | None = None, **options: Any
) -> Tensor:
    """The same walk, with the noise from the same generators."""
    schedule = NoiseSchedule.from_config({"_class_name": CLASSES[name], "num_train_timesteps": T, **raw})
    sampler, generator = samplers.get(name), torch.Generator().manual_seed(1)
    options = sampler.settings(schedule, options)
    steps = from_strength(sampler.steps(schedule, num, **options), strength)
    x = sampler.initial(noise(), steps, schedule.timestep_spacing) if x0 is None else steps[0].at.mix(x0, noise())
    predict = Denoiser(model(schedule.prediction_type), schedule, limits=sampler.limits)
    for sample in sampler(predict, x, steps, draw_noise=lambda: torch.randn(x.shape, generator=generator), **options):
        last = sample.x
    return last


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 2e-4) -> None:
    """Within `tolerance` of the largest value (ε-models without clipping reach 10⁴ under the cosine schedule)."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("name", sorted(CLASS_DEFAULTS))
def test_class_defaults(name: str) -> None:
    reference = scheduler_class(name)().config
    ours = NoiseSchedule.from_config({"_class_name": name})
    # a class that lacks a switch behaves as without it
    without = {"clip_sample": False, "thresholding": False, "rescale_betas_zero_snr": False, "use_karras_sigmas": False}
    for field in ("beta_start", "beta_end", "beta_schedule", "timestep_spacing", "steps_offset", "prediction_type"):
        assert getattr(ours, field) == reference.get(field, getattr(ours, field)), field
    for field, absent in without.items():
        assert getattr(ours, field) == reference.get(field, absent), field
    for field in ("set_alpha_to_one", "clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio"):
        assert getattr(ours, field) == reference.get(field, getattr(ours, field)), field
    assert ours.variance_type == (reference.get("variance_type") or "fixed_small")
    assert "timestep_spacing" in reference or ours.timestep_spacing == "linspace"  # the singlestep solver's only grid


def test_saved_configs_are_read() -> None:
    """Every key that these classes write is known."""
    for name in CLASS_DEFAULTS:
        raw = json.loads(scheduler_class(name)().to_json_string())
        assert raw["_class_name"] == name
        assert NoiseSchedule.from_config(raw) == NoiseSchedule.from_config({"_class_name": name})


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("raw", SCHEDULES.values(), ids=SCHEDULES)
def test_alphas_cumprod(raw: dict[str, Any], rescale: bool) -> None:
    raw = {**raw, "rescale_betas_zero_snr": rescale}
    ours = torch.from_numpy(NoiseSchedule.from_config(raw).alphas_cumprod)
    reference = scheduler("ddim", raw)
    torch.testing.assert_close(ours, reference.alphas_cumprod.double(), rtol=2e-4, atol=1e-6)
    final = NoiseSchedule.from_config({**raw, "set_alpha_to_one": False}).final_alpha_cumprod
    assert final == pytest.approx(scheduler("ddim", {**raw, "set_alpha_to_one": False}).final_alpha_cumprod.item())


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", CLASSES)
def test_timesteps(name: str, spacing: str, offset: int) -> None:
    raw = {"timestep_spacing": spacing, "steps_offset": offset}
    reference, sampler = scheduler(name, raw), samplers.get(name)
    schedule = NoiseSchedule.from_config({"_class_name": CLASSES[name], **raw})
    for num in [*range(1, 64), 103, 121, 250, 333, 499, 500, 501, 998, 999, 1000]:
        steps = sampler.steps(schedule, num)
        reference.set_timesteps(num)
        expected = reference.timesteps.double().numpy()[:: reference.order][
            :num
        ]  # 62 trailing grids have an entry too many
        if spacing == "leading" and expected[0] > T - 1:
            continue  # diffusers leaves the schedule here (S = 1000, or 999 with DPM-Solver)
        if sampler.grid is samplers.get("dpmpp_2m").grid and num == T and spacing != "trailing":
            continue  # and here it repeats timesteps
        np.testing.assert_allclose([step.at.t for step in steps], expected, rtol=0, atol=1e-3)
        if hasattr(reference, "sigmas"):
            sigmas = [step.at.sigma for step in steps]
            np.testing.assert_allclose(sigmas, reference.sigmas.numpy()[:: reference.order][:num], rtol=2e-4)


@pytest.mark.parametrize("name", [name for name in CLASSES if "karras" in samplers.get(name).options])
@pytest.mark.parametrize("raw", SCHEDULES.values(), ids=SCHEDULES)
def test_karras_grids(name: str, raw: dict[str, Any]) -> None:
    raw = {**raw, "timestep_spacing": "leading", "use_karras_sigmas": True}
    reference = scheduler(name, raw)
    schedule = NoiseSchedule.from_config({"_class_name": CLASSES[name], **raw})
    for num in (1, 2, 3, 10, 20, 50, 100, 500):
        steps = samplers.get(name).steps(schedule, num, karras=True)
        reference.set_timesteps(num)
        np.testing.assert_allclose(
            [s.at.sigma for s in steps], reference.sigmas.numpy()[:-1][:: reference.order][:num], rtol=5e-4
        )
        # a float32 hair decides here how DPM-Solver rounds, and under the cosine schedule it cuts fractions off
        np.testing.assert_allclose(
            [s.at.t for s in steps],
            reference.timesteps.numpy()[:: reference.order],
            rtol=0,
            atol=0.05 if name == "euler" else 1,
        )


WALKS = [
    ("ddim", {}),
    ("ddim", {"eta": 0.5}),
    ("ddim", {"eta": 1.0}),
    ("ddim", {"use_clipped_model_output": True}),
    ("ddpm", {}),
    ("euler", {}),
    ("euler", {"karras": True}),
    ("euler_a", {}),
    ("dpmpp_2m", {}),
    ("dpmpp_2m", {"karras": True}),
    ("dpmpp_2m_sde", {}),
    ("dpmpp_2m_sde", {"karras": True}),
    ("dpmpp_sde", {}),
    ("dpmpp_sde", {"karras": True}),
    ("heun", {}),
    ("heun", {"karras": True}),
    ("dpm2", {}),
    ("dpm2", {"karras": True}),
    ("dpm2_a", {}),
    ("dpm2_a", {"karras": True}),
    ("lms", {}),
    ("lms", {"karras": True}),
    ("unipc", {}),
    ("unipc", {"karras": True}),
]
LIMITED = ("dpmpp_sde", "heun", "lms", "dpm2", "dpm2_a")
UNKNOWN = {(name, "sample") for name in ("euler_a", "dpmpp_sde", "dpm2", "dpm2_a")}  # which diffusers has not


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [(*walk, kind) for walk in WALKS for kind in KINDS if (walk[0], kind) not in UNKNOWN],
    ids=str,
)
def test_walks(name: str, options: dict[str, Any], spacing: str, kind: str) -> None:
    karras = options.get("karras", False)
    for title, raw in SCHEDULES.items():
        raw = {**raw, "prediction_type": kind, "timestep_spacing": spacing}
        if title == "cosine" and (name == "dpm2_a" or (name, kind) in (("heun", "sample"), ("dpm2", "v_prediction"))):
            continue  # a step from σ = 2·10⁴ by two derivatives, which diffusers makes of float32's ᾱ, and NaN of noise
        if karras:
            if (CLASSES[name], title) == ("DPMSolverMultistepScheduler", "cosine"):
                continue  # see test_karras_grids
            raw["use_karras_sigmas"] = True
        if name in CLIPPING:
            raw["clip_sample"] = title != "sd"
        # σ reaches 2·10⁴ under the cosine schedule: diffusers' float32 in σ space has three digits left there
        tolerance = 1e-2 if title == "cosine" and name not in ("ddim", "ddpm") else 3e-4
        tolerance = 2e-3 if name == "dpm2_a" else tolerance  # as does the noise of its short steps
        for num in (1, 2, 5, 20):
            if name == "ddim" and spacing == "linspace" and num != 1:
                continue  # see test_ddim_by_its_formula
            given = {} if karras else options
            assert_same(
                by_gencli(name, raw, num, **options), by_diffusers(scheduler(name, raw), num, **given), tolerance
            )


def formula(raw: dict[str, Any], timesteps: list[int], eta: float, kind: str, clip: float | None) -> Tensor:
    """Equation 12 of the DDIM paper over a list of timesteps, in float64, with the schedule written out."""
    if raw.get("beta_schedule") == "scaled_linear":
        betas = np.linspace(raw["beta_start"] ** 0.5, raw["beta_end"] ** 0.5, T) ** 2
    else:
        betas = np.linspace(1e-4, 0.02, T)
    alphas = np.append(np.cumprod(1 - betas), 1.0)  # index −1: after the last step
    if not raw.get("set_alpha_to_one", True):
        alphas[-1] = alphas[0]
    x, generator = noise().double(), torch.Generator().manual_seed(1)
    for t, p in zip(timesteps, [*timesteps[1:], -1], strict=True):
        output = model(kind)(x, torch.tensor([float(t)]))
        a, b = alphas[t], alphas[p]
        if kind == "epsilon":
            x0, eps = (x - math.sqrt(1 - a) * output) / math.sqrt(a), output
        elif kind == "v_prediction":
            x0, eps = math.sqrt(a) * x - math.sqrt(1 - a) * output, math.sqrt(a) * output + math.sqrt(1 - a) * x
        else:
            x0, eps = output, (x - math.sqrt(a) * output) / math.sqrt(1 - a)
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        x = math.sqrt(b) * x0 + math.sqrt(max(0, 1 - b - sigma**2)) * eps
        x = x + sigma * torch.randn(x.shape, generator=generator)
    return x.float()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_ddim_by_its_formula(kind: str, eta: float) -> None:
    for title, raw in SCHEDULES.items():
        if title == "cosine":
            continue
        clip = None if title == "sd" else 1.0
        raw = {**raw, "prediction_type": kind, "clip_sample": clip is not None, "set_alpha_to_one": title == "ddpm"}
        for num in (2, 15, 28, 35, 50, 61):
            grids = {
                "linspace": np.round(np.linspace(0, T - 1, num)).astype(int).tolist()[::-1],
                "trailing": (np.round(np.arange(T, 0, -T / num)).astype(int) - 1).tolist()[:num],
                "leading": (np.arange(num) * (T // num) + raw.get("steps_offset", 0)).tolist()[::-1],
                "quadratic": sorted({int(s) for s in np.linspace(0, np.sqrt(T * 0.8), num) ** 2}, reverse=True),
            }
            for spacing, timesteps in grids.items():
                found = by_gencli("ddim", {**raw, "timestep_spacing": spacing}, num, eta=eta)
                assert_same(found, formula(raw, timesteps, eta, kind, clip), 2e-5)


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in LIMITED])
def test_zero_terminal_snr(name: str) -> None:  # which diffusers' classes of those know nothing of
    # under ddpm's betas σ begins at 4096 in diffusers, below the ᾱ before it, which noise makes visible
    for title in ("sd",) if name == "dpmpp_2m_sde" else ("sd", "ddpm"):
        raw = {
            **SCHEDULES[title],
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": True,
        }
        if name in CLIPPING:
            raw["clip_sample"] = False
        for num in (1, 4, 20):
            # float32 at σ = 2¹², where v says almost all
            assert_same(by_gencli(name, raw, num), by_diffusers(scheduler(name, raw), num), 3e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd(eta: float, kind: str) -> None:
    """Its timesteps and its steps, from noise and from a picture; all numbers of steps that the model learned."""
    raw = {**SCHEDULES["sd"], "prediction_type": kind}
    schedule, sampler = NoiseSchedule.from_config({"_class_name": "TCDScheduler", **raw}), samplers.get("tcd")
    for num in [1, 2, 3, 4, 7, 20, 50]:
        for strength in (0.5, 1.0):
            if num > int(50 * strength):
                continue
            reference, generator = scheduler_class("TCDScheduler")(**raw), torch.Generator().manual_seed(1)
            reference.set_timesteps(num, strength=strength)
            steps = sampler.steps(schedule, num, None, strength, eta=eta)
            assert [step.at.t for step in steps] == reference.timesteps.tolist()
            expected = noise()
            for t in reference.timesteps:
                output = model(kind)(expected, t)
                expected = reference.step(output, t, expected, eta=eta, generator=generator).prev_sample
            predict, generator = Denoiser(model(kind), schedule, limits=sampler.limits), generator.manual_seed(1)
            for sample in sampler(
                predict, noise(), steps, draw_noise=lambda g=generator: torch.randn(1, 3, 4, 4, generator=g)
            ):
                found = sample.x
            assert_same(found, expected)


def test_3m_sde_is_diffusers_but_for_a_sign() -> None:
    """From the third step on diffusers' factor of D2 is −1 and more, however short the step: it writes −½ where the
    expansion has +½ (`multistep_dpm_solver_third_order_update`). What is left is equal, from the same x each time."""
    raw = {**SCHEDULES["sd"], "prediction_type": "sample", "timestep_spacing": "leading"}
    schedule = NoiseSchedule.from_config({"_class_name": "DPMSolverMultistepScheduler", **raw})
    third = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "lower_order_final": False}
    reference = scheduler_class("DPMSolverMultistepScheduler")(**third, **raw)
    reference.set_timesteps(12)
    sampler, x, still, known = samplers.get("dpmpp_3m_sde"), noise(), torch.zeros(1, 3, 4, 4), []
    steps = sampler.steps(schedule, 12)
    walk = sampler(Denoiser(model("sample"), schedule, limits=sampler.limits), x, steps, draw_noise=lambda: still)
    for step, t, sample in zip(steps[:-1], reference.timesteps, walk, strict=False):
        known.append((-math.log(step.at.sigma), sample.x0.double()))
        theirs = reference.step(model("sample")(x, t), t, x, variance_noise=still).prev_sample
        if step.index >= 2:
            (older, a), (before, b), (here, c) = known[-3:]
            h = -math.log(step.next.sigma) - here
            change = ((c - b) / (here - before) - (b - a) / (before - older)) / (here - older) * h**2
            theirs = theirs + step.next.sqrt_alpha_cumprod * change
        if step.index != 1:  # which it takes by another form of the second order
            torch.testing.assert_close(sample.x.double(), theirs.double(), atol=1e-5, rtol=0)
        x = sample.x.clone()


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpm_variance_types(kind: str) -> None:
    for spacing in ("leading", "linspace"):  # both end at t = 0, where diffusers draws no noise either
        raw = {"variance_type": kind, "timestep_spacing": spacing}
        assert_same(by_gencli("ddpm", raw, 20), by_diffusers(scheduler("ddpm", raw), 20))


def test_ddpm_draws_no_noise_at_the_end() -> None:
    """diffusers does when the last t is above 0: with fixed_large that noise would stay in the picture."""
    raw = {"variance_type": "fixed_large", "timestep_spacing": "trailing", "clip_sample": False}
    found, expected = by_gencli("ddpm", raw, 20), by_diffusers(scheduler("ddpm", raw), 20)
    deviation = math.sqrt(1 - NoiseSchedule().alphas_cumprod[49].item())
    assert (found - expected).std().item() == pytest.approx(deviation, rel=0.3)


def test_learned_range() -> None:
    raw = {"variance_type": "learned_range", "clip_sample": True}
    reference = scheduler("ddpm", raw)
    reference.set_timesteps(12)

    def two(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.cat([model("epsilon")(x, t), torch.cos(3 * x)], dim=1)

    expected, generator = noise(), torch.Generator().manual_seed(1)
    for t in reference.timesteps:
        expected = reference.step(two(expected, t), t, expected, generator=generator).prev_sample
    schedule, generator = NoiseSchedule.from_config({"_class_name": "DDPMScheduler", **raw}), generator.manual_seed(1)
    sampler = samplers.get("ddpm")
    *_, last = sampler(
        Denoiser(two, schedule),
        noise(),
        sampler.steps(schedule, 12),
        draw_noise=lambda: torch.randn(1, 3, 4, 4, generator=generator),
        **sampler.settings(schedule, {}),
    )
    assert_same(last.x, expected)


@pytest.mark.parametrize("name", [name for name in CLASSES if "threshold" in samplers.get(name).limits])
def test_thresholding(name: str) -> None:
    raw = {
        "thresholding": True,
        "sample_max_value": 1.5,
        "dynamic_thresholding_ratio": 0.9,
        "timestep_spacing": "leading",
    }
    for kind in ("epsilon", "sample"):
        raw = {**raw, "prediction_type": kind}
        assert_same(by_gencli(name, raw, 10), by_diffusers(scheduler(name, raw), 10))
    x0 = 3 * torch.randn(4, 3, 5, 5)
    assert_same(dynamic_threshold(x0, 0.9, 1.5), scheduler(name, raw)._threshold_sample(x0), 1e-6)


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "lms"])  # diffusers mixes up its orders there
@pytest.mark.parametrize("strength", [0.05, 0.3, 0.58, 1.0])
def test_from_a_picture(name: str, strength: float) -> None:
    x0 = noise(5).clamp(-1, 1)
    raw = {**SCHEDULES["sd"], "timestep_spacing": "leading"}
    if name in CLIPPING:
        raw["clip_sample"] = False
    found = by_gencli(name, raw, 50, strength=strength, x0=x0)
    assert_same(found, by_diffusers(scheduler(name, raw), 50, strength=strength, x0=x0))


@pytest.mark.parametrize("name", CLASSES)
def test_what_clips(name: str) -> None:
    """A checkpoint's clip_sample holds for the schedulers of diffusers that know it, and for these alone."""
    raw = {"timestep_spacing": "leading"}
    known = {"clip_sample": True} if name in CLIPPING else {}
    found = by_gencli(name, {**raw, "clip_sample": True}, 10)
    assert_same(found, by_diffusers(scheduler(name, {**raw, **known}), 10))
    assert (found.abs().max() <= 1) == (name in CLIPPING)


@pytest.mark.parametrize("steps", [1, 2, 5, 14, 15, 20])
@pytest.mark.parametrize("raw", [{}, {"lower_order_final": False}, {"euler_at_final": True}])
def test_the_last_step_of_dpmpp_2m_to_the_smallest_sigma(steps: int, raw: dict[str, Any]) -> None:
    """diffusers takes it by first order under 15 steps, and at σ = 0 always; tolerance as of float32's ᾱ."""
    raw = {**SCHEDULES["sd"], "final_sigmas_type": "sigma_min", **raw}
    raw.pop("steps_offset")
    theirs = scheduler("dpmpp_2m", raw)
    theirs.set_timesteps(steps)
    schedule = NoiseSchedule.from_config({"_class_name": CLASSES["dpmpp_2m"], **raw})
    sampler = samplers.get("dpmpp_2m")
    options = sampler.settings(schedule, {})
    ours = sampler.steps(schedule, steps, **options)
    function = model("epsilon")
    x = x_theirs = noise().double()
    for t in theirs.timesteps:
        x_theirs = theirs.step(function(x_theirs, t), t, x_theirs).prev_sample
    denoiser = Denoiser(lambda x, t, context: function(x, t), schedule, limits=sampler.limits)
    for sample in sampler(denoiser, x, ours, draw_noise=noise, **options):
        x = sample.x
    torch.testing.assert_close(x.float(), x_theirs.float(), atol=2e-4, rtol=2e-4)
