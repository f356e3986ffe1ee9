"""Hub → local cache, through huggingface_hub and into its layout: just what gencli opens, resumed where it broke off.

The library resumes no download of an earlier run, so its files come here into `blobs/ETAG.incomplete` first, and are
handed to it whole. Nothing in a repository is run, no `.py` file is ever fetched, and no pickle unasked.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gencli.atomic import write_over
from gencli.checkpoints import hub_cache, layout
from gencli.checkpoints.hub_cache import COMMIT, HubId, Progress
from gencli.errors import GencliError
from gencli.json_files import read_json
from gencli.models import ARCHITECTURES

ETAG = re.compile(r"\w[\w.-]*")
CHUNK = 2**18  # bytes; what a break loses at most
SPARE = 2**26  # bytes that a disk keeps free


@dataclass(frozen=True)
class Remote:
    """A file of a repository: size in bytes and sha256, where the hub tells them."""

    name: str
    size: int | None
    sha256: str | None


Choose = Callable[[Collection[str], layout.Read], list[str]]
"""Which files of a repository are wanted, of all their names; may read the JSON files among them."""


def download(
    wanted: HubId,
    *,
    variant: str | None = None,
    progress: Progress | None = None,
    allow_pickle: bool = False,
    choose: Choose | None = None,
) -> Path:
    """Fetch what is missing of a checkpoint's newest commit at `wanted`'s revision; the folder of the snapshot.

    variant: which weights where there are several, such as fp16. allow_pickle: fetch pickles where there are no
    safetensors. choose: which files, if not those of a checkpoint. `progress` is called with the repository's name, the
    bytes so far and the bytes in all.
    Raises GencliError when the hub cannot be reached, does not have it or does not give it, and when gencli cannot open
    what is there; what was fetched stays for the next try.
    """
    if reason := hub_cache.offline_by_environment():
        raise GencliError(f"cannot fetch {wanted}: {reason} keeps gencli off the network")
    with library(wanted):
        return _Download(wanted, progress).run(
            choose or partial(layout.choose, variant=variant, allow_pickle=allow_pickle)
        )


class _Download:
    """One repository at one commit."""

    def __init__(self, wanted: HubId, progress: Progress | None):
        self.wanted, self.progress = wanted, progress
        commit, remotes = _listing(wanted)
        self.commit = commit
        self.remotes = {remote.name: remote for remote in remotes if layout.is_plain(remote.name)}
        self.folder = wanted.folder / "snapshots" / commit
        self.done = self.total = 0

    def run(self, choose: Choose) -> Path:
        try:
            names = choose(self.remotes, self._read)
        except GencliError as error:
            raise GencliError(f"{self.wanted}: {error.message}", error.hint) from None
        missing = [name for name in names if not (self.folder / name).is_file()]
        wanted = [self.remotes[name] for name in missing]
        self.total = sum(remote.size or 0 for remote in wanted if not self._blob(remote, "").exists())
        self._check_room(self.total - sum(_size(self._blob(remote, ".incomplete")) for remote in wanted))
        weights = [name for name in missing if name.endswith((layout.SAFETENSORS, layout.BIN))]
        for name in [name for name in missing if name not in weights]:
            self._fetch(name)
        for name in names:
            if Path(name).name == "config.json":
                self._check_architecture(name)
        for name in weights:
            self._fetch(name)
        _write_ref(self.wanted, self.commit)
        return self.folder

    def _read(self, name: str) -> Mapping[str, Any]:
        """A JSON file of the repository, fetched to learn from it which others are wanted."""
        if not (self.folder / name).is_file():
            self._fetch(name)
        return read_json(self.folder / name)

    def _check_architecture(self, name: str) -> None:
        """Refuse what gencli does not know before its weights are fetched."""
        raw = read_json(self.folder / name)
        found = raw.get("model_type") or raw.get("_class_name")
        if not isinstance(found, str) or found not in ARCHITECTURES:
            raise GencliError(
                f"{self.wanted}: {name}: unknown architecture {found!r}", f"gencli knows {', '.join(ARCHITECTURES)}"
            )

    def _blob(self, remote: Remote, suffix: str) -> Path:
        """Where a large file's content lies in the cache; small ones have other names there, and do not count."""
        return self.wanted.folder / "blobs" / f"{remote.sha256}{suffix}"

    def _check_room(self, needed: int) -> None:
        folder = next(path for path in [self.folder, *self.folder.parents] if path.exists())
        free = shutil.disk_usage(folder).free
        if needed + SPARE > free:
            raise GencliError(
                f"{self.wanted} needs {needed / 1e9:.2f} GB more; {free / 1e9:.2f} GB are free in {folder}",
                "`gencli models rm` makes room; HF_HUB_CACHE names another place",
            )

    def _fetch(self, name: str) -> None:
        """One file into the snapshot."""
        import huggingface_hub as hub
        from huggingface_hub.utils import WeakFileLock, build_hf_headers

        remote = self.remotes[name]
        url = hub.hf_hub_url(self.wanted.repo, name, revision=self.commit)
        told = hub.get_hf_file_metadata(url)
        etag = told.etag or ""
        if not ETAG.fullmatch(etag):
            raise GencliError(f"{self.wanted}: the hub gives {name} the ETag {etag!r}, which is no plain word")
        blob = self.wanted.folder / "blobs" / etag
        lock = hub_cache.root() / ".locks" / self.wanted.folder.name / f"{etag}.lock"
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if not blob.exists():
                self._fetch_blob(url, build_hf_headers(), blob, remote, told.size)
        hub.hf_hub_download(self.wanted.repo, name, revision=self.commit, cache_dir=hub_cache.root())

    def _fetch_blob(self, url: str, headers: dict[str, str], blob: Path, remote: Remote, size: int | None) -> None:
        """A file's content, after what an earlier try left of it. Raises GencliError when it comes damaged."""
        from huggingface_hub.file_download import http_get

        partial = blob.with_name(f"{blob.name}.incomplete")
        bar: Any = _Bar(self._count)
        if size is None or _size(partial) > size:
            partial.unlink(missing_ok=True)
        self._count(_size(partial))
        while True:
            start = _size(partial)
            try:
                with partial.open("ab") as file:
                    http_get(url, file, resume_size=start, headers=headers, expected_size=size, _tqdm_bar=bar)
                break
            except Exception as error:  # it broke off: go on as long as that gets further
                if not is_network(error) or _size(partial) <= start:
                    raise
        if remote.sha256 is not None and hub_cache.sha256(partial) != remote.sha256:
            partial.unlink()
            raise GencliError(
                f"{self.wanted}: {remote.name} came damaged: its checksum is not the hub's", "run it again"
            )
        partial.replace(blob)

    def _count(self, number: int) -> None:
        if not self.total:  # the first small files, which tell what there is to fetch
            return
        self.done += number
        if self.progress is not None:
            self.progress(str(self.wanted), self.done, self.total)


