"""Options as rows: what there is to say about a value is said once, beside the field that it fills.

A field of a request is made by `integer`, `number`, `string`, `choice`, `flag` or `several`. Its row (`Option`) holds
the flags on the command line, the help text, the limits, the key in a checkpoint's generation_config.json and the key
in an image. `gencli.cli.options` builds commands from rows; requests are checked, completed and written by them.
No torch and no typer in here.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar, cast

from gencli.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from typing_extensions import Never, Unpack

    # What rows do with values whose types they alone know.
    Reader = Callable[[Never], object]
    Check = Callable[[str, Never], None]
    Complete = Sequence[str] | Callable[[], list[str]] | Callable[[str], list[tuple[str, str]]]

MODEL, OUTPUT, RUN = "Model", "Output", "Running"  # headings on the help pages of several commands
SEVERAL_LIMIT = 64  # values of an option that may be repeated
TEXT_LIMIT = 2**20  # characters of a text; a tokenizer would take minutes over more
KINDS: dict[type, str] = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    Mapping: "names and values",
}
Whole = TypeVar("Whole", int, int | None)
Number = TypeVar("Number", float, float | None)
Text = TypeVar("Text", str, str | None)
Truth = TypeVar("Truth", bool, bool | None)
T = TypeVar("T")


@dataclass(eq=False, repr=False)
class Bounds:
    """Limits of a number, inclusive unless `open_low`. An infinite `high` is no limit; NaN and infinity are refused.
    hint: what helps who leaves them."""

    low: float
    high: float = math.inf
    open_low: bool = False
    hint: str | None = None

    def check(self, name: str, value: object) -> None:
        """Raise UsageError for a value outside the limits, or one that is not a number."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            finite = abs(value) <= sys.float_info.max
            if finite and self.low <= value <= self.high and not self._is_open_end(value):
                return
            if isinstance(value, int) and not finite:
                value = "is too large"  # and would be as long in words
            elif not finite:
                raise UsageError(f"{name} {value}: must be finite", self.hint)
        least = f"more than {self.low}" if self.open_low else f"at least {self.low}"
        most = f" and at most {self.high}" if self.high < math.inf else ""
        raise UsageError(f"{name} {_typed(value)}: must be {least}{most}", self.hint)

    def _is_open_end(self, value: float) -> bool:
        return self.open_low and value == self.low


