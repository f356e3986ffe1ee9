"""What gencli uses of the parser that typer stands on: click, or in newer versions typer's own copy of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeGuard

if TYPE_CHECKING:
    import typer


class Param(Protocol):
    """An option or an argument; an option alone has `help`, `hidden` and `is_flag`."""

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


def is_group(command: Command) -> TypeGuard[CommandGroup]:
    """Return whether a command is a group."""
    return hasattr(command, "list_commands")
