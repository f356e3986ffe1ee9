"""Downloading from the hub into the local cache, in huggingface_hub's layout: only what gencli opens, with resumption.

The names of all files in the cache are decided here: from the repository's listing, parsed once into checked records,
or made up. No other word of a server (a header, a redirect) becomes part of a path. Nothing in a repository is run, no
`.py` file is ever fetched, and no pickle unless allowed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from gencli.atomic import write_over
from gencli.checkpoints import hub_cache, layout
from gencli.checkpoints.hub_cache import COMMIT, HubId, Progress
from gencli.checkpoints.hub_http import fetch, library
from gencli.errors import GencliError
from gencli.json_files import SIZE_LIMIT, read_json
from gencli.models import architecture_name

SHA256 = re.compile(r"[0-9a-f]{64}")
TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache, which backups may skip: https://bford.info/cachedir/\n"
SPARE = 2**26  # bytes that a disk keeps free


@dataclass(frozen=True)
class Remote:
    """A file of a repository: size in bytes, sha256 and git's id, if the hub gives them."""

    name: str
    size: int | None
    sha256: str | None
    git_id: str | None

    @classmethod
    def parse(cls, raw: object) -> Remote:
        """Read one entry of a listing. Raise ValueError for a value of another type than the hub's."""
        if not isinstance(raw, dict) or not isinstance(raw.get("rfilename"), str):
            raise ValueError(f"a file without a name: {raw!r:.80}")
        lfs = raw.get("lfs") or {}
        if not isinstance(lfs, dict):
            raise ValueError(f"{raw['rfilename']!r:.80} with lfs = {lfs!r:.40}")
        remote = cls(raw["rfilename"], raw.get("size"), lfs.get("sha256"), raw.get("blobId"))
        if remote.size is not None and (type(remote.size) is not int or not 0 <= remote.size < 2**60):
            raise ValueError(f"{remote.name!r:.80} with a size of {remote.size!r:.40}")
        for id, pattern in ((remote.sha256, SHA256), (remote.git_id, COMMIT)):
            if id is not None and not (isinstance(id, str) and pattern.fullmatch(id)):
                raise ValueError(f"{remote.name!r:.80} with the id {id!r:.40}")
        return remote


Choose = Callable[[Collection[str], layout.Read], list[str]]
"""Returns the files to fetch, of all the names in a repository; may read the JSON files among them."""


def download(
    hub_id: HubId,
    *,
    variant: str | None = None,
    progress: Progress | None = None,
    allow_pickle: bool = False,
    gguf: str | None = None,
    choose: Choose | None = None,
) -> Path:
    """Fetch the missing files of a checkpoint's newest commit at a revision. Return the folder of the snapshot.

    variant: which weights where there are several, such as fp16. allow_pickle: fetch pickles where there are no
    safetensors. gguf: the type of a GGUF file, if that is wanted. choose: selects the files, if not those of a
    checkpoint. `progress` is called with the repository's name, the bytes so far and the bytes in all.
    Raise GencliError when the hub cannot be reached, lacks or refuses the repository, and when gencli cannot open what
    is in it. What was fetched stays for the next try.
    """
    if reason := hub_cache.offline_by_environment():
        raise GencliError(f"cannot fetch {hub_id}: {reason} keeps gencli offline")
    with library():
        return _Download(hub_id, progress).run(
            choose or partial(layout.choose, variant=variant, allow_pickle=allow_pickle, gguf=gguf)
        )


