"""Workers that are processes of this machine."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

from gencli.many.worker import REASON, Message, read_message, write_message

# Isolated from the folder that it is started in, but with the module search path of this process.
PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from gencli.many.worker import main; main()"


class Process:
    """A worker process. tell: gets its messages, in a thread of their own; the last is ("died", reason).

    It has a session of its own, as Ctrl-C at the terminal is the driver's to answer, and ends when its stdin does: no
    end of the driver leaves it behind.
    """

    def __init__(self, tell: Callable[[Message], None]):
        self.tell = tell
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", PROGRAM, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, message: object) -> None:
        """Give it a message; one that has ended does not get it."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            write_message(self.process.stdin, message)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(EOFError):
            while True:
                self.tell(read_message(self.process.stdout))
        self.tell(("died", self._reason(self.process.wait())))

    def _reason(self, code: int) -> str:
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        self.errors.seek(max(self.errors.seek(0, 2) - REASON, 0))
        last = self.errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        return f"{how}: {last}" if last else how
