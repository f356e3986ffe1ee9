"""A checkpoint's chat template (Jinja) → text, in a process of its own with limits on time, memory and output.

A template is a program by whoever made the checkpoint. jinja2's sandbox keeps it from files and from the interpreter,
but not from running for ever, and only a process can be ended for certain. It starts in some tenths of a second, while
the weights are opened, and serves a whole conversation.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import weakref
from typing import Any

from gencli.errors import GencliError

SECONDS = 5  # of computing; real templates take milliseconds
PATIENCE = 60  # seconds by the clock, for a machine that is busy, and systems that cannot limit computing
CHARACTERS = 2**24
# Isolated from the folder that it is started in, but with this process's own places for modules.
PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from gencli.text import template_worker as worker; "


class ChatTemplate:
    """Jinja source, and the process that renders it: started at once, ended by `close` or when nobody holds it."""

    def __init__(self, source: str, name: str):
        """name: the checkpoint's, for messages."""
        self.source = source
        self.name = name
        self._process = _start()
        self._closer = weakref.finalize(self, _end, self._process)

    def render(self, **values: Any) -> str:
        """The text for these values, which JSON can hold.

        Raises GencliError when the template refuses them, is broken, or goes beyond a limit.
        """
        if self._process.poll() is not None:
            self._closer()
            self._process = _start()
            self._closer = weakref.finalize(self, _end, self._process)
        request = {"template": self.source, "values": values, "seconds": SECONDS, "bytes": CHARACTERS}
        answer = self._ask(json.dumps(request).encode() + b"\n")
        if "error" in answer:
            message = " ".join(answer["error"].split())[:300]
            raise GencliError(f"{self.name}: its chat template cannot take this conversation: {message}")
        return answer["text"]

    def close(self) -> None:
        """End the process."""
        self._closer()

    def _ask(self, request: bytes) -> dict[str, str]:
        process = self._process
        assert process.stdin and process.stdout
        timer = threading.Timer(PATIENCE, process.kill)
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(request)
                process.stdin.flush()
            line = process.stdout.readline()
        except BaseException:  # Ctrl-C: the next answer in the pipe would be this request's
            process.kill()
            raise
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            return json.loads(line)
        code = process.wait()
        if code in (-signal.SIGKILL, -getattr(signal, "SIGXCPU", signal.SIGKILL)):
            raise GencliError(f"{self.name}: its chat template did not end within {SECONDS} seconds: does it loop?")
        raise GencliError(f"{self.name}: its chat template cannot be run (exit code {code})")


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-c", PROGRAM + "worker.serve()", json.dumps(sys.path)]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    # A session of its own: Ctrl-C at the terminal is not sent to it.
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, start_new_session=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if stream:
                stream.close()
