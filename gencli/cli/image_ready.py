"""A request held against the small files of its checkpoint: all that can be told before torch is imported."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from gencli.checkpoints import open as door
from gencli.checkpoints.checkpoint import Hints
from gencli.checkpoints.find import Source
from gencli.errors import UsageError
from gencli.image import palette as palettes
from gencli.image import stages
from gencli.image.checkpoint import Checkpoint, open_checkpoint
from gencli.image.palette import Palette, is_palette, open_palette
from gencli.image.replace import with_classifier
from gencli.image.request import ImageRequest
from gencli.image.resolve import check_asked, notes, resolve


def ready(
    source: Source,
    request: ImageRequest,
    *,
    init: Image.Image | None,
    lines: bool,
    note: Callable[[str], None],
    vae: Source | None = None,
    classifier: Source | None = None,
    refiner: Source | None = None,
    allow_pickle: bool = False,
) -> tuple[Checkpoint | Palette, ImageRequest]:
    """The checkpoint, and the request with nothing left open. What is odd about the two goes to `note`.

    Raises UsageError for a request that does not fit the checkpoint, GencliError for a checkpoint that cannot be used.
    """
    opened: Checkpoint | Palette
    hints = Hints(request.prediction, request.betas, other_vae=vae is not None)
    found = door.open_checkpoint(source, allow_pickle=allow_pickle, hints=hints)
    if is_palette(found):
        opened = open_palette(found)
        prompted = False
    else:
        said = {"prediction": request.prediction, "betas": request.betas}
        opened = open_checkpoint(found, allow_pickle=allow_pickle, vae=vae, **said)
        if classifier is not None:
            opened = with_classifier(opened, classifier, allow_pickle=allow_pickle)
        if refiner is not None:
            further = open_checkpoint(refiner, allow_pickle=allow_pickle)
            opened = stages.add_refiner(opened, further)
        prompted = opened.prompt != "none"
    if lines and not prompted:
        raise UsageError(f"{opened.name} draws without a prompt: --lines cannot be followed")
    if isinstance(opened, Palette):
        return opened, palettes.resolve(request, opened)
    resolved = resolve(request, opened, None if init is None else init.size)
    stages.plan(resolved, opened, has_init=init is not None)  # raises for what a stage cannot follow
    if not lines:
        check_asked(resolved, opened)
    for remark in notes(request, resolved, opened):
        note(remark)
    return opened, resolved
