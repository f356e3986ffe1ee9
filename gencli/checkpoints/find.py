"""Finding a checkpoint by name: an embedded model, a folder, a file, or a Hugging Face id (`org/name[@revision]`), and
of several GGUF files there one by its type (`org/name:Q4_K_M`, `./folder:Q4_K_M`), or one of ollama's
(`ollama:name:tag`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gencli.checkpoints import catalogue, gguf_names, hub_cache, layout, ollama
from gencli.checkpoints.hub_cache import HubId, Progress
from gencli.errors import GencliError, did_you_mean
from gencli.json_files import read_json

CACHED = "cached"


@dataclass(frozen=True)
class Source:
    """Where a checkpoint was found. `path` is a folder, or one file; `name` is what the user called it.

    json: the JSON files that were read to find it, so that they are read once.
    """

    name: str
    path: Path
    kind: Literal["embedded", "folder", "file", "hub", "ollama"]
    json: Mapping[Path, dict[str, object]] = field(default_factory=dict, repr=False, compare=False)

    def here(self, fetch: Callable[[str], Source]) -> Source:
        """Return it as it lies on this machine, which another one may have found: by its name, if its path is not."""
        return self if self.path.exists() else fetch(self.name)


def embedded_root() -> Path:
    """Return the folder of embedded checkpoints: inside an installed wheel, else `weights/` of the source tree."""
    package = Path(__file__).parents[1]
    installed = package / "_weights"
    return installed if installed.is_dir() else package.parent / "weights"


def embedded_names() -> list[str]:
    """Return the names of the checkpoints that come with gencli."""
    root = embedded_root()
    return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []


def known_names(task: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield the names of models, and what they are, that are embedded, well known or in the cache.

    task: a command's, such as text or image, which leaves out models of other kinds where that is known; CACHED leaves
    out what is not in the cache.
    """
    for name in embedded_names() if task != CACHED else ():
        kind = "image" if (embedded_root() / name / "model_index.json").is_file() else "text"
        if task in (None, kind) or (task, kind) == ("chat", "text"):
            yield name, f"{kind} model, embedded"
    for entry in catalogue.of_task(task):
        yield entry.name, entry.good_for
    for name in sorted({found.name for found in hub_cache.snapshots()}):
        yield name, "" if task == CACHED else "in the cache"
    for name in ollama.names() if task in (None, "text", "chat") else ():
        yield name, "of ollama"


def find(
    name: str, *, offline: bool | str = False, progress: Progress | None = None, allow_pickle: bool = False
) -> Source:
    """Find the checkpoint called `name`, fetching it from the hub if it is a hub id and not on this machine.

    An embedded name wins over a file of the same name here (write `./stories` for a folder called so); then an
    existing path; then the local Hugging Face cache, where a whole snapshot needs no network; then, for `org/name`,
    a download that calls `progress`. With `offline` or HF_HUB_OFFLINE=1 nothing is fetched. Pickles are fetched only
    with `allow_pickle`, and only where there are no safetensors. offline: may be the command that looks here alone.
    Raise GencliError when nothing has that name.
    """
    if source := find_local(name):
        return source
    hub_id, gguf = parse_hub_name(name)
    bare = hub_id is not None and "/" not in hub_id.repo  # one of the hub's oldest models, a short name, or a typo
    if bare and hub_id and (folder := hub_cache.snapshot(hub_id)):
        return in_snapshot(_name(hub_id, gguf), folder, gguf)
    if entry := catalogue.find_entry(name):
        hub_id, bare, gguf = HubId.parse(entry.id), False, None
    theirs = ollama.meant(name)
    name = _name(hub_id, gguf) if hub_id else name
    if hub_id is None or bare:
        hint = theirs or did_you_mean(name, [known for known, _ in known_names()])
        raise GencliError(
            f"no model {name!r}: not a file or folder, not a short name",
            hint or "`gencli models available` lists well-known models, `gencli models list` those that are here",
        )
    folder = hub_cache.snapshot(hub_id)
    forbidden = "--offline" if offline is True else offline or hub_cache.offline_by_environment()
    json: dict[Path, dict[str, object]] = {}
    if folder and (is_whole(folder, json, allow_pickle=allow_pickle, gguf=gguf) or (forbidden and gguf is None)):
        return in_snapshot(name, folder, gguf, json)
    if forbidden:
        who = forbidden if isinstance(offline, str) else f"with {forbidden}, gencli"
        raise GencliError(
            f"no model {name!r}: no folder of that name here, and not in the Hugging Face cache ({hub_cache.root()})",
            theirs or f"{who} looks only on this machine; `gencli models pull {name}` downloads it",
        )
    from gencli.checkpoints.hub import download

    variant = entry.variant if entry else None
    try:
        folder = download(hub_id, variant=variant, progress=progress, allow_pickle=allow_pickle, gguf=gguf)
    except GencliError as error:
        if "\n" not in name and (near := did_you_mean(name, _folders())):  # a folder of the user's, mistyped
            error.hint = f"{near} {error.hint or ''}".strip()
        raise
    return in_snapshot(name, folder, gguf)


