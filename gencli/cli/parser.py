"""What gencli uses of the parser that typer stands on: click, or in newer versions typer's own copy of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeGuard, cast

if TYPE_CHECKING:
    import typer


class Item(Protocol):
    """A word that completes another."""

    @property
    def value(self) -> str: ...

    @property
    def help(self) -> str | None: ...


class Param(Protocol):
    """An option or an argument."""

    @property
    def name(self) -> str | None: ...

    @property
    def param_type_name(self) -> str: ...

    @property
    def opts(self) -> list[str]: ...

    @property
    def secondary_opts(self) -> list[str]: ...

    @property
    def metavar(self) -> str | None: ...

    @property
    def envvar(self) -> str | Sequence[str] | None: ...

    @property
    def nargs(self) -> int: ...

    @property
    def multiple(self) -> bool: ...

    @property
    def required(self) -> bool: ...

    def value_from_envvar(self, ctx: typer.Context) -> str | Sequence[str] | None: ...

    def shell_complete(self, ctx: typer.Context, incomplete: str) -> Sequence[Item]: ...


class OptionParam(Param, Protocol):
    """An option."""

    @property
    def help(self) -> str | None: ...

    @property
    def is_flag(self) -> bool: ...

    def resolve_envvar_value(self, ctx: typer.Context) -> str | None: ...

    def process_value(self, ctx: typer.Context, value: object) -> object: ...


class Command(Protocol):
    """A command or a group."""

    @property
    def help(self) -> str | None: ...

    @property
    def epilog(self) -> str | None: ...

    @property
    def params(self) -> Sequence[Param]: ...

    @property
    def callback(self) -> object: ...

    def get_params(self, ctx: typer.Context) -> Sequence[Param]: ...


class CommandGroup(Command, Protocol):
    """A group."""

    def list_commands(self, ctx: typer.Context) -> list[str]: ...

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Command | None: ...


def is_option(param: Param) -> TypeGuard[OptionParam]:
    """Return whether a parameter is an option."""
    return param.param_type_name == "option"


def root_of(ctx: typer.Context) -> CommandGroup:
    """Return the command `gencli` itself."""
    return cast("CommandGroup", ctx.find_root().command)


def is_group(command: Command) -> TypeGuard[CommandGroup]:
    """Return whether a command is a group."""
    return hasattr(command, "list_commands")
