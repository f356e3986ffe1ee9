"""The user's defaults for options: a TOML file, and where each value of a command comes from.

    device = "cpu"              # any command that has --device
    [image]
    steps = 30                  # gencli image
    [profile.draft.image]
    steps = 8                   # gencli image --profile draft

A key is a long flag without its dashes. Order: flag, environment, profile, file, the model's own, built in.
"""

from __future__ import annotations

import contextlib
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
ONCE = ("profile", "info")  # options of one run: with a default, --info would keep all others from drawing


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
        return tomllib.loads(data.decode("utf-8-sig"))  # Windows' editors begin a file with a mark
    except (ValueError, RecursionError) as error:
        raise GencliError(f"{path()} is not valid TOML: {error}") from None


def defaults(command: Command, ctx: typer.Context, profile: str | None) -> dict[str, tuple[Words, list[str]]]:
    """Return name of a parameter → its value, in words as the command line has them, and the keys that it stands under.

    Raise GencliError for a broken file, UsageError for a profile or an option that does not exist.
    """
    config = read()
    if profile is not None and profile not in (known := _table(config, [PROFILES])):
        hint = did_you_mean(profile, known) or f"profiles: {', '.join(known) or 'none'}"
        raise UsageError(f"--profile {profile!r}: no such profile in {path()}", hint)
    words, names = ctx.command_path.split()[1:], flags(command)
    options = {param.name: param for param in command.params}
    top = cast("typer.Context", ctx.find_root())
    if is_group(top.command):
        _check_tables(config, top.command.list_commands(top))
    inner = ctx.parent.command if ctx.parent is not None else top.command
    if len(words) > 1 and is_group(inner):
        _check_group(config, words[:-1], inner.list_commands(ctx))
    found: dict[str, tuple[Words, list[str]]] = {}
    for root in [[], *([[PROFILES, profile]] if profile else [])]:
        for key, value in _table(config, root).items():
            if not isinstance(value, Mapping) and key in names:
                found[names[key]] = _words([*root, key], value, options[names[key]]), [*root, key]
        for key, value in _table(config, [*root, *words]).items():
            if key not in names:
                section = ".".join([*root, *words])
                raise UsageError(f"{path()}: [{section}] has no option {key!r}", meant(key, [command]))
            keys = [*root, *words, key]
            found[names[key]] = _words(keys, value, options[names[key]]), keys
    return found


def _check_tables(config: Mapping[str, object], commands: Sequence[str]) -> None:
    """Raise UsageError for a table that is none of `commands`."""
    for place in ([], *([PROFILES, name] for name in _table(config, [PROFILES]))):
        known = [*commands, *([] if place else [PROFILES])]
        for name, value in _table(config, place).items():
            if isinstance(value, Mapping) and value and name not in known:
                where = ".".join([*place, name])
                raise UsageError(f"{path()}: [{where}]: no command {name!r}", did_you_mean(name, known))


def _check_group(config: Mapping[str, object], words: Sequence[str], commands: Sequence[str]) -> None:
    """Raise UsageError for what stands in the table of a group of `commands`, such as [train], and is none of these."""
    for place in ([], *([PROFILES, name] for name in _table(config, [PROFILES]))):
        for key in _table(config, [*place, *words]):
            if key not in commands:
                where = ".".join([*place, *words])
                hint = did_you_mean(key, commands) or f"options stand in [{where}.{commands[0]}] and its like"
                raise UsageError(f"{path()}: [{where}] has no command {key!r}", hint)


def flags(command: Command) -> dict[str, str]:
    """Return long flag without its dashes → name of the parameter, of all options of a command that a file may set."""
    options = [param for param in command.params if param.param_type_name == "option" and param.name not in ONCE]
    return {flag[2:]: param.name or "" for param in options for flag in param.opts if flag.startswith("--")}


def meant(key: str, commands: Sequence[Command]) -> str | None:
    """Return a hint for a key that no option of these commands has: the long flag of a short one, or a slip."""
    for param in (param for command in commands for param in command.params if f"-{key}" in param.opts):
        key = next((flag[2:] for flag in param.opts if flag.startswith("--")), key)
    return did_you_mean(key, sorted({name for command in commands for name in flags(command)}))


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


def place(keys: Sequence[str]) -> str:
    """Return in words where a value stands: in a profile, or in the file."""
    return f"profile {keys[1]}" if keys[0] == PROFILES else path().name


def removal(keys: Sequence[str]) -> str:
    """Return a hint: the command that removes what stands under these keys."""
    from shlex import quote

    profile = f" --profile {quote(keys[1])}" if keys[0] == PROFILES else ""
    return f"it stands in {path()}; `gencli config unset {'.'.join(keys[2:] if profile else keys)}{profile}` removes it"


def shown(value: object, option: str) -> object:
    """Return a value as it may be shown: not that of a secret."""
    return "…" if option.endswith("key") else value


