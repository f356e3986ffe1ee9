"""Open what a request for images names, and check the request against the small files of it. No torch."""

from __future__ import annotations

from collections.abc import Callable

from gencli.checkpoints.checkpoint import Hints
from gencli.checkpoints.open import open_checkpoint
from gencli.errors import UsageError
from gencli.image import stages
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.drawers import is_drawer, open_drawer
from gencli.image.drawers.base import Drawer
from gencli.image.files.pictures import is_blank
from gencli.image.found import Inputs
from gencli.image.open import open_image_checkpoint, with_classifier
from gencli.image.request import ImageRequest, ImageSpec
from gencli.image.resolve import check_asked, notes, resolve, without_idle_weights
from gencli.spec import ModelSpec


def open_inputs(inputs: Inputs, spec: ImageSpec) -> ImageCheckpoint | Drawer:
    """Open the checkpoint and what belongs to it. Raise GencliError for what cannot be used."""
    allow_pickle = spec.allow_pickle
    hints = Hints(spec.prediction, spec.betas, spec.zero_snr, other_vae=inputs.vae is not None)
    found = open_checkpoint(inputs.model, allow_pickle=allow_pickle, hints=hints)
    if is_drawer(found):
        return open_drawer(found)
    opened = open_image_checkpoint(
        found,
        allow_pickle=allow_pickle,
        prediction=spec.prediction,
        betas=spec.betas,
        zero_snr=spec.zero_snr,
        vae=inputs.vae,
        ignore=spec.ignore_config,
    )
    if inputs.classifier is not None:
        opened = with_classifier(opened, inputs.classifier, allow_pickle=allow_pickle)
    if inputs.prior is not None:
        opened = stages.add_prior(opened, open_image_checkpoint(inputs.prior, allow_pickle=allow_pickle))
    if inputs.refiner is not None:
        opened = stages.add_refiner(opened, open_image_checkpoint(inputs.refiner, allow_pickle=allow_pickle))
    for upscaler in inputs.upscalers:
        opened = stages.add_upscaler(opened, open_image_checkpoint(upscaler, allow_pickle=allow_pickle))
    stages.check_reads_text(opened)
    return opened


def ready(
    inputs: Inputs,
    request: ImageRequest,
    where: ModelSpec,
    *,
    lines: bool,
    note: Callable[[str], None],
    accept: Callable[[ImageCheckpoint | Drawer], None] = lambda opened: None,
    drop_weights: bool = False,
) -> tuple[ImageCheckpoint | Drawer, ImageRequest]:
    """Open the checkpoint and resolve the request; return both. Remarks about the two go to `note`. accept: raises for
    a checkpoint that the command is not for. drop_weights: whether a model that reads no weights takes those of the
    prompts for text, as nobody has asked for them.

    Raise UsageError for a request that does not fit the checkpoint, GencliError for a checkpoint that cannot be used.
    """
    opened = open_inputs(inputs, request.spec(where))
    accept(opened)
    if lines and request.mix:
        raise UsageError("--lines beside --mix, which stands for a prompt")
    if lines and opened.prompt == "none":
        raise UsageError(f"{opened.name} draws without a prompt: --lines would have no effect")
    if isinstance(opened, Drawer):
        resolved = opened.resolve(request)
        if not lines:
            opened.check_asked(resolved)
        return opened, resolved
    if drop_weights and not opened.family.reads_clip and (request := without_idle_weights(request, opened)).weighted:
        note(f"{opened.name} reads no weights: brackets and BREAK in the prompt are text")
        request = request.replace(weighted=False)
    seen = [inputs.named[name] for name in request.reference]
    given = [image for image in (inputs.init, *inputs.control_images, *seen) if image is not None]
    resolved = resolve(request, opened, given[0].size if given else None)
    stages.plan(resolved, opened, has_init=inputs.init is not None)  # raises for what a stage cannot follow
    if not lines:
        check_asked(resolved, opened)
    for remark in notes(request, resolved, opened):
        note(remark)
    if inputs.mask is not None:
        size = resolved.width or 1, resolved.height or 1
        known = [size] if inputs.init is None else [inputs.init.size, size]
        if not any(_is_like(inputs.mask.size, one) for one in known):
            sizes = [f"{width}x{height}" for width, height in (inputs.mask.size, known[0])]
            note(f"the mask has another shape than the image, {sizes[0]} and not {sizes[1]}: it is stretched")
        if is_blank(inputs.mask, *size, step=1 if resolved.paste else opened.factor):
            place = "" if resolved.paste else " where a latent looks"
            note(f"the mask is white nowhere{place}: nothing is painted anew")
    return opened, resolved


def _is_like(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two sizes have one shape, within two parts in a hundred."""
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) < 0.02