@dataclass(eq=False, repr=False)
class Option:
    """One row.

    kind: the type of the value, or of each of `several`. usage: the option as the help page shows it, as in
    "-k, --top-k K"; without a flag it is an argument, and "" is a field that the command line does not fill. help: a
    text without a full stop is followed by the usual value; it names the limits itself, and not the environment
    variable. panel: the heading on the help page. after: the field that it follows there, if that is not the one above.
    env: the environment variable that holds when the option is not given. also: what other programs call it, for
    hints. callback: what typer calls with the value before all else.

    word: the type on the command line, if that is not `kind`. read: what the command line gave → the value; it gets
    None where nothing was given. called: the name in messages (default: the first long flag).
    within: inclusive limits, of each of `several`. bounds: the same for numbers of either kind. valid: a check of the
    option's name and value in place of all others.

    usual: what holds when neither the request nor the checkpoint says otherwise. config_key: the key in a checkpoint's
    generation_config.json. off: the value that changes nothing.
    infotext: the key in a picture's text, if any. beside: values of other fields that make this one valid alone.
    reload: whether another value needs the model to be loaded again. foreign: what a picture that names it is allowed
    (see `gencli.image.files.metadata`).
    """

    kind: type
    usage: str = ""
    help: str = ""
    panel: str = "Options"
    after: str | None = None
    several: bool = False
    env: str | None = None
    also: tuple[str, ...] = ()
    complete: Complete = ()
    callback: Callable[[Never, Never], object] | None = None
    word: type | None = None
    read: Reader | None = None
    called: str | None = None
    within: tuple[float, float] | None = None
    bounds: Bounds | None = None
    valid: Check | None = None
    choices: tuple[str, ...] = ()
    usual: int | float | None = None
    config_key: str | None = None
    off: object = None
    infotext: str | None = None
    labels: Mapping[object, str] = dataclasses.field(default_factory=dict)
    reload: bool = False
    names: str | None = None

    def field(self, default: T, *, compare: bool = True) -> T:
        """Return a dataclass field with this row."""
        return dataclasses.field(default=default, metadata={"option": self}, compare=compare)

    def table(self) -> Mapping[str, T]:
        """Return the field of a table, which is empty if nothing is said."""
        return dataclasses.field(default_factory=dict, metadata={"option": self})

    @property
    def flags(self) -> list[str]:
        return [word for word in self.usage.replace(", ", " ").split() if word.startswith("-")]

    @property
    def metavar(self) -> str | None:
        """The placeholder of the value."""
        words = [word for word in self.usage.replace(", ", " ").split() if not word.startswith("-")]
        return " ".join(words) or None

    def name(self, field: str) -> str:
        """Return its name in messages; `field` is the field that it fills."""
        long = next((flag for flag in self.flags if flag.startswith("--")), f"--{field.replace('_', '-')}")
        return self.called or long.partition("/")[0]

    def listed_as(self, field: str) -> str:
        """Return its name where values are listed: its first long flag without the dashes."""
        return next((flag for flag in self.flags if flag.startswith("--")), field).partition("/")[0].lstrip("-")

    @property
    def description(self) -> str:
        """The help text as the page shows it, with the environment variable."""
        usual = f" (default: {self.usual:g})" if self.usual is not None else ""
        text = self.help if self.help.endswith(".") else f"{self.help}{usual}."
        return f"{text} Environment: {self.env}." if self.env else text

    def check(self, field: str, value: object, default: object = None) -> None:
        """Raise UsageError for a value of a field that is not of the row's kind, limits or choices. A value that is
        None is left open, where `default` is too."""
        name = self.name(field)
        if value is None and default is None:
            return
        if self.valid is not None:
            self.valid(name, cast("Never", value))
            return
        if not self.several:
            self.check_one(name, value)
            return
        if not isinstance(value, tuple) or len(value) > SEVERAL_LIMIT:
            raise UsageError(f"{name} {value!r:.80}: expected a list of at most {SEVERAL_LIMIT}")
        for one in value:
            self.check_one(name, one)

    def check_one(self, name: str, value: object) -> None:
        """Raise UsageError for a single value that is not of the row's kind, limits or choices."""
        if self.bounds is not None:
            self.bounds.check(name, value)
            if self.kind is int and not isinstance(value, int):
                raise UsageError(f"{name} {value}: expected {KINDS[int]}")
            return
        check_kind(name, value, self.kind, self.within)
        if self.kind is str and isinstance(value, str):
            _check_text(name, value)
        if self.choices and value not in self.choices:
            raise UsageError(f"{name} {value!r}: expected one of {', '.join(self.choices)}")


def check_kind(name: str, value: object, kind: type, within: tuple[float, float] | None = None) -> None:
    """Raise UsageError for a value of another kind, and for a number outside of inclusive limits."""
    right = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{name} {value!r}: expected {KINDS[kind]}")
    if within is not None and isinstance(value, int | float) and not within[0] <= value <= within[1]:  # NaN too
        raise UsageError(f"{name} {_typed(value)}: must be from {within[0]} to {within[1]}")


def _typed(value: object) -> str:
    """Return a number as a user would have typed it: 101 also where the parser has made it 101.0."""
    return str(value).removesuffix(".0")


def row(field: dataclasses.Field[object]) -> Option | None:
    """Return the row of a dataclass field, if it has one."""
    return field.metadata.get("option")


def rows(record: DataclassInstance | type[DataclassInstance]) -> Iterator[tuple[str, Option]]:
    """Yield the names and rows of a dataclass or an instance, in the order of its fields."""
    for field in dataclasses.fields(record):
        if (found := row(field)) is not None:
            yield field.name, found


def check(record: DataclassInstance) -> None:
    """Check every field of an instance that has a row. Lists become tuples. Raise UsageError."""
    for field in dataclasses.fields(record):
        option, value = row(field), getattr(record, field.name)
        if option is None:
            continue
        if option.several and isinstance(value, list | None):  # as JSON and the command line have them
            value = tuple(value or ())
            object.__setattr__(record, field.name, value)
        option.check(field.name, value, field.default)


