"""`gencli config`: show, set and find the user's defaults."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from json import dumps as toml
from typing import TYPE_CHECKING, Annotated, cast

import typer

from gencli.checkpoints.catalogue import find_entry
from gencli.checkpoints.find import find
from gencli.cli import config, parser
from gencli.cli.help import SETTINGS, Command, Group
from gencli.cli.options import JSON, declare
from gencli.cli.parser import CommandGroup, OptionParam, is_group, is_option, root_of
from gencli.cli.sinks import write_lines, write_object
from gencli.cli.values import SAID
from gencli.cli.variables import unread
from gencli.completions import COMPLETED, Completed
from gencli.errors import UsageError, did_you_mean
from gencli.options import rows_of

if TYPE_CHECKING:
    from typing_extensions import Never

Items = list[tuple[str, str]]
KEY = "COMMAND.OPTION, as in image.steps, or OPTION for every command that has it."


def _keys(ctx: typer.Context, incomplete: str) -> Items:
    """Return the keys that may be set and begin so, with what they are."""
    found: dict[str, str] = {}
    for name, command in _commands(root_of(ctx), ctx):
        helps = {param.name: param.help or "" for param in command.params if is_option(param)}
        first = {param: flag for flag, param in reversed(config.flags(command).items())}  # of its flags the first
        for param, flag in first.items():
            found |= {f"{name}.{flag}": helps[param], flag: found.get(flag, helps[param])}
    return [item for item in sorted(found.items()) if item[0].startswith(incomplete)]


def _values(ctx: typer.Context, incomplete: str) -> Items:
    """Return the values that begin so, of the option that the key names."""
    try:
        _, _, _, param = _option(ctx, ctx.params.get("key") or "")
    except UsageError:
        return []
    found = [] if param.is_flag else param.shell_complete(ctx, incomplete)
    items = [("true", ""), ("false", "")] if param.is_flag else [(item.value, item.help or "") for item in found]
    return [item for item in items if item[0].startswith(incomplete)]


def _keys_there(ctx: typer.Context, incomplete: str) -> Items:
    """Return the keys that are set and begin so, in the profile that is named or beside all of them."""
    before = _before(ctx.params.get("profile"))
    keys = [keys[len(before) :] for keys, _ in config.values(config.read()) if list(keys[: len(before)]) == before]
    found = [".".join(one) for one in keys if one[0] != config.PROFILES]
    return [(key, "") for key in found if key.startswith(incomplete)]


COMPLETED |= dict.fromkeys((_values, _keys_there), Completed(asks=True))
Key = Annotated[str, typer.Argument(metavar="KEY", help=KEY, autocompletion=_keys)]
KeyThere = Annotated[str, typer.Argument(metavar="KEY", help=KEY, autocompletion=_keys_there)]
Values = Annotated[
    list[str],
    typer.Argument(
        metavar="VALUE", help="New value; of an option that may be repeated several.", autocompletion=_values
    ),
]
Profile = Annotated[
    str | None, typer.Option("--profile", metavar="NAME", help="In this profile, which `--profile NAME` selects.")
]

app = typer.Typer(cls=Group, context_settings=SETTINGS, add_completion=False, rich_markup_mode=None)


@app.callback(
    epilog="""Examples:
    gencli config set image.steps 30
    gencli config set image.steps 8 --profile draft
    gencli config set device cpu
    gencli config set text.stop END "The end"
    gencli config unset image.steps
    gencli config show
    """,
)
def config_() -> None:
    """Defaults of your own, for any option of any command, in one TOML file.

    Order: flag, environment, profile, file, the model's own setting, built-in default.
    """


@app.command("path", cls=Command)
def path_() -> None:
    """Print where the file is, or would be."""
    write_lines([str(config.path())])


@app.command(cls=Command)
def show(ctx: typer.Context, json: Annotated[bool, declare(JSON)] = False) -> None:
    """Print every value that the file or the environment sets, and where it comes from."""
    rows = list(_in_force(ctx))
    for note in unread(()):
        ctx.find_root().obj.note(note)
    if json:
        for key, value, place in rows:
            write_object({"key": key, "value": value, "from": place})
    elif rows:
        write_lines(
            [f"{key} = {toml(value, ensure_ascii=False, default=str)}  ({place})" for key, value, place in rows]
        )
    else:
        ctx.find_root().obj.note(f"nothing is set; the file would be {config.path()}")


@app.command("set", cls=Command, context_settings={"ignore_unknown_options": True})  # a value may be -0.5
def set_(ctx: typer.Context, key: Key, value: Values, profile: Profile = None) -> None:
    """Set a default in the file."""
    words, flags, command, param = _option(ctx, key)
    if len(value) > 1 and not param.multiple:
        raise UsageError(f"{key} takes one value, and here are {len(value)}", "quote a value that has spaces")
    _check(ctx, command, param, value)
    for other in flags[1:]:
        if [*_before(profile), *words, other] in _set_keys():
            config.set_value([*_before(profile), *words, other], None)
    config.set_value([*_before(profile), *words, flags[0]], _typed(param, value))


@app.command(cls=Command)
def unset(ctx: typer.Context, key: KeyThere, profile: Profile = None) -> None:
    """Remove a default from the file."""
    *words, flag = key.removeprefix("--").split(".")
    known, flags = _set_keys(), [flag]
    with contextlib.suppress(UsageError):  # the file may have what no command has
        flags = [flag, *_option(ctx, key)[1]]
    there = list(config.keys_of(config.read()))
    names = [".".join([*_before(profile), *words, name]) for name in flags]  # a profile's may have dots
    keys = next((one for name in names for one in there if ".".join(one) == name), None)
    if keys is None:
        name = ".".join([*_before(profile), *words, flag])
        raise UsageError(f"{name} is not set in {config.path()}", did_you_mean(name, map(".".join, known)))
    config.set_value(keys, None)


def _set_keys() -> list[list[str]]:
    """Return the keys that the file sets."""
    return [list(keys) for keys, _ in config.values(config.read())]


def _before(profile: str | None) -> list[str]:
    """Return the tables that a profile's settings stand in."""
    if profile == "":
        raise UsageError("--profile '': a profile's name cannot be empty", "is it an unset variable?")
    return [config.PROFILES, profile] if profile else []


