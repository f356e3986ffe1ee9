"""What may be asked of checkpoints that draw a class, and of a classifier beside them. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gencli.errors import UsageError
from gencli.image.request import ImageRequest

if TYPE_CHECKING:
    from gencli.image.checkpoint import Checkpoint

CLASSIFIER_SCALE = 1.0


def built_in(checkpoint: Checkpoint) -> dict[str, Any]:
    """Defaults of what a classifier is asked."""
    return {"classifier_scale": CLASSIFIER_SCALE} if "classifier" in checkpoint.configs else {}


def check_class(request: ImageRequest, checkpoint: Checkpoint) -> None:
    """The prompt names a class (an empty one may still be told by lines), and guidance has a class for none to lead
    away from. Raises UsageError."""
    classes = checkpoint.classes
    assert classes is not None
    if request.prompt.strip():
        classes.find(request.prompt)
    if classes.null is not None:
        classes.find(request.negative or "")
        return
    given = {"--negative": request.negative, "--cfg-scale": request.guidance}
    given["--guidance-rescale"] = request.guidance_rescale
    if wrong := [name for name, value in given.items() if value not in (None, "")]:
        raise UsageError(
            f"{checkpoint.name} knows no class for none: {' and '.join(wrong)} cannot be followed",
            "--classifier leads such a model to its class",
        )


def check_asked(request: ImageRequest, checkpoint: Checkpoint) -> None:
    """Raises UsageError where no class is named and there is none to draw without."""
    if checkpoint.prompt == "class" and checkpoint.classes is not None:
        checkpoint.classes.find(request.prompt)


def check_classifier(request: ImageRequest, checkpoint: Checkpoint, width: int, height: int) -> None:
    """Raises UsageError for a scale of no classifier, and for a size of pictures that the classifier cannot judge."""
    config = checkpoint.configs.get("classifier")
    if config is None:
        if request.classifier_scale is not None:
            raise UsageError("--classifier-scale without a classifier", "name one with --classifier")
        return
    side = config.get("image_size")
    if config.get("pool", "attention") == "attention" and side is not None and (width, height) != (side, side):
        raise UsageError(
            f"--classifier judges pictures of {side}x{side} pixels, not of {width}x{height}", f"--size {side}x{side}"
        )
