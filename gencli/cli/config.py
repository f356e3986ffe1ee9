"""The user's defaults for options: a TOML file, and where each value of a command comes from.

    device = "cpu"              # any command that has --device
    [image]
    steps = 30                  # gencli image
    [profile.draft.image]
    steps = 8                   # gencli image --profile draft

A key is a long flag without its dashes. Order: flag, environment, profile, file, the model's own, built in.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from gencli.cli.parser import is_group
from gencli.errors import GencliError, UsageError, did_you_mean

if TYPE_CHECKING:
    import typer

    from gencli.cli.parser import Command, Param

    Words = str | list["Words"]

ENVIRONMENT, PROFILE, PROFILES = "GENCLI_CONFIG", "GENCLI_PROFILE", "profile"
SIZE_LIMIT = 2**20  # bytes


def path() -> Path:
    """Return where the file is, or would be."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(os.path.expanduser(named))
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(os.path.expanduser(home)) / "gencli" / "config.toml"


def read() -> dict[str, object]:
    """Return the file's tables and values; none without a file. Raise GencliError for a file that is not TOML."""
    file = path()
    try:
        with file.open("rb") as stream:
            data = stream.read(SIZE_LIMIT)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise GencliError(f"cannot read {file}: {error.strerror}") from None
    return parse(data) if data.strip() else {}


def parse(data: bytes) -> dict[str, object]:
    """Return what a file of these bytes says. Raise GencliError."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise GencliError(f"{path()} is not valid TOML: {error}") from None


def defaults(command: Command, ctx: typer.Context, profile: str | None) -> dict[str, tuple[Words, str]]:
    """Return name of a parameter → its value, in words as the command line has them, and where that stands.

    Raise GencliError for a broken file, UsageError for a profile or an option that does not exist.
    """
    config = read()
    if profile is not None and profile not in (known := _table(config, [PROFILES])):
        hint = did_you_mean(profile, known) or f"profiles: {', '.join(known) or 'none'}"
        raise UsageError(f"--profile {profile!r}: no such profile in {path()}", hint)
    words, names = ctx.command_path.split()[1:], flags(command)
    top = cast("typer.Context", ctx.find_root())
    if is_group(top.command):
        _check_tables(config, top.command.list_commands(top))
    found: dict[str, tuple[Words, str]] = {}
    for root, where in [([], path().name), *([([PROFILES, profile], f"profile {profile}")] if profile else [])]:
        for key, value in _table(config, root).items():
            if not isinstance(value, Mapping) and key in names:
                found[names[key]] = _words(value), where
        for key, value in _table(config, [*root, *words]).items():
            if isinstance(value, Mapping):
                continue
            if key not in names:
                section = ".".join([*root, *words])
                raise UsageError(f"{path()}: [{section}] has no option {key!r}", did_you_mean(key, names))
            found[names[key]] = _words(value), where
    return found


def _check_tables(config: Mapping[str, object], commands: Sequence[str]) -> None:
    """Raise UsageError for a table that is none of `commands`."""
    for place in ([], *([PROFILES, name] for name in _table(config, [PROFILES]))):
        known = [*commands, *([] if place else [PROFILES])]
        for name, value in _table(config, place).items():
            if isinstance(value, Mapping) and value and name not in known:
                where = ".".join([*place, name])
                raise UsageError(f"{path()}: [{where}]: no command {name!r}", did_you_mean(name, known))


def flags(command: Command) -> dict[str, str]:
    """Return long flag without its dashes → name of the parameter, of all options of a command that a file may set."""
    options = [param for param in command.params if param.param_type_name == "option" and param.name != "profile"]
    return {flag[2:]: param.name or "" for param in options for flag in param.opts if flag.startswith("--")}


def said(args: Sequence[str]) -> str | None:
    """Return the profile that a command line, or else the environment, names."""
    words = iter(args)
    for word in words:
        if word == "--":
            break
        if word == "--profile":
            return next(words, None)
        if word.startswith("--profile="):
            return word.partition("=")[2]
    return os.environ.get(PROFILE) or None


def shown(value: object, option: str) -> object:
    """Return a value as it may be shown: not that of a secret."""
    return "…" if option.endswith("key") else value


def origin(ctx: typer.Context, param: Param) -> str | None:
    """Return the environment variable or the file that a parameter's value comes from; None for all else."""
    source = ctx.get_parameter_source(param.name or "")
    if source is not None and source.name == "ENVIRONMENT":
        return str(param.envvar)
    if source is not None and source.name == "DEFAULT_MAP":
        return str(ctx.meta.get("gencli.origins", {}).get(param.name))
    return None


