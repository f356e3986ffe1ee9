"""The manual page, made of the same rows as the help pages."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gencli import __version__
from gencli.cli.parser import Command, is_group

if TYPE_CHECKING:
    import typer

ORDER = "flag, environment, profile, config file, the model's own setting, built-in default"


def page(root: Command, ctx: typer.Context) -> str:
    """Return gencli(1) in roff, for `man -l -`."""
    lines = [
        f'.TH GENCLI 1 "" "gencli {__version__}"',
        ".SH NAME",
        r"gencli \- generate text and images locally",
        ".SH SYNOPSIS",
        r".B gencli",
        r".I COMMAND",
        "[OPTIONS] [ARGUMENTS]",
        ".SH DESCRIPTION",
        *_text(root.help),
        ".PP",
        f"Settings come from (in this order): {ORDER}.",
    ]
    for path, command in _commands(root, ctx, "gencli"):
        lines += [f".SH {path.upper()}", *_text(command.help)]
        panel = None
        for param in command.get_params(ctx):
            group = getattr(param, "rich_help_panel", None)
            if group != panel and group:
                lines.append(f'.SS "{_roff(group)}"')
            panel = group
            opts = sorted(param.opts, key=len) if param.name == "help" else param.opts  # which typer keeps in a set
            names = ", ".join([*opts, *param.secondary_opts])
            name = (param.metavar or (param.name or "").upper()) if param.param_type_name == "argument" else names
            value = (
                f" {param.metavar}" if param.metavar and name == names and not getattr(param, "is_flag", False) else ""
            )
            lines += [".TP", f"\\fB{_roff(name + value)}\\fR", *_text(getattr(param, "help", "") or "")]
        if command.epilog:
            title, _, body = inspect.cleandoc(command.epilog).partition("\n")
            lines += [
                f'.SS "{_roff(title.rstrip(":"))}"',
                ".nf",
                *map(_roff, inspect.cleandoc(body).splitlines()),
                ".fi",
            ]
    return "\n".join(lines) + "\n"


def _commands(group: Command, ctx: typer.Context, path: str) -> Iterator[tuple[str, Command]]:
    if not is_group(group):
        return
    for name in group.list_commands(ctx):
        if (command := group.get_command(ctx, name)) is not None:
            yield f"{path} {name}", command
            yield from _commands(command, ctx, f"{path} {name}")


def _text(text: str | None) -> list[str]:
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n.PP\n".join(_roff(" ".join(one.split())) for one in paragraphs if one).splitlines()


def _roff(text: str) -> str:
    """Return plain text as roff has it; characters beyond ASCII by their code points."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace('"', r"\(dq")
    text = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)
    return f"\\&{text}" if text[:1] in (".", "'") else text
