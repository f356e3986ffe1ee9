"""Classifier guidance (Dhariwal & Nichol 2021, section 4): ∇ log p(y | x_t) leads each step to the class y.

Works with class-conditional models and others, and together with classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.image.diffusion.guidance import Predict, Prediction
from gencli.image.diffusion.schedule import Point
from gencli.models.module import BaseModel

Gradient = Callable[[Tensor, float], Tensor]
"""gradient(x (B, C, H, W), t) → s · ∇ log p(y | x_t), like x."""


@dataclass(frozen=True)
class LogLikelihood:
    """The gradient of a classifier's log-likelihood. classifier(x, t) gives logits (B, K); classes (B,) are the wanted
    ones; scale is the paper's s."""

    classifier: BaseModel
    classes: Tensor
    scale: float

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """s · ∇ₓ log p(y | x_t). Raises GencliError where the classifier gives NaN or infinity."""
        dtype = self.classifier.compute_dtype
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_(True)
            logits = self.classifier(leaf.to(dtype), torch.full((len(x),), t, device=x.device))
            chosen = logits.float().log_softmax(-1).gather(1, self.classes.to(x.device)[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), leaf)
        if not torch.isfinite(gradient).all():
            raise GencliError(f"the classifier gave NaN or infinite values at t = {t:g}", "its weights may be broken")
        return self.scale * gradient


@dataclass(frozen=True)
class ClassifierGuided:
    """A denoiser guided by a classifier.

    mean: the sampler shifts the mean of its steps by their variance times the gradient (algorithm 1, for samplers that
    draw noise from the posterior); else ε̂ = ε − √(1−ᾱ) · ∇ log p, and x0 follows (algorithm 2, for samplers that solve
    by the score). As in guided-diffusion, x0 is not limited again after that.
    """

    denoiser: Predict
    gradient: Gradient
    mean: bool

    def __call__(self, x: Tensor, point: Point) -> Prediction:
        prediction = self.denoiser(x, point)
        a, s = point.sqrt_alpha_cumprod, point.sqrt_one_minus_alpha_cumprod
        if a == 0:  # x holds nothing yet that a classifier could judge
            return prediction
        gradient = self.gradient(x, point.t)
        if self.mean:
            return replace(prediction, gradient=gradient)
        x0 = prediction.x0 + s**2 / a * gradient
        return replace(prediction, x0=x0, eps=prediction.eps - s * gradient)
