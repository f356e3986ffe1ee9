"""`gencli models pull`, `available` and `use`: which models there are, and how one gets here."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from gencli import devices
from gencli.checkpoints import gguf_names, hub_cache, layout, ollama
from gencli.checkpoints.catalogue import entries, find_entry, of_task
from gencli.checkpoints.checkpoint import Contents
from gencli.checkpoints.find import Source, find, find_local, in_snapshot, is_whole, parse_hub_name
from gencli.cli import models_output as output
from gencli.cli.config import set_value
from gencli.cli.console import Console
from gencli.cli.download import show_download
from gencli.cli.models_convert import PANEL
from gencli.cli.options import JSON, Reporting
from gencli.cli.sinks import write_lines, write_object
from gencli.errors import GencliError, UsageError, did_you_mean
from gencli.options import check_values, choice, flag, string
from gencli.spec import ALLOW_PICKLE, completing

TASKS = ("chat", "text", "image", "upscale", "score")


@dataclass(eq=False, repr=False)
class Opened:
    """What may be opened, and how stdout is written."""

    allow_pickle: bool = ALLOW_PICKLE.field(False)
    json: bool = JSON.field(False)


@dataclass(eq=False, repr=False)
class Known:
    task: str | None = choice(TASKS, "--task NAME", f"Only models for one task: {', '.join(TASKS)}.", PANEL)
    json: bool = JSON.field(False)

    def __post_init__(self) -> None:
        check_values(Known, {"task": self.task})


# fmt: off
@dataclass(eq=False, repr=False)
class Pulled(Opened):
    update: bool = flag(False, "--update", "Check for a newer revision even if the model is complete.", PANEL)
    variant: str | None = string(None, "--variant NAME",
        "Which weights to download if there are several, such as fp16.", PANEL)
# fmt: on


Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Short name, local folder or file, or Hugging Face id in the cache, as org/name[@revision].",
        rich_help_panel=PANEL,
        autocompletion=completing(),
    ),
]
Id = Annotated[
    str | None,
    typer.Argument(
        metavar="ID",
        help="Short name, or Hugging Face id: org/name, org/name@revision (a branch, tag or commit), or org/name:TYPE "
        "of GGUF files. Without one, well-known models are listed.",
        rich_help_panel=PANEL,
        autocompletion=completing(),
    ),
]


def pull(
    ctx: typer.Context,
    pulled: Pulled,
    reporting: Reporting,
    id: Id = None,
) -> None:
    """Download a model from the Hugging Face Hub into the cache, and print its folder, or the path of its GGUF file.

    Downloads only the files that gencli opens. Of several GGUF files that is one: of the type named, or else Q4_K_M.
    Interrupted downloads resume. HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE work as in huggingface_hub.
    """
    console: Console = ctx.obj
    if id is None:
        _list_available(None, json=pulled.json)
        return
    entry = find_entry(id)
    wanted, gguf = parse_hub_name(id if entry is None else entry.id)
    if (local := find_local(id)) is not None and local.kind == "embedded":
        console.note(f"{id} comes with gencli: there is nothing to download")
        _tell(id, None, local.path, hub_cache.files(local.path), json=pulled.json)
        return
    if local is not None and entry is not None:
        hint = f"`gencli models pull {entry.id}` downloads the model of that name"
        raise GencliError(f"{id} is a {local.kind} here, which -m {id} names too", hint)
    if local is not None:
        console.note(f"{id} is on this machine: there is nothing to download")
        _tell(id, None, local.path, Contents(local).files, json=pulled.json)
        return
    if wanted is None or "/" not in wanted.repo:
        near = ollama.meant(id) or did_you_mean(id, [one.name for one in entries()])
        hint = near or "`gencli models available` lists short names"
        raise UsageError(f"{id!r} is not a short name or a Hub id (owner/name)", hint)
    variant = pulled.variant or (entry.variant if entry else None)
    folder, allow = hub_cache.snapshot(wanted), pulled.allow_pickle
    if folder is not None and is_whole(folder, allow_pickle=allow, gguf=gguf) and not (pulled.update or pulled.variant):
        told = id if entry else f"{wanted}:{gguf}" if gguf else str(wanted)
        console.note(f"{told} is already installed; --update checks for a newer revision")
    else:
        from gencli.checkpoints.hub import download

        console.progress(f"looking for {wanted}")
        show = show_download(console)
        folder = download(wanted, variant=variant, progress=show, allow_pickle=allow, gguf=gguf)
        console.clear()
    from gencli.cli.models_settings import belongs_to

    source = in_snapshot(id, folder, gguf)
    if remark := belongs_to(Source(wanted.repo, source.path, source.kind), allow_pickle=allow):
        console.note(remark)
    files = hub_cache.files(folder)
    if gguf or layout.is_gguf(files):
        files = {name: files[name] for name in gguf_names.choose(files, gguf)}
    _tell(id, folder.name, source.path, files, json=pulled.json)


def _tell(id: str, revision: str | None, path: Path, files: Mapping[str, int], *, json: bool) -> None:
    """Print where a model lies, or in JSON what it consists of. files: their sizes in bytes."""
    if json:
        size = sum(files.values())
        write_object({"name": id, "revision": revision, "path": str(path), "bytes": size, "files": files})
    else:
        write_lines([str(path)])


def available(ctx: typer.Context, known: Known, reporting: Reporting) -> None:
    """List well-known open models: purpose, licence, size, and whether they fit this machine.

    Each name works with -m and with `gencli models pull`. MEMORY is what a model needs as stored, Q8_0 and Q4_K_M what
    it needs with --quantize. HERE says which of the three fits the memory of this machine.
    """
    _list_available(known.task, json=known.json)


def _list_available(task: str | None, *, json: bool) -> None:
    memory = devices.memory()
    found = of_task(task)
    if json:
        for entry in found:
            write_object({**dataclasses.asdict(entry), "memory": entry.formats, "here": entry.fit(memory)})
    else:
        write_lines(output.available(found, memory))


def use(ctx: typer.Context, name: Name, reporting: Reporting) -> None:
    """Make a model the default of `gencli text` and `chat`, of `image`, `upscale` or `score`, in the config file."""
    entry, problem = find_entry(name), None
    task = entry.task if entry else None
    if entry is None:
        from gencli.checkpoints.report import describe
        from gencli.cli.models_settings import enlarges, small_problems

        contents = Contents(find(name, offline="`gencli models use`"))
        task = "upscale" if enlarges(contents) else describe(contents).kind
        problem = next(small_problems(contents, weights_are_fine=True), None)
    commands = {"text": ("text", "chat"), "chat": ("text", "chat"), "image": ("image",)}.get(task or "")
    commands = commands or {"upscale": ("upscale",), "score": ("score",)}.get(task or "")
    if commands is None:
        raise UsageError(f"{name} is not a model for texts or images")
    for one in commands:
        set_value((one, "model"), entry.name if entry else str(_absolute(name)))
    console: Console = ctx.obj
    console.note(f"{name} is now the default model of {' and '.join(f'gencli {one}' for one in commands)}")
    if problem:
        console.note(f"`gencli models check {quote(name)}` finds a problem: {problem}")
    if entry is not None:
        try:
            find(name, offline="`gencli models use`")
        except GencliError:
            console.note(f"it is not on this machine yet: `gencli models pull {name}` downloads it")


def _absolute(name: str) -> Path | str:
    """Return a folder's or file's whole path: a default holds wherever gencli runs. Other names stay."""
    source = find_local(name)
    return name if source is None or source.kind in ("embedded", "ollama") else Path(os.path.expanduser(name)).resolve()
