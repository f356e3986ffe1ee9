"""Complete a request: its own values, else the checkpoint's, else the built-in ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gencli.errors import GencliError, UsageError
from gencli.image import words
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.diffusion import samplers
from gencli.image.diffusion.flow import schedule_of
from gencli.image.diffusion.schedule import CHOICES, NoiseSchedule, named_spacing
from gencli.image.diffusion.spacings import SECTIONS
from gencli.image.distilled import FEW, FEW_SAMPLERS, distilled_sampler, few_steps_sampler, is_distilled
from gencli.image.families import TINY, tiny_named
from gencli.image.prompts import weighting
from gencli.image.request import BUILT_IN, BUILT_IN_TEXT, GUIDANCE, ImageRequest
from gencli.image.sizes import size_of
from gencli.image.stage_values import STAGE_KEYS
from gencli.options import check_values, typed

STRENGTH, STRENGTH_WITH_MASK = 0.8, 1.0
REFINER_START = 0.8  # as in diffusers' examples
CLASSIFIER_SCALE = 1.0
IMAGE_GUIDANCE = 1.5  # of models that edit a picture


def resolve(
    request: ImageRequest, checkpoint: ImageCheckpoint, given_size: tuple[int, int] | None = None
) -> ImageRequest:
    """Return a request with every value filled in. given_size: width and height of the image to start from, or of the
    first one that a ControlNet reads, if any.

    Raise UsageError for a request that does not fit the checkpoint, GencliError for a checkpoint whose own settings
    make no sense. Only the seed and the dtype stay as they are.
    """
    request = without_idle_weights(with_main_stage(request, checkpoint.main.name), checkpoint)
    schedule = schedule_of(checkpoint.configs[checkpoint.main.scheduler])
    _check_text(request, checkpoint)
    _check_drawers(request, checkpoint)
    defaults = built_in(checkpoint, request.sampler)
    # The checkpoint's where it names one; else, as in diffusers, what the sampler is used to.
    named = named_spacing(checkpoint.configs[checkpoint.main.scheduler])
    spacing = named or samplers.get(request.sampler or str(defaults["sampler"])).spacing
    defaults |= {"spacing": spacing, **own_steps(request.spacing or spacing)}
    _check_start(request, checkpoint)
    if request.init is not None and checkpoint.also_reads != "picture" and checkpoint.family.reads_init == "changes":
        defaults.setdefault("strength", STRENGTH)
        defaults["strength"] = defaults["strength"] if request.mask is None else STRENGTH_WITH_MASK
    else:
        defaults.pop("strength", None)
    own = {name: value for name, value in checkpoint.defaults.items() if checkpoint.prompt != "none" or name == "steps"}
    try:
        check_values(ImageRequest, own)
    except UsageError as error:
        where = checkpoint.folder / "generation_config.json"
        raise GencliError(f"{where}: {error.message.removeprefix('--')}", error.hint) from None
    values = {**defaults, **own}
    values = {name: value for name, value in values.items() if getattr(request, name) is None}
    values["width"], values["height"] = width, height = size_of(request, checkpoint, given_size)
    _check_classifier(request, checkpoint, width, height)
    values = {**values, **_sampler_values({**vars(request), **values}, schedule)}
    return request.replace(**values)


def with_main_stage(request: ImageRequest, name: str) -> ImageRequest:
    """Return a request where --stage with the main stage's own name is as if the options themselves were given.

    Raise UsageError where both are given and differ.
    """
    own = request.stages.get(name, {})
    if not own:
        return request
    for key, field in STAGE_KEYS.items():
        said = getattr(request, field)
        if field in own and said not in (None, own[field]):
            raise UsageError(
                f"--stage {name}:{key}={own[field]} and --{key} {said} differ, and both set the main stage",
                f"leave out --stage {name}:{key}",
            )
    rest = tuple(text for text in request.stage if text.partition(":")[0] != name)
    return request.replace(stage=rest, **own)


def own_steps(spacing: str) -> dict[str, int]:
    """Return `steps` where a spacing is a list of so many."""
    return {"steps": sum(SECTIONS[spacing])} if spacing in SECTIONS else {}


def built_in(checkpoint: ImageCheckpoint, sampler: str | None = None) -> dict[str, object]:
    """Return the built-in values by name. sampler: the request's, if it names one.

    The family's own, which are those of diffusers' pipeline; 4 steps and no guidance for models distilled to few steps,
    and for the samplers lcm and tcd; such models' guidance is the family's where the UNet is told it as a number.
    """
    values = {**BUILT_IN, **(BUILT_IN_TEXT if checkpoint.prompt == "text" else {}), **checkpoint.family.defaults}
    if any(one.family.stages[0].name == "refiner" for one in checkpoint.further):
        values["refiner_start"] = REFINER_START
    if checkpoint.also_reads == "picture":
        values["image_guidance"] = IMAGE_GUIDANCE
    if "classifier" in checkpoint.configs:
        values["classifier_scale"] = CLASSIFIER_SCALE
    if is_distilled(checkpoint):
        values |= checkpoint.family.few
    own = distilled_sampler(checkpoint)
    if own is not None:
        values["sampler"] = own
    if own is not None or sampler in FEW_SAMPLERS:
        values["steps"] = FEW["steps"]
        if "guidance" in values and not _reads_guidance(checkpoint):
            values["guidance"] = FEW["guidance"]
    return values


def notes(asked: ImageRequest, request: ImageRequest, checkpoint: ImageCheckpoint) -> Iterator[str]:
    """Yield remarks about a request as it was asked and as it was resolved."""
    like = few_steps_sampler(checkpoint)
    if like not in (None, *FEW_SAMPLERS) and None in (asked.steps, asked.guidance, asked.sampler):
        values = f"{request.sampler}, {request.steps} steps, --cfg-scale {request.guidance:g}"
        if distilled_sampler(checkpoint) is not None:
            yield f"{checkpoint.name} looks made for few steps (by its name, and Euler's trailing steps): {values}"
        else:
            few = f"--sampler {like} --steps {FEW['steps']} --cfg-scale {FEW['guidance']:g}"
            yield f"{checkpoint.name} is drawn with {values}; if it was made for few steps: {few}"
    if (tiny := tiny_named(request.vae)) is not None and tiny != checkpoint.family.tiny:
        yield f"--vae {request.vae} reads the latents of {TINY[tiny]}: images of {checkpoint.name} may look wrong"
    guided = {"the negative prompt": request.negative, "--image-cfg-scale": asked.image_guidance}
    guided |= {flag: getattr(asked, field) for flag, field in GUIDANCE.items() if field != "guidance"}
    for what in (what for what, value in guided.items() if value):
        if _reads_guidance(checkpoint):
            yield f"{what} has no effect: {checkpoint.name} reads --cfg-scale as a number"
        elif (request.guidance or 0) <= 1:
            yield f"{what} has no effect at --cfg-scale {request.guidance:g}"
    if (request.guidance or 0) > 1 and request.steps and not request.guided_steps(request.steps):
        yield f"no step is guided, as with --cfg-scale 1: none of {request.steps} lies in the interval of guidance"
    if checkpoint.prompt == "text":
        size = request.width or 0, request.height or 0
        yield from words.notes(checkpoint.name, checkpoint.folder, request.prompt, size, checkpoint.size)


def _reads_guidance(checkpoint: ImageCheckpoint) -> bool:
    network = checkpoint.configs[checkpoint.family.network]
    return network.get("time_cond_proj_dim") is not None or network.get("guidance_embeds") is True


def _check_drawers(request: ImageRequest, checkpoint: ImageCheckpoint) -> None:
    """Raise UsageError for options of models that do not denoise."""
    names = ("keep_rows", "temperature", "top_k", "top_p", "truncation")
    if given := [f"--{name.replace('_', '-')}" for name in names if getattr(request, name) is not None]:
        raise UsageError(f"{checkpoint.name} denoises: {', '.join(given)} would have no effect")


def without_idle_weights(request: ImageRequest, checkpoint: ImageCheckpoint) -> ImageRequest:
    """Return a request whose prompts are not read with weights where they have none, and the model would read none:
    other tools' images say of all prompts that they are read so."""
    if not request.weighted or checkpoint.family.reads_clip or not request.prompt:
        return request
    pieces = [one for text in (request.prompt, request.negative or "") for one in weighting.parse(text)]
    return request if any(one.weight != 1 or one.text is None for one in pieces) else request.replace(weighted=False)


