"""Usage errors in gencli's own words, and what is meant by slips, or by words of other tools."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from gencli.cli import config
from gencli.errors import UsageError, nearest, shorten

if TYPE_CHECKING:
    import typer

    from gencli.cli.parser import Command

CONTEXT = "the context is the model's own; -n limits what is generated, and --truncate left cuts a long prompt"
DEVICE = "--device cuda runs the whole model on the GPU; auto does so where there is one"
HIRES = "draw small first, then go on: -i small.png --size 1024x1024 --strength 0.5; or --upscaler NAME"
# What people type who come from other tools, where gencli has no option for it → what to say. What it has under another
# name stands in that option's row.
ELSEWHERE = {
    "--prompt": "write the prompt as an argument, or `-` for stdin",
    "-p": "write the prompt as an argument, or `-` for stdin",
    "--file": "read a prompt from a file with `- < FILE`",
    "--prompt-file": "read a prompt from a file with `- < FILE`",
    "-f": "read a prompt from a file with `- < FILE`",
    "--no-display-prompt": "the prompt is shown with --echo only",
    **dict.fromkeys(("--no-think", "--nothink", "--no-thinking"), "did you mean --think off?"),
    "--reasoning-budget": "--think on, off, low, medium or high; -n limits reasoning and answer together",
    "--hidethinking": "stdout never has the reasoning; -q hides it on a terminal too",
    **dict.fromkeys(("--stream", "--no-stream"), "the text is written as it is produced; --json waits for its end"),
    "--log-disable": "stdout holds only data; -q turns notes and progress off",
    "--output": "the output goes to stdout: `> FILE` saves it",
    "-o": "the output goes to stdout: `> FILE` saves it",
    "--version": "did you mean `gencli --version`?",
    "-V": "did you mean `gencli --version`?",
    "-c": CONTEXT,
    "--ctx-size": CONTEXT,
    "--num-ctx": CONTEXT,
    **dict.fromkeys(("-ngl", "-ngld", "--n-gpu-layers", "--gpu-layers", "-sm", "-ts", "-mg"), DEVICE),
    **dict.fromkeys(("-ctk", "-ctv"), "the cache of keys and values is of the model's own type"),
    **dict.fromkeys(("-fa", "--flash-attn"), "attention has no switch: nothing to set"),
    **dict.fromkeys(("-cnv", "--conversation"), "`gencli chat` converses"),
    **dict.fromkeys(("-no-cnv", "--no-conversation"), "without --chat the prompt is sent as it is"),
    **dict.fromkeys(("-mm", "--mmproj"), "a model that reads images brings its own encoder: --image FILE"),
    "--repeat-last-n": "--repeat-penalty R looks at the whole text, prompt included",
    "--hires": HIRES,
    "--hires-fix": HIRES,
    "--refiner-steps": "--stage refiner:steps=N counts all denoising steps; --refiner-start F says where it begins",
}
# The same for `gencli chat` alone, which takes no prompt.
CHAT_ELSEWHERE = {
    **dict.fromkeys(
        ("-p", "--prompt"), '`gencli text --chat "…"` answers one message; so does `gencli chat` in a pipe'
    ),
    **dict.fromkeys(("-f", "--file"), "`gencli chat < FILE` sends a file; /file FILE does in a conversation"),
}
OUTPUTS = ("-o", "--output")
# The same for commands.
COMMANDS_ELSEWHERE = {
    "help": "--help",
    "version": "--version",
    "generate": 'text "Once upon a time"',
    "run": 'text "Once upon a time"',
    "complete": 'text "Once upon a time"',
    "prompt": 'text "Once upon a time"',
    "draw": 'image "red apple"',
    "img": 'image "red apple"',
    "txt2img": 'image "red apple"',
    "ls": "models list",
    "download": "models pull",
    "get": "models pull",
    "add": "models pull",
    "update": "models pull --update",
    "remove": "models rm",
    "delete": "models rm",
    "uninstall": "models rm",
    "search": "models available",
    "info": "models show",
    "finetune": "train text",
    "show": "models show",
    "ps": "models list",
    "create": "models convert",
    **dict.fromkeys(("config get", "config list", "config ls"), "config show"),
    "config edit": "config path",
    **dict.fromkeys(("config rm", "config remove", "config delete"), "config unset"),
}
# The same for arguments of commands that take none: {} is what was typed.
ARGUMENTS_ELSEWHERE = {"chat": '`gencli text --chat "{}"` answers one message', "serve": "did you mean -m {}?"}


def meant_command(args: Sequence[str], known: Collection[str]) -> str | None:
    """Return the command that words stand for, of which the first is none of those `known`; None for others."""
    name = args[0]
    if " " in name.strip():
        return f'text "{shorten(name, 60)}"'
    return _with_words(args, known) or COMMANDS_ELSEWHERE.get(name) or _model(name)


def meant_inside(group: str, name: str) -> str | None:
    """Return the command of a group, such as models, that other tools call so; None for others."""
    before, _, command = (COMMANDS_ELSEWHERE.get(f"{group} {name}") or COMMANDS_ELSEWHERE.get(name, "")).partition(" ")
    return command if before == group else None


def _with_words(args: Sequence[str], known: Collection[str]) -> str | None:
    """Return the command that `help COMMAND` and other tools' `run MODEL [PROMPT]` stand for; None for others."""
    name, first, *rest = *args, "", ""
    prompt = shorten(" ".join(filter(None, rest)), 60)
    if name == "help" and first in known:
        return f"{first} --help"
    if name != "run" or not first or first.startswith("-"):
        return None
    return f'text -m {first} "{prompt}"' if prompt else f"chat -m {first}"


