"""What an image says of the files that it was made with: names and fingerprints, and no folders of its maker's.

An image goes to strangers, so a path outside the current folder is written as its last name alone. On this machine it
is found again: by name from the current folder, beside the image, or where the file of that fingerprint lay (links in
gencli's cache folder say so). No torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from gencli import cache
from gencli.image.request import ImageRequest
from gencli.options import rows

WHOLE, BLOCKS, BLOCK = 2**20, 64, 2**12  # bytes of files that are read whole; of others so many blocks, evenly
PARTS = (".json", ".safetensors", ".bin", ".pt", ".ckpt", ".txt", ".model", ".gguf")  # files of a folder that count
FILES_LIMIT = 256
FINGERPRINT = re.compile(r"[0-9a-f]{16}")
LINKS = 1024  # that are kept; half of them go when there are more
NAMED = {name: option.names for name, option in rows(ImageRequest) if option.names}


def fingerprint(path: Path) -> str | None:
    """Return 16 hex digits that tell a file or folder from others, or None for what cannot be read.

    SHA-256 of a file of up to 1 MiB, of a larger one's size and 64 blocks of it, which takes milliseconds.
    """
    if path.parent.name == "snapshots":  # of the hub's cache, named by its commit; not all of it may be here
        return hashlib.sha256(path.name.encode()).hexdigest()[:16]
    digest = hashlib.sha256()
    try:
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in PARTS and file.is_file())[:FILES_LIMIT]
        for file in files:
            digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode("utf-8", "surrogateescape"))
            with file.open("rb") as stream:
                for block in _blocks(stream, file.stat().st_size):
                    digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()[:16]


def _blocks(stream: BinaryIO, size: int) -> Iterator[bytes]:
    if size <= WHOLE:
        yield stream.read()
        return
    for i in range(BLOCKS):
        stream.seek(i * (size - BLOCK) // (BLOCKS - 1))
        yield stream.read(BLOCK)


def split(text: str) -> tuple[str, str]:
    """Split what names a file into its path and what follows it after a colon: the scale of a LoRA, a word."""
    for cut in (len(text), text.rfind(":"), text.find(":")):
        if cut > 0 and os.path.lexists(os.path.expanduser(text[:cut])):
            return text[:cut], text[cut:]
    colon = text.find(":", text.rfind("/") + 1)
    return (text[:colon], text[colon:]) if colon > 0 else (text, "")


def recorded(text: str) -> str:
    """Return a name as an image holds it: from the current folder on where the file lies in it, else its last name.

    What is no path (an embedded model, an id of the hub) stays as it is.
    """
    name, rest = split(text)
    path = Path(os.path.expanduser(name))
    if not path.is_absolute() and ".." not in path.parts:
        return text
    if ".." not in path.parts:
        with contextlib.suppress(OSError, ValueError):
            return str(path.absolute().relative_to(Path.cwd())) + rest
    return (path.resolve().name if path.name in ("", "..") else path.name) + rest


def last_name(text: str) -> str:
    """Return the last name of a path that there is; all else as it is."""
    name, rest = split(text)
    path = Path(os.path.expanduser(name))
    is_path = path.is_absolute() or ".." in path.parts or os.path.lexists(path)
    return (path.resolve().name if path.name in ("", "..") else path.name) + rest if is_path else text


def rename(request: ImageRequest, change: Callable[[str], str]) -> ImageRequest:
    """Return a request whose files and models have other names."""
    return request.replace(**{field: _changed(getattr(request, field), change) for field in NAMED})


def _changed(value: str | Sequence[str] | None, change: Callable[[str], str]) -> str | tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return value and change(value)
    return tuple(map(change, value))


def relocate(values: Mapping[str, object], hashes: Mapping[str, str], beside: Path) -> dict[str, object]:
    """Return the values of an image with the names of its files as they are found here. beside: the image's folder."""
    return {
        field: _changed(cast("str | Sequence[str] | None", value), lambda text: _find(text, hashes.get(text), beside))
        if field in NAMED
        else value
        for field, value in values.items()
    }


def _find(text: str, wanted: str | None, beside: Path) -> str:
    """Return the first place of a name whose file has the wanted fingerprint, else the first where there is one."""
    name, rest = split(text)
    places = [Path(name), beside / name, beside / Path(name).name]
    if wanted is not None and FINGERPRINT.fullmatch(wanted):
        with contextlib.suppress(OSError):
            places.append(Path(os.readlink(_links() / wanted)))
    there = [place for place in places if os.path.lexists(place)]
    same = [place for place in there if wanted is not None and fingerprint(place) == wanted]
    return f"{(same or there)[0]}{rest}" if there else text


def remember(path: Path, digest: str) -> None:
    """Keep where a file lies, for `relocate`. What cannot be kept is not."""
    with contextlib.suppress(OSError, NotImplementedError):
        folder = _links()
        folder.mkdir(parents=True, exist_ok=True)
        links = list(folder.iterdir())
        if len(links) > LINKS:
            for link in sorted(links, key=lambda link: link.lstat().st_mtime)[: LINKS // 2]:
                link.unlink(missing_ok=True)
        link = folder / digest
        link.unlink(missing_ok=True)
        link.symlink_to(path.absolute())


def _links() -> Path:
    return Path(cache.folder("inputs"))
