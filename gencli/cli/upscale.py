"""`gencli upscale`: make an image four times as large."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from gencli.cli.image import Output, draw
from gencli.cli.image_asked import Sources
from gencli.cli.options import Asked, Fetching, Reporting, command
from gencli.cli.warm import Serving
from gencli.errors import GencliError, UsageError
from gencli.image.request import GUIDANCE, INPUT, PICTURE, SAMPLING, ImageRequest
from gencli.options import Option, rows, string
from gencli.spec import DrawingSpec, named_model

if TYPE_CHECKING:
    from gencli.image.checkpoint import ImageCheckpoint
    from gencli.image.drawers.base import Drawer

UPSCALER, ENVIRONMENT = "stabilityai/stable-diffusion-x4-upscaler", "GENCLI_UPSCALE_MODEL"
# What an upscaler follows of all that a request may say.
KEPT = {
    "negative", "steps", "sampler", *GUIDANCE.values(), "seed", "eta", "karras", "spacing", "noise_level",
    "sampler_options", "count", "batch", "truncate", "vae_tiling", "dtype",
}  # fmt: skip
LEFT_OUT = {name for name, _ in rows(ImageRequest)} - KEPT - {"model", "prompt"} | {"save_stages"}

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(eq=False, repr=False)
class Photo:
    """The image to enlarge, what it shows, and the model."""

    # fmt: off
    file: str = Option(str, "FILE", "The image to enlarge; `-` is stdin.", "Input").field("")
    prompt: str | None = string(None, "-p, --prompt TEXT",
        "What the image shows (default: the prompt in its embedded settings, if any).", INPUT)
    # fmt: on
    model: str = named_model(ENVIRONMENT, UPSCALER, "upscale", "An upscaler", "x4-upscaler").field(UPSCALER)


@command(
    app,
    epilog="""Examples:
    gencli upscale photo.png -o big.png
    gencli upscale photo.png --prompt "a lighthouse at dusk" --noise-level 50 -o big.png
    gencli upscale - < small.png > big.png
    """,
    panels=("Input", INPUT, PICTURE, SAMPLING),
    without=LEFT_OUT,
)
def upscale(
    ctx: typer.Context,
    photo: Photo,
    output: Output,
    asked: Asked[ImageRequest],
    where: DrawingSpec,
    fetching: Fetching,
    serving: Serving,
    reporting: Reporting,
) -> None:
    """Enlarge an image four times, with a model that adds detail.

    Large images are processed in overlapping tiles that are joined at every step, so there are no seams.
    """
    if not photo.file:
        raise UsageError("no image to enlarge", "as in gencli upscale photo.png -o big.png")
    prompt = photo.prompt
    recorded = _recorded(photo.file) if prompt is None else ""
    prompt = prompt or recorded
    values = {**asked.values, "init": photo.file, "model": photo.model}
    given = asked.given | {"init", "model"}
    sources = Sources(prompt=(prompt,) if prompt else ())

    def accept(opened: ImageCheckpoint | Drawer) -> None:
        _accept(opened)
        if recorded:
            ctx.obj.note(f"enlarged with the prompt in the image's settings, {recorded:.80} (-p '' leaves it out)")

    draw(ctx.obj, sources, output, Asked(ImageRequest, values, given), where, fetching, serving, reporting, accept)


def _recorded(file: str) -> str:
    """Return the prompt that an image says it was made from, or none."""
    from gencli.image.files.pictures import read_request

    if file != "-":
        with contextlib.suppress(GencliError):
            return str(read_request(file).values.get("prompt") or "")
    return ""


def _accept(opened: ImageCheckpoint | Drawer) -> None:
    """Raise UsageError for a model that enlarges nothing."""
    if getattr(getattr(opened, "main", None), "scale", 1) == 1:
        raise UsageError(f"{opened.name} cannot enlarge images", f"{UPSCALER} can")
