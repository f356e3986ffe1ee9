"""Help pages: plain text in groups, the same on every typer version and in a pipe; headings are bold on a terminal.

Also here: commands that are imported when they are called, and usage errors in gencli's own words.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from collections.abc import Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from gencli.cli.console import BOLD, Console
from gencli.cli.sinks import writing_to_stdout
from gencli.cli.values import use_plain_values
from gencli.errors import UsageError, did_you_mean

COLUMN = 30  # where explanations begin
WIDTH = 100  # the widest page; terminals that are narrower get narrower pages
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": WIDTH}

# What people type who come from other tools → what to say.
ELSEWHERE = {
    "--prompt": "write the prompt as an argument, or `-` for stdin",
    "-p": "write the prompt as an argument, or `-` for stdin",
    "--file": "read a prompt from a file with `- < FILE`",
    "-f": "read a prompt from a file with `- < FILE`",
    "--n-predict": "did you mean --max-tokens?",
    "--num-predict": "did you mean --max-tokens?",
    "--max-length": "did you mean --max-tokens?",
    "--num-return-sequences": "did you mean --num-samples?",
    "--repetition-penalty": "did you mean --repeat-penalty?",
    "--no-display-prompt": "the prompt is shown with --echo only",
    "--log-disable": "stdout holds nothing but data; -q silences notes and progress",
    "--verbose": "did you mean --stats?",
    "--num-inference-steps": "did you mean --steps?",
    "--guidance-scale": "did you mean --cfg-scale?",
    "--negative-prompt": "did you mean --negative?",
    "--batch-count": "did you mean --count?",
    "--output": "did you mean -o?",
    "--refiner-steps": "--stage refiner:steps=N counts the whole denoising; --refiner-start F says where it begins",
}


class Command(TyperCommand):
    """A command whose help is a plain page; options are grouped by their `rich_help_panel`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_page(self, ctx, formatter.width))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        use_plain_values(self.get_params(ctx))
        try:
            with writing_to_stdout():  # the help page
                return super().parse_args(ctx, args)
        except Exception as error:
            if hasattr(error, "ctx"):  # the parser's errors know their command, or are told
                error.ctx = error.ctx or ctx
            raise


class Group(TyperGroup):
    """A group with plain help. `LAZY` names commands that are imported when they are called: name → module, summary.

    A command's module holds a typer app called `app`.
    """

    LAZY: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_page(self, ctx, formatter.width))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        use_plain_values(self.get_params(ctx))
        with writing_to_stdout():
            return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.LAZY, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.LAZY:
            return super().get_command(ctx, cmd_name)
        command = typer.main.get_command(importlib.import_module(self.LAZY[cmd_name][0]).app)
        command.name = cmd_name
        return command

    def summary(self, ctx: Any, name: str) -> str:
        """Return one line about a command, for the list of commands."""
        return self.LAZY[name][1] if name in self.LAZY else self.get_command(ctx, name).get_short_help_str(200)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and name not in self.list_commands(ctx):
            known = self.list_commands(ctx)
            hint = did_you_mean(name, known) or f"commands: {', '.join(known)}"
            raise UsageError(f"no such command: {name!r}", hint)
        return super().resolve_command(ctx, args)


def explain(error: Exception) -> UsageError:
    """Translate a usage error of the parser (click's or typer's) into a UsageError with a hint."""
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx is not None else "gencli"
    hint = f"see `{path} --help`"
    option = getattr(error, "option_name", None)
    if option and hasattr(error, "possibilities"):  # no such option
        known = [name for param in ctx.command.params for name in param.opts] if ctx is not None else []
        plain = option.replace("_", "-")
        if option in ELSEWHERE or plain in ELSEWHERE:
            hint = ELSEWHERE.get(option) or ELSEWHERE[plain]
        else:
            hint = did_you_mean(plain, known) or f"{hint}; put `--` before a prompt that begins with a dash"
        return UsageError(f"no such option: {option}", hint)
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return UsageError(message[:1].lower() + message[1:].rstrip("."), hint)


def _page(command: Any, ctx: Any, width: int) -> str:
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
    for param in command.get_params(ctx):
        if not getattr(param, "hidden", False):
            group = getattr(param, "rich_help_panel", None) or "Options"
            groups.setdefault(group, []).append((_left(param), param.help or ""))
    rest = groups.pop("Options", [])
    parts += [_section(name, rows, width, bold) for name, rows in groups.items()]
    if rest:
        parts.append(_section("Options" if not groups else "Other", rest, width, bold))
    if command.epilog:
        title, _, body = inspect.cleandoc(command.epilog).partition("\n")
        parts.append(f"{_heading(title.rstrip(':'), bold)}\n{textwrap.indent(inspect.cleandoc(body), '  ')}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _left(param: Any) -> str:
    """Return the left column, `  -m, --model NAME`, with long options aligned."""
    if param.param_type_name == "argument":
        return f"  {_metavar(param)}{'...' if param.nargs == -1 else ''}"
    short = [o for o in param.opts if not o.startswith("--")]
    names = ", ".join([*short, *(o for o in param.opts if o.startswith("--")), *param.secondary_opts])
    value = f" {param.metavar}" if param.metavar and not param.is_flag else ""
    return f"  {'' if short else '    '}{names}{value}"


def _metavar(param: Any) -> str:
    return param.metavar or param.name.upper()


def _heading(text: str, bold: bool) -> str:
    return f"\x1b[{BOLD}m{text}:\x1b[0m" if bold else f"{text}:"


def _section(title: str, rows: list[tuple[str, str]], width: int, bold: bool) -> str:
    lines = [_heading(title, bold)]
    for left, text in rows:
        wrapped = textwrap.wrap(" ".join(text.split()), max(width - COLUMN, 20), break_on_hyphens=False) or [""]
        if len(left) > COLUMN - 2:
            lines.append(left)
            left = ""
        lines.append(f"{left:{COLUMN}}{wrapped[0]}".rstrip())
        lines += [" " * COLUMN + line for line in wrapped[1:]]
    return "\n".join(lines)


def _paragraphs(text: str, width: int) -> str:
    return "\n\n".join(textwrap.fill(" ".join(p.split()), width, break_on_hyphens=False) for p in text.split("\n\n"))
