"""From a model's output to what a sampler needs: guidance, prediction types, limits on x0.

`Denoiser` turns a model (of ε, v or x0, conditional or not) into `predict(x, point) → Prediction(x0, eps)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.errors import GencliError
from gencli.image.conditioning import Conditioning, join
from gencli.image.diffusion.schedule import NoiseSchedule, Point

Model = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""model(x (B, C, H, W), t (B,) float, conditioning) → (B, C, H, W), or (B, 2C, H, W) with a variance."""


@dataclass(frozen=True)
class Prediction:
    """x0: the expected image, within its limits. eps: the noise as the model sees it (of x0 before its limits).
    variance: of a model with learned variance, nominally −1 to 1. gradient: of a classifier; a sampler that asks for it
    shifts its mean by it (see `classifier_guidance`). All (B, C, H, W)."""

    x0: Tensor
    eps: Tensor
    variance: Tensor | None = None
    gradient: Tensor | None = None


Predict = Callable[[Tensor, Point], Prediction]


class Denoiser:
    """One call of the model per noise level, guided, as x0 and ε.

    cond: the conditioning, tensors (B, …). uncond: the unconditional or negative one, tensors (B, …) or (1, …). With an
    `uncond` and a `guidance_scale` above 1 the model gets both in one batch of 2B. image_uncond: for models that edit
    an image, with the image of `cond` and the text of `uncond`; the model then gets all three in one batch of 3B.
    guides: tells whether guidance counts at the step that the sampler is at (Kynkäänniemi et al. 2024 limit it to an
    interval); elsewhere the model gets `cond` alone. keeps_norms: a side of the squares that `with_norms` scales, 0 for
    none.
    limits: the limits on x0 that hold where the checkpoint asks for them, "clip" and "threshold" (each sampler names
    those that its definition keeps).
    """

    def __init__(
        self,
        model: Model,
        schedule: NoiseSchedule,
        *,
        cond: Conditioning | None = None,
        uncond: Conditioning | None = None,
        image_uncond: Conditioning | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        guides: Callable[[], bool] = lambda: True,
        keeps_norms: int = 0,
        image_guidance_scale: float = 1.0,
        limits: Collection[str] = ("clip", "threshold"),
    ):
        self.model, self.schedule, self.limits = model, schedule, limits
        self.guidance_scale, self.guidance_rescale = guidance_scale, guidance_rescale
        self.image_guidance_scale, self.keeps_norms, self.guides = image_guidance_scale, keeps_norms, guides
        self.cond = self.conditioning = Conditioning() if cond is None else cond
        self.parts = 1  # of the batch that the model sees where it is guided
        if guidance_scale > 1 and cond is not None and uncond is not None:
            parts = [uncond, cond] if image_uncond is None else [uncond, image_uncond, cond]
            self.parts = len(parts)
            self.conditioning = join(parts, max(len(tensor) for tensor in cond.inputs.values()))

    def __call__(self, x: Tensor, point: Point) -> Prediction:
        """x (B, C, H, W) at a noise level → x0 and ε, in x's dtype.

        Raises GencliError for an ε-model at zero SNR, where ε says nothing about x0.
        """
        seen = x
        if self.schedule.prediction_type == "flow":  # whose x is (1 − σ) · x0 + σ · ε
            seen = x / (point.sqrt_alpha_cumprod + point.sqrt_one_minus_alpha_cumprod)
        output, variance = self.output(seen, point.t)
        x0, eps = to_x0_eps(self.schedule.prediction_type, output, x, point)
        if self.schedule.thresholding and "threshold" in self.limits:
            x0 = dynamic_threshold(x0, self.schedule.dynamic_thresholding_ratio, self.schedule.sample_max_value)
        elif self.schedule.clip_sample and "clip" in self.limits:
            x0 = x0.clamp(-self.schedule.clip_sample_range, self.schedule.clip_sample_range)
        return Prediction(x0, eps, variance)

    def output(self, x: Tensor, t: float) -> tuple[Tensor, Tensor | None]:
        """The model's guided output, and its variance channels if it has any."""
        guided = self.parts > 1 and self.guides()
        batch = torch.cat([x] * self.parts) if guided else x
        timesteps = torch.full((len(batch),), t, dtype=torch.float32, device=x.device)
        output = self.model(batch, timesteps, self.conditioning if guided else self.cond).to(x.dtype)
        variance = None
        if output.shape[1] == 2 * x.shape[1]:
            output, variance = output.chunk(2, dim=1)
        if not guided:
            return output, variance
        uncond, *image_uncond, cond = output.chunk(self.parts)
        if image_uncond:
            output = guide_edit(cond, image_uncond[0], uncond, self.guidance_scale, self.image_guidance_scale)
        else:
            output = guide(cond, uncond, self.guidance_scale)
        output = rescale(with_norms(output, cond, self.keeps_norms), cond, self.guidance_rescale)
        return output, variance if variance is None else variance.chunk(self.parts)[-1]


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2021)."""
    return uncond + scale * (cond - uncond)


def guide_edit(cond: Tensor, image_uncond: Tensor, uncond: Tensor, scale: float, image_scale: float) -> Tensor:
    """The same with one scale for the text and one for the image (Brooks et al. 2023, eq. 3); `image_uncond` is
    conditioned on the image alone."""
    return uncond + scale * (cond - image_uncond) + image_scale * (image_uncond - uncond)


def rescale(guided: Tensor, cond: Tensor, fraction: float) -> Tensor:
    """Rescale towards the std of the prediction before guidance, by φ = `fraction` (Lin et al. 2023, eq. 15–16)."""
    if fraction == 0:
        return guided
    dims = tuple(range(1, guided.ndim))
    rescaled = guided * (cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True))
    return fraction * rescaled + (1 - fraction) * guided


def with_norms(guided: Tensor, cond: Tensor, side: int) -> Tensor:
    """Scale each square of `side` × `side` places, with all channels, to the norm that it has in the prediction before
    guidance (Wu et al. 2025, Qwen-Image's pipeline, whose tokens are such squares); 0 scales nothing."""
    if side == 0:
        return guided
    before, after = (F.pixel_unshuffle(one, side).norm(dim=1, keepdim=True) for one in (cond, guided))
    return guided * (before / after).repeat_interleave(side, 2).repeat_interleave(side, 3)


def to_x0_eps(prediction_type: str, output: Tensor, x: Tensor, point: Point) -> tuple[Tensor, Tensor]:
    """x0 and ε of a model's output at x. v is √ᾱ·ε − √(1−ᾱ)·x0 (Salimans & Ho 2022), or of flow matching ε − x0.

    Raises GencliError for ε at zero SNR.
    """
    a, s = point.sqrt_alpha_cumprod, point.sqrt_one_minus_alpha_cumprod
    if prediction_type == "v_prediction":
        return a * x - s * output, a * output + s * x
    if prediction_type == "flow":
        return (x - s * output) / (a + s), (x + a * output) / (a + s)
    if prediction_type == "sample":
        return output, (x - a * output) / s
    if a == 0:
        raise GencliError(
            "a model that predicts noise cannot start from noise alone (zero terminal SNR)",
            "spacing leading, or sampler euler, begins where some signal is left",
        )
    return (x - s * output) / a, output


def dynamic_threshold(x0: Tensor, ratio: float, max_value: float) -> Tensor:
    """Imagen's dynamic thresholding (Saharia et al. 2022, 2.3): clip each image to its own s, then divide by s.

    s is the `ratio` quantile of |x0|, at least 1 and at most `max_value`; at max_value 1, diffusers' default, this is
    plain clipping.
    """
    # one image at a time: torch.quantile takes at most 16 million values
    quantiles = [image.abs().float().quantile(ratio) for image in x0.flatten(1)]
    s = torch.stack(quantiles).to(x0.dtype).clamp(min=1, max=max_value).view(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) / s


def check_finite(x: Tensor, step: int, hint: str = "") -> None:
    """Raises GencliError when latents hold NaN or infinity after a step (counted from 0). One sum, one number read."""
    if not math.isfinite(x.sum(dtype=torch.float32).item()):
        raise GencliError(
            f"the model gave NaN or infinite values at step {step + 1}",
            hint or "`gencli models check` looks for broken weights",
        )
