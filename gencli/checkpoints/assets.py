"""References to files that go with a checkpoint: LoRA adapters and embeddings. No torch.

A reference is a path, or on the hub `org/name[@revision]`, or `org/name[@revision]/FILE` for one of several files.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gencli.checkpoints import hub_cache, layout
from gencli.checkpoints.hub_cache import HubId, Progress
from gencli.checkpoints.layout import BIN, PICKLE_HINT, PICKLES, SAFETENSORS, some
from gencli.errors import GencliError, UsageError

PEFT_CONFIG, PEFT_STEM = "adapter_config.json", "adapter_model"  # a folder written by peft
LORA_STEM, EMBEDDING_STEM = "pytorch_lora_weights", "learned_embeds"  # diffusers' file names
SUFFIXES = (SAFETENSORS, *(pattern[1:] for pattern in PICKLES))
HUB_FILE = re.compile(r"(?P<repo>[^/@]+/[^/@]+(?:@[^/]+)?)/(?P<file>.+)")


@dataclass(frozen=True)
class LoraRef:
    """A PEFT folder or a LoRA file, and its scale. Until it is found, `path` may be a name on the hub."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> LoraRef:
        """Parse `PATH[:SCALE]`. Raise UsageError for a scale that is not finite, and when there is no path."""
        path, colon, number = text.rpartition(":")
        if not colon or Path(os.path.expanduser(text)).exists():
            path, number = text, "1"
        try:
            scale = float(number)
        except ValueError:
            path, scale = text, 1.0  # the colon belongs to the path
        if not path or not math.isfinite(scale):
            raise UsageError(f"--lora {text!r}: PATH or PATH:SCALE is wanted")
        return cls(Path(os.path.expanduser(path)), scale)

    def find(self, *, offline: bool = False, progress: Progress | None = None, allow_pickle: bool = False) -> LoraRef:
        """Return the reference with a local path, fetched if need be. Raise GencliError if nothing has that name.

        A file of a PEFT folder stands for the folder.
        """
        more = {"offline": offline, "allow_pickle": allow_pickle}
        path = locate(self.path.as_posix(), LORA_STEM, option="--lora", progress=progress, **more)
        if not (path / PEFT_CONFIG).is_file() and (path / "adapter" / PEFT_CONFIG).is_file():  # gencli's training run
            path = path / "adapter"
        if path.is_file() and path.stem == PEFT_STEM and (path.parent / PEFT_CONFIG).is_file():
            path = path.parent
        return LoraRef(path, self.scale)


@dataclass(frozen=True)
class EmbeddingRef:
    """An embedding's file, and the word for it if given. Until it is found, `path` may be a name on the hub."""

    path: Path
    word: str | None = None

    @classmethod
    def parse(cls, text: str) -> EmbeddingRef:
        """Parse `FILE[:WORD]`. Raise UsageError when there is no file."""
        path, colon, word = text.partition(":")
        if len(path) == 1 and colon and word[:1] in ("\\", "/"):  # a drive letter
            rest, colon, word = word.partition(":")
            path = f"{path}:{rest}"
        if not colon or Path(os.path.expanduser(text)).exists():
            path, word = text, ""
        if not path or (colon and not word and path != text):
            raise UsageError(f"--embedding {text!r}: FILE or FILE:WORD is wanted")
        return cls(Path(os.path.expanduser(path)), word or None)

    def find(
        self, *, offline: bool = False, progress: Progress | None = None, allow_pickle: bool = False
    ) -> EmbeddingRef:
        """Return the reference with a local file, fetched if need be. Raise GencliError if nothing has that name."""
        more = {"offline": offline, "allow_pickle": allow_pickle}
        path = locate(self.path.as_posix(), EMBEDDING_STEM, option="--embedding", progress=progress, **more)
        if path.is_dir():
            files = [file for suffix in SUFFIXES if (file := path / f"{EMBEDDING_STEM}{suffix}").is_file()]
            if not files:
                raise GencliError(
                    f"--embedding {path}: is a folder without {EMBEDDING_STEM}.safetensors", "name a file"
                )
            path = files[0]
        return EmbeddingRef(path, self.word)