def _check_text(request: ImageRequest, checkpoint: ImageCheckpoint) -> None:
    given = {"--weighted": request.weighted, "--embedding": request.embedding, "--clip-skip": request.clip_skip}
    if request.mix and request.prompt:
        raise UsageError("a prompt beside --mix", "mix it too, with its weight: --mix 'TEXT:0.5'")
    if request.mix and checkpoint.family.prior is None:
        raise UsageError(f"--mix needs a decoder whose prior can mix, such as Kandinsky 2.2; {checkpoint.name} cannot")
    if not checkpoint.family.reads_clip and (wrong := [name for name, value in given.items() if value]):
        whose = f"{checkpoint.name}, whose prompts are not read as Stable Diffusion's are"
        hint = "--no-weighted takes brackets as text" if request.weighted else None
        raise UsageError(f"{' and '.join(wrong)} would have no effect on {whose}", hint)
    _check_clip_skip(request, checkpoint)
    for text in (request.prompt, request.negative or "") if request.weighted else ():
        weighting.parse(text)
    if checkpoint.prompt == "text":
        return
    if checkpoint.prompt == "class":
        _check_class(request, checkpoint)
        return
    given = {"a prompt": request.prompt, "--negative": request.negative}
    given |= {flag: getattr(request, field) for flag, field in GUIDANCE.items()}
    if wrong := [name for name, value in given.items() if value not in (None, "")]:
        raise UsageError(f"{checkpoint.name} draws without a prompt: {' and '.join(wrong)} would have no effect")


