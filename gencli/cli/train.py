"""`gencli train`: the recipes that made the embedded checkpoints, for anyone's own texts and pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from gencli import devices
from gencli.cli import options, train_options, train_text
from gencli.cli.console import Console
from gencli.cli.help import SETTINGS, Command, Group
from gencli.errors import GencliError, UsageError

RECIPE = "Recipe"

app = typer.Typer(cls=Group, context_settings=SETTINGS, add_completion=False, rich_markup_mode=None)

Out = Annotated[
    Path,
    typer.Option("-o", "--out", metavar="DIR", help="Folder for the state, and for checkpoint/ at the end."),
]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", help="Steps in all.", rich_help_panel=RECIPE)]
Batch = Annotated[int | None, typer.Option("--batch", metavar="N", help="Items a step.", rich_help_panel=RECIPE)]
Rate = Annotated[float | None, typer.Option("--lr", metavar="X", help="Highest learning rate.", rich_help_panel=RECIPE)]
RunSeed = Annotated[int, typer.Option("-s", "--seed", metavar="N", help="Seed of the run.", rich_help_panel=RECIPE)]


@app.callback(invoke_without_command=True)
def train(ctx: typer.Context) -> None:
    """Train a small checkpoint from nothing, or go on from one. A run that was stopped goes on where it was."""
    if ctx.invoked_subcommand is None:
        raise UsageError("no command", "see `gencli train --help`")


app.command("text", cls=Command, context_settings=SETTINGS)(train_text.text)


@app.command("image", cls=Command, context_settings=SETTINGS)
def image(
    ctx: typer.Context,
    pictures: Annotated[Path, typer.Argument(metavar="PICTURES", help="Zip or folder of pictures.")],
    captions: Annotated[
        Path,
        typer.Option("--captions", metavar="FILE", help='JSON lines: "file", "label", and "tags" if there are any.'),
    ],
    out: Out,
    autoencoder_steps: Annotated[
        int | None,
        typer.Option("--autoencoder-steps", metavar="N", help="Steps of the first stage.", rich_help_panel=RECIPE),
    ] = None,
    init: Annotated[
        str, typer.Option("--init", metavar="MODEL", help="Checkpoint to go on from; its autoencoder is kept.")
    ] = "",
    copies: Annotated[
        int,
        typer.Option("--recolor", min=0, metavar="N", help="Repainted copies a picture.", rich_help_panel=RECIPE),
    ] = 0,
    pairs: Annotated[
        int,
        typer.Option("--pairs", min=0, metavar="N", help='Pictures of "A and B".', rich_help_panel=RECIPE),
    ] = 0,
    steps: Steps = None,
    batch: Batch = None,
    lr: Rate = None,
    seed: RunSeed = 0,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    color: options.Color = options.When.auto,
    debug: options.Debug = False,
) -> None:
    """Captioned pictures → an autoencoder, then a text-to-image checkpoint in Stable Diffusion's layout.

    stdout gets a JSON line now and then: stage, step, loss and pictures a second.
    """
    _need(pictures, captions)
    devices.check_names("cpu", "float32", threads)
    devices.set_threads(threads)
    from gencli.checkpoints.find import find
    from gencli.train import trainer
    from gencli.train.autoencoder import AutoencoderRecipe
    from gencli.train.diffusion import DiffusionRecipe, Progress
    from gencli.train.image import train as run

    first = AutoencoderRecipe(str(out), seed=seed, **_said({"steps": autoencoder_steps}))
    given = {"steps": steps, "batch": batch, "lr": lr, "init": init and str(find(init).path)}
    second = DiffusionRecipe(str(out), seed=seed, copies=copies, pairs=pairs, **_said(given))
    console: Console = ctx.obj
    for at in run(pictures, captions, first, second):
        if isinstance(at, Progress):
            rate, left = at.pictures_per_second, (second.steps - at.step) * second.batch / at.pictures_per_second
            seen = at.step * second.batch
            at = trainer.Progress("diffusion", at.step, second.steps, at.loss, second.lr, seen, 0.0, rate, left)
        train_options.show(console, at, "pictures", "validation", stage=at.stage)


@app.command("score-text", cls=Command, context_settings=SETTINGS)
def score_text(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="DATA", help='JSON lines with a key "text" (.gz is fine).')],
    model: Annotated[str, options.model_option("GENCLI_TEXT_MODEL", "stories")] = "stories",
    lead: Annotated[str, typer.Option("--lead", metavar="PREFIX", help='Records whose "source" begins so.')] = (
        "tinystories:"
    ),
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    color: options.Color = options.When.auto,
    debug: options.Debug = False,
) -> None:
    """Bits per byte of a GPT-2 checkpoint on texts, those of --lead and the others apart, as JSON."""
    _need(data)
    devices.set_threads(threads)
    from gencli.train.score import score_texts

    console: Console = ctx.obj
    console.progress("scoring")
    _write(console, {"bits_per_byte": {name: round(v, 4) for name, v in score_texts(model, data, lead).items()}})


@app.command("score-image", cls=Command, context_settings=SETTINGS)
def score_image(
    ctx: typer.Context,
    pictures: Annotated[Path, typer.Argument(metavar="PICTURES", help="Zip or folder of pictures.")],
    captions: Annotated[Path, typer.Option("--captions", metavar="FILE", help='JSON lines: "file", "label".')],
    model: Annotated[str, options.model_option("GENCLI_IMAGE_MODEL", "emoji")] = "emoji",
    count: Annotated[int, typer.Option("--count", min=1, metavar="N", help="Labels to draw.")] = 200,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Steps (default: the model's).")] = None,
    unseen_colors: Annotated[
        int | None,
        typer.Option(
            "--unseen-colors",
            min=0,
            metavar="N",
            help="Draw things in colours that the data, and `train image --recolor N`, do not show.",
        ),
    ] = None,
    seed: RunSeed = 0,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    color: options.Color = options.When.auto,
    debug: options.Debug = False,
) -> None:
    """Share of labels whose drawing has the label's own picture as its nearest of all, as JSON, a line a label."""
    _need(pictures, captions)
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
        _write(console, {**row, "share": round(found / number, 3)})
        console.progress("drawing", number, count)


def _need(*paths: Path) -> None:
    for path in paths:
        if not path.exists():
            raise GencliError(f"no such file: {path}")


def _said(values: dict) -> dict:
    """What was given; the recipe's own defaults hold for the rest."""
    return {name: value for name, value in values.items() if value is not None}


def _write(console: Console, row: dict) -> None:
    console.clear()
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()
