"""Commands from rows: the options of a command are the rows of the records that its function takes.

    @command(app, epilog="Examples: …")
    def text(ctx: typer.Context, output: TextOutput, request: TextRequest, model: TextSpec, …) -> None:

Every row of these records (`gencli.options`) becomes an option of `gencli text`, in the order of the records and their
fields, and the function gets the records filled in. A parameter that is `Asked[Record]` gets what was said of the
record, for a command that knows better how to make one. The records that several commands share are here too.
Records of commands have neither `eq` nor `repr`: making these takes time at every start.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar, cast, get_args, get_origin, get_type_hints

import typer

from gencli.checkpoints.find import Source, find
from gencli.cli import config
from gencli.cli.console import Console
from gencli.cli.download import show_download
from gencli.cli.help import SETTINGS, Command
from gencli.cli.tab import fitting
from gencli.cli.variables import unread
from gencli.completions import COMPLETED, Completed
from gencli.errors import GencliError, UsageError
from gencli.options import COMMANDS, MODEL, OUTPUT, RUN, Option, flag, row, string
from gencli.spec import ModelSpec, named_model

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from typing_extensions import Never

COMMON = (OUTPUT, MODEL, RUN)
FILES = ("FILE", "DIR", "PATH")  # placeholders of what is never empty
F = TypeVar("F", bound=Callable[..., None])
T = TypeVar("T")


@dataclass(eq=False, repr=False)
class Asked(Generic[T]):
    """What the command line says of a record: its values by field, and the names of all parameters that are given on
    the command line itself, not by the environment or a default."""

    record: type[T]
    values: Mapping[str, object]
    given: frozenset[str]

    def make(self, **changes: object) -> T:
        """Return the record, with `changes` in place of what was said. Raise UsageError."""
        return self.record(**{**self.values, **changes})


def command(
    app: typer.Typer,
    *,
    name: str | None = None,
    epilog: str | None = None,
    panels: Collection[str] = (),
    without: Collection[str] = (),
) -> Callable[[F], F]:
    """Make a function a command of `app`. Its options are the rows of its records, except those in `without`.

    panels: the headings of the help page in order; other ones follow as they come, and those of all commands are last.
    Parameters that are not records are declared as usual for typer, and come first; one is `ctx: typer.Context`.
    """

    def decorate(function: F) -> F:
        hints = get_type_hints(function, include_extras=True)
        records = {name: record for name, hint in hints.items() if (record := _record(hint)) is not None}
        table: dict[str, tuple[Option, object]] = {}
        for record in records.values():  # a name that several have is the first one's
            table |= {name: row for name, row in _rows(record).items() if name not in {*table, *without}}
        own = [
            parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(function).parameters.values()
            if parameter.name not in records
        ]
        parameters = [*own, *(_parameter(name, *table[name]) for name in _ordered(table, panels))]

        def run(ctx: typer.Context, **words: object) -> None:
            rest = {name: value for name, value in words.items() if name not in table}
            said = {name: words[name] for name in table}
            for note in unread(option.env for option, _ in table.values() if option.env):
                ctx.obj.note(note)
            try:
                filled = {name: _fill(hints[name], record, said, ctx) for name, record in records.items()}
                function(ctx=ctx, **rest, **filled)
            except GencliError as error:
                raise config.located(error, ctx) from error

        run.__name__, run.__doc__, run.__module__ = function.__name__, function.__doc__, function.__module__
        COMMANDS[run] = {name: option for name, (option, _) in table.items()}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name, cls=Command, context_settings=SETTINGS, epilog=epilog)(run)
        return function

    return decorate


def _record(annotation: object) -> type[DataclassInstance] | None:
    """Return the dataclass of a parameter, or of its `Asked`; None for a parameter of another kind."""
    found = get_args(annotation)[0] if get_origin(annotation) is Asked else annotation
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None


def _rows(record: type[DataclassInstance]) -> dict[str, tuple[Option, object]]:
    """Return the rows and defaults, by name, of a record's options and of those of records inside it."""
    found: dict[str, tuple[Option, object]] = {}
    for field in dataclasses.fields(record):
        option = row(field)
        if option is None and (inner := _record(type(field.default))) is not None:
            found |= _rows(inner)
        elif option is not None and option.usage:
            found[field.name] = option, field.default
    return found


def _ordered(table: Mapping[str, tuple[Option, object]], panels: Collection[str]) -> list[str]:
    """Return the names of rows in the order of the help page: by panels, and each after the one that it follows."""
    there = [option.panel for option, _ in table.values() if option.panel not in COMMON]
    place = {panel: number for number, panel in enumerate(dict.fromkeys([*panels, *there, *COMMON]))}
    names = sorted(table, key=lambda name: place[table[name][0].panel])
    followers = {name: [other for other in names if table[other][0].after == name] for name in names}

    def chain(name: str) -> Iterator[str]:
        yield name
        for follower in followers[name]:
            yield from chain(follower)

    return [one for name in names if table[name][0].after not in table for one in chain(name)]


def _parameter(name: str, option: Option, default: object) -> inspect.Parameter:
    """Return a row as a parameter for typer."""
    kind: type | GenericAlias = option.word or option.kind
    if option.several:
        kind, default = GenericAlias(list, (kind,)), None
    if option.read is not None:
        default = None
    hint = kind | None if default is None else kind
    default = inspect.Parameter.empty if default is dataclasses.MISSING else default
    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
    return parameter.replace(annotation=Annotated[hint, declare(option)])