class _Bar:
    """What the library takes for a progress bar."""

    def __init__(self, update: Any):
        self.update = update


def _listing(wanted: HubId) -> tuple[str, list[Remote]]:
    """The commit that the hub has for a revision now, and its files."""
    import huggingface_hub as hub
    from huggingface_hub import constants

    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    info = hub.HfApi().model_info(wanted.repo, revision=wanted.revision, files_metadata=True, timeout=timeout)
    if not COMMIT.fullmatch(info.sha or ""):
        raise GencliError(f"{wanted}: the hub gives it the commit {info.sha!r}, which is none")
    remotes = []
    for sibling in info.siblings or []:
        remotes.append(Remote(sibling.rfilename, sibling.size, sibling.lfs.sha256 if sibling.lfs else None))
    return str(info.sha), remotes


def _write_ref(wanted: HubId, commit: str) -> None:
    """Say that the revision stands for this commit, now that all of it is here."""
    revision = wanted.revision or "main"
    if revision == commit:
        return
    ref = wanted.folder / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    write_over(ref, commit.encode())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def remove(wanted: HubId) -> int:
    """Delete a repository from the local cache, or one revision of it; how many bytes that gives back.

    A commit that another revision stands for too stays. Raises GencliError when it is not there.
    """
    folder = wanted.folder
    commit = hub_cache.commit(wanted)
    if not folder.is_dir() or (wanted.revision and commit is None):
        raise GencliError(f"{str(wanted)!r} is not in the Hugging Face cache ({hub_cache.root()})")
    before = hub_cache.disk_usage(folder)
    others = [name for name, target in hub_cache.refs(folder).items() if target == commit and name != wanted.revision]
    if wanted.revision and others and (folder / "refs" / wanted.revision).is_file():
        (folder / "refs" / wanted.revision).unlink()
        return 0
    with library(wanted):
        import huggingface_hub as hub

        scan = hub.scan_cache_dir(hub_cache.root())
        for repo in scan.repos:
            if repo.repo_path.name == folder.name:
                commits = {revision.commit_hash for revision in repo.revisions}
                unwanted = commits & {commit or ""} if wanted.revision else commits
                alone = dataclasses.replace(scan, repos=frozenset({repo}))  # copies of it share its commits' hashes
                alone.delete_revisions(*unwanted).execute()
    if wanted.revision is None:  # with what broken downloads left
        for place in (folder, hub_cache.root() / ".locks" / folder.name):
            if place.is_dir():
                shutil.rmtree(place)
    if commit and wanted.revision and (folder / "snapshots" / commit).exists():
        raise GencliError(f"cannot remove {folder / 'snapshots' / commit}", "is it yours to remove?")
    return before - hub_cache.disk_usage(folder)


