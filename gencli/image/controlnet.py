"""ControlNets beside a checkpoint's UNet: opened, held against it, loaded, and what they say at each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image
from torch import Tensor

from gencli.checkpoints import build
from gencli.checkpoints.checkpoint import Part
from gencli.checkpoints.find import Source
from gencli.checkpoints.open import open_checkpoint
from gencli.errors import GencliError
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.conditioning import Conditioning
from gencli.image.diffusion.guidance import Model
from gencli.image.diffusion.schedule import Step
from gencli.image.files.pictures import from_picture
from gencli.image.pipeline import LoadedStage, Pipeline
from gencli.image.request import ImageRequest
from gencli.models.controlnet import ControlNetConfig, ControlNetModel
from gencli.models.unet_2d_condition_config import UNet2DConditionConfig

SHARED_INPUTS = ("encoder_hidden_states", "text_embeds", "time_ids")  # inputs of the UNet that a ControlNet reads too


def open_control(source: Source, checkpoint: ImageCheckpoint, *, allow_pickle: bool = False) -> Part:
    """Open a ControlNet. Raises GencliError for what is none, and for one that does not fit the checkpoint."""
    opened = open_checkpoint(source, allow_pickle=allow_pickle)
    if opened.contents.is_file:
        raise GencliError(f"{source.path}: single files are not supported for ControlNets", "give a folder or an id")
    part = opened.only_part("a ControlNet")
    if (kind := part.config.get("_class_name") or part.config.get("model_type")) != "ControlNetModel":
        raise GencliError(f"{source.name} is a {kind!s:.40}, no ControlNet")
    try:
        config = ControlNetConfig.from_dict(part.config)
    except GencliError as error:
        raise GencliError(f"{source.path}: {error.message}", error.hint) from None
    _check_fit(source, config, checkpoint)
    return part


def load_control(part: Part, pipeline: Pipeline) -> ControlNetModel:
    """Load a ControlNet on the UNet's device and in its precision. Raises GencliError for broken weights."""
    config, tensors = part.config, part.tensors()
    module = build.load(part.path, device=pipeline.device, dtype=pipeline.dtype, config=config, tensors=tensors)
    assert isinstance(module, ControlNetModel)  # as `open_control` has seen
    return module


def _check_fit(source: Source, control: ControlNetConfig, checkpoint: ImageCheckpoint) -> None:
    unet = checkpoint.configs[checkpoint.family.network]
    if unet.get("_class_name") != "UNet2DConditionModel" or "vae" not in checkpoint.configs:
        raise GencliError(f"{checkpoint.name} has no UNet that a ControlNet could lead", "Stable Diffusion has")
    config = UNet2DConditionConfig.from_dict(unet)
    if control.conditioning_channels not in (1, 3):
        raise GencliError(f"{source.name} reads images of {control.conditioning_channels} channels, not of 1 or 3")
    pairs: dict[str, tuple[object, object]] = {
        key: (control.levels(key), config.levels(key)) for key in ("layers_per_block", "cross_attention_dim")
    }
    for key in ("block_out_channels", "addition_embed_type", "projection_class_embeddings_input_dim"):
        pairs[key] = getattr(control, key), getattr(config, key)
    pairs["in_channels"] = control.in_channels, checkpoint.configs["vae"].get("latent_channels", 4)
    pairs["pixels a latent"] = control.scale, checkpoint.factor
    for key, (own, wanted) in pairs.items():
        if own != wanted:
            raise GencliError(
                f"{source.name} does not fit {checkpoint.name}: its {key} is {_brief(own)}, not {_brief(wanted)}",
                "a ControlNet goes with the models that it was trained for: SD 1, SD 2 or SDXL",
            )


def _brief(value: object) -> object:
    """One number for a tuple of equal ones, as configs have it."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


@dataclass(frozen=True)
class Active:
    """A ControlNet with its hint (1, C, h, w), which counts by `scale` at the steps of these indices."""

    network: ControlNetModel
    hint: Tensor
    scale: float
    steps: range


def activate(
    stage: LoadedStage,
    request: ImageRequest,
    steps: Sequence[Step],
    controls: Sequence[tuple[ControlNetModel, Image.Image]],
) -> list[Active]:
    """The ControlNets of a resolved request, each with its image."""
    size = (request.width or 0, request.height or 0)
    active: list[Active] = []
    if not controls:
        return active
    for (network, picture), chosen in zip(controls, request.controls, strict=True):
        fitting = picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
        pixels = (from_picture(fitting, network.config.conditioning_channels) + 1) / 2  # 0..1
        hint = network.embed(pixels.to(stage.device, stage.dtype))
        active.append(Active(network, hint, chosen.scale, window(len(steps), chosen.start, chosen.end)))
    return active


def window(count: int, start: float, end: float) -> range:
    """The indices of the steps that lie whole between two fractions of all, as diffusers counts them."""
    kept = [i for i in range(count) if i / count >= start and (i + 1) / count <= end]
    return range(kept[0], kept[-1] + 1) if kept else range(0)


Marked = tuple[Conditioning, Conditioning | None, Conditioning | None]


def mark_cond(cond: Conditioning, uncond: Conditioning | None, image_uncond: Conditioning | None) -> Marked:
    """The same with `is_cond`: 1 for `cond`, 0 for the others."""
    ones = next(iter(cond.inputs.values())).new_ones(1)
    others = [None if other is None else replace(other, is_cond=0 * ones) for other in (uncond, image_uncond)]
    return replace(cond, is_cond=ones), others[0], others[1]


class Controlled:
    """A model with ControlNets. It is called as the model is, and adds their residuals to the states of its UNet.

    ControlNets with `global_pool_conditions` add nothing where `is_cond` of the conditioning is 0.
    """

    def __init__(self, model: Model, controls: Sequence[Active], step: Callable[[], int]):
        """step: tells the index of the step that the sampler is at, as two steps may have the same timestep."""
        self.model, self.controls, self.step = model, controls, step

    def __call__(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        shared = {name: conditioning[name] for name in SHARED_INPUTS if name in conditioning.inputs}
        sums: list[Tensor] = []
        for control in self.controls:
            if control.scale == 0 or self.step() not in control.steps:
                continue
            down, middle = control.network(x.to(control.hint.dtype), timesteps, hint=control.hint, **shared)
            scale: float | Tensor = control.scale
            if control.network.config.global_pool_conditions and conditioning.is_cond is not None:
                scale = scale * conditioning.is_cond.to(middle.dtype)[:, None, None, None]
            residuals = [state * scale for state in (*down, middle)]
            sums = [a + b for a, b in zip(sums, residuals, strict=True)] if sums else residuals
        if sums:
            conditioning = replace(conditioning, down_residuals=sums[:-1], mid_residual=sums[-1])
        return self.model(x, timesteps, conditioning)