def _check_clip_skip(request: ImageRequest, checkpoint: ImageCheckpoint) -> None:
    """Raise UsageError for more layers than a text encoder has."""
    for name, config in checkpoint.configs.items():
        layers = config.get("num_hidden_layers", 12)
        if name.startswith("text_encoder") and isinstance(layers, int) and (request.clip_skip or 1) > layers:
            raise UsageError(f"--clip-skip {request.clip_skip}: the {name} of {checkpoint.name} has {layers} layers")


def _check_start(request: ImageRequest, checkpoint: ImageCheckpoint) -> None:
    """Raise UsageError if a network that reads an image gets none, or options that it cannot follow."""
    name, reads = checkpoint.name, checkpoint.also_reads
    _check_references(request, checkpoint)
    if reads == "mask" and (request.init is None or request.mask is None):
        raise UsageError(f"{name} paints by a mask", "give it an image and a mask: -i/--init FILE --mask FILE")
    if checkpoint.family.reads_init != "changes":
        _check_whole(request, checkpoint)
    if checkpoint.family.needs_init and request.init is None:
        hint = "give it one with -i/--init FILE, or name it with --refiner beside SDXL's base model"
        raise UsageError(f"{name} refines an image, and needs one to start from", hint)
    if reads != "picture":
        if request.image_guidance is not None:
            raise UsageError(f"--image-cfg-scale is for models that edit an image, and {name} is not one")
        return
    if request.init is None:
        raise UsageError(f"{name} edits an image as the prompt says", "name the image with -i/--init FILE")
    given = {"--strength": request.strength, "--mask": request.mask}
    if wrong := [flag for flag, value in given.items() if value is not None]:
        raise UsageError(f"{name} edits the whole image: {' and '.join(wrong)} would have no effect")


def _check_references(request: ImageRequest, checkpoint: ImageCheckpoint) -> None:
    """Raise UsageError for more images than the network can look at."""
    rule, asked = checkpoint.family.references, len(request.reference)
    if asked and rule is None:
        hint = "FLUX.1 Kontext, FLUX.2 klein and Qwen-Image-Edit can; -i/--init FILE starts from an image"
        raise UsageError(f"{checkpoint.name} cannot look at images: --reference would have no effect", hint)
    asked += checkpoint.family.reads_init == "edits" and request.init is not None
    if rule is not None and asked > rule.most:
        many = "1 image" if rule.most == 1 else f"{rule.most} images"
        raise UsageError(f"{checkpoint.name} looks at {many} at most, and {asked} are given")


