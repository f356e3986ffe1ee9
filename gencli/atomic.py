"""Files and folders that appear whole or not at all: written beside their place, then renamed onto it."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from gencli.errors import GencliError

PARTIAL = ".gencli-"  # begins the names of files that are not whole yet


def write_over(path: Path, data: bytes) -> None:
    """Write a file in place of an old one, if any, as `open_over` does. Raise OSError."""
    with open_over(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_over(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write that takes the place of `path` at the end. A link is followed; a device or pipe is written
    into. The file keeps its mode. Raise OSError.
    """
    if is_stream(path):  # before its links are followed: those of a pipe lead to no file
        with path.open("wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    with _partial_file(path) as partial:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)


def write_new(path: Path, data: bytes) -> Path:
    """Write a file that was not there before: `path`, or `path` with -1, -2, … before its suffix. Return its path.

    Raise OSError.
    """
    with _partial_file(path, keep_mode=False) as partial:
        partial.write_bytes(data)
        number = 0
        while True:
            target = path.with_stem(f"{path.stem}-{number}") if number else path
            if _take_name(partial, target):
                return target
            number += 1


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; at the end that file takes the place of `path`, and lasts through a power cut.

    For a folder in which one process writes: the name of the partial file is fixed, so that a kill leaves one at most.
    """
    partial = path.with_suffix(".partial")
    yield partial
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to write into that takes the place of `path` at the end; a kill before leaves `path` as it was."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    mode = partial.stat().st_mode & 0o666  # from the user's mask: safetensors writes for the owner alone
    for file in partial.rglob("*"):
        if file.is_file():
            file.chmod(mode)
    if path.exists():
        shutil.rmtree(path)
    os.replace(partial, path)
    _sync(path.parent)


def is_stream(path: Path) -> bool:
    """Return whether there is something at a path that is written into and not replaced: a pipe or a device."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def open_stream(path: Path, wait: Callable[[], None]) -> BinaryIO:
    """Open a pipe or device to write into. wait: called before waiting for a pipe that nothing reads yet.

    Raise OSError.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.set_blocking(descriptor, True)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        wait()
        descriptor = os.open(path, os.O_WRONLY)
    return open(descriptor, "wb")


def check_target(path: Path) -> None:
    """Raise GencliError unless a file can be written at a path: for what would be lost after the work.

    A read-only file is not replaced, though its folder may allow it.
    """
    check_folder(path.parent)
    short = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}…"
    try:
        mode = path.stat().st_mode  # raises for a name that is too long
    except FileNotFoundError:
        return
    except OSError as error:
        raise GencliError(f"cannot write {short}: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise GencliError(f"cannot write {short}: it is a folder")
    if not mode & 0o222 or not os.access(path, os.W_OK):
        raise GencliError(f"cannot write {short}: it is read-only", f"another name, or chmod u+w {shlex.quote(short)}")


def check_folder(path: Path) -> None:
    """Raise GencliError unless files can be made in this folder."""
    try:
        is_folder, exists = stat.S_ISDIR(path.stat().st_mode), True
    except FileNotFoundError:
        is_folder = exists = False
    except OSError as error:
        raise GencliError(f"cannot write in {str(path)[:200]}: {error.strerror}") from None
    if exists and not is_folder:
        raise GencliError(f"{path} is not a folder")
    if not exists:
        raise GencliError(f"no such folder: {str(path)!r}", f"make it first: mkdir -p {shlex.quote(str(path))}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise GencliError(f"files cannot be written in {path}: permission denied")


@contextlib.contextmanager
def _partial_file(path: Path, *, keep_mode: bool = True) -> Iterator[Path]:
    """Yield a new file beside `path`, with its mode or the default one; what is left of it in the end is removed."""
    descriptor, name = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
    os.close(descriptor)
    partial = Path(name)
    try:
        partial.chmod(stat.S_IMODE(path.stat().st_mode) if keep_mode and path.exists() else _default_mode())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _default_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _take_name(partial: Path, target: Path) -> bool:
    """Give the file its name unless the name is taken: a hard link never replaces a file."""
    try:
        os.link(partial, target)
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
    os.replace(partial, target)
    return True


def _sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on disk. Some systems cannot open a folder."""
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs no file open to read
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