def given(record: DataclassInstance) -> dict[str, object]:
    """Return the values of an instance that are not their fields' defaults, those of records inside it too, of all
    that have a row."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if row(field) is None and dataclasses.is_dataclass(value) and not isinstance(value, type):
            found |= given(value)
        elif row(field) is not None and value != field.default:
            found[field.name] = value
    return found


def make(record: type[T], values: Mapping[str, object]) -> T:
    """Return a record of values that its own check is to judge."""
    return record(**values)


def typed(values: Mapping[str, object], name: str, kind: type[T]) -> T | None:
    """Return a value that is None or of its row's kind."""
    value = values.get(name)
    return value if isinstance(value, kind) else None


def check_values(record: type[DataclassInstance], values: Mapping[str, object]) -> None:
    """Check values for fields of a dataclass, each on its own. Raise UsageError."""
    for name, option in rows(record):
        if name in values:
            option.check(name, values[name])


class Row(TypedDict, total=False):
    """Further fields of an `Option`."""

    after: str | None
    env: str | None
    also: tuple[str, ...]
    complete: Complete
    read: Reader
    called: str
    within: tuple[float, float]
    bounds: Bounds
    valid: Check
    usual: int | float
    config_key: str
    off: object
    infotext: str
    labels: Mapping[object, str]
    reload: bool
    names: str


def integer(default: Whole, usage: str = "", help: str = "", panel: str = "", **row: Unpack[Row]) -> Whole:
    """A field for a whole number. For its row, here and below, see `Option`."""
    return Option(int, usage, help, panel, **row).field(default)


def number(default: Number, usage: str = "", help: str = "", panel: str = "", **row: Unpack[Row]) -> Number:
    """A field for a number."""
    return Option(float, usage, help, panel, **row).field(default)


def string(default: Text, usage: str = "", help: str = "", panel: str = "", **row: Unpack[Row]) -> Text:
    """A field for a text."""
    return Option(str, usage, help, panel, **row).field(default)


def file(usage: str = "", help: str = "", panel: str = "", **row: Unpack[Row]) -> Path | None:
    """A field for the path of a file."""
    return Option(Path, usage, help, panel, **row).field(None)


def choice(
    choices: tuple[str, ...], usage: str = "", help: str = "", panel: str = "", **row: Unpack[Row]
) -> str | None:
    """A field for one of several names, which the shell completes."""
    row.setdefault("complete", choices)
    return Option(str, usage, help, panel, choices=choices, **row).field(None)


def flag(default: Truth, usage: str = "", help: str = "", panel: str = "", **row: Unpack[Row]) -> Truth:
    """A field that is true or false."""
    return Option(bool, usage, help, panel, **row).field(default)


def several(kind: type[T], usage: str = "", help: str = "", panel: str = "", **row: Unpack[Row]) -> tuple[T, ...]:
    """A field for a tuple of values of one kind, from an option that may be repeated."""
    return Option(kind, usage, help, panel, several=True, **row).field(())


def _check_text(name: str, value: str) -> None:
    if len(value) > TEXT_LIMIT:
        raise UsageError(f"{name}: {len(value)} characters are too many (at most {TEXT_LIMIT})")
    if "\0" in value:
        raise UsageError(f"{name} holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:  # what an argument that is not UTF-8 comes as
        raise UsageError(f"{name} is not UTF-8 text") from None


SEED = Option(
    int,
    "-s, --seed N",
    "Random seed; same seed, same result. Output i uses N + i (default: random, and recorded).",
    RUN,
)


COMMANDS: dict[object, Mapping[str, Option]] = {}  # rows by the names of parameters, of the function of a command


def rows_of(callback: object) -> Mapping[str, Option]:
    """Return the rows that a command was made of, by the function that it calls; none of one made otherwise."""
    while (inner := getattr(callback, "__wrapped__", None)) is not None:  # typer's own is around it
        callback = inner
    return COMMANDS.get(callback, {})
