"""The file of JSON lines that a run goes on from: a record of each output, in the order in which they were made."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from gencli.atomic import check_target
from gencli.errors import GencliError
from gencli.json_files import check_ends
from gencli.options import typed

BEGINS = b'{"index": '  # as every record does
MOST = 2**33  # outputs of one run: a bit for each is known
COMPARED = 1000  # prompts that are kept, to tell when a run is of others


class Records:
    """A file of records, each with its `index`. Those that are there are known, a half-written last one is removed,
    and new ones are added at the end.

    first: the first record, if any. prompts: of some records, by index. lost: paths that are told of and hold nothing.
    Raise GencliError for a file that holds something else, cannot be written, or is being written by another run.
    """

    def __init__(self, path: Path):
        self.path = path
        self.first: dict[str, object] | None = None
        self.prompts: dict[int, str] = {}
        self.lost: list[str] = []
        self.count = 0
        self._known = bytearray()  # a bit per index
        check_target(path)
        check_ends(path)
        try:
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            self._lock()
            self._read()
        except OSError as error:
            raise GencliError(f"cannot write {path}: {error.strerror}") from None

    @property
    def settings(self) -> Mapping[str, object]:
        """Return what the first record says of how it was made, by field: a text's in a place of their own."""
        first = self.first or {}
        inner = first.get("settings")
        return {**first, **(inner if isinstance(inner, dict) else {})}

    def __contains__(self, index: int) -> bool:
        place = index >> 3
        return place < len(self._known) and bool(self._known[place] >> (index & 7) & 1)

    def add(self, index: int, line: bytes) -> None:
        """Add a record, a line of JSON. Raise GencliError."""
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise GencliError(f"cannot write {self.path}: {error.strerror}") from None
        self._know(index)

    def _know(self, index: int) -> None:
        place = index >> 3
        if place >= len(self._known):
            self._known.extend(bytes(max(place + 1, 2 * len(self._known)) - len(self._known)))
        self._known[place] |= 1 << (index & 7)
        self.count += 1

    def _lock(self) -> None:
        """Take the file for this process alone, where the system has such locks."""
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise GencliError(f"{self.path} is being written by another run") from None

    def _read(self) -> None:
        whole = 0
        for number, line in enumerate(self._file, 1):
            record = _record(line)
            if record is None:
                half = not line.endswith(b"\n") and (whole or line.startswith(BEGINS[: len(line)]))
                if not half:  # a file that was named by mistake is left as it is
                    raise GencliError(f"{self.path} is not a file of gencli's records: line {number}")
                break
            self.first, index = self.first or record, typed(record, "index", int) or 0
            if len(self.prompts) < COMPARED:
                self.prompts[index] = typed(record, "prompt", str) or ""
            if (made := typed(record, "path", str)) is not None and not os.path.lexists(made):
                self.lost.append(made)
            self._know(index)
            whole += len(line)
        self._file.truncate(whole)
        self._file.seek(whole)


def _record(line: bytes) -> dict[str, object] | None:
    """Return the record on a line, or None if it is none, or not whole."""
    try:
        value = json.loads(line) if line.startswith(BEGINS) and line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    fits = all(type(number := value.get(name)) is int and number >= 0 for name in ("index", "seed"))
    return value if fits and value["index"] < MOST else None
