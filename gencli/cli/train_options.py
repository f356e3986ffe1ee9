"""What the commands of `gencli train` share: their options, and how a run is shown. No torch."""

from __future__ import annotations

import json
import math
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gencli import devices
from gencli.cli import options
from gencli.cli.console import Console
from gencli.errors import GencliError, UsageError

if TYPE_CHECKING:
    from gencli.train.trainer import Progress

START, SIZES, RECIPE = "Start", "Sizes", "Recipe"  # headings on the help pages
TOLD_EVERY = 50  # steps between two lines on stdout


class OptimizerKind(str, Enum):
    muon = "muon"
    adamw = "adamw"


def recipe_option(name: str, metavar: str, text: str, panel: str = RECIPE) -> Any:
    """An option of the recipe, with its place on the help page."""
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=panel)


Out = Annotated[
    Path,
    typer.Option("-o", "--out", metavar="DIR", help="Folder for the state, the curve, and what is made at the end."),
]
Optimizer = Annotated[
    OptimizerKind | None,
    typer.Option("--optimizer", metavar="KIND", help="muon or adamw (default: muon).", rich_help_panel=RECIPE),
]
RunSeed = Annotated[
    int, typer.Option("-s", "--seed", metavar="N", help="Seed of the run (default: 0).", rich_help_panel=RECIPE)
]
SaveEvery = Annotated[
    float,
    typer.Option(
        "--save-every",
        metavar="S",
        help="Seconds between two savings of the state (default: 180).",
        rich_help_panel=RECIPE,
    ),
]
Changes = Annotated[
    bool,
    typer.Option("--allow-changes", help="Go on although the recipe is not the one that the run was begun with."),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="Precision of products: float32, or bfloat16, which is quicker on CPUs with AMX too (default: auto, "
        "bfloat16 on CUDA, else float32).",
        rich_help_panel=options.MODEL,
    ),
]


def check_running(device: str, dtype: str, threads: int | None) -> None:
    """Raises UsageError for a device, precision or number of threads that nothing can be trained with."""
    devices.check_names(device, dtype, threads)
    if dtype == "float16":
        raise UsageError(
            "--dtype float16: too narrow a range for training without loss scaling", "bfloat16 is as quick"
        )


def check_numbers(values: dict[str, float | None], low: float, high: float) -> None:
    """Raises UsageError unless each option's value, where it is given, lies above `low` and up to `high`."""
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and low < value <= high):
            raise UsageError(f"{name} {value:g}: must be above {low:g} and at most {high:g}")


def check_counts(values: dict[str, int | None], least: int) -> None:
    """Raises UsageError for an option's value below `least`."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"{name} {value}: must be at least {least}")


def need(*paths: Path | None) -> None:
    """Raises GencliError for a file that is not there."""
    for path in paths:
        if path is not None and not path.exists():
            raise GencliError(f"no such file: {path}")


def said(values: dict[str, Any]) -> dict[str, Any]:
    """What was given; the recipe's own defaults hold for the rest."""
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
    return {name: value for name, value in plain.items() if value is not None}


def show(console: Console, at: Progress, items: str, score: str, **more: Any) -> None:
    """Draw the progress line, and now and then write a JSON line: where the run is, and its scores under `score`."""
    rate = f"{at.rate:.0f}" if at.rate >= 100 else f"{at.rate:.1f}"
    told = f"{rate} {items}/s, {in_words(at.left)} left"
    console.progress(f"{' '.join([*map(str, more.values()), 'loss'])} {at.loss:.3f}", at.step, at.steps, told)
    if at.validation is None and at.step % TOLD_EVERY and at.step != at.steps:
        return
    row: dict[str, Any] = {**more, "step": at.step, "loss": round(at.loss, 5), "lr": float(f"{at.lr:.4g}")}
    row |= {items: at.seen, "seconds": round(at.seconds, 1), f"{items}_per_second": float(rate)}
    if at.validation is not None:
        row[score] = {name: round(value, 5) for name, value in at.validation.items()}
    write(console, row)


def in_words(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def write(console: Console, row: dict[str, Any]) -> None:
    """A JSON line on stdout."""
    console.clear()
    sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
    sys.stdout.flush()