def _model(name: str) -> str | None:
    """Return the command that runs a model which is embedded or well known; None for another name."""
    from gencli.checkpoints.find import known_names

    names = () if "/" in name else ("text", "image", "upscale")
    return next((f"{task} -m {name}" for task in names if name in dict(known_names(task))), None)


def _is_model(name: str) -> bool:
    """Return whether a word is the name of a model for texts, or of a file or folder here."""
    from gencli.checkpoints.find import known_names

    return name in dict(known_names("text")) or os.path.exists(name)


def explain(error: Exception) -> UsageError:
    """Translate a usage error of the parser (click's or typer's) into a UsageError with a hint."""
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx is not None else "gencli"
    hint = f"see `{path} --help`"
    option = getattr(error, "option_name", None)
    if option and hasattr(error, "possibilities"):  # no such option
        return UsageError(f"no such option: {option}", (ctx and _meant(option.replace("_", "-"), ctx)) or hint)
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    hint = (ctx and _about_words(message, ctx)) or hint
    found = UsageError(message[:1].lower() + message[1:].rstrip("."), hint)
    param = getattr(error, "param", None)
    if ctx is not None and param is not None:
        said = f" (env var: '{param.envvar}')"  # in the parser's own words, whether or not it is set
        place = config.origin(ctx, param)
        if place is not None and place != param.envvar:
            found.hint = config.removal(ctx.meta["gencli.keys"][param.name])
        found.message = found.message.replace(said, "") + (f" (set by {place})" if place else "")
    return found


def _about_words(message: str, ctx: typer.Context) -> str | None:
    """Return a hint for arguments that a command does not take."""
    if extra := re.search(r"extra argument.*? \((.*)\)", message):
        advice, words = ARGUMENTS_ELSEWHERE.get(ctx.info_name or ""), extra[1]
        model, _, prompt = words.partition(" ")
        if ctx.info_name == "chat" and _is_model(words):
            advice = ARGUMENTS_ELSEWHERE["serve"]
        elif ctx.info_name == "chat" and _is_model(model):  # as ollama run takes them
            advice, words = "`gencli text --chat -m {}` answers one message", f'{model} "{prompt}"'
        return ELSEWHERE["-c"] if words.isdecimal() else advice and advice.format(shorten(words, 60))
    if "'VALUE'" in message and "=" in str(ctx.params.get("key")):
        return "write a space in place of the first `=`"
    return None


def refuse_glued(command: Command, ctx: typer.Context, args: list[str]) -> None:
    """Raise UsageError for an option of other tools such as -ngl, which the parser would read as `-n gl`."""
    valued = {name for param in command.params if not getattr(param, "is_flag", True) for name in param.opts}
    words = iter(args)
    for word in words:
        name = word.partition("=")[0]
        if word == "--" or ctx.resilient_parsing:
            return
        if word in valued:
            next(words, None)  # is its value
        elif len(name) > 2 and name[0] == "-" != name[1] and (hint := _elsewhere(name, ctx)):
            raise UsageError(f"no such option: {name}", hint)


def _elsewhere(option: str, ctx: typer.Context) -> str | None:
    """Return a hint for an option as other tools call it: what it is called here, or advice."""
    command: Command = ctx.command
    from gencli.options import rows_of

    if called := [row.name(name) for name, row in rows_of(command.callback).items() if option in row.also]:
        return f"did you mean {' or '.join(called)}?"
    is_output = option in OUTPUTS and any("-o" in param.opts for param in command.params)
    if ctx.info_name == "chat" and option in CHAT_ELSEWHERE:
        return CHAT_ELSEWHERE[option]
    return None if is_output else ELSEWHERE.get(option)


def _meant(option: str, ctx: typer.Context) -> str | None:
    """Return a hint for an option that a command does not have: what it is called here, a slip, or advice."""
    if hint := _elsewhere(option, ctx):
        return hint
    known = [name for param in ctx.command.params for name in param.opts]
    short = option.swapcase() if len(option) == 2 and option.swapcase() in known else None
    close = short or (nearest(option, known) if len(option) > 2 else None)
    if close:
        return f"did you mean {close}?"
    if ctx.parent is None:
        return f"options follow the command, as in `gencli text {option} …`; see `gencli --help`"
    if (len(option) == 2 or " " in option) and any(param.name == "prompt" for param in ctx.command.params):
        return f"see `{ctx.command_path} --help`; put `--` before a prompt that begins with a dash"
    return None
