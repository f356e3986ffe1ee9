"""`gencli text`"""

from __future__ import annotations

from typing import Annotated

import typer

from gencli.cli import options
from gencli.cli.help import SETTINGS, Command

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    cls=Command,
    context_settings=SETTINGS,
    epilog="""Examples:
   gencli text "Once upon a time"
""",
)
def text(
    ctx: typer.Context,
    prompt: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="hey", rich_help_panel="Prompt")] = None,
    model: Annotated[str | None, options.model_option("GENCLI_TEXT_MODEL", "stories")] = None,
    top_k: Annotated[int | None, typer.Option("-k", "--top-k", metavar="K", help="top")] = None,
    device: options.Device = "auto",
    color: options.Color = options.When.auto,
    debug: options.Debug = False,
    quiet: options.Quiet = False,
) -> None:
    """Continue a prompt."""
    print(prompt, model, device)
