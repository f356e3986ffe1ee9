"""The stages of a request, each with its own settings. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gencli.errors import GencliError, UsageError
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.diffusion import samplers
from gencli.image.diffusion.schedule import NoiseSchedule, Step, window
from gencli.image.families import REFINER, STABLE_DIFFUSION_XL, Stage, as_refiner
from gencli.image.request import ImageRequest
from gencli.image.resolve import sampler_options, with_sampler_options


@dataclass(frozen=True)
class StagePlan:
    """A stage, the request as it holds for this stage alone, and its steps."""

    stage: Stage
    request: ImageRequest
    sampler: samplers.Sampler
    options: Mapping[str, Any]  # of the sampler
    spacing: str
    steps: list[Step]


def plan(request: ImageRequest, checkpoint: ImageCheckpoint, *, has_init: bool | None = None) -> list[StagePlan]:
    """Plan the stages of a resolved request.

    A stage other than the main one takes the main stage's settings, unless its row in the table of families or --stage
    says otherwise. Raises UsageError for a stage that there is not, and for settings that leave a stage without a step.
    """
    has_init = request.init is not None if has_init is None else has_init
    names = [stage.name for stage, _ in checkpoint.stages if stage is not checkpoint.main]
    for name in request.stages:
        if name not in names:
            hint = f"it has {', '.join(names)} beside its main stage" if names else "its only stage takes --steps etc."
            raise UsageError(f"--stage {name}: {checkpoint.name} has no such stage", hint)
    return [_plan_stage(request, checkpoint, stage, owner, has_init) for stage, owner in checkpoint.stages]


def add_refiner(checkpoint: ImageCheckpoint, refiner: ImageCheckpoint) -> ImageCheckpoint:
    """SDXL with another checkpoint of SDXL's kind, such as its refiner, that continues its latents.

    Raises GencliError for checkpoints that do not go together.
    """
    if checkpoint.family is not STABLE_DIFFUSION_XL:
        raise GencliError(f"--refiner continues Stable Diffusion XL alone, which {checkpoint.name} is not")
    channels = [one.configs.get("vae", {}).get("latent_channels", 4) for one in (checkpoint, refiner)]
    if refiner.family not in (STABLE_DIFFUSION_XL, REFINER) or refiner.also_reads or channels[0] != channels[1]:
        raise GencliError(
            f"--refiner {refiner.name} does not continue what {checkpoint.name} draws",
            "stabilityai/stable-diffusion-xl-refiner-1.0 does",
        )
    further = dataclasses.replace(refiner, family=as_refiner(refiner.family))
    return dataclasses.replace(checkpoint, further=(further,))


def _plan_stage(
    request: ImageRequest, checkpoint: ImageCheckpoint, stage: Stage, owner: ImageCheckpoint, has_init: bool
) -> StagePlan:
    schedule = NoiseSchedule.from_config(owner.configs[stage.scheduler])
    if stage is not checkpoint.main:
        request = _own_request(request, stage, owner, schedule)
    sampler = samplers.get(request.sampler or "ddim")
    options = sampler.settings(schedule, sampler_options(request))
    spacing = request.spacing or schedule.timestep_spacing
    is_main = stage is checkpoint.main
    strength = request.strength or 1.0 if has_init and is_main else None
    steps = sampler.steps(schedule, request.steps or 1, spacing, strength, **options)
    if request.refiner is not None:
        at = request.refiner_start or 0.0
        fractions = (0.0, at) if is_main else (at, 1.0)
        steps = window(steps, schedule.num_train_timesteps, *fractions)
    return StagePlan(stage, request, sampler, options, spacing, steps)


def _own_request(request: ImageRequest, stage: Stage, owner: ImageCheckpoint, schedule: NoiseSchedule) -> ImageRequest:
    """The request with the settings of a stage that is not the main one."""
    values = {**stage.defaults, **request.stages.get(stage.name, {})}
    sampler = samplers.get(values.get("sampler") or request.sampler or "ddim")
    if sampler.name != request.sampler:
        values = {"eta": None, "karras": None, "sampler_options": {}, **values}
    values.setdefault("spacing", owner.configs[stage.scheduler].get("timestep_spacing") or sampler.spacing)
    return with_sampler_options(request.replace(**values, strength=None), schedule)
