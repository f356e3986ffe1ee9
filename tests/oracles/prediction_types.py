"""The inverse of `guidance.to_x0_eps`."""

from __future__ import annotations

from torch import Tensor

from gencli.image.diffusion.schedule import Point


def to_output(prediction_type: str, x0: Tensor, eps: Tensor, point: Point) -> Tensor:
    """What a model of this prediction type should output."""
    if prediction_type == "v_prediction":
        return point.sqrt_alpha_cumprod * eps - point.sqrt_one_minus_alpha_cumprod * x0
    return x0 if prediction_type == "sample" else eps
