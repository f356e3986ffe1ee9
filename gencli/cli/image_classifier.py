"""`--classifier` and its scale: a classifier of noisy pictures, found before anything is loaded. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from gencli.checkpoints.find import Source
from gencli.cli.image_options import SAMPLING
from gencli.errors import UsageError
from gencli.image.request import ImageRequest

Classifier = Annotated[
    str | None,
    typer.Option(
        "--classifier",
        metavar="NAME",
        help="A classifier of noisy pictures that leads them to the class of the prompt: guidance for models in pixels "
        "such as guided-diffusion's.",
        rich_help_panel=SAMPLING,
    ),
]
ClassifierScale = Annotated[
    float | None,
    typer.Option(
        "--classifier-scale",
        metavar="S",
        help="How much the classifier counts (default: 1; models that are not told the class want about 10).",
        rich_help_panel=SAMPLING,
    ),
]


def find_classifier(request: ImageRequest, find_it: Callable[[str], Source]) -> Source | None:
    """Raises GencliError for one that is not there, UsageError for a scale of none."""
    if request.classifier is None and request.classifier_scale is not None:
        raise UsageError("--classifier-scale without a classifier", "name one with --classifier")
    return None if request.classifier is None else find_it(request.classifier)
