"""From a model's output to x0 and ε: prediction types, guidance in one batch, limits, NaN."""

import math

import pytest
import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.image.conditioning import Conditioning
from gencli.image.diffusion.guidance import (
    Denoiser,
    check_finite,
    dynamic_threshold,
    guide,
    rescale,
    to_x0_eps,
)
from gencli.image.diffusion.schedule import NoiseSchedule, Point
from tests.oracles.prediction_types import to_output

KINDS = ("epsilon", "v_prediction", "sample")
PLAIN = NoiseSchedule(clip_sample=False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def told(text: Tensor) -> Conditioning:
    return Conditioning({"text": text})


class Recorder:
    """A model that adds the mean of the text it is told, and remembers what it was asked."""

    def __init__(self, variance: bool = False) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.variance = variance

    def __call__(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        context = conditioning.inputs.get("text")
        self.calls.append((x, t, context))
        bias = 0.0 if context is None else context.mean((1, 2)).view(-1, 1, 1, 1)
        output = torch.sin(x + bias)
        return torch.cat([output, torch.cos(x + bias)], dim=1) if self.variance else output


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0.999, 0.5, 1e-3])
def test_prediction_types_round_trip(kind: str, level: float, x: Tensor) -> None:
    point = Point(3.0, level)
    x0, eps = torch.randn(2, *x.shape, dtype=torch.float64)
    noisy = point.mix(x0, eps)
    found = to_x0_eps(kind, to_output(kind, x0, eps, point), noisy, point)
    torch.testing.assert_close(found, (x0, eps), atol=1e-10, rtol=0)
    for other in KINDS:  # and by way of any other
        again = to_x0_eps(other, to_output(other, *found, point), noisy, point)
        torch.testing.assert_close(again, (x0, eps), atol=1e-10, rtol=0)


def test_zero_snr(x: Tensor) -> None:
    point = Point(999.0, 0.0)
    torch.testing.assert_close(to_x0_eps("v_prediction", 0.3 * x, x, point), (-0.3 * x, x))
    torch.testing.assert_close(to_x0_eps("sample", 0.3 * x, x, point), (0.3 * x, x))
    with pytest.raises(GencliError, match="zero terminal SNR") as refusal:
        to_x0_eps("epsilon", x, x, point)
    assert refusal.value.hint


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0, -3.0])
def test_no_unconditional_pass_at_scale_1_or_less(scale: float, x: Tensor) -> None:
    model, context = Recorder(), torch.ones(2, 5, 6, dtype=torch.float64)
    predict = Denoiser(
        model,
        PLAIN,
        cond=told(context),
        uncond=told(0 * context),
        guidance_scale=scale,
    )
    prediction = predict(x, Point(7.0, 0.5))
    ((seen, t, given),) = model.calls
    assert seen is x
    assert given is context
    assert t.dtype == torch.float32
    assert t.tolist() == [7.0, 7.0]
    torch.testing.assert_close(prediction.eps, torch.sin(x + 1))


@pytest.mark.parametrize("shared", [False, True])
def test_guidance_is_one_batch(shared: bool, x: Tensor) -> None:
    model, context = Recorder(), torch.ones(2, 5, 6, dtype=torch.float64)
    negative = -2 * context[:1] if shared else -2 * context
    predict = Denoiser(model, PLAIN, cond=told(context), uncond=told(negative), guidance_scale=7.5)
    prediction = predict(x, Point(7.5, 0.5))
    ((seen, t, given),) = model.calls
    assert seen.shape == (4, 3, 4, 4)
    assert t.tolist() == [7.5] * 4
    assert given is not None
    assert given.shape == (4, 5, 6)
    expected = torch.sin(x - 2) + 7.5 * (torch.sin(x + 1) - torch.sin(x - 2))
    torch.testing.assert_close(prediction.eps, expected)
    predict(x, Point(1.0, 0.5))
    assert model.calls[1][2] is given  # made once


def test_a_model_without_context_is_not_guided(x: Tensor) -> None:
    model = Recorder()
    prediction = Denoiser(model, PLAIN, guidance_scale=7.5)(x, Point(0.0, 0.5))
    assert model.calls[0][0] is x
    torch.testing.assert_close(prediction.eps, torch.sin(x))
    torch.testing.assert_close(Point(0.0, 0.5).mix(prediction.x0, prediction.eps), x)


