"""The stages of a request, each with its own settings. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from gencli.errors import GencliError, UsageError
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.diffusion import samplers
from gencli.image.diffusion.excerpt import window
from gencli.image.diffusion.flow import schedule_of
from gencli.image.diffusion.schedule import NoiseSchedule, Step, named_spacing
from gencli.image.families import Stage, as_refiner, as_upscaler, checks
from gencli.image.families.stable_diffusion import REFINER, STABLE_DIFFUSION_XL
from gencli.image.request import GUIDANCE, ImageRequest
from gencli.image.resolve import own_steps, sampler_options, with_sampler_options
from gencli.image.stage_values import STAGE_KEYS
from gencli.options import typed


@dataclass(frozen=True)
class StagePlan:
    """A stage, the request as it holds for this stage alone, and its steps."""

    stage: Stage
    request: ImageRequest
    sampler: samplers.Sampler
    options: Mapping[str, object]  # of the sampler
    spacing: str
    steps: list[Step]


def plan(request: ImageRequest, checkpoint: ImageCheckpoint, *, has_init: bool | None = None) -> list[StagePlan]:
    """Plan the stages of a resolved request.

    A stage other than the main one takes the main stage's settings, unless its row in the table of families or --stage
    says otherwise. Raises UsageError for a stage that there is not, and for settings that leave a stage without a step.
    """
    has_init = request.init is not None if has_init is None else has_init
    for name, values in request.stages.items():
        _check_own(name, values, checkpoint)
    for stage, owner in checkpoint.stages:
        own = typed(request.stages.get(stage.name, {}), "noise_level", int)
        asked = (request.noise_level if own is None else own) or 0
        most = owner.index.get("max_noise_level", 999) if stage.scale > 1 else 999
        if isinstance(most, int) and asked > most:
            raise UsageError(f"--noise-level {asked}: {owner.name} knows at most {most}")
    noises = any("noise_level" in one.family.defaults for one in (checkpoint, *checkpoint.further))
    if request.noise_level is not None and not noises:
        raise UsageError("--noise-level is for upscalers and variations", "name an upscaler with --upscaler")
    plans = []
    for stage, owner in checkpoint.stages:
        if owner is not checkpoint and stage.scale > 1:
            width, height = (stage.scale * (side or 0) for side in (request.width, request.height))
            request = request.replace(width=width, height=height)
        plans.append(_plan_stage(request, checkpoint, stage, owner, has_init))
    return plans


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


def add_prior(checkpoint: ImageCheckpoint, prior: ImageCheckpoint) -> ImageCheckpoint:
    """A decoder with what draws the embeddings that it is told. Raises GencliError for what do not go together."""
    wanted = checkpoint.family.prior
    if wanted is None or len(checkpoint.stages) > 1:
        raise GencliError(f"--prior is for decoders without a prior of their own, and {checkpoint.name} is not one")
    if prior.main.shows:
        raise GencliError(f"--prior {prior.name} is not a prior", f"{wanted} is one")
    checks.check_embeddings(checkpoint, prior.configs[prior.family.network])
    return dataclasses.replace(checkpoint, earlier=(prior,))


def add_upscaler(checkpoint: ImageCheckpoint, upscaler: ImageCheckpoint) -> ImageCheckpoint:
    """A checkpoint with another that enlarges its images. Raises GencliError for what enlarges none, and for one that
    reads texts which neither of the two encodes."""
    if upscaler.main.scale == 1:
        raise GencliError(f"--upscaler {upscaler.name} cannot enlarge images")
    reads_t5 = upscaler.main.conditioner == checkpoint.main.conditioner == "t5:load"
    if reads_t5 and "text_encoder" in checkpoint.parts:
        text_encoder = checkpoint.configs["text_encoder"]
        checks.check_text_width(upscaler, text_encoder)
        upscaler = upscaler.with_part("text_encoder", checkpoint.opened.parts["text_encoder"], text_encoder)
        upscaler = upscaler.with_tokenizer(checkpoint)
    check_reads_text(upscaler)
    count = sum(stage.scale > 1 for one in checkpoint.further for stage in one.family.stages)
    name = f"upscaler-{count + 1}" if count else "upscaler"
    further = dataclasses.replace(upscaler, family=as_upscaler(upscaler.family, name))
    return dataclasses.replace(checkpoint, further=(*checkpoint.further, further))


def check_reads_text(checkpoint: ImageCheckpoint) -> None:
    """Raise GencliError for a checkpoint whose text encoder is another's, and for one that draws no images."""
    if not checkpoint.stages[-1][0].shows:
        raise GencliError(
            f"{checkpoint.name} is a prior: it makes embeddings, from which a decoder draws images",
            "name it with --prior, beside a decoder, as in -m kandinsky-community/kandinsky-2-2-decoder --prior …",
        )
    if checkpoint.family.prior is not None and len(checkpoint.stages) == 1:
        raise GencliError(
            f"{checkpoint.name} needs a prior, which makes the embeddings that it draws from",
            f"name one, as in --prior {checkpoint.family.prior}",
        )
    own = [name for one in (*checkpoint.earlier, checkpoint) for name in one.parts]
    if checkpoint.prompt == "text" and not any("text_encoder" in name or name == "bert" for name in own):
        raise GencliError(
            f"{checkpoint.name} has no text encoder of its own",
            "draw with the first stage, as in -m DeepFloyd/IF-I-XL-v1.0 --upscaler DeepFloyd/IF-II-L-v1.0",
        )


