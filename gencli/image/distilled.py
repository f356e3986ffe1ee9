"""Models distilled to few steps: how a checkpoint tells that it is one, and what then holds. No torch."""

from __future__ import annotations

import re

from gencli.image.checkpoint import ImageCheckpoint

FEW = {"steps": 4, "guidance": 1.0}  # of models distilled to few steps; at guidance 1 they are asked once a step
FEW_STEPS = re.compile(r"turbo|lightning|hyper|schnell|flash|dmd|[0-9]-?step", re.IGNORECASE)  # in their names
DISTILLED = {  # scheduler class → sampler, where a checkpoint's scheduler tells that it is such a model
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
}
FEW_SAMPLERS = ("lcm", "tcd")  # for such models alone


def distilled_sampler(checkpoint: ImageCheckpoint) -> str | None:
    """Return the sampler of a model distilled to few steps: by its scheduler's class a latent consistency model's, and
    by its scheduler and its name one like SD Turbo."""
    sampler = few_steps_sampler(checkpoint)
    return sampler if sampler in FEW_SAMPLERS or FEW_STEPS.search(_names(checkpoint)) else None


def is_distilled(checkpoint: ImageCheckpoint) -> bool:
    """Return whether a model of a family with few-step forms is one, as model_index.json says it, or its name, or noise
    levels that are not shifted (FLUX.1 schnell's)."""
    said, pattern = checkpoint.index.get("is_distilled"), checkpoint.family.distilled
    if said is not None or pattern is None:
        return bool(said)
    scheduler = checkpoint.configs[checkpoint.main.scheduler]
    unshifted = scheduler.get("shift", 1.0) == 1 and not scheduler.get("use_dynamic_shifting")
    return unshifted or re.search(pattern, _names(checkpoint), re.IGNORECASE) is not None


def _names(checkpoint: ImageCheckpoint) -> str:
    """What a checkpoint is called, by the user and by its own files."""
    own = [checkpoint.index.get("_name_or_path"), checkpoint.configs[checkpoint.family.network].get("_name_or_path")]
    return " ".join([checkpoint.name, checkpoint.folder.name, *(str(name) for name in own if name)])


def few_steps_sampler(checkpoint: ImageCheckpoint) -> str | None:
    """Return the sampler that a scheduler_config.json tells as models of few steps have it: as SD Turbo and SDXL Turbo,
    Euler steps from the last timestep on (trailing) for ε. Ordinary models may have such a scheduler too."""
    scheduler = checkpoint.configs[checkpoint.main.scheduler]
    kind = str(scheduler.get("_class_name"))
    sampler = DISTILLED.get(kind)
    if sampler in (None, *FEW_SAMPLERS) or checkpoint.prompt != "text":
        return sampler if checkpoint.prompt == "text" else None
    trailing = scheduler.get("timestep_spacing") == "trailing"
    eps = scheduler.get("prediction_type", "epsilon") == "epsilon" and not scheduler.get("rescale_betas_zero_snr")
    return sampler if trailing and eps else None
