"""What holds for a checkpoint where neither the request nor its generation_config.json says otherwise. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gencli.image.checkpoint import Checkpoint
from gencli.image.request import BUILT_IN, BUILT_IN_TEXT, ImageRequest

IMAGE_GUIDANCE = 1.5  # of models that edit a picture
FEW = {"steps": 4, "guidance": 1.0}  # of models distilled to few steps; at guidance 1 they are asked once a step
DISTILLED = {  # scheduler class → sampler, where a checkpoint's scheduler tells that it is such a model
    "LCMScheduler": "lcm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
}


def built_in(checkpoint: Checkpoint, sampler: str | None = None) -> dict[str, Any]:
    """Values for `ImageRequest` by name; `sampler`: the request's, if it names one.

    The family's own, which are those of diffusers' pipeline; 4 steps and no guidance for models distilled to few steps,
    and for the sampler lcm; such models' guidance is the family's where the UNet is told it as a number.
    """
    values = {**BUILT_IN, **(BUILT_IN_TEXT if checkpoint.prompt == "text" else {}), **checkpoint.family.defaults}
    if checkpoint.also_reads == "picture":
        values["image_guidance"] = IMAGE_GUIDANCE
    own = distilled_sampler(checkpoint)
    if own is not None:
        values["sampler"] = own
    if own is not None or sampler == "lcm":
        values["steps"] = FEW["steps"]
        if "guidance" in values and not _reads_guidance(checkpoint):
            values["guidance"] = FEW["guidance"]
    return values


def distilled_sampler(checkpoint: Checkpoint) -> str | None:
    """The sampler of a model distilled to few steps, as its scheduler_config.json tells: a latent consistency model's
    class, or, as SD Turbo and SDXL Turbo have it, Euler steps from the last timestep on (trailing) for ε."""
    scheduler = checkpoint.configs["scheduler"]
    kind = str(scheduler.get("_class_name"))
    sampler = DISTILLED.get(kind)
    if sampler in (None, "lcm") or checkpoint.prompt != "text":
        return sampler if checkpoint.prompt == "text" else None
    trailing = scheduler.get("timestep_spacing") == "trailing"
    eps = scheduler.get("prediction_type", "epsilon") == "epsilon" and not scheduler.get("rescale_betas_zero_snr")
    return sampler if trailing and eps else None


def notes(asked: ImageRequest, request: ImageRequest, checkpoint: Checkpoint) -> Iterator[str]:
    """What a user should know of a request as it was asked and as it was resolved."""
    own = distilled_sampler(checkpoint)
    if own not in (None, "lcm") and None in (asked.steps, asked.guidance, asked.sampler):
        values = f"{request.sampler}, {request.steps} steps, --cfg-scale {request.guidance:g}"
        yield f"{checkpoint.name} looks made for few steps (its scheduler is Euler's, with trailing steps): {values}"
    if request.negative and _reads_guidance(checkpoint):
        yield f"the negative prompt says nothing to {checkpoint.name}, which is told --cfg-scale as a number"
    elif request.negative and (request.guidance or 0) <= 1:
        yield f"the negative prompt says nothing at --cfg-scale {request.guidance:g}"
    if asked.image_guidance is not None and (request.guidance or 0) <= 1:
        yield f"--image-cfg-scale says nothing at --cfg-scale {request.guidance:g}"


def _reads_guidance(checkpoint: Checkpoint) -> bool:
    return checkpoint.configs[checkpoint.family.network].get("time_cond_proj_dim") is not None