def _check_whole(request: ImageRequest, checkpoint: ImageCheckpoint) -> None:
    """Raise UsageError if a network that enlarges, varies or edits an image gets none, or options that it cannot
    follow."""
    does = checkpoint.family.reads_init
    if does == "none" and request.init is not None:
        raise UsageError(f"{checkpoint.name} draws from noise alone: -i/--init would have no effect")
    if request.init is None and does in ("none", "edits"):
        return
    if request.init is None:
        hint = "give it one with -i/--init FILE"
        hint += ", or name it with --upscaler beside a model that draws" if does == "enlarges" else ""
        raise UsageError(f"{checkpoint.name} {does} an image, and needs one to start from", hint)
    given = {"--strength": request.strength, "--mask": request.mask}
    if wrong := [flag for flag, value in given.items() if value is not None]:
        raise UsageError(f"{checkpoint.name} {does} the whole image: {' and '.join(wrong)} would have no effect")


def _check_class(request: ImageRequest, checkpoint: ImageCheckpoint) -> None:
    """The prompt names a class (an empty one may still be told by lines), and guidance has a class for none to lead
    away from. Raise UsageError."""
    classes = checkpoint.classes
    assert classes is not None
    if request.prompt.strip():
        classes.find(request.prompt)
    if classes.null is not None:
        classes.find(request.negative or "")
        return
    given = {"--negative": request.negative, **{flag: getattr(request, field) for flag, field in GUIDANCE.items()}}
    if wrong := [name for name, value in given.items() if value not in (None, "")]:
        raise UsageError(
            f"{checkpoint.name} has no class that stands for none: {' and '.join(wrong)} would have no effect",
            "--classifier leads such a model to its class",
        )


def check_asked(request: ImageRequest, checkpoint: ImageCheckpoint) -> None:
    """Raise UsageError if no class is named, and the model needs one."""
    if checkpoint.prompt == "class" and checkpoint.classes is not None:
        checkpoint.classes.find(request.prompt)


def _check_classifier(request: ImageRequest, checkpoint: ImageCheckpoint, width: int, height: int) -> None:
    """Raise UsageError for a scale without a classifier, and for a size that the classifier cannot read."""
    config = checkpoint.configs.get("classifier")
    if config is None:
        if request.classifier_scale is not None:
            raise UsageError("--classifier-scale without a classifier", "name one with --classifier")
        return
    side = config.get("image_size")
    if config.get("pool", "attention") == "attention" and side is not None and (width, height) != (side, side):
        raise UsageError(
            f"--classifier judges images of {side}x{side} pixels, not of {width}x{height}", f"--size {side}x{side}"
        )


def with_sampler_options(request: ImageRequest, schedule: NoiseSchedule) -> ImageRequest:
    """Return a request with the options of its sampler written out, as `_sampler_values` has them."""
    return request.replace(**_sampler_values(vars(request), schedule))


def _sampler_values(values: Mapping[str, object], schedule: NoiseSchedule) -> dict[str, object]:
    """Return the sampler's options that are not at its defaults, or not at the checkpoint's, written out, and checked.

    values: all of a request but these. Raise UsageError for options that the sampler cannot follow.
    """
    sampler = samplers.get(typed(values, "sampler", str) or "")
    options = sampler.settings(schedule, _named_options(values))
    for name, value in options.items():
        _check_option(sampler.name, name, value, sampler.options[name])
    usual = {name: {default, getattr(schedule, name, default)} for name, default in sampler.options.items()}
    changed = {name: value for name, value in options.items() if usual[name] != {value}}
    own = {name: changed.pop(name) if name in changed else options.get(name) for name in ("eta", "karras")}
    steps, spacing = typed(values, "steps", int) or 1, typed(values, "spacing", str)
    sampler.steps(schedule, steps, spacing, typed(values, "strength", float), **options)  # raises
    return {**own, "sampler_options": changed}


def _check_option(sampler: str, name: str, value: object, default: object) -> None:
    """Raise UsageError for an option of another type than its default's, or not among its known values."""
    known = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, known) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise UsageError(f"sampler {sampler}: option {name} = {value!r}: expected {_WORDS[type(default)]}")
    if value not in CHOICES.get(name, [value]):
        raise UsageError(f"sampler {sampler}: option {name} = {value!r}: expected one of {', '.join(CHOICES[name])}")


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}


def sampler_options(request: ImageRequest) -> dict[str, object]:
    """Return the sampler's options that a request names."""
    return _named_options(vars(request))


def _named_options(values: Mapping[str, object]) -> dict[str, object]:
    named = values["sampler_options"]
    own = {name: values[name] for name in ("eta", "karras") if values[name] is not None}
    return {**(named if isinstance(named, Mapping) else {}), **own}