def _option(ctx: typer.Context, key: str) -> tuple[list[str], list[str], parser.Command, OptionParam]:
    """Return what a key names: the words of its command, if any, and the option's flags without dashes, the usual one
    first; the first command that has the option, and the option. Raise UsageError."""
    *words, flag = key.removeprefix("--").split(".")
    commands = dict(_commands(root_of(ctx), ctx))
    if not words and flag in root_of(ctx).list_commands(ctx):
        raise UsageError(
            f"{key} is a command: KEY is one of its options", f"as in {key}.OPTION; `gencli {key} --help` lists them"
        )
    if words[:1] == [config.PROFILES] and len(words) > 2:
        hint = f"a profile is an option of its own: {'.'.join([*words[2:], flag])} --profile {words[1]}"
        raise UsageError(f"{key}: no such command", hint)
    if words and ".".join(words) not in commands:
        raise UsageError(f"{key}: no such command", did_you_mean(".".join(words), commands))
    chosen = [commands[".".join(words)]] if words else list(commands.values())
    for one in chosen:
        known = config.flags(one)
        if (name := known.get(flag)) is not None:
            flags = [other for other in known if known[other] == name]
            return words, flags, one, next(param for param in filter(is_option, one.params) if param.name == name)
    if any(f"--{flag}" in param.opts for one in chosen for param in one.params):
        raise UsageError(f"{key}: --{flag} is for one run, and has no default of your own")
    command = " ".join(words) or "COMMAND"
    raise UsageError(f"{key}: no such option", config.meant(flag, chosen) or f"`gencli {command} --help` lists them")


def _commands(group: CommandGroup, ctx: typer.Context, before: str = "") -> Iterator[tuple[str, parser.Command]]:
    """Yield every command by its path, with dots between. Imports all of them, and no torch."""
    for name in group.list_commands(ctx):
        found = group.get_command(ctx, name)
        if found is not None and is_group(found):
            yield from _commands(found, ctx, f"{before}{name}.")
        elif found is not None:
            yield f"{before}{name}", found


def _check(ctx: typer.Context, command: parser.Command, param: OptionParam, value: list[str]) -> None:
    """Raise the parser's error, or UsageError, for a value that the option cannot have."""
    from gencli.cli.values import use_plain_values

    use_plain_values([param])
    found = param.process_value(ctx, value if param.multiple else value[0])
    row = rows_of(command.callback).get(name := param.name or "")
    if row is None or (row.word is not None and row.read is None):
        return
    found = tuple(found) if row.several and isinstance(found, list | tuple) else found
    row.check(name, found if row.read is None else row.read(cast("Never", found)))
    if param.name == "model" and "/" not in value[0] and find_entry(value[0]) is None:  # not to be downloaded
        find(value[0], offline="`gencli config set`")


def _typed(param: OptionParam, words: list[str]) -> list[str] | bool | int | float | str:
    """Return a value as TOML has it: numbers and truth values as such, lists for what may be repeated."""
    if param.multiple:
        return words
    value = words[0]
    if param.is_flag and value.lower() in SAID:
        return SAID[value.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


def _in_force(ctx: typer.Context) -> Iterator[tuple[str, object, str]]:
    seen = set()
    for name, command in _commands(root_of(ctx), ctx):
        for param in filter(is_option, command.params):
            value = param.resolve_envvar_value(ctx) if param.envvar else None
            if value is not None and param.envvar not in seen:
                seen.add(param.envvar)
                option = param.opts[-1].lstrip("-")
                yield f"{name}.{option}", config.shown(value, option), str(param.envvar)
    for keys, said in config.values(config.read()):
        lost = "" if _is_known(ctx, keys) else ": no command has it"
        yield ".".join(keys), config.shown(said, keys[-1]), f"{config.path()}{lost}"


def _is_known(ctx: typer.Context, keys: Sequence[str]) -> bool:
    """Return whether a key of the file, with its tables, is an option of a command."""
    try:
        _option(ctx, ".".join(keys[2:] if keys[0] == config.PROFILES else keys))
    except UsageError:
        return False
    return True