def test_guidance_rescale(x: Tensor) -> None:
    positive, negative = torch.sin(x), torch.cos(x)
    guided = negative + 5 * (positive - negative)
    for phi in (0.0, 0.7, 1.0):
        rows = []
        for i in range(2):  # Lin et al. 2023, eq. 15 and 16, picture by picture
            rescaled = guided[i] * positive[i].std() / guided[i].std()
            rows.append(phi * rescaled + (1 - phi) * guided[i])
        torch.testing.assert_close(rescale(guide(positive, negative, 5.0), positive, phi), torch.stack(rows))


def test_learned_variance_is_split_off(x: Tensor) -> None:
    context = torch.ones(2, 5, 6, dtype=torch.float64)
    for scale in (1.0, 3.0):
        predict = Denoiser(
            Recorder(variance=True),
            PLAIN,
            cond=told(context),
            uncond=told(0 * context),
            guidance_scale=scale,
        )
        prediction = predict(x, Point(1.0, 0.5))
        assert prediction.eps.shape == x.shape
        assert prediction.variance is not None
        torch.testing.assert_close(prediction.variance, torch.cos(x + 1))  # the conditional half's
    assert Denoiser(Recorder(), PLAIN)(x, Point(1.0, 0.5)).variance is None


def test_limits_hold_for_x0_and_leave_eps(x: Tensor) -> None:
    point = Point(1.0, 0.3)

    def x0(limits: tuple[str, ...], **fields: object) -> Tensor:
        schedule = NoiseSchedule(prediction_type="sample", **fields)  # type: ignore[arg-type]
        prediction = Denoiser(lambda x, t, context: 3 * x, schedule, limits=limits)(x, point)
        torch.testing.assert_close(
            prediction.eps, (x - point.sqrt_alpha_cumprod * 3 * x) / point.sqrt_one_minus_alpha_cumprod
        )
        return prediction.x0

    both = ("clip", "threshold")
    torch.testing.assert_close(x0(both), (3 * x).clamp(-1, 1))
    torch.testing.assert_close(x0(both, clip_sample_range=2.5), (3 * x).clamp(-2.5, 2.5))
    torch.testing.assert_close(x0(both, clip_sample=False), 3 * x)
    torch.testing.assert_close(x0(("threshold",)), 3 * x)
    torch.testing.assert_close(x0(("clip",), thresholding=True), (3 * x).clamp(-1, 1))
    thresholded = x0(both, thresholding=True, sample_max_value=100.0)  # before clipping
    torch.testing.assert_close(thresholded, dynamic_threshold(3 * x, 0.995, 100.0))


def test_dynamic_threshold(x: Tensor) -> None:
    big = torch.cat([5 * x[:1], 0.1 * x[1:]])
    found = dynamic_threshold(big, 0.9, 100.0)
    s = big[0].abs().flatten().quantile(0.9)
    torch.testing.assert_close(found[0], big[0].clamp(-s, s) / s, atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1], big[1])  # inside ±1 already
    torch.testing.assert_close(dynamic_threshold(big, 0.9, 1.0), big.clamp(-1, 1))  # diffusers' default maximum
    capped = dynamic_threshold(big, 0.9, 2.0)
    torch.testing.assert_close(capped[0], big[0].clamp(-2, 2) / 2)


def test_half_precision_models_give_full_precision_latents() -> None:
    x = torch.randn(1, 3, 4, 4)
    prediction = Denoiser(lambda x, t, context: x.bfloat16(), PLAIN)(x, Point(1.0, 0.5))
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float32


def test_gradients_flow(x: Tensor) -> None:
    x.requires_grad_()
    Denoiser(Recorder(), PLAIN)(x, Point(1.0, 0.5)).x0.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_is_found(bad: float, dtype: torch.dtype) -> None:
    x = torch.full((2, 4, 8, 8), 60000.0).to(dtype)
    check_finite(x, 0)  # a sum above half precision's range is no NaN
    x[1, 3, 7, 7] = bad
    with pytest.raises(GencliError, match="NaN or infinite values at step 4") as refusal:
        check_finite(x, 3)
    assert refusal.value.hint
    with pytest.raises(GencliError) as refusal:
        check_finite(x, 3, "a LoRA")
    assert refusal.value.hint == "a LoRA"