class _Download:
    """The download of one repository at one commit."""

    def __init__(self, hub_id: HubId, progress: Progress | None):
        self.hub_id, self.progress = hub_id, progress
        self.commit, remotes = _list_files(hub_id)
        self.remotes = {remote.name: remote for remote in remotes if layout.is_plain(remote.name)}
        self.folder = hub_id.folder / "snapshots" / self.commit
        self.done = self.total = 0

    def run(self, choose: Choose) -> Path:
        try:
            names = choose(self.remotes, self._read)
        except GencliError as error:
            raise GencliError(f"{self.hub_id}: {error.message}", error.hint) from None
        missing = [name for name in names if not (self.folder / name).is_file()]
        blobs = {self._blob(self.remotes[name]): self.remotes[name].size or 0 for name in missing}
        self.total = sum(size for blob, size in blobs.items() if not blob.exists())
        self._check_room(self.total - sum(_size(_incomplete(blob)) for blob in blobs))
        weights = [name for name in missing if name.endswith((layout.SAFETENSORS, layout.BIN, ".gguf"))]
        for name in [name for name in missing if name not in weights]:
            self._fetch(name)
        for name in names:
            if Path(name).name == "config.json":
                self._check_architecture(name)
        for name in weights:
            self._fetch(name)
        if not (tag := hub_cache.root() / "CACHEDIR.TAG").exists():
            tag.write_text(TAG)
        if (revision := self.hub_id.revision or "main") != self.commit:
            ref = self.hub_id.folder / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_over(ref, self.commit.encode())
        return self.folder

    def _read(self, name: str) -> Mapping[str, object]:
        """Read a JSON file of the repository, fetched to learn from it which others are needed."""
        if not (self.folder / name).is_file():
            self._fetch(name)
        return read_json(self.folder / name)

    def _check_architecture(self, name: str) -> None:
        """Refuse an unknown architecture before its weights are fetched."""
        architecture_name(read_json(self.folder / name), f"{self.hub_id}: {name}")

    def _blob(self, remote: Remote) -> Path:
        """Return where the cache keeps a file's content: under its sha256 or git's id, as huggingface_hub has it."""
        made_up = hashlib.sha256(f"{self.commit}/{remote.name}".encode()).hexdigest()
        return self.hub_id.folder / "blobs" / (remote.sha256 or remote.git_id or made_up)

    def _free(self) -> tuple[int, Path]:
        """Return the free bytes of the cache's disk, and a folder on it."""
        folder = next(path for path in [self.folder, *self.folder.parents] if path.exists())
        return shutil.disk_usage(folder).free, folder

    def _check_room(self, needed: int) -> None:
        free, folder = self._free()
        if needed + SPARE > free:
            raise GencliError(
                f"{self.hub_id} needs {needed / 1e9:.2f} GB more; {free / 1e9:.2f} GB are free in {folder}",
                "`gencli models rm` makes room; HF_HUB_CACHE names another place",
            )

    def _fetch(self, name: str) -> None:
        """Fetch one file into the snapshot."""
        import huggingface_hub as hub
        from huggingface_hub.utils import WeakFileLock

        blob, link = self._blob(self.remotes[name]), self.folder / name
        lock = hub_cache.root() / ".locks" / self.hub_id.folder.name / f"{blob.name}.lock"
        for path in (blob, lock, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if not blob.exists():
                url = hub.hf_hub_url(self.hub_id.repo, name, revision=self.commit)
                self._fetch_blob(url, blob, self.remotes[name])
            if not link.is_file():
                link.unlink(missing_ok=True)  # a link to nowhere
                try:
                    link.symlink_to(os.path.relpath(blob, link.parent))
                except (OSError, NotImplementedError):  # a system without links
                    blob.replace(link)

    def _fetch_blob(self, url: str, blob: Path, remote: Remote) -> None:
        """Fetch a file's content, after what an earlier try left of it. Raise GencliError if it comes damaged."""
        incomplete = _incomplete(blob)
        limit = self._free()[0] - SPARE if remote.size is None else remote.size
        if remote.sha256 is None or _size(incomplete) > limit:  # what cannot be checked is fetched anew
            incomplete.unlink(missing_ok=True)
        self._count(_size(incomplete))
        with incomplete.open("ab") as file:
            size, update, wait = remote.size, self._count, self._show_wait
            fetch(self.hub_id, remote.name, url, file, size=size, limit=limit, update=update, wait=wait)
        if remote.sha256 is not None and hub_cache.sha256(incomplete) != remote.sha256:
            incomplete.unlink()
            raise GencliError(
                f"{self.hub_id}: {remote.name} came damaged: its checksum is not the Hub's", "run it again"
            )
        incomplete.replace(blob)

    def _count(self, number: int) -> None:
        if self.total:  # not for the first small files, which tell what there is to fetch
            self.done += number
            self._show(str(self.hub_id))

    def _show_wait(self, seconds: int) -> None:
        self._show(f"{self.hub_id} (the Hub asks to wait {seconds} s)")

    def _show(self, name: str) -> None:
        if self.progress is not None:
            self.progress(name, self.done, self.total or 1)


def _list_files(hub_id: HubId) -> tuple[str, list[Remote]]:
    """Return the commit that the hub has for a revision now, and its files. Raise GencliError for a broken listing."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(hub_id.repo)
    except HFValidationError as error:
        raise GencliError(f"{str(hub_id)!r} is not an id of a model: {' '.join(str(error).split())}") from None
    at = "" if hub_id.revision is None else f"/revision/{quote(hub_id.revision, safe='')}"
    file = io.BytesIO()
    url = f"{constants.ENDPOINT}/api/models/{hub_id.repo}{at}?blobs=True"
    fetch(hub_id, "its list of files", url, file, size=None, limit=SIZE_LIMIT, tries=1)
    try:
        raw = json.loads(file.getvalue())
        if not isinstance(raw, dict) or not isinstance(raw.get("siblings") or [], list):
            raise ValueError("no table with a list of files")
        remotes = [Remote.parse(sibling) for sibling in raw.get("siblings") or []]
    except (ValueError, RecursionError) as error:
        raise GencliError(f"{hub_id}: the Hub's list of files is broken: {error}") from None
    commit = raw.get("sha")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise GencliError(f"{hub_id}: the Hub gives it the commit {commit!r:.80}, which is not one")
    return commit, remotes


def _incomplete(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def remove(hub_id: HubId) -> int:
    """Delete a repository from the local cache, or one revision of it. Return the bytes that were freed.

    A commit that another revision points to stays. Raise GencliError when it is not in the cache.
    """
    folder = hub_id.folder
    commit = hub_cache.commit(hub_id)
    if not folder.is_dir() or (hub_id.revision and commit is None):
        raise GencliError(f"{str(hub_id)!r} is not in the Hugging Face cache ({hub_cache.root()})")
    before = hub_cache.disk_usage(folder)
    others = [name for name, target in hub_cache.refs(folder).items() if target == commit and name != hub_id.revision]
    if hub_id.revision and others and (folder / "refs" / hub_id.revision).is_file():
        (folder / "refs" / hub_id.revision).unlink()
        return 0
    with library():
        import huggingface_hub as hub

        scan = hub.scan_cache_dir(hub_cache.root())
        for repo in scan.repos:
            if repo.repo_path.name == folder.name:
                commits = {revision.commit_hash for revision in repo.revisions}
                unwanted = commits & {commit or ""} if hub_id.revision else commits
                alone = dataclasses.replace(scan, repos=frozenset({repo}))  # a copy elsewhere has the same hashes
                alone.delete_revisions(*unwanted).execute()
    if hub_id.revision is None:  # and what broken downloads left
        for place in (folder, hub_cache.root() / ".locks" / folder.name):
            if place.is_dir():
                shutil.rmtree(place)
    if commit and hub_id.revision and (folder / "snapshots" / commit).exists():
        raise GencliError(f"cannot remove {folder / 'snapshots' / commit}", "is it yours to remove?")
    return before - hub_cache.disk_usage(folder)


def remove_files(hub_id: HubId, names: list[str]) -> int:
    """Delete files of a snapshot from the local cache, and the repository with its last file. Return the bytes freed.

    What another snapshot has too stays there.
    """
    folder = hub_cache.snapshot(hub_id)
    assert folder is not None  # the caller has found the files in it
    before = hub_cache.disk_usage(hub_id.folder)
    for name in names:
        blob = (folder / name).resolve()
        (folder / name).unlink()
        others = (path.resolve() for path in (hub_id.folder / "snapshots").rglob("*") if path.is_symlink())
        if blob.is_file() and blob not in others:
            blob.unlink()
    after = hub_cache.disk_usage(hub_id.folder)
    return before - after + (0 if hub_cache.files(folder) else remove(hub_id))