def declare(option: Option) -> object:
    """Return a row as typer's Option or Argument."""
    metavar, help, panel, callback = option.metavar, option.description, option.panel, option.callback
    if not option.flags:
        return typer.Argument(metavar=metavar, help=help, rich_help_panel=panel)
    known = option.complete
    complete = known if callable(known) else _completion(known, option.labels) if known else None
    return typer.Option(
        *option.flags, metavar=metavar, help=help, rich_help_panel=panel, envvar=option.env, autocompletion=complete,
        callback=callback, is_eager=callback is not None,
    )  # fmt: skip


def _completion(known: Collection[str], labels: Mapping[object, str]) -> Callable[[str], list[tuple[str, str]]]:
    """Return what completes one of several names. labels: what else a name is called, which completes too."""
    items = [(name, labels.get(name, "")) for name in known]
    others = [(label.replace(" ", "_"), name) for name, label in items if label]

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return fitting(items, others, incomplete)

    COMPLETED[complete] = Completed(others=tuple(others))
    return complete


def _fill(
    annotation: object, record: type[DataclassInstance], words: Mapping[str, object], ctx: typer.Context
) -> DataclassInstance:
    """Return the record, or an `Asked`, from the parameters of the command."""
    values = _values(record, words)
    if record is annotation:
        return record(**values)
    return Asked(record, values, frozenset(name for name in words if is_typed(ctx, name)))


def _values(record: type[DataclassInstance], words: Mapping[str, object]) -> dict[str, object]:
    values: dict[str, object] = {}
    for field in dataclasses.fields(record):
        option = row(field)
        if option is None and (inner := _record(type(field.default))) is not None:
            values[field.name] = inner(**_values(inner, words))
        elif option is not None and option.usage and field.name in words:
            word = words[field.name]
            if option.flags and option.metavar in FILES and "" in (word if isinstance(word, list) else [word]):
                name = option.name(field.name)
                raise UsageError(f"{name} '': a file name cannot be empty", "is it an unset variable?")
            if option.read is not None:
                values[field.name] = option.read(cast("Never", word))
            elif option.several:
                values[field.name] = tuple(word) if isinstance(word, list | tuple) else ()
            elif word is not None:  # else its default holds
                values[field.name] = word
    return values


def is_given(ctx: typer.Context, name: str) -> bool:
    """Return whether a parameter was given, wherever, and has not its default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def is_typed(ctx: typer.Context, name: str) -> bool:
    """Return whether a parameter was given on the command line itself."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


# What several commands share.


class When(str, Enum):
    auto = "auto"
    always = "always"
    never = "never"


def _set_quiet(ctx: typer.Context, value: bool) -> bool:
    if isinstance(ctx.obj, Console):
        ctx.obj.quiet = value
    return value


def _set_color(ctx: typer.Context, value: When) -> When:
    if isinstance(ctx.obj, Console):
        ctx.obj.color = When(value).value
        ctx.color = {"always": True, "never": False}.get(ctx.obj.color)  # for the parser's own help output
    return value


def _set_debug(ctx: typer.Context, value: bool) -> bool:
    if isinstance(ctx.obj, Console):
        ctx.obj.debug = ctx.obj.debug or value
    return value


LINES = Option(bool, "--lines", "Treat each line of stdin as a separate prompt.", "Prompt", after="negative")
STRICT = Option(
    bool, "--strict", "With --lines: stop at the first line that fails, instead of continuing.", "Prompt", after="lines"
)
JSON = Option(bool, "--json", "Print JSON, one object per line.", OUTPUT)
OFFLINE = Option(bool, "--offline", "Never use the network (like HF_HUB_OFFLINE=1).", MODEL, after="threads")
QUIET = Option(bool, "-q, --quiet", "No progress and no notes on stderr.", RUN, callback=_set_quiet)
COLOR = Option(
    When,
    "--color WHEN",
    "Colours: auto, always or never (default: auto, on a terminal unless NO_COLOR is set or TERM=dumb).",
    RUN,
    callback=_set_color,
)
DEBUG = Option(bool, "--debug", "Show the traceback of an error.", RUN, callback=_set_debug)


@dataclass(eq=False, repr=False)
class Fetching:
    """What may be fetched."""

    offline: bool = OFFLINE.field(False)

    def finder(self, console: Console, spec: ModelSpec) -> partial[Source]:
        """Return `find` with what may be fetched for a model; a download is shown on the console."""
        progress = show_download(console)
        return partial(find, offline=self.offline, progress=progress, allow_pickle=spec.allow_pickle)


@dataclass(eq=False, repr=False)
class Reporting:
    """What is said on stderr. --quiet, --color and --debug set the console (`ctx.obj`) by themselves."""

    stats: bool = flag(False, "--stats", "Print seed, timings and speed to stderr.", RUN, also=("-v", "--verbose"))
    quiet: bool = QUIET.field(False)
    color: When = COLOR.field(When.auto)  # noqa: RUF009
    debug: bool = DEBUG.field(False)
    profile: str | None = string(
        None, "--profile NAME", "Defaults from [profile.NAME] of the config file.", RUN, env=config.PROFILE
    )


def model_option(env: str, default: str, task: str) -> object:
    """Return typer's option -m/--model with this environment variable and default, for models of one task."""
    return declare(named_model(env, default, task))