def locate(
    name: str,
    stem: str,
    *,
    option: str,
    offline: bool = False,
    progress: Progress | None = None,
    allow_pickle: bool = False,
) -> Path:
    """Return the file or folder called `name`, fetched from the hub if it is a hub id and not on this machine.

    stem: how repositories usually name such a file. option: the command-line option, for messages. With `offline` or
    HF_HUB_OFFLINE=1 nothing is fetched. A PEFT folder is returned whole. Raise GencliError if nothing has that name.
    """
    path = Path(os.path.expanduser(name))
    if path.exists():
        return path
    hub_id, file = _parse_hub_name(name)
    if hub_id is None:
        raise GencliError(f"{option} {name}: no such file or folder")
    choose = partial(_choose, stem=stem, file=file, allow_pickle=allow_pickle)
    folder = hub_cache.snapshot(hub_id)
    forbidden = "--offline is given" if offline else hub_cache.offline_by_environment()
    if folder is not None:
        try:
            names = choose(_list_files(folder))
        except GencliError:
            names = []
        # A file cached alone may be one of several in the repository, unless it has the usual name: only the hub knows.
        certain = file is not None or (names and (names[0] == PEFT_CONFIG or Path(names[0]).stem == stem))
        if names and (certain or forbidden):
            return _path(folder, names)
    if forbidden:
        raise GencliError(
            f"{option} {name}: no such file or folder, and not in the Hugging Face cache ({hub_cache.root()})",
            f"{forbidden}, so it was not looked for on the Hub",
        )
    from gencli.checkpoints.hub import download

    folder = download(hub_id, progress=progress, choose=lambda names, _: choose(names))
    return _path(folder, choose(_list_files(folder)))


def _parse_hub_name(name: str) -> tuple[HubId | None, str | None]:
    """Return the repository that a name stands for, if it can be one, and the file in it if it names one."""
    if not name.endswith(SUFFIXES):
        hub_id = HubId.parse(name)
        return (hub_id if hub_id is not None and "/" in hub_id.repo else None), None
    match = HUB_FILE.fullmatch(name)
    if match is None or not layout.is_plain(match["file"]):
        return None, None
    return HubId.parse(match["repo"]), match["file"]


def _choose(names: Collection[str], *, stem: str, file: str | None, allow_pickle: bool) -> list[str]:
    """Return the file to fetch; of a PEFT folder, its config and then its weights. Raise GencliError for none."""
    suffixes = SUFFIXES if allow_pickle else (SAFETENSORS,)
    if file is not None:
        if file not in names:
            candidates = [name for name in sorted(names) if name.endswith(SUFFIXES)]
            raise GencliError(f"no file {file!r}", f"there are {some(candidates)}" if candidates else None)
        if not file.endswith(suffixes):
            raise GencliError(f"{file} is not a .safetensors file", PICKLE_HINT)
        return [file]
    if PEFT_CONFIG in names:
        for suffix in (SAFETENSORS, BIN):
            if suffix in suffixes and f"{PEFT_STEM}{suffix}" in names:
                return [PEFT_CONFIG, f"{PEFT_STEM}{suffix}"]
    at_root = [name for name in sorted(names) if "/" not in name]
    for suffix in suffixes:
        candidates = [f"{stem}{suffix}"] if f"{stem}{suffix}" in at_root else []
        candidates = candidates or [name for name in at_root if name.endswith(suffix)]
        if len(candidates) > 1:
            raise GencliError(f"{len(candidates)} files may be meant: {some(candidates)}", "add /FILE to the name")
        if candidates:
            return candidates
    pickles = layout.find_pickles(at_root)
    seen = f" (only {some(pickles)})" if pickles else ""
    raise GencliError(f"no {stem}{SAFETENSORS}{seen}", PICKLE_HINT if pickles else None)


def _path(folder: Path, names: list[str]) -> Path:
    return folder if names[0] == PEFT_CONFIG else folder / names[0]


def _list_files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
