"""Options that every command shares: `model: Model = None` in a command's signature is all it takes.

--quiet, --color and --debug set the console (`ctx.obj`) themselves.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from gencli.cli.console import Console
from gencli.devices import DEVICES, DTYPES

MODEL, OUTPUT, RUN = "Model", "Output", "Running"  # headings on the help pages


class When(str, Enum):
    auto = "auto"
    always = "always"
    never = "never"


def complete_model(incomplete: str) -> list[str]:
    """Embedded names, for the shell."""
    from gencli.checkpoints.find import embedded_names

    return [name for name in embedded_names() if name.startswith(incomplete)]


def model_option(env: str, default: str) -> Any:
    """-m/--model, whose environment variable and default depend on the command."""
    text = (
        "Embedded name, local folder or file, or Hugging Face id such as openai-community/gpt2 "
        f"(default: {default}; environment: {env})."
    )
    return typer.Option(
        "-m", "--model", metavar="NAME", envvar=env, help=text, rich_help_panel=MODEL, autocompletion=complete_model
    )


def _set_quiet(ctx: typer.Context, value: bool) -> bool:
    if isinstance(ctx.obj, Console):
        ctx.obj.quiet = value
    return value


def _set_color(ctx: typer.Context, value: When) -> When:
    if isinstance(ctx.obj, Console):
        ctx.obj.color = When(value).value
        ctx.color = {"always": True, "never": False}.get(ctx.obj.color)  # for the parser's own help output
    return value


def _set_debug(ctx: typer.Context, value: bool) -> bool:
    if isinstance(ctx.obj, Console):
        ctx.obj.debug = ctx.obj.debug or value
    return value


Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        envvar="GENCLI_DEVICE",
        help="auto, cpu, cuda, cuda:N or mps (default: auto, the first of cuda, mps, cpu; environment: GENCLI_DEVICE).",
        rich_help_panel=MODEL,
        autocompletion=lambda: list(DEVICES),
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        envvar="GENCLI_DTYPE",
        help="auto, float32, bfloat16 or float16 (default: auto, the file's own, but float32 for a float16 file on a "
        "CPU; environment: GENCLI_DTYPE).",
        rich_help_panel=MODEL,
        autocompletion=lambda: list(DTYPES),
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", metavar="N", help="CPU threads (default: torch's choice, one a core).", rich_help_panel=MODEL
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Never use the network (as HF_HUB_OFFLINE=1 does).", rich_help_panel=MODEL)
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="NAME[:SCALE]",
        help="Merge a LoRA adapter as peft writes it into the weights, a folder or a Hugging Face id (repeatable; "
        "default scale: 1).",
        rich_help_panel=MODEL,
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Also open .bin and .pt files, for nothing but tensors (default: only safetensors).",
        rich_help_panel=MODEL,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "-s",
        "--seed",
        metavar="N",
        help="The same seed makes the same again; item i of several uses N + i (default: drawn, and reported).",
        rich_help_panel=RUN,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.", rich_help_panel=OUTPUT)]
Stats = Annotated[bool, typer.Option("--stats", help="Say seed, times and speed on stderr.", rich_help_panel=RUN)]
Quiet = Annotated[
    bool,
    typer.Option(
        "-q",
        "--quiet",
        help="No progress, no notes on stderr.",
        rich_help_panel=RUN,
        callback=_set_quiet,
        is_eager=True,
    ),
]
Color = Annotated[
    When,
    typer.Option(
        "--color",
        metavar="WHEN",
        help="Colours: auto, always or never (default: auto, on a terminal unless NO_COLOR is set or TERM=dumb).",
        rich_help_panel=RUN,
        callback=_set_color,
        is_eager=True,
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug", help="Show the traceback of an error.", rich_help_panel=RUN, callback=_set_debug, is_eager=True
    ),
]
