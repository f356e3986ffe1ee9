"""What gencli uses of the parser that typer stands on: click, or in newer versions typer's own copy of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeGuard, cast

if TYPE_CHECKING:
    import typer


class Item(Protocol):
    """A word that completes another."""

    value: str
    help: str | None


class Param(Protocol):
    """An option or an argument."""

    param_type_name: str
    opts: list[str]
    secondary_opts: list[str]
    metavar: str | None
    nargs: int
    multiple: bool
    required: bool

    @property
    def name(self) -> str | None: ...
    @property
    def envvar(self) -> str | Sequence[str] | None: ...
    def value_from_envvar(self, ctx: typer.Context) -> str | Sequence[str] | None: ...
    def shell_complete(self, ctx: typer.Context, incomplete: str) -> Sequence[Item]: ...


class OptionParam(Param, Protocol):
    """An option."""

    help: str | None
    is_flag: bool

    def resolve_envvar_value(self, ctx: typer.Context) -> str | None: ...
    def process_value(self, ctx: typer.Context, value: object) -> object: ...


class Command(Protocol):
    """A command or a group."""

    help: str | None
    epilog: str | None

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
