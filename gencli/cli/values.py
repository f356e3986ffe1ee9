"""Convert words of the command line to Python values, without the library that newer versions of typer import.

That library (pydantic) takes a tenth of a second at every start, for nothing more than int() and float().
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import get_args, get_origin

import typer
from typer.core import TyperArgument, TyperOption

from gencli.cli.parser import Param

NAMES: dict[type, str] = {int: "an integer", float: "a number", bool: "yes or no"}
SAID = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


class PlainValues:
    """Converts one parameter in place of typer: str, int, float, bool, Path, an Enum, or a list of those."""

    def __init__(self, kind: type):
        self.kind = kind

    def coerce(self, value: object, param: TyperArgument | TyperOption, ctx: typer.Context) -> object:
        """Convert the word or words of a parameter. Raise BadParameter for a word that cannot be converted."""
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        if several and isinstance(value, Iterable):
            return [self._one(word, param, ctx) for word in value]
        return self._one(value, param, ctx)

    def _one(self, word: object, param: TyperArgument | TyperOption, ctx: typer.Context) -> object:
        try:
            return SAID[str(word).lower()] if self.kind is bool else self.kind(word)
        except (KeyError, ValueError):
            if issubclass(self.kind, Enum):
                message = f"{word!r} is not one of {', '.join(member.value for member in self.kind)}"
            else:
                message = f"{word!r} is not {NAMES[self.kind]}"
            raise typer.BadParameter(message, ctx=ctx, param=param) from None


def use_plain_values(params: Iterable[Param]) -> None:
    """Make parameters of a newer typer use `PlainValues`, if their type is known to it."""
    for param in params:
        kind = getattr(getattr(param, "type_descriptor", None), "annotation", None)
        if get_origin(kind) is list:
            kind = get_args(kind)[0]
        if not isinstance(kind, type) or getattr(param, "_runtime_param", param) is not None:
            continue
        if kind in (str, int, float, bool, Path) or issubclass(kind, Enum):
            param._runtime_param = PlainValues(kind)  # type: ignore[attr-defined]
