"""Read the small files of a checkpoint: JSON objects and text, of bounded size."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from gencli.errors import GencliError

POINTER = b"version https://git-lfs"  # how a file begins that Git LFS keeps elsewhere
ENDLESS = ("/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
SIZE_LIMIT = 64 * 2**20  # bytes; the largest index and tokenizer files of the hub are below a third of it


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a small file. Raise GencliError if it is missing, unreadable or too large."""
    try:
        check_ends(path)
        if path.stat().st_size > SIZE_LIMIT:
            raise GencliError(f"{path}: {path.stat().st_size} bytes is too large for such a file of a model")
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)  # a pipe's size is not known
        if len(content) > SIZE_LIMIT:
            raise GencliError(f"{path}: more than {SIZE_LIMIT} bytes is too large for such a file")
        check_no_pointer(content, path)
        return content
    except FileNotFoundError:
        raise GencliError(f"{path.parent} has no {path.name}", "is it a model's folder?") from None
    except OSError as error:
        raise GencliError(f"cannot read {path}: {error.strerror}") from None


def read_text(path: Path) -> str:
    """Return a small file's text without its byte order mark. Raise GencliError as `read_bytes`, and for no UTF-8."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise GencliError(f"{path} is not UTF-8") from None


def check_ends(path: Path | str) -> None:
    """Raise GencliError for a device that never ends, by whatever name. A pipe, a terminal and /dev/null do end."""
    with contextlib.suppress(OSError):  # what is not there is told where it is opened
        found = os.fstat(0) if path == "stdin" else os.stat(path)
        for name in ENDLESS if stat.S_ISCHR(found.st_mode) else ():
            if os.path.exists(name) and os.stat(name).st_rdev == found.st_rdev:
                raise GencliError(f"{path} is a device that never ends", "name a file, a pipe or /dev/null")


def check_head(path: Path) -> None:
    """Raise GencliError for a pointer of Git LFS in the place of a large file, and for a device that never ends."""
    check_ends(path)
    if path.is_file():  # a pipe is read only once
        with path.open("rb") as file:
            check_no_pointer(file.read(len(POINTER)), path)


def check_no_pointer(head: bytes, path: Path | str) -> None:
    """Raise GencliError for a file, by its first bytes, that stands for one which Git LFS did not fetch."""
    if head.startswith(POINTER):
        raise GencliError(
            f"{path} is a pointer of Git LFS: the file itself was not fetched",
            "`git lfs pull` in its folder fetches it, and so does `gencli models pull` from the Hub",
        )


def as_unicode(text: str, where: str) -> str:
    """Return a text of a JSON file. Raise GencliError for one with lone surrogates, which JSON can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise GencliError(f"{where}: a text is not valid Unicode at its character {error.start}") from None
    return text


def shown(value: object) -> str:
    """Return a value as JSON has it, but no more than its beginning."""
    if isinstance(value, list | Mapping):
        return "[…]" if isinstance(value, list) else "{…}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def parse_json(text: str | bytes, where: object) -> object:
    """Return the value in a JSON text. Raise GencliError for any other text: broken, or nested beyond all measure.

    where: what holds it, for the message.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise GencliError(f"{where} is not valid JSON: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise GencliError(f"{where} is not valid JSON: {str(error)[:120]}") from None
    except UnicodeDecodeError:
        raise GencliError(f"{where} is not valid JSON: it is not UTF-8") from None
    except ValueError:  # Python's limit
        raise GencliError(f"{where} is not valid JSON: a number has too many digits") from None


def read_json(path: Path) -> dict[str, object]:
    """Return the JSON object in a file. Raise GencliError as `read_bytes`, and if it is not a JSON object."""
    value = parse_json(read_bytes(path), path)
    if not isinstance(value, dict):
        raise GencliError(f"{path} holds no JSON object")
    return value
