"""`gencli train`: the recipes that made the embedded checkpoints, for anyone's own texts and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gencli import devices
from gencli.cli import options, train_image, train_options, train_text
from gencli.cli.console import Console
from gencli.cli.help import SETTINGS, Command, Group
from gencli.errors import UsageError

app = typer.Typer(cls=Group, context_settings=SETTINGS, add_completion=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def train(ctx: typer.Context) -> None:
    """Train a small checkpoint from nothing, or go on from one. A run that was stopped goes on where it was."""
    if ctx.invoked_subcommand is None:
        raise UsageError("no command", "see `gencli train --help`")


app.command("text", cls=Command, context_settings=SETTINGS)(train_text.text)
app.command("image", cls=Command, context_settings=SETTINGS)(train_image.image)


@app.command("score-text", cls=Command, context_settings=SETTINGS)
def score_text(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="DATA", help=train_text.DATA)],
    model: Annotated[str, options.model_option("GENCLI_TEXT_MODEL", "stories")] = "stories",
    lead: Annotated[str, typer.Option("--lead", metavar="PREFIX", help='Records whose "source" begins so.')] = (
        "tinystories:"
    ),
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    color: options.Color = options.When.auto,
    debug: options.Debug = False,
) -> None:
    """Bits per byte of a language model on texts, those of --lead and the others apart, as JSON."""
    train_options.need(data)
    devices.set_threads(threads)
    from gencli.train.score import score_texts

    console: Console = ctx.obj
    console.progress("scoring")
    scores = score_texts(model, data, lead)
    train_options.write(console, {"bits_per_byte": {name: round(value, 4) for name, value in scores.items()}})


@app.command("score-image", cls=Command, context_settings=SETTINGS)
def score_image(
    ctx: typer.Context,
    pictures: Annotated[Path, typer.Argument(metavar="PICTURES", help="Zip or folder of pictures.")],
    captions: Annotated[Path | None, typer.Option("--captions", metavar="FILE", help=train_image.CAPTIONS)] = None,
    model: Annotated[str, options.model_option("GENCLI_IMAGE_MODEL", "emoji")] = "emoji",
    count: Annotated[int, typer.Option("--count", metavar="N", help="Labels to draw.")] = 200,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Steps (default: the model's).")] = None,
    unseen_colors: Annotated[
        int | None,
        typer.Option(
            "--unseen-colors",
            metavar="N",
            help="Draw things in colours that the data, and `train image --recolor N`, do not show.",
        ),
    ] = None,
    seed: train_options.RunSeed = 0,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    color: options.Color = options.When.auto,
    debug: options.Debug = False,
) -> None:
    """Share of labels whose drawing has the label's own picture as its nearest of all, as JSON, a line a label."""
    train_options.need(pictures, captions)
    train_options.check_counts({"--count": count, "--steps": steps}, 1)
    train_options.check_counts({"--unseen-colors": unseen_colors}, 0)
    devices.set_threads(threads)
    from gencli.train.score import score_pictures

    console: Console = ctx.obj
    found = 0
    all_drawn = score_pictures(
        model, pictures, captions, count=count, seed=seed, steps=steps, unseen_colors=unseen_colors
    )
    for number, drawn in enumerate(all_drawn, 1):
        found += drawn.recognised
        row = {"label": drawn.label, "seed": drawn.seed, "recognised": drawn.recognised, "nearest": drawn.nearest}
        train_options.write(console, {**row, "share": round(found / number, 3)})
        console.progress("drawing", number, count)
