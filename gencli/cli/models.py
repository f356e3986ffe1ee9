"""`gencli models`: what is here, what it is, and whether it is whole."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from gencli.checkpoints import gguf_names, hub_cache, layout, ollama
from gencli.checkpoints.catalogue import find_entry
from gencli.checkpoints.find import (
    CACHED,
    Source,
    embedded_names,
    embedded_root,
    find,
    find_local,
    in_snapshot,
    parse_hub_name,
)
from gencli.checkpoints.hub_cache import HubId
from gencli.cli import models_output as output
from gencli.cli.console import Console, is_terminal
from gencli.cli.download import in_words
from gencli.cli.help import SETTINGS, Group
from gencli.cli.models_convert import EXAMPLES as CONVERT_EXAMPLES
from gencli.cli.models_convert import PANEL, convert
from gencli.cli.models_get import Name, Opened, available, pull, use
from gencli.cli.options import JSON, Reporting, command
from gencli.cli.sinks import write_lines, write_object
from gencli.errors import GencliError, UsageError
from gencli.options import MODEL, OUTPUT, flag
from gencli.spec import completing

PANELS = (PANEL, MODEL, OUTPUT)

app = typer.Typer(cls=Group, context_settings=SETTINGS, add_completion=False, rich_markup_mode=None)


@dataclass(eq=False, repr=False)
class Listed:
    all: bool = flag(False, "-a, --all", "Also list models in the cache that gencli cannot open.", PANEL)
    json: bool = JSON.field(False)


@dataclass(eq=False, repr=False)
class Removed:
    yes: bool = flag(False, "-y, --yes", "Do not ask for confirmation.", PANEL)
    json: bool = JSON.field(False)


@app.callback(
    epilog="""Examples:
    gencli models available
    gencli models pull smollm2
    gencli models use smollm2
    gencli models list
    gencli models list --json | jq -r .name
    """,
)
def models() -> None:
    """Find, download, check and remove models: built-in ones, and those in the Hugging Face cache."""


@command(app, name="list", without={"stats"})
def list_(
    ctx: typer.Context,
    listed: Listed,
    reporting: Reporting,
) -> None:
    """List the models on this machine, with kind, family, parameters, size and licence."""
    from gencli.checkpoints import packed_cache
    from gencli.checkpoints.checkpoint import Contents
    from gencli.checkpoints.report import describe
    from gencli.cli.models_settings import judge

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
        console.note("no models yet; `gencli models pull NAME` downloads one")
    if copies := packed_cache.copies():
        size = in_words(sum(copies.values()))
        console.note(
            f"quantized copies (--quantize): {len(copies)}, {size}: `gencli models rm NAME` removes those of a model"
        )
    if lost := packed_cache.lost():
        console.note(f"there are copies of {lost[0]}, which is gone: `gencli models rm {quote(str(lost[0]))}`")
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
    """Show a model: config, components, what is not loaded, default settings, files."""
    from gencli.checkpoints.checkpoint import Contents
    from gencli.checkpoints.report import describe
    from gencli.cli.models_settings import as_options, default_settings, judge, needed_half, stages_of, tokenizer_of

    source = find(name, offline="`gencli models show`")
    contents = Contents(source, allow_pickle=opened.allow_pickle)
    what = judge(contents, describe(contents))
    if what.problem and what.kind == "other":
        raise GencliError(what.problem, what.hint)
    defaults, stages = default_settings(contents, what), stages_of(contents, what)
    tokenizer = tokenizer_of(contents, what)
    if opened.json:
        write_object(output.everything(source, what, defaults, stages, tokenizer))
    else:
        named, needs = as_options(what.kind, defaults), needed_half(contents, what)
        write_lines(output.page(source, what, named, stages, tokenizer, needs))
    if what.problem:
        raise GencliError(what.problem, what.hint)


command(app, panels=PANELS, without={"stats"})(pull)
command(app, without={"stats"})(available)
command(app, panels=PANELS, without={"stats"})(use)


@command(app, panels=PANELS, without={"stats"})
def check(
    ctx: typer.Context,
    name: Name,
    opened: Opened,
    reporting: Reporting,
) -> None:
    """Verify every tensor against the config and report problems (exit code 1 if there are any)."""
    source = find(name, offline="`gencli models check`")
    console: Console = ctx.obj
    console.progress(f"opening {source.name}")
    from gencli.checkpoints.checkpoint import Contents
    from gencli.checkpoints.report import check as check_weights
    from gencli.cli.models_settings import small_problems

    contents = Contents(source, allow_pickle=opened.allow_pickle)
    result = check_weights(contents, opened=lambda tensor: console.progress(f"checking {tensor}"))
    others = small_problems(contents, weights_are_fine=not result.problems)
    problems = list(dict.fromkeys([*result.problems, *others]))
    console.clear()
    if opened.json:
        write_object({"name": source.name, "ok": not problems, "tensors": result.tensors, "problems": problems})
    else:
        write_lines(problems or [f"{source.name}: {result.tensors} tensors, OK"])
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
            help="Short name, or Hugging Face id in the cache: org/name[@revision], or org/name:TYPE of GGUF files.",
            rich_help_panel=PANEL,
            autocompletion=completing(CACHED),
        ),
    ],
    removed: Removed,
    reporting: Reporting,
) -> None:
    """Remove a model from the Hugging Face cache: all of its revisions, or the one or the GGUF file you name.

    Its quantized copies (--quantize) are removed too. Of built-in models, and of your own folders and files, only these
    copies are removed.
    """
    from gencli.checkpoints import packed_cache

    console: Console = ctx.obj
    entry = find_entry(name)
    wanted, gguf = parse_hub_name(name if entry is None else entry.id)
    local = find_local(name)
    path = None if local is None and wanted is not None and wanted.folder.is_dir() else _packed_of(name, local)
    if path is not None:
        size = sum(packed_cache.copies(path).values())
        said, place = f"the packed copies of {name}", packed_cache.root()
    elif local is not None:
        whose = {"embedded": "belongs to gencli", "ollama": "belongs to ollama"}
        what = whose.get(local.kind, "is not part of the Hugging Face cache")
        hint = f"`ollama rm {name.removeprefix(ollama.PREFIX)}` removes it" if local.kind == "ollama" else None
        raise GencliError(f"{name} {what} and is not removed", hint)
    else:
        if wanted is None:
            raise UsageError(f"{name!r} is not a Hub id (owner/name)", "`gencli models list` says what is here")
        folder = hub_cache.snapshot(wanted)
        if folder is None if wanted.revision or gguf else not wanted.folder.is_dir():
            raise GencliError(f"{name!r} is not in the Hugging Face cache ({hub_cache.root()})", ollama.meant(name))
        files = {} if folder is None else hub_cache.files(folder)
        files = {one: files[one] for one in gguf_names.choose(files, gguf)} if gguf else files
        size = sum(files.values()) if wanted.revision or gguf else hub_cache.disk_usage(wanted.folder)
        said, place = name if gguf else str(wanted), wanted.folder
    if not removed.yes:
        _ask(console, f"remove {said}, {in_words(size)} in {place}?")
    freed = _remove(wanted, list(files) if gguf else None) if path is None and wanted else 0
    freed += packed_cache.remove(path or place, only_lost=path is None)
    if removed.json:
        write_object({"removed": name if path else said, "bytes": freed})
    else:
        console.note(f"removed {said}, {in_words(freed)} freed")


def _packed_of(name: str, local: Source | None) -> Path | None:
    """Return the folder or file of a name, which may be gone; None if there are no packed copies of its weights."""
    from gencli.checkpoints import packed_cache

    path = Path(os.path.expanduser(name)) if local is None else local.path
    return path if packed_cache.copies(path) else None


def _remove(wanted: HubId, files: list[str] | None) -> int:
    """Remove files of a snapshot, or without them all of it. Return the bytes that were freed."""
    from gencli.checkpoints.hub import remove, remove_files

    return remove(wanted) if files is None else remove_files(wanted, files)


def _ask(console: Console, question: str) -> None:
    """Ask whether to remove. Raise UsageError if there is nobody to ask, GencliError if the answer is not yes."""
    if not (is_terminal(sys.stdin) and is_terminal(console.stream)):
        raise UsageError("cannot ask for confirmation without a terminal", "--yes removes without asking")
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
    for name in ollama.names():
        with contextlib.suppress(GencliError):  # one whose file was removed
            yield find(name)
