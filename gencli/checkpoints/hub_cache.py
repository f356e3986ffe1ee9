"""Reading the Hugging Face cache on disk without its library: revisions, snapshots, sizes. No network, no torch.

models--ORG--NAME/refs/REVISION        the commit that a branch or tag stood for when it was fetched
models--ORG--NAME/snapshots/COMMIT/…   links into
models--ORG--NAME/blobs/ETAG           the files themselves; incomplete ones end in `.incomplete`
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# org/name or name, then @revision: a branch, a tag, a commit, or refs/pr/1
HUB_ID = re.compile(r"(?P<repo>(?:\w[\w.-]*/)?\w[\w.-]*)(?:@(?P<revision>\w[\w./+-]*))?")
ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?=[^/]+/[^/]+/?$)")  # as a browser shows it
COMMIT = re.compile(r"[0-9a-f]{40}")
SHORT_COMMIT = re.compile(r"[0-9a-f]{7,40}")
TRUE = {"1", "ON", "YES", "TRUE"}

Progress = Callable[[str, int, int], None]
"""Called with the name of what is fetched, the bytes so far and the bytes in all."""


@dataclass(frozen=True)
class HubId:
    """A repository on the hub, at a revision (default: its main branch)."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, name: str) -> HubId | None:
        """Parse `org/name[@revision]`, or its address as a browser shows it; None if it cannot be one."""
        name = ADDRESS.sub("", name).removesuffix("/")
        match = HUB_ID.fullmatch(name)
        if match is None or len(match["repo"]) > 96 or ".." in name or "--" in match["repo"]:
            return None
        return cls(match["repo"], match["revision"])

    @property
    def folder(self) -> Path:
        """Return where the cache keeps this repository, whether or not it is there."""
        return root() / f"models--{self.repo.replace('/', '--')}"

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class Cached:
    """A snapshot in the cache: what `find` calls it, and where it is."""

    name: str
    commit: str
    folder: Path


def root() -> Path:
    """Return the cache's folder, found as huggingface_hub finds it (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME)."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return _expand(cache)
    if home := os.environ.get("HF_HOME"):
        return _expand(home) / "hub"
    return _expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def _expand(path: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(path)))


def offline_by_environment() -> str | None:
    """Return the environment variable that forbids the network, if one does."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if value := os.environ.get(name):
            return f"{name}={value}" if value.upper() in TRUE else None
    return None


def snapshot(hub_id: HubId) -> Path | None:
    """Return the local snapshot of a repository at a revision, complete or not; None if there is none."""
    sha = commit(hub_id)
    folder = hub_id.folder / "snapshots" / sha if sha else None
    return folder if folder is not None and folder.is_dir() else None


def commit(hub_id: HubId) -> str | None:
    """Return the commit that a branch, a tag or the first digits of a commit stand for in the cache."""
    revision = hub_id.revision or "main"
    try:
        sha = (hub_id.folder / "refs" / revision).read_text().strip()
        return sha if COMMIT.fullmatch(sha) else None
    except (OSError, ValueError):  # not a ref
        pass
    if not SHORT_COMMIT.fullmatch(revision):
        return None
    commits = [name for name in names(hub_id.folder / "snapshots") if name.startswith(revision)]
    return commits[0] if len(commits) == 1 else None


def snapshots() -> Iterator[Cached]:
    """Yield every snapshot in the cache under each of its revisions, or under its commit if it has none."""
    for name in names(root()):
        if not name.startswith("models--"):
            continue
        hub_id = HubId.parse(name.removeprefix("models--").replace("--", "/"))
        if hub_id is None:
            continue
        revisions = refs(hub_id.folder)
        for sha in names(hub_id.folder / "snapshots"):
            folder = hub_id.folder / "snapshots" / sha
            if not COMMIT.fullmatch(sha) or not folder.is_dir():
                continue
            for revision in [ref for ref, target in revisions.items() if target == sha] or [sha[:12]]:
                yield Cached(str(HubId(hub_id.repo, None if revision == "main" else revision)), sha, folder)


def refs(folder: Path) -> dict[str, str]:
    """Return revision → commit of a repository's folder. A revision's name may have slashes (refs/pr/1)."""
    commits = {}
    for file in sorted((folder / "refs").rglob("*")) if (folder / "refs").is_dir() else ():
        if file.is_file():
            commits[file.relative_to(folder / "refs").as_posix()] = file.read_text(errors="replace").strip()
    return commits


def names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none if it is not a folder."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def disk_usage(folder: Path) -> int:
    """Return the bytes of the files below a folder; links do not count."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def sha256(path: Path) -> str:
    """Return a file's checksum in hexadecimal."""
    import hashlib  # takes long

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def files(folder: Path) -> dict[str, int]:
    """Return name → size in bytes of the files in a checkpoint's folder and its subfolders. Links are followed."""
    sizes = {}
    for prefix in ["", *(f"{name}/" for name in names(folder) if name[0] != "." and (folder / name).is_dir())]:
        for name in names(folder / prefix):
            path = folder / prefix / name
            if name[0] != "." and path.is_file():
                sizes[prefix + name] = path.stat().st_size
    return sizes