def _folders() -> list[str]:
    """Return the folders of models that lie here or one folder down, as a user would name them."""
    found = [*Path().glob("*/config.json"), *Path().glob("*/*/config.json"), *Path().glob("*/model_index.json")]
    return [str(path.parent) for path in [*found, *Path().glob("*/*/model_index.json")][:1000]]


def parse_hub_name(name: str) -> tuple[HubId | None, str | None]:
    """Return the repository and the type of GGUF file of `org/name[@revision][:TYPE]`; None for what is not said."""
    base, gguf = gguf_names.split_name(name)
    return HubId.parse(base), gguf


def _name(hub_id: HubId, gguf: str | None) -> str:
    return str(hub_id) if gguf is None else f"{hub_id}:{gguf}"


def in_snapshot(
    name: str, folder: Path, gguf: str | None = None, json: Mapping[Path, dict[str, object]] | None = None
) -> Source:
    """Return what lies in a snapshot: its folder, or its GGUF file of a type, of a split one the first."""
    names = hub_cache.files(folder)
    if gguf is not None or layout.is_gguf(names):
        try:
            return Source(name, folder / gguf_names.choose(names, gguf)[0], "hub", json or {})
        except GencliError:
            if gguf is not None:
                raise
    return Source(name, folder, "hub", json or {})


def find_local(name: str) -> Source | None:
    """Return an embedded checkpoint, or an existing folder or file; None if there is none of that name.

    The folder of a training run stands for the checkpoint in it. Raise GencliError for `folder:TYPE` without one, for
    a model that ollama has not, and for an empty name.
    """
    if not name.strip():
        raise GencliError("the model name is empty", "is it an unset variable?")
    if name in embedded_names():
        return Source(name, embedded_root() / name, "embedded")
    if name.startswith(ollama.PREFIX):
        return Source(name, ollama.find(name.removeprefix(ollama.PREFIX)), "ollama")
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        made = path / "checkpoint"  # of a run of gencli's training
        return Source(name, made if made.is_dir() and (path / "loss.csv").is_file() else path, "folder")
    folder, gguf = gguf_names.split_folder(str(path))
    if gguf is None or path.is_file() or not folder.is_dir():
        return Source(name, path, "file") if path.is_file() else None
    try:
        return Source(name, folder / gguf_names.choose(hub_cache.files(folder), gguf)[0], "file")
    except GencliError as error:
        raise GencliError(f"{folder}: {error.message}", error.hint) from None


def is_whole(
    folder: Path,
    json: dict[Path, dict[str, object]] | None = None,
    *,
    allow_pickle: bool = False,
    gguf: str | None = None,
) -> bool:
    """Return whether a snapshot has every file needed to open it, by its own configs: some programs fetch in parts.

    json: gets what was read. gguf: as `layout.choose`.
    """
    known = {} if json is None else json

    def read(name: str) -> dict[str, object]:
        known[folder / name] = read_json(folder / name)
        return known[folder / name]

    try:
        layout.choose(hub_cache.files(folder), read, allow_pickle=allow_pickle, gguf=gguf)
    except GencliError:
        return False
    return True
