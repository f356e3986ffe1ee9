"""Help pages: plain text in groups, the same on every typer version and in a pipe; headings are bold on a terminal.

Also here: commands that are imported when they are called.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import textwrap
from collections.abc import Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from gencli.cli import config, parser
from gencli.cli.console import BOLD, Console
from gencli.cli.parser import Param, is_option
from gencli.cli.sinks import writing_to_stdout
from gencli.cli.usage import meant_command, meant_inside, refuse_glued
from gencli.cli.values import use_plain_values
from gencli.errors import GencliError, UsageError, nearest, shorten

COLUMN = 30  # where explanations begin
NARROW, INDENT = 60, 8  # below this width they stand under the option, so far from the left
WIDTH = 100  # the widest page; terminals that are narrower get narrower pages
SETTINGS: dict[str, object] = {"help_option_names": ["-h", "--help"], "max_content_width": WIDTH}


class Command(TyperCommand):
    """A command whose help is a plain page; options are grouped by their `rich_help_panel`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_page(self, ctx, _width()))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        use_plain_values(self.get_params(ctx))
        refuse_glued(self, ctx, args)
        try:
            self._use_config(ctx, args)
            with writing_to_stdout():  # the help page
                return super().parse_args(ctx, args)
        except Exception as error:
            if hasattr(error, "ctx"):  # the parser's errors know their command, or are told
                error.ctx = error.ctx or ctx
            raise

    def _use_config(self, ctx: typer.Context, args: list[str]) -> None:
        """Let the user's file stand in for options that are not given. A broken file keeps nobody from a help page."""
        if ctx.parent is not None and ctx.parent.info_name == "config":
            return
        try:
            found = config.defaults(self, ctx, config.said(args))
        except GencliError:
            if {"-h", "--help"} & {*args} or ctx.resilient_parsing:
                return
            raise
        ctx.default_map = {name: value for name, (value, _) in found.items()}
        ctx.meta["gencli.keys"] = {name: keys for name, (_, keys) in found.items()}


class Group(TyperGroup):
    """A group with plain help. `LAZY` names commands that are imported when they are called: name → module, summary.

    A command's module holds a typer app called `app`.
    """

    LAZY: ClassVar[Mapping[str, tuple[str, str]]] = {}
    completing = False  # names alone are asked for

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_page(self, ctx, _width()))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        use_plain_values(self.get_params(ctx))
        with writing_to_stdout():
            if not args and ctx.parent is not None and not ctx.resilient_parsing:
                typer.echo(ctx.get_help())
                ctx.exit()
            return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.LAZY, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.LAZY:
            return super().get_command(ctx, cmd_name)
        if self.completing:
            return TyperCommand(cmd_name, help=self.LAZY[cmd_name][1])
        command = typer.main.get_command(importlib.import_module(self.LAZY[cmd_name][0]).app)
        command.name = cmd_name
        return command

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        self.completing = True
        try:
            found: list[Any] = super().shell_complete(ctx, incomplete)
        finally:
            self.completing = False
        return found

    def summary(self, ctx: typer.Context, name: str) -> str:
        """Return one line about a command, for the list of commands."""
        return self.LAZY[name][1] if name in self.LAZY else self.get_command(ctx, name).get_short_help_str(200)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, known = args[0], self.list_commands(ctx)
        if name.startswith("-") or name in known:
            return super().resolve_command(ctx, args)
        meant = meant_command(args, known) if ctx.parent is None else meant_inside(ctx.info_name, name)
        meant = meant or nearest(name, known) or self._inner(ctx, name)
        hint = f"did you mean `{ctx.command_path} {meant}`?" if meant else f"commands: {', '.join(known)}"
        raise UsageError(f"no such command: {name!r}", hint)

    def _inner(self, ctx: typer.Context, name: str) -> str | None:
        """Return a command of an inner group, with the group's name, that a word stands for."""
        groups = {group: self.get_command(ctx, group) for group in self.list_commands(ctx)}
        inner = {
            one: f"{group} {one}"
            for group, it in groups.items()
            if isinstance(it, Group)
            for one in it.list_commands(ctx)
        }
        close = nearest(name, inner)
        return inner[close] if close else None