@contextmanager
def library(wanted: HubId) -> Iterator[None]:
    """huggingface_hub as gencli uses it: it says nothing itself, and what it raises comes in gencli's words.

    Import the library inside only. Raises GencliError for whatever kept it from getting `wanted`.
    """
    # Read when the library is imported: no requests and headers that only count users.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from huggingface_hub import constants
        from huggingface_hub.utils import logging

        logging.get_logger("huggingface_hub").setLevel("CRITICAL")
        # Small steps lose little in a break; hf_transfer, in older versions, resumes nothing.
        for name, value in {"DOWNLOAD_CHUNK_SIZE": CHUNK, "HF_HUB_ENABLE_HF_TRANSFER": False}.items():
            setattr(constants, name, value)
        try:
            yield
        except GencliError:
            raise
        except Exception as error:
            if (known := _explain(wanted, error)) is None:
                raise
            raise known from error


def _explain(wanted: HubId, error: Exception) -> GencliError | None:
    """What an error of the library means; None for what is none of its own."""
    from huggingface_hub import constants, get_token
    from huggingface_hub import errors as hub

    address = f"{constants.ENDPOINT}/{wanted.repo}"
    token = get_token()
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    message = response.headers.get("X-Error-Message") if response is not None else None
    if isinstance(error, hub.GatedRepoError):
        hint = f"ask for access, or accept its terms, at {address}"
        hint += ", signed in as the owner of your token" if token else "; then set HF_TOKEN to a token of yours"
        return GencliError(f"{wanted} is gated: its owner decides who may fetch it", hint)
    if isinstance(error, hub.RevisionNotFoundError):
        return GencliError(f"{wanted.repo} has no revision {wanted.revision!r}", f"its branches and tags: {address}")
    if status == 401 and token and "credentials" in (message or ""):
        return GencliError(
            f"{wanted}: the hub does not accept your token", "check HF_TOKEN, or the one of `hf auth login`"
        )
    if isinstance(error, hub.RepositoryNotFoundError) or status in (401, 404):
        hint = "check the name" + ("" if token else "; for a private one set HF_TOKEN to a token of yours")
        return GencliError(f"no model {str(wanted)!r}: not on this machine, and not at {constants.ENDPOINT}", hint)
    if isinstance(error, hub.HFValidationError):
        return GencliError(f"{str(wanted)!r} is no id of a model: {_one_line(error)}")
    if status == 429:
        return GencliError(f"{wanted}: the hub asks to slow down (429)", "try again in some minutes, or set HF_TOKEN")
    if status is not None:
        return GencliError(f"{wanted}: the hub answers {status}{': ' + message if message else ''}")
    if is_network(error):
        return GencliError(
            f"cannot fetch {wanted} from {constants.ENDPOINT}: {_one_line(error)}",
            "what has been fetched is kept; run it again and it goes on from there",
        )
    return None


def is_network(error: Exception) -> bool:
    """Whether a connection failed: with an error of the HTTP library, which is another one from version to version."""
    module = type(error).__module__.partition(".")[0]
    below = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "huggingface_hub"}
    return module in below or (isinstance(error, OSError) and error.errno is None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
