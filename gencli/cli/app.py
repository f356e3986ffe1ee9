"""The typer app. Nothing here imports torch, and a command is imported when it is called.

To add a command: a module in this package with a typer app called `app`, and a row in `COMMANDS`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, ClassVar

import typer

from gencli import __version__
from gencli.cli.console import Console
from gencli.cli.help import SETTINGS, Group, explain
from gencli.errors import GencliError, UsageError

# The root of the parser's errors, the same class in every version of typer.
ParserError: type[Exception] = typer.BadParameter.__mro__[2]


class Commands(Group):
    LAZY: ClassVar = {
        "text": ("gencli.cli.text", "Continue a prompt with a language model."),
        "chat": ("gencli.cli.chat", "Talk with a language model."),
        "image": ("gencli.cli.image", "Draw a picture from a prompt."),
        "upscale": ("gencli.cli.upscale", "Make an image four times as large."),
        "score": ("gencli.cli.score", "Say how well pictures fit a text."),
        "codes": ("gencli.cli.codes", "Turn a picture into codes of a VQ autoencoder, and back."),
        "bench": ("gencli.cli.bench", "Measure how fast models run on this machine."),
        "models": ("gencli.cli.models", "List, show, fetch, check and remove checkpoints."),
        "train": ("gencli.cli.train", "Train a small checkpoint from texts or captioned pictures."),
    }


app = typer.Typer(cls=Commands, name="gencli", context_settings=SETTINGS, rich_markup_mode=None)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"gencli {__version__}")
        raise typer.Exit()


@app.callback(
    invoke_without_command=True,
    epilog="""Examples:
    gencli text "Once upon a time"
    gencli text --help
    """,
)
def gencli(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("-V", "--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Text and pictures from checkpoints you own, made on this machine.

    stdout holds only what was asked for; progress, notes and errors go to stderr.
    """
    if ctx.invoked_subcommand is None:
        raise UsageError("no command", 'see `gencli --help`; to begin: gencli text "Once upon a time"')


def _check_current_folder() -> None:
    """Raise GencliError when the current folder was removed: libraries end the process for it."""
    try:
        os.getcwd()
    except OSError as error:
        raise GencliError(f"the current folder is not there: {error.strerror}", "cd to a folder that is") from None


def run(args: Sequence[str], console: Console) -> int:
    """Parse `args`, run the command that they name, and return the exit code.

    Raise GencliError, and UsageError if the parser refuses `args`.
    """
    command = typer.main.get_command(app)
    if os.environ.get("_GENCLI_COMPLETE"):
        command.main(list(args), prog_name="gencli")  # answers the shell's completion and exits
    if {"-h", "--help"}.isdisjoint(args):
        _check_current_folder()
    try:
        with command.make_context("gencli", list(args), obj=console) as ctx:
            command.invoke(ctx)
    except typer.Exit as done:
        return done.exit_code
    except ParserError as error:
        raise explain(error) from error
    return 0