def _width() -> int:
    """Return how wide a help page is: as the terminal that stdout is, or else the one that stderr is."""
    columns = int(os.environ["COLUMNS"]) if os.environ.get("COLUMNS", "").isdecimal() else 0
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            columns = columns or os.get_terminal_size(stream.fileno()).columns
    return max(min(columns or 80, WIDTH) - 2, 20)


def _page(command: parser.Command, ctx: typer.Context, width: int) -> str:
    """Return the help page of a command or group."""
    console = ctx.find_root().obj
    bold = isinstance(console, Console) and console.colored(sys.stdout)
    parts = [_paragraphs(inspect.cleandoc(command.help or ""), width)]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = [_metavar(p) if p.required else f"[{_metavar(p)}]" for p in arguments]
    usage = [f"{word}..." if p.nargs == -1 else word for word, p in zip(words, arguments, strict=True)]
    if isinstance(command, TyperGroup):
        usage = ["COMMAND [ARGS]..."]
        names = command.list_commands(ctx)
        rows = [(f"  {n}", command.summary(ctx, n) if isinstance(command, Group) else "") for n in names]
        parts.append(_section("Commands", rows, width, bold))
    parts.insert(1, f"{_heading('Usage', bold)} {ctx.command_path} [OPTIONS] {' '.join(usage)}".rstrip())
    groups: dict[str, list[tuple[str, str]]] = {}
    needed: list[tuple[str, str]] = []
    for param in command.get_params(ctx):
        if not getattr(param, "hidden", False):
            group = getattr(param, "rich_help_panel", None) or "Options"
            rows = needed if param.required else groups.setdefault(group, [])
            rows.append((_left(param), f"{getattr(param, 'help', None) or ''}{_in_force(param, ctx)}"))
    rest = groups.pop("Options", [])
    if needed:
        parts.append(_section("Required", needed, width, bold))
    parts += [_section(name, rows, width, bold) for name, rows in groups.items()]
    if rest:
        parts.append(_section("Options" if not groups else "Other", rest, width, bold))
    if command.epilog:
        title, _, body = inspect.cleandoc(command.epilog).partition("\n")
        parts.append(f"{_heading(title.rstrip(':'), bold)}\n{textwrap.indent(inspect.cleandoc(body), '  ')}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _in_force(param: Param, ctx: typer.Context) -> str:
    """Return what holds for an option that is not given, where the environment or a file sets it."""
    value, place = param.value_from_envvar(ctx), param.envvar
    if value is None and (value := ctx.lookup_default(param.name or "")) is not None:
        place = config.place(ctx.meta["gencli.keys"][param.name])
    shown = config.shown(", ".join(map(str, value)) if isinstance(value, list | tuple) else value, param.opts[-1])
    return "" if value is None else f" Now: {shorten(str(shown), 60)} (set by {place})."


def _left(param: Param) -> str:
    """Return the left column, `  -m, --model NAME`, with long options aligned."""
    if param.param_type_name == "argument":
        return f"  {_metavar(param)}{'...' if param.nargs == -1 else ''}"
    short = [o for o in param.opts if not o.startswith("--")]
    names = ", ".join([*short, *(o for o in param.opts if o.startswith("--")), *param.secondary_opts])
    value = f" {param.metavar}" if param.metavar and not (is_option(param) and param.is_flag) else ""
    return f"  {'' if short else '    '}{names}{value}"


def _metavar(param: Param) -> str:
    return param.metavar or (param.name or "").upper()


def _heading(text: str, bold: bool) -> str:
    return f"\x1b[{BOLD}m{text}:\x1b[0m" if bold else f"{text}:"


def _section(title: str, rows: list[tuple[str, str]], width: int, bold: bool) -> str:
    lines, column = [_heading(title, bold)], COLUMN if width >= NARROW else INDENT
    for left, text in rows:
        wrapped = textwrap.wrap(" ".join(text.split()), width - column, break_on_hyphens=False) or [""]
        if len(left) > column - 2:
            lines.append(left)
            left = ""
        lines.append(f"{left:{column}}{wrapped[0]}".rstrip())
        lines += [" " * column + line for line in wrapped[1:]]
    return "\n".join(lines)


def _paragraphs(text: str, width: int) -> str:
    return "\n\n".join(textwrap.fill(" ".join(p.split()), width, break_on_hyphens=False) for p in text.split("\n\n"))
