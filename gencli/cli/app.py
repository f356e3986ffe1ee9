"""The typer app. Nothing here imports torch, and a command is imported when it is called.

To add a command: a module in this package with a typer app called `app`, and a row in `COMMANDS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar

import typer
from typer.completion import completion_init

from gencli import __version__
from gencli.cli.console import Console
from gencli.cli.help import SETTINGS, Group
from gencli.cli.sinks import stdout_bytes
from gencli.cli.usage import explain
from gencli.errors import GencliError

# The root of the parser's errors, the same class in every version of typer.
ParserError: type[Exception] = typer.BadParameter.__mro__[2]
Callback = Callable[[bool], None] | Callable[[str | None], None] | Callable[[typer.Context, bool], None]
SHELLS = "bash, zsh, fish, powershell or pwsh (default: the one that runs)"


class Commands(Group):
    LAZY: ClassVar = {
        "text": ("gencli.cli.text", "Continue a prompt with a language model."),
        "chat": ("gencli.cli.chat", "Chat with a language model."),
        "image": ("gencli.cli.image", "Draw an image from a prompt."),
        "upscale": ("gencli.cli.upscale", "Enlarge an image four times."),
        "serve": ("gencli.cli.serve", "Serve models over HTTP: OpenAI's routes, Anthropic's and ollama's."),
        "score": ("gencli.cli.score", "Score how well images match a text (CLIP)."),
        "codes": ("gencli.cli.codes", "Encode an image into VQ codes, or decode codes into an image."),
        "bench": ("gencli.cli.bench", "Measure how fast models run on this machine."),
        "models": ("gencli.cli.models", "Find, download, check and remove models."),
        "config": ("gencli.cli.config_command", "Show and set your own defaults."),
        "train": ("gencli.cli.train", "Train a small model from scratch or fine-tune one."),
    }


app = typer.Typer(cls=Commands, name="gencli", context_settings=SETTINGS, rich_markup_mode=None, add_completion=False)
WELCOME = """Three things to try:
  gencli text "Once upon a time"
  gencli image "red apple" -o apple.png
  gencli models available      well-known models for this machine

gencli --help lists all commands."""


def _version(value: bool) -> None:
    if value:
        typer.echo(f"gencli {__version__}")
        raise typer.Exit()


def _install_completion(value: str | None) -> None:
    if value is not None:
        from gencli.cli.completion import install

        typer.echo(f"{value} completion is installed in {install(value)}; new shells have it")
        raise typer.Exit()


def _show_completion(value: str | None) -> None:
    if value is not None:
        from gencli.cli.completion import show

        typer.echo(show(value))
        raise typer.Exit()


def _man(ctx: typer.Context, value: bool) -> None:
    if value:
        from gencli.cli.man import page

        typer.echo(page(ctx.command, ctx), nl=False)
        raise typer.Exit()


def _option(names: str, help: str, callback: Callback, metavar: str | None = None) -> object:
    return typer.Option(*names.split(), help=help, callback=callback, is_eager=True, metavar=metavar)


@app.callback(
    invoke_without_command=True,
    epilog="""Examples:
    gencli text "Once upon a time"
    gencli image "red apple" -o apple.png
    gencli chat -m smollm2
    gencli models available
    """,
)
def gencli(
    ctx: typer.Context,
    version: Annotated[bool, _option("-V --version", "Print the version.", _version)] = False,
    install: Annotated[
        str | None,
        _option("--install-completion", f"Install completion: {SHELLS}.", _install_completion, metavar="[SHELL]"),
    ] = None,
    man: Annotated[bool, _option("--man", "Print the manual page, as in gencli --man | man -l -.", _man)] = False,
    shown: Annotated[
        str | None,
        _option("--show-completion", "Print the completion script of a shell.", _show_completion, metavar="[SHELL]"),
    ] = None,
) -> None:
    """Generate text and images locally, with models on your own machine.

    stdout holds only what was asked for; progress, notes and errors go to stderr.
    """
    if ctx.invoked_subcommand is None:
        typer.echo(WELCOME)


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
        from gencli.cli.completion import answer
        from gencli.cli.tab import remember

        completion_init()
        try:
            answer(lambda: command.main(list(args), prog_name="gencli"))
        finally:
            remember(command)
    if {"-h", "--help"}.isdisjoint(args):
        _check_current_folder()
    if not {"-h", "--help", "-V", "--version", "--man"}.isdisjoint(args):
        stdout_bytes()  # the parser would print into nothing
    words = list(args)
    if words and words[0].endswith("-completion"):
        from gencli.cli.completion import named

        words = named(words)
    try:
        with command.make_context("gencli", words, obj=console) as ctx:
            command.invoke(ctx)
    except typer.Exit as done:
        return done.exit_code
    except ParserError as error:
        raise explain(error) from error
    return 0
