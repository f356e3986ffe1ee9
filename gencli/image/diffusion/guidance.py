"""From what a model says to what a sampler needs: guidance, prediction types, limits on x0.

`Denoiser` makes a model (ε, v or x0, conditional or not) into `predict(x, point) → Prediction(x0, eps)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.image.conditioning import Conditioning, join
from gencli.image.diffusion.schedule import NoiseSchedule, Point

Model = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""model(x (B, C, H, W), t (B,) float, conditioning) → (B, C, H, W), or (B, 2C, H, W) with a variance."""


@dataclass(frozen=True)
class Prediction:
    """x0: the picture expected, within the limits set on it. eps: the noise, as the model itself sees it (x0 before its
    limits). variance: what a model with learned variance adds, nominally −1 to 1. gradient: of a classifier, by which a
    sampler that asks for it shifts its mean (see `classifier`). All (B, C, H, W)."""

    x0: Tensor
    eps: Tensor
    variance: Tensor | None = None
    gradient: Tensor | None = None


Predict = Callable[[Tensor, Point], Prediction]


class Denoiser:
    """One call of the model per noise level, guided, as x0 and ε.

    context: the conditioning, tensors (B, …), or None for a model without. negative: the unconditional or negative one,
    tensors (B, …) or (1, …). The model is told both in one batch of 2B, and only when there is a `negative` and
    `guidance_scale` is above 1. between: for models that edit a picture, told the picture as context is and the text as
    negative is; the model is told all three in one batch of 3B. limits: which limits on x0 hold where the checkpoint
    asks for them, "clip" and "threshold" (each sampler names those that its definition keeps).
    """

    def __init__(
        self,
        model: Model,
        schedule: NoiseSchedule,
        *,
        context: Conditioning | None = None,
        negative: Conditioning | None = None,
        between: Conditioning | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        image_guidance_scale: float = 1.0,
        limits: Collection[str] = ("clip", "threshold"),
    ):
        self.model, self.schedule = model, schedule
        self.guidance_scale, self.guidance_rescale = guidance_scale, guidance_rescale
        self.image_guidance_scale = image_guidance_scale
        self.guided = guidance_scale > 1 and context is not None and negative is not None
        self.context: Conditioning = context or {}
        self.parts = 1  # of a batch that the model sees
        if self.guided:
            assert context is not None and negative is not None
            batch = max(len(tensor) for tensor in context.values())
            parts = [negative, context] if between is None else [negative, between, context]
            self.context, self.parts = join(parts, batch), len(parts)
        self.limits = limits

    def __call__(self, x: Tensor, point: Point) -> Prediction:
        """x (B, C, H, W) at a noise level → x0 and ε, in x's dtype.

        Raises GencliError for an ε-model at zero SNR, where ε says nothing about x0.
        """
        output, variance = self.output(x, point.t)
        x0, eps = to_x0_eps(self.schedule.prediction_type, output, x, point)
        if self.schedule.thresholding and "threshold" in self.limits:
            x0 = dynamic_threshold(x0, self.schedule.dynamic_thresholding_ratio, self.schedule.sample_max_value)
        elif self.schedule.clip_sample and "clip" in self.limits:
            x0 = x0.clamp(-self.schedule.clip_sample_range, self.schedule.clip_sample_range)
        return Prediction(x0, eps, variance)

    def output(self, x: Tensor, t: float) -> tuple[Tensor, Tensor | None]:
        """The model's guided output, and its variance channels if it has any."""
        batch = torch.cat([x] * self.parts) if self.guided else x
        timesteps = torch.full((len(batch),), t, dtype=torch.float32, device=x.device)
        output = self.model(batch, timesteps, self.context).to(x.dtype)
        variance = None
        if output.shape[1] == 2 * x.shape[1]:
            output, variance = output.chunk(2, dim=1)
        if not self.guided:
            return output, variance
        negative, *between, positive = output.chunk(self.parts)
        if between:
            guided = guide_edit(positive, between[0], negative, self.guidance_scale, self.image_guidance_scale)
        else:
            guided = guide(positive, negative, self.guidance_scale)
        guided = rescale(guided, positive, self.guidance_rescale)
        return guided, variance if variance is None else variance.chunk(self.parts)[-1]


def guide(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2021)."""
    return negative + scale * (positive - negative)


def guide_edit(positive: Tensor, between: Tensor, negative: Tensor, scale: float, image_scale: float) -> Tensor:
    """The same with a scale for the text and one for the picture (Brooks et al. 2023, eq. 3): `between` was told the
    picture alone."""
    return negative + scale * (positive - between) + image_scale * (between - negative)


def rescale(guided: Tensor, positive: Tensor, share: float) -> Tensor:
    """Towards the deviation that the prediction had before guidance, by φ = `share` (Lin et al. 2023, eq. 15–16)."""
    if share == 0:
        return guided
    dims = tuple(range(1, guided.ndim))
    rescaled = guided * (positive.std(dims, keepdim=True) / guided.std(dims, keepdim=True))
    return share * rescaled + (1 - share) * guided


def to_x0_eps(prediction_type: str, output: Tensor, x: Tensor, point: Point) -> tuple[Tensor, Tensor]:
    """x0 and ε of a model's output at x. v is √ᾱ·ε − √(1−ᾱ)·x0 (Salimans & Ho 2022).

    Raises GencliError for ε at zero SNR.
    """
    signal, noise = point.signal, point.noise
    if prediction_type == "v_prediction":
        return signal * x - noise * output, signal * output + noise * x
    if prediction_type == "sample":
        return output, (x - signal * output) / noise
    if signal == 0:
        raise GencliError(
            "a model that predicts noise cannot start from noise alone (zero terminal SNR)",
            "spacing leading, or sampler euler, begins where some signal is left",
        )
    return (x - noise * output) / signal, output


def to_output(prediction_type: str, x0: Tensor, eps: Tensor, point: Point) -> Tensor:
    """What a model of this prediction type should say: the inverse of `to_x0_eps`."""
    if prediction_type == "v_prediction":
        return point.signal * eps - point.noise * x0
    return x0 if prediction_type == "sample" else eps


def dynamic_threshold(x0: Tensor, ratio: float, max_value: float) -> Tensor:
    """Imagen's dynamic thresholding (Saharia et al. 2022, 2.3): clip each picture to its own s, then divide by s.

    s is the `ratio` quantile of |x0|, at least 1 and at most `max_value`; at max_value 1, diffusers' default, this is
    plain clipping.
    """
    # one picture at a time: torch.quantile takes at most 16 million values
    quantiles = [picture.abs().float().quantile(ratio) for picture in x0.flatten(1)]
    s = torch.stack(quantiles).to(x0.dtype).clamp(min=1, max=max_value).view(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) / s


def check_finite(x: Tensor, step: int) -> None:
    """Raises GencliError when latents hold NaN or infinity after a step (counted from 0). One sum, one number read."""
    if not math.isfinite(x.sum(dtype=torch.float32).item()):
        raise GencliError(
            f"the model gave NaN or infinite values at step {step + 1}",
            "half precision may have overflowed: try --dtype float32; else `gencli models check` the checkpoint",
        )
