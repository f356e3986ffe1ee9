"""Whether a command has its work done by `gencli serve`, which has models open already."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gencli.errors import GencliError
from gencli.options import RUN, flag

if TYPE_CHECKING:
    from gencli.serve.wire import Link


@dataclass(eq=False, repr=False)
class Serving:
    """Who does the work."""

    # fmt: off
    no_server: bool = flag(False, "--no-server",
        "Do not let a running `gencli serve` do the work.", RUN,
        env="GENCLI_NO_SERVER")
    auto_server: bool = flag(False, "--auto-server",
        "If none runs, start `gencli serve --auto` for the next commands.", RUN,
        env="GENCLI_AUTO_SERVER")
    # fmt: on

    def connect(self, threads: int | None) -> Link | None:
        """Return a connection to a server that does the same as this process, if there is one and it may be used."""
        if self.no_server or os.name != "posix":
            return None
        from gencli.serve.client import connect

        if (link := connect(threads)) is None and self.auto_server:
            start(threads)
        return link


def start(threads: int | None) -> None:
    """Start a server that goes on when this process ends, and ends by itself once it is idle; one, however many
    commands want it at once: it holds a lock as long as it lives."""
    import fcntl

    from gencli.serve.client import is_there
    from gencli.serve.wire import own_folder

    more = [] if threads is None else ["--threads", str(threads)]
    with contextlib.suppress(GencliError, OSError), (own_folder() / "gencli.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_there():
            subprocess.Popen(
                [sys.executable, "-m", "gencli", "serve", "--auto", *more],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[lock.fileno()],
                cwd="/",
            )
