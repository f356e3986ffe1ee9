"""Options of the commands that write text: how to pick tokens, and when to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gencli.text.request import BUILT_IN

CONVERSATION, SAMPLING, LENGTH = "Conversation", "Sampling", "Length"  # headings on the help pages


def number(*names: str, metavar: str, help: str, panel: str = SAMPLING, default: str | None = None) -> Any:
    """An option for a number; `default` names the field of `BUILT_IN` that holds when nobody says otherwise."""
    ending = f" (default: {BUILT_IN[default]:g})" if default else ""
    return typer.Option(*names, metavar=metavar, help=f"{help}{ending}.", rich_help_panel=panel)


Temperature = Annotated[
    float | None,
    number(
        "--temperature",
        "--temp",
        metavar="T",
        help="Lower is safer, higher is wilder, 0 always takes the likeliest token",
        default="temperature",
    ),
]
TopK = Annotated[
    int | None,
    number("-k", "--top-k", metavar="K", help="Only the K likeliest tokens; 0 is all of them", default="top_k"),
]
TopP = Annotated[
    float | None,
    number("--top-p", metavar="P", help="Only the likeliest tokens that together reach P; 1 is off", default="top_p"),
]
MinP = Annotated[
    float | None,
    number(
        "--min-p",
        metavar="P",
        help="Only tokens at least P times as likely as the likeliest; 0 is off",
        default="min_p",
    ),
]
TypicalP = Annotated[
    float | None,
    number("--typical-p", metavar="P", help="Locally typical sampling; 1 is off", default="typical_p"),
]
RepeatPenalty = Annotated[
    float | None,
    number(
        "--repeat-penalty",
        metavar="R",
        help="Divide down tokens of prompt and text; 1 is off",
        default="repeat_penalty",
    ),
]
PresencePenalty = Annotated[
    float | None,
    number(
        "--presence-penalty",
        metavar="A",
        help="Subtract A once from tokens that were generated, -2 to 2",
        default="presence_penalty",
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    number(
        "--frequency-penalty",
        metavar="A",
        help="Subtract A for each time a token was generated, -2 to 2",
        default="frequency_penalty",
    ),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        "--logit-bias", metavar="ID=BIAS", help="Add to a token's logit (repeatable).", rich_help_panel=SAMPLING
    ),
]
MaxTokens = Annotated[
    int | None,
    number(
        "-n",
        "--max-tokens",
        "--max-new-tokens",
        metavar="N",
        help="Tokens to generate at most, as far as the context goes",
        panel=LENGTH,
        default="max_tokens",
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="TEXT", help="End before this text (repeatable); never printed.", rich_help_panel=LENGTH
    ),
]

System = Annotated[
    str | None,
    typer.Option(
        "--system", metavar="TEXT", help="The system prompt; implies a conversation.", rich_help_panel=CONVERSATION
    ),
]
Examples = Annotated[
    Path | None,
    typer.Option(
        "--examples",
        metavar="FILE",
        help="Turns that stand before the first message: JSON lines with `user` and `assistant`, or with `messages`.",
        rich_help_panel=CONVERSATION,
    ),
]
