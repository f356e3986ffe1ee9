"""`gencli models`: what is here, what it is, and whether it is whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from gencli.checkpoints import gguf_names, hub_cache, layout, packed_cache
from gencli.checkpoints.checkpoint import Contents
from gencli.checkpoints.find import (
    Source,
    embedded_names,
    embedded_root,
    find,
    find_local,
    in_snapshot,
    is_whole,
    parse_hub_name,
)
from gencli.checkpoints.hub_cache import HubId
from gencli.cli import models_output as output
from gencli.cli.console import Console, is_terminal
from gencli.cli.download import in_words, show_download
from gencli.cli.help import SETTINGS, Group
from gencli.cli.models_convert import EXAMPLES as CONVERT_EXAMPLES
from gencli.cli.models_convert import PANEL, convert
from gencli.cli.models_output import write_lines, write_object
from gencli.cli.models_settings import default_settings, judge, small_problems, stages_of
from gencli.cli.options import JSON, Reporting, command
from gencli.errors import GencliError, UsageError
from gencli.options import MODEL, OUTPUT, flag, string
from gencli.spec import ALLOW_PICKLE, complete_model

PANELS = (PANEL, MODEL, OUTPUT)

app = typer.Typer(cls=Group, context_settings=SETTINGS, add_completion=False, rich_markup_mode=None)


@dataclass(eq=False, repr=False)
class Opened:
    """What may be opened, and how stdout is written."""

    allow_pickle: bool = ALLOW_PICKLE.field(False)
    json: bool = JSON.field(False)


@dataclass(eq=False, repr=False)
class Listed:
    all: bool = flag(False, "-a, --all", "Also those in the cache that gencli cannot open.", PANEL)
    json: bool = JSON.field(False)


# fmt: off
@dataclass(eq=False, repr=False)
class Pulled(Opened):
    update: bool = flag(False, "--update", "Look for something newer although a whole copy is here.", PANEL)
    variant: str | None = string(None, "--variant NAME", "Which weights where there are several, such as fp16.", PANEL)
# fmt: on


@dataclass(eq=False, repr=False)
class Removed:
    yes: bool = flag(False, "-y, --yes", "Do not ask.", PANEL)
    json: bool = JSON.field(False)


Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Embedded name, local folder or file, or Hugging Face id that is in the cache, as org/name[@revision].",
        rich_help_panel=PANEL,
        autocompletion=complete_model,
    ),
]
Id = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Hugging Face id: org/name, org/name@revision (a branch, tag or commit), or org/name:TYPE of GGUF files.",
        rich_help_panel=PANEL,
    ),
]


@app.callback(
    invoke_without_command=True,
    epilog="""Examples:
    gencli models list
    gencli models pull openai-community/gpt2
    gencli models show openai-community/gpt2
    gencli models list --json | jq -r .name
    """,
)
def models(ctx: typer.Context) -> None:
    """The checkpoints on this machine: embedded ones, and those in the Hugging Face cache."""
    if ctx.invoked_subcommand is None:
        raise UsageError("no command", "see `gencli models --help`; to begin: gencli models list")


@command(app, name="list", without={"stats"})
def list_(
    ctx: typer.Context,
    listed: Listed,
    reporting: Reporting,
) -> None:
    """List the checkpoints that are here, with kind, family, parameters, size and licence."""
    from gencli.checkpoints.report import describe

    console: Console = ctx.obj
    opened = [(source, Contents(source)) for source in _here()]
    found = [(source, judge(contents, describe(contents))) for source, contents in opened]
    shown = [(source, what) for source, what in found if listed.all or not what.problem]
    if listed.json:
        for source, what in shown:
            write_object(output.row(source, what))
    elif shown:
        write_lines(output.table(shown, with_problems=listed.all))
    else:
        console.note("nothing here yet; `gencli models pull ID` fetches a checkpoint")
    if copies := packed_cache.copies():
        size = in_words(sum(copies.values()))
        console.note(
            f"{len(copies)} packed copies (--quantize), {size}: `gencli models rm NAME` removes those of a model"
        )
    if hidden := len(found) - len(shown):
        console.note(
            f"{hidden} more in the cache that gencli cannot open: --all lists {'it' if hidden == 1 else 'them'}"
        )


@command(app, panels=PANELS, without={"stats"})
def show(
    ctx: typer.Context,
    name: Name,
    opened: Opened,
    reporting: Reporting,
) -> None:
    """Show what a checkpoint is: config, components, what is not loaded, default settings, files."""
    from gencli.checkpoints.report import describe

    source = find(name, offline=True)
    contents = Contents(source, allow_pickle=opened.allow_pickle)
    what = judge(contents, describe(contents))
    defaults, stages = default_settings(contents, what), stages_of(contents, what)
    if opened.json:
        write_object(output.everything(source, what, defaults, stages))
    else:
        write_lines(output.page(source, what, defaults, stages))


@command(app, panels=PANELS, without={"stats"})
def pull(
    ctx: typer.Context,
    id: Id,
    pulled: Pulled,
    reporting: Reporting,
) -> None:
    """Fetch a checkpoint from the hub into the Hugging Face cache, and print its folder, or the path of its GGUF file.

    Only what gencli opens is fetched: of a repository of GGUF files one, by its type, or Q4_K_M. A download that broke
    off goes on where it stopped. HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE mean what they mean to
    huggingface_hub.
    """
    console: Console = ctx.obj
    wanted, gguf = parse_hub_name(id)
    if (local := find_local(id)) is not None:
        raise GencliError(f"{id} is here already: {local.path}")
    if wanted is None or "/" not in wanted.repo:
        raise UsageError(f"{id!r} is no id of the hub", "one looks like openai-community/gpt2")
    folder, allow = hub_cache.snapshot(wanted), pulled.allow_pickle
    if folder is not None and is_whole(folder, allow_pickle=allow, gguf=gguf) and not (pulled.update or pulled.variant):
        console.note(f"{id} is here already; --update looks for something newer")
    else:
        from gencli.checkpoints.hub import download

        console.progress(f"looking for {wanted}")
        show = show_download(console)
        folder = download(wanted, variant=pulled.variant, progress=show, allow_pickle=allow, gguf=gguf)
        console.clear()
    source = in_snapshot(id, folder, gguf)
    if pulled.json:
        files, names = hub_cache.files(folder), layout.is_gguf(hub_cache.files(folder)) or gguf
        files = {name: files[name] for name in gguf_names.choose(files, gguf)} if names else files
        size = sum(files.values())
        named = {"name": id, "revision": folder.name, "path": str(source.path), "bytes": size, "files": files}
        write_object(named)
    else:
        write_lines([str(source.path)])


@command(app, panels=PANELS, without={"stats"})
def check(
    ctx: typer.Context,
    name: Name,
    opened: Opened,
    reporting: Reporting,
) -> None:
    """Open every tensor, compare with the config, and say what is wrong (exit code 1 when something is)."""
    source = find(name, offline=True)
    console: Console = ctx.obj
    console.progress(f"opening {source.name}")
    from gencli.checkpoints.report import check as check_weights

    contents = Contents(source, allow_pickle=opened.allow_pickle)
    result = check_weights(contents, opened=lambda tensor: console.progress(f"checking {tensor}"))
    others = small_problems(contents, weights_are_fine=not result.problems)
    problems = list(dict.fromkeys([*result.problems, *others]))
    console.clear()
    if opened.json:
        write_object({"name": source.name, "ok": not problems, "tensors": result.tensors, "problems": problems})
    else:
        write_lines(problems or [f"{source.name}: {result.tensors} tensors, all well"])
    if problems:
        raise GencliError(f"{source.name}: {len(problems)} problem{'s' if len(problems) > 1 else ''} found")


command(app, panels=PANELS, without={"stats", "device", "dtype"}, epilog=CONVERT_EXAMPLES)(convert)


@command(app, panels=PANELS, without={"stats"})
def rm(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Hugging Face id in the cache: org/name[@revision], or org/name:TYPE of GGUF files.",
            rich_help_panel=PANEL,
        ),
    ],
    removed: Removed,
    reporting: Reporting,
) -> None:
    """Remove a checkpoint from the Hugging Face cache: all of its revisions, or the one or the GGUF file that is named.

    With it go its packed copies (--quantize). Of an embedded checkpoint, or a folder or file of yours, only these are
    removed.
    """
    console: Console = ctx.obj
    wanted, gguf = parse_hub_name(name)
    if (local := find_local(name)) is not None:
        if not (size := sum(packed_cache.copies(local.path).values())):
            what = "belongs to gencli" if local.kind == "embedded" else "is no part of the Hugging Face cache"
            raise GencliError(f"{name} {what} and is not removed")
        said, place = f"the packed copies of {name}", packed_cache.root()
    else:
        if wanted is None:
            raise UsageError(f"{name!r} is no id of the hub", "`gencli models list` says what is here")
        folder = hub_cache.snapshot(wanted)
        if folder is None if wanted.revision or gguf else not wanted.folder.is_dir():
            raise GencliError(f"{name!r} is not in the Hugging Face cache ({hub_cache.root()})")
        files = {} if folder is None else hub_cache.files(folder)
        files = {one: files[one] for one in gguf_names.choose(files, gguf)} if gguf else files
        size = sum(files.values()) if wanted.revision or gguf else hub_cache.disk_usage(wanted.folder)
        said, place = name if gguf else str(wanted), wanted.folder
    if not removed.yes:
        _ask(console, f"remove {said}, {in_words(size)} in {place}?")
    freed = _remove(wanted, list(files) if gguf else None) if local is None and wanted else 0
    freed += packed_cache.remove(local.path if local else place, only_lost=local is None)
    if removed.json:
        write_object({"removed": name if local else said, "bytes": freed})
    else:
        console.note(f"removed {said}, {in_words(freed)} freed")


def _remove(wanted: HubId, files: list[str] | None) -> int:
    """Remove files of a snapshot, or without them all of it. Return the bytes that were freed."""
    from gencli.checkpoints.hub import remove, remove_files

    return remove(wanted) if files is None else remove_files(wanted, files)


def _ask(console: Console, question: str) -> None:
    """Ask whether to remove. Raise UsageError if there is nobody to ask, GencliError if the answer is not yes."""
    if not (is_terminal(sys.stdin) and is_terminal(console.stream)):
        raise UsageError("there is no terminal to ask on before removing", "--yes removes without asking")
    console.stream.write(f"{question} [y/N] ")
    console.stream.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise GencliError("nothing was removed")


def _here() -> Iterator[Source]:
    """Yield everything that `list` lists."""
    for name in embedded_names():
        yield Source(name, embedded_root() / name, "embedded")
    for found in hub_cache.snapshots():
        names = hub_cache.files(found.folder)
        for kind in gguf_names.by_type(names):
            yield in_snapshot(f"{found.name}:{kind}", found.folder, kind)
        if not layout.is_gguf(names):
            yield Source(found.name, found.folder, "hub")
