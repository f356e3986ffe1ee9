"""Name → local files: of an embedded checkpoint, a folder, a file, or a Hugging Face id (`org/name[@revision]`)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gencli.errors import GencliError

HUB_ID = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Source:
    """Where a checkpoint was found. `path` is a folder, or one file; `name` is what the user called it."""

    name: str
    path: Path
    kind: Literal["embedded", "folder", "file", "hub"]


def embedded_root() -> Path:
    """The folder of embedded checkpoints: inside an installed wheel, else `weights/` of the source tree."""
    package = Path(__file__).parents[1]
    installed = package / "_weights"
    return installed if installed.is_dir() else package.parent / "weights"


def embedded_names() -> list[str]:
    """Names of the checkpoints that gencli carries."""
    root = embedded_root()
    return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []


def find(name: str, *, offline: bool = False) -> Source:
    """Find the checkpoint called `name` on this machine.

    An embedded name wins over a file of the same name here (write `./stories` for a folder called so); then an
    existing path; then the local Hugging Face cache. `offline` is kept for downloading, which does not exist yet.
    Raises GencliError when there is nothing of that name.
    """
    if name in embedded_names():
        return Source(name, embedded_root() / name, "embedded")
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(name, path, "folder")
    if path.is_file():
        return Source(name, path, "file")
    match = HUB_ID.fullmatch(name)
    if match and (folder := _cached(match["repo"], match["revision"])):
        return Source(name, folder, "hub")
    embedded = ", ".join(embedded_names()) or "none"
    if match and "/" in name and not name.startswith(("./", "../", "/")):
        raise GencliError(
            f"no model {name!r}: no folder of that name here, and not in the Hugging Face cache ({_cache_root()})",
            f"fetch it with `hf download {name}`, or use an embedded model: {embedded}",
        )
    raise GencliError(f"no model {name!r}: not a file or folder, not an embedded name", f"embedded models: {embedded}")


def _cache_root() -> Path:
    """The hub's cache folder, as huggingface_hub resolves it (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME)."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface" / "hub"


def _cached(repo: str, revision: str | None) -> Path | None:
    """The newest complete local snapshot of a hub repository at a revision (default `main`), or None."""
    if not (_cache_root() / f"models--{repo.replace('/', '--')}").is_dir():
        return None  # spares the import below, which takes as long as finding a model
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, cache_dir=_cache_root(), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
