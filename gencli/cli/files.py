"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gencli.errors import GencliError


def write_over(path: Path, data: bytes) -> None:
    """Write a file, replacing an old one in a single move. A link is followed; a device or pipe is written into.

    Raises OSError.
    """
    path = Path(os.path.realpath(path))
    old = _stat(path)
    if old is not None and not stat.S_ISREG(old.st_mode):
        with path.open("wb") as file:
            file.write(data)
        return
    with _whole(path, data, mode=None if old is None else stat.S_IMODE(old.st_mode)) as temporary:
        os.replace(temporary, path)


def write_new(path: Path, data: bytes) -> Path:
    """Write a file that was not there before: `path`, or `path` with -1, -2, … before its suffix. Where it is now.

    Raises OSError.
    """
    with _whole(path, data) as temporary:
        number = 0
        while True:
            target = path.with_stem(f"{path.stem}-{number}") if number else path
            if _take_name(temporary, target):
                return target
            number += 1


def check_folder(path: Path) -> None:
    """Raises GencliError unless files can be made in this folder."""
    if not path.is_dir():
        raise GencliError(f"{path} is no folder" if path.exists() else f"there is no folder {path}", _mkdir(path))
    if not os.access(path, os.W_OK | os.X_OK):
        raise GencliError(f"files cannot be written in {path}: permission denied")


def _mkdir(path: Path) -> str | None:
    return None if path.exists() else f"make it first: mkdir -p {path}"


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _whole(path: Path, data: bytes, mode: int | None = None) -> Iterator[str]:
    """The name of a finished file beside `path`; what is left of it in the end is removed."""
    descriptor, temporary = tempfile.mkstemp(prefix=".gencli-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, _default_mode() if mode is None else mode)  # mkstemp's is for the owner alone
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _default_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _take_name(temporary: str, target: Path) -> bool:
    """Give the file its name unless there is one of that name: a hard link, which never replaces."""
    try:
        os.link(temporary, target)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS, errno.EACCES):
            raise
    try:  # a file system without links: reserve the name, then move over it
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    os.replace(temporary, target)
    return True