def _check_own(name: str, values: Mapping[str, object], checkpoint: ImageCheckpoint) -> None:
    """Raise UsageError for settings of a stage that there is not, and for those that it cannot follow."""
    main, sets = checkpoint.main, "--steps, --cfg-scale etc. set"
    others = [stage.name for stage, _ in checkpoint.stages if stage is not main and stage.follows is None]
    if name not in others:
        shown = [f"{one.name} (main)" if one is main else one.name for one, _ in checkpoint.stages if not one.follows]
        hint = f"its stages are {', '.join(shown)}; {sets} the main one"
        hint = hint if others else f"{sets} its only stage, {main.name}"
        raise UsageError(f"--stage {name}: {checkpoint.name} has no such stage", hint)
    [(stage, owner)] = [(stage, owner) for stage, owner in checkpoint.stages if stage.name == name]
    unread = set() if stage.conditioner is not None else set(GUIDANCE.values())
    unread |= set() if "noise_level" in owner.family.defaults and stage is owner.main else {"noise_level"}
    if wrong := [key for key, field in STAGE_KEYS.items() if field in values.keys() & unread]:
        raise UsageError(f"--stage {name}: {' and '.join(wrong)} would have no effect in this stage")


def _plan_stage(
    request: ImageRequest, checkpoint: ImageCheckpoint, stage: Stage, owner: ImageCheckpoint, has_init: bool
) -> StagePlan:
    schedule = schedule_of(owner.configs[stage.scheduler])
    tokens = math.prod((side or 0) // owner.multiple for side in (request.width, request.height))
    schedule = schedule.for_image(tokens, stage.law)
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
    steps = steps[slice(*stage.steps)]
    if not steps:
        raise UsageError(f"--stage {stage.name}:steps={request.steps}: two networks share them: give at least 2")
    steps = [dataclasses.replace(step, index=index) for index, step in enumerate(steps)]
    return StagePlan(stage, request, sampler, options, spacing, steps)


def _own_request(request: ImageRequest, stage: Stage, owner: ImageCheckpoint, schedule: NoiseSchedule) -> ImageRequest:
    """The request with the settings of a stage that is not the main one."""
    own = request.stages.get(stage.shown_as, {})
    said = {} if request.noise_level is None else {"noise_level": request.noise_level}
    values = {**stage.defaults, **said, **own}
    sampler = samplers.get(typed(values, "sampler", str) or request.sampler or "ddim")
    if sampler.name != request.sampler or "sampler" in stage.defaults:  # the options are another sampler's
        values = {"eta": None, "karras": None, "sampler_options": {}, **values}
    spacing = typed(values, "spacing", str) or named_spacing(owner.configs[stage.scheduler]) or sampler.spacing
    values |= {"spacing": spacing, **({} if "steps" in own else own_steps(spacing))}
    values["weighted"] = request.weighted and str(stage.conditioner).startswith("stable_diffusion")
    return with_sampler_options(request.replace(**values, strength=None), schedule)
