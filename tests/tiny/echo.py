"""Work for workers that needs no model: a line is answered by its capitals, or does what it says (`gencli.many`)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gencli.errors import GencliError


@dataclass(frozen=True)
class Echo:
    """folder: where workers leave their pids, and the lines that they began. stillborn: the first of the slots, from 1,
    whose workers die as they open it; 0: none."""

    folder: Path
    stillborn: int = 0
    info: str = "echo"

    def open(self, note: Callable[[str], None], slot: int) -> Echo:
        (self.folder / f"{os.getpid()}.pid").touch()
        if self.stillborn and slot >= self.stillborn - 1:
            os._exit(7)
        note("opened")
        return self

    def answers(self, first: int, lines: list[Any]) -> Iterator[tuple[int, str, float]]:
        for number, line in enumerate(lines, first):
            with (self.folder / "begun").open("a") as file:
                file.write(f"{number}\n")
            if "die" in line.split() and (line != "die once" or self._is_first(number)):
                os.kill(os.getpid(), signal.SIGKILL)
            if line == "memory":
                raise MemoryError("no more of it")
            if line == "fail":
                raise GencliError("it cannot be done")
            if line == "wait":
                time.sleep(0.3)
            if line.startswith("wait for line "):
                while line.split()[-1] not in (self.folder / "begun").read_text().split():
                    time.sleep(0.01)
            if line == "wait for ever":
                time.sleep(1000)
            yield number, line.upper(), 0.0

    def _is_first(self, number: int) -> bool:
        return (self.folder / "begun").read_text().split().count(str(number)) == 1

    def pids(self) -> list[int]:
        """The workers that were ever started."""
        return [int(path.stem) for path in self.folder.glob("*.pid")]

    def alive(self) -> list[int]:
        """The workers that run."""
        return [pid for pid in self.pids() if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
