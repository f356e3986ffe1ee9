"""Files that go with a checkpoint, such as LoRA files: a path, or on the hub `org/name[@revision]`, or of several in a
repository `org/name[@revision]/FILE`. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path

from gencli.checkpoints import hub_cache, layout
from gencli.checkpoints.hub_cache import HubId, Progress
from gencli.checkpoints.layout import BIN, PICKLE_HINT, PICKLES, SAFETENSORS, some
from gencli.errors import GencliError

CONFIG, PEFT = "adapter_config.json", "adapter_model"  # a folder of peft's
SUFFIXES = (SAFETENSORS, *(pattern[1:] for pattern in PICKLES))
HUB_FILE = re.compile(r"(?P<repo>[^/@]+/[^/@]+(?:@[^/]+)?)/(?P<file>.+)")


def locate(
    name: str,
    stems: tuple[str, ...],
    *,
    option: str,
    offline: bool = False,
    progress: Progress | None = None,
    allow_pickle: bool = False,
) -> Path:
    """The file or folder called `name`, fetched from the hub when it is a hub's id and not on this machine.

    stems: what such files are called in repositories; a folder of peft's is taken whole. option: for messages. With
    `offline`, or HF_HUB_OFFLINE=1, nothing is fetched. Raises GencliError when there is nothing of that name.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    wanted, file = _hub_name(name)
    if wanted is None:
        raise GencliError(f"{option} {name}: no such file or folder")
    choose = partial(_choose, stems=stems, file=file, allow_pickle=allow_pickle)
    folder, forbidden = (
        hub_cache.snapshot(wanted),
        "--offline is given" if offline else hub_cache.offline_by_environment(),
    )
    if folder is not None:
        try:
            names = choose(_files(folder))
        except GencliError:
            names = []
        # The only file that is here may be one of several: that the hub alone can tell.
        sure = file is not None or (names and (names[0] == CONFIG or Path(names[0]).stem in stems))
        if names and (sure or forbidden):
            return _path(folder, names)
    if forbidden:
        raise GencliError(
            f"{option} {name}: no such file or folder, and not in the Hugging Face cache ({hub_cache.root()})",
            f"{forbidden}, so it was not looked for on the hub",
        )
    from gencli.checkpoints.hub import download

    folder = download(wanted, progress=progress, choose=lambda names, _: choose(names))
    return _path(folder, choose(_files(folder)))


def _hub_name(name: str) -> tuple[HubId | None, str | None]:
    """The repository that a name stands for, if it can be one's, and the file in it, if it names one."""
    if not name.endswith(SUFFIXES):
        wanted = HubId.parse(name)
        return (wanted if wanted is not None and "/" in wanted.repo else None), None
    match = HUB_FILE.fullmatch(name)
    if match is None or not layout.is_plain(match["file"]):
        return None, None
    return HubId.parse(match["repo"]), match["file"]


def _choose(names: Collection[str], *, stems: tuple[str, ...], file: str | None, allow_pickle: bool) -> list[str]:
    """The file that is wanted; of a folder of peft's its config too, first. Raises GencliError when it is not there."""
    suffixes = SUFFIXES if allow_pickle else (SAFETENSORS,)
    if file is not None:
        if file not in names:
            there = [name for name in sorted(names) if name.endswith(SUFFIXES)]
            raise GencliError(f"no file {file!r}", f"there are {some(there)}" if there else None)
        if not file.endswith(suffixes):
            raise GencliError(f"{file} is no .safetensors file", PICKLE_HINT)
        return [file]
    if CONFIG in names:
        weights = [f"{PEFT}{suffix}" for suffix in (SAFETENSORS, BIN) if suffix in suffixes]
        found = [name for name in weights if name in names][:1]
        if found:
            return [CONFIG, *found]
    here = [name for name in sorted(names) if "/" not in name]
    for suffix in suffixes:
        ending = [name for name in here if name.endswith(suffix)]
        named = [name for name in ending if name.removesuffix(suffix) in stems]
        if found := named or ending:
            if len(found) > 1:
                raise GencliError(f"{len(found)} files may be meant: {some(found)}", "add /FILE to the name")
            return found
    pickles = layout.find_pickles(here)
    seen = f" (only {some(pickles)})" if pickles else ""
    raise GencliError(f"no {stems[0]}{SAFETENSORS}{seen}", PICKLE_HINT if pickles else None)


def _path(folder: Path, names: list[str]) -> Path:
    return folder if names[0] == CONFIG else folder / names[0]


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
