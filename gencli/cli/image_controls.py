"""`--control` and what goes with it: ControlNets found, and their pictures opened, before any is loaded. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gencli.checkpoints.find import Source
from gencli.errors import UsageError
from gencli.image.request import ImageRequest

if TYPE_CHECKING:
    from PIL import Image

CONTROL = "ControlNets"


def _option(name: str, metavar: str, help: str) -> Any:
    return typer.Option(name, metavar=metavar, help=help, rich_help_panel=CONTROL)


Control = Annotated[
    list[str] | None,
    _option(
        "--control",
        "NAME",
        "A ControlNet to lead the picture, such as lllyasviel/sd-controlnet-canny (repeatable, each with its "
        "--control-image).",
    ),
]
ControlImage = Annotated[
    list[str] | None,
    _option(
        "--control-image",
        "FILE",
        "What the ControlNet reads, as it is: edges, depth or a pose, made by another program (repeatable).",
    ),
]
ControlScale = Annotated[
    list[float] | None,
    _option("--control-scale", "S", "How much the ControlNet counts; one for all, or one each (default: 1)."),
]
ControlStart = Annotated[
    list[float] | None,
    _option("--control-start", "F", "Share of the steps after which it counts, 0 to 1 (default: 0)."),
]
ControlEnd = Annotated[
    list[float] | None,
    _option("--control-end", "F", "Share of the steps up to which it counts, 0 to 1 (default: 1)."),
]


def find_controls(request: ImageRequest, find_it: Callable[[str], Source]) -> list[tuple[Source, Image.Image]]:
    """The ControlNets of a request with their pictures. Raises GencliError for what is not there."""
    if not request.control:
        return []
    from gencli.image.files.pictures import open_flat

    if "-" in request.control_image:
        raise UsageError("--control-image -: is read from a file only")
    pictures = [open_flat(path) for path in request.control_image]
    return list(zip(map(find_it, request.control), pictures, strict=True))