def located(error: GencliError, ctx: typer.Context) -> GencliError:
    """Return an error that says where the values come from that it names, if not from the command line."""
    places = []
    typed = [ctx.params.get(param.name) for param in ctx.command.params if origin(ctx, param) is None]
    for param in ctx.command.params:
        value = ctx.params.get(param.name)
        said = list(param.opts)
        if isinstance(value, str) and len(value) > 1 and value not in typed:
            said.append(value)
        named = any(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", error.message) for word in said)
        if named and (place := origin(ctx, param)):
            places.append(f"{param.opts[-1]} is set by {place}")
            if param.opts[-1] == "--model" and place == path().name:
                error.hint = f"{f'{error.hint}; ' if error.hint else ''}`gencli models use NAME` sets another default"
    if places:
        error.message = f"{error.message} ({', '.join(places)})"
    return error


def set_value(keys: Sequence[str], value: str | bool | int | float | list[str] | None) -> None:
    """Write one value into the file, or remove it. Raise GencliError."""
    import json

    from gencli.atomic import write_over

    file = path()
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        after = changed(before, keys, None if value is None else json.dumps(value, ensure_ascii=False))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_over(file, after.encode())
    except (OSError, UnicodeDecodeError) as error:
        raise GencliError(f"cannot write {file}: {getattr(error, 'strerror', None) or error}") from None


def changed(text: str, keys: Sequence[str], value: str | None) -> str:
    """Return the text of a file with one value set, or removed; all else stays as it is.

    keys: the tables, then the key. value: TOML. Raise GencliError where the file is written in a way that this cannot
    change.
    """
    *tables, key = keys
    lines = text.splitlines()
    start, end = 0, len(lines)
    heads = [number for number, line in enumerate(lines) if line.lstrip().startswith("[")]
    if tables:
        at = next((n for n in heads if _header(lines[n]) == tables), None)
        if at is None and value is not None:
            lines += [*([""] if lines else []), f"[{'.'.join(tables)}]"]
            at = len(lines) - 1
        start = len(lines) if at is None else at + 1
    end = next((n for n in heads if n >= start), len(lines))
    old = [n for n in range(start, end) if lines[n].partition("=")[0].strip().strip("\"'") == key and "=" in lines[n]]
    new = [] if value is None else [f"{key} = {value}"]
    if old:
        lines[old[0] : old[0] + 1] = new
    else:
        while end > start and not lines[end - 1].strip():
            end -= 1
        lines[end:end] = new
    made = "".join(f"{line}\n" for line in lines)
    wanted = parse(text.encode())
    _set(wanted, tables, key, None if value is None else parse(f"x = {value}".encode())["x"])
    try:
        same = _plain(parse(made.encode())) == _plain(wanted)
    except GencliError:  # a table that is written in dots, or in one line
        same = False
    if not same:
        raise GencliError(f"{path()} is written in a way that this command cannot change", "edit it yourself")
    return made


def _header(line: str) -> list[str]:
    inner = line.strip().partition("]")[0].removeprefix("[")
    return [word.strip().strip("\"'") for word in inner.split(".")]


def _set(config: dict[str, object], tables: Sequence[str], key: str, value: object) -> None:
    for table in tables:
        inner = config.setdefault(table, {})
        if not isinstance(inner, dict):
            raise GencliError(f"{path()}: {table} is a value, not a table", "edit it yourself")
        config = inner
    config[key] = value
    if value is None:
        del config[key]


def _plain(config: Mapping[str, object]) -> dict[str, object]:
    """Return a config without empty tables."""
    inner = {key: _plain(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    return {key: value for key, value in inner.items() if value != {}}


def _table(config: Mapping[str, object], keys: Sequence[str]) -> Mapping[str, object]:
    found: object = config
    for key in keys:
        found = found.get(key, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def _words(value: object) -> Words:
    """Return a value as the command line has it: words, and a list of them for an option that may be repeated."""
    if isinstance(value, list):
        return [_words(one) for one in value]
    return str(value).lower() if isinstance(value, bool) else str(value)


def values(config: Mapping[str, object], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield keys → value of a file, in its order."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from values(value, (*before, key))
        else:
            yield (*before, key), value