def origin(ctx: typer.Context, param: Param) -> str | None:
    """Return the environment variable or the file that a parameter's value comes from; None for all else."""
    source = ctx.get_parameter_source(param.name or "")
    if source is not None and source.name == "ENVIRONMENT":
        return str(param.envvar)
    if source is not None and source.name == "DEFAULT_MAP":
        return place(ctx.meta["gencli.keys"][param.name])
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
                before = f"{error.hint}{'' if error.hint.endswith('?') else ';'} " if error.hint else ""
                error.hint = f"{before}`gencli models use NAME` sets another default"
    if places:
        error.message = f"{error.message} ({', '.join(places)})"
    return error


def set_value(keys: Sequence[str], value: str | bool | int | float | list[str] | None) -> None:
    """Write one value into the file, or remove it. Raise GencliError."""
    import json

    from gencli.atomic import write_over

    file = path()
    try:
        before = file.read_text(encoding="utf-8-sig") if file.exists() else ""
        after = changed(before, keys, None if value is None else json.dumps(value, ensure_ascii=False))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_over(file, after.encode())
    except (OSError, UnicodeDecodeError) as error:
        raise GencliError(f"cannot write {file}: {getattr(error, 'strerror', None) or error}") from None


def changed(text: str, keys: Sequence[str], value: str | None) -> str:
    """Return the text of a file with one value set, or a value or a table removed; all else stays as it is.

    keys: the tables, then the key. value: TOML. Raise GencliError where the file is written in a way that this cannot
    change.
    """
    *tables, key = keys
    lines, wanted = text.splitlines(), parse(text.encode())
    _set(wanted, tables, key, None if value is None else parse(f"x = {value}".encode())["x"])
    heads = {number: found for number, line in enumerate(lines) if (found := _header(line))}
    if value is None and (gone := [number for number, found in heads.items() if found[: len(keys)] == [*keys]]):
        for head in reversed(gone):
            del lines[head : next((n for n in heads if n > head), len(lines))]
        return _joined(lines)
    at, start = next((number for number, found in heads.items() if found == tables), None), 0
    if tables:
        if at is None and value is not None:
            lines += [*([""] if lines else []), f"[{'.'.join(map(_quoted, tables))}]"]
            at = len(lines) - 1
        start = len(lines) if at is None else at + 1
    end = next((n for n in heads if n >= start), len(lines))
    old = [n for n in range(start, end) if lines[n].partition("=")[0].strip().strip("\"'") == key and "=" in lines[n]]
    while not old and end > start and not lines[end - 1].strip():
        end -= 1
    first = old[0] if old else end
    for stop in range(first + 1, end + 1) if old else [end]:  # an old list may take several lines
        made = _joined([*lines[:first], *([] if value is None else [f"{key} = {value}"]), *lines[stop:]])
        with contextlib.suppress(GencliError):  # a table that is written in dots, or in one line
            if _plain(parse(made.encode())) == _plain(wanted):
                return made
    where = first + 1 if old else _line_of(text.splitlines(), keys)
    raise GencliError(
        f"line {where} of {path()} is written in a way that this command cannot change", "edit it yourself"
    )


def _joined(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _quoted(key: str) -> str:
    """Return a key as TOML has it."""
    import json

    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key, ensure_ascii=False)


def _header(line: str) -> list[str]:
    """Return the keys of a line that begins a table; [] for another line."""
    found: list[str] = []
    with contextlib.suppress(GencliError):
        inside: object = parse(line.encode()) if line.lstrip().startswith("[") else None
        while isinstance(inside, Mapping) and inside:
            key, inside = next(iter(inside.items()))
            found.append(key)
    return found


def _line_of(lines: Sequence[str], keys: Sequence[str]) -> int:
    """Return the number of the line that first says something of a key, or else of the innermost table of it."""
    for depth in range(len(keys), 0, -1):
        for number in range(1, len(lines) + 1):
            with contextlib.suppress(GencliError):
                if keys[depth - 1] in _table(parse(_joined(lines[:number]).encode()), keys[: depth - 1]):
                    return number
    return 1


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


def _words(keys: Sequence[str], value: object, param: Param) -> Words:
    """Return a value as the command line has it: a word, or a list of them for an option that may be repeated.

    keys: where it stands. Raise UsageError for a table, and for a list where one value belongs.
    """
    several = value if isinstance(value, list) and param.multiple else [value]
    wrong = next((one for one in several if isinstance(one, Mapping | list)), None)
    if wrong is not None:
        kind = "list" if isinstance(wrong, list) else "table"
        wanted = "several values" if param.multiple else "one value"
        raise UsageError(f"{path()}: {'.'.join(keys)} takes {wanted}, not a {kind}", removal(keys))
    words: list[Words] = [str(one).lower() if isinstance(one, bool) else str(one) for one in several]
    return words if param.multiple else words[0]


def keys_of(config: Mapping[str, object]) -> Iterator[list[str]]:
    """Yield the keys of a file, those of tables too."""
    for key, value in config.items():
        yield [key]
        yield from ([key, *inner] for inner in keys_of(value if isinstance(value, Mapping) else {}))


def values(config: Mapping[str, object], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield keys → value of a file, in its order."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from values(value, (*before, key))
        else:
            yield (*before, key), value
