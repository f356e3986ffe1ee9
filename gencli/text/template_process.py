"""The process that renders a checkpoint's chat template. No torch.

A template is a program by whoever made the checkpoint. jinja2's sandbox keeps it from files and from the interpreter,
but does not stop an endless loop; only a process can be ended for certain. So templates are rendered in a process of
their own, with limits on time, memory and output. It starts in some tenths of a second, while the weights are opened,
and serves a whole conversation.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping

from gencli.errors import GencliError

SECONDS = 5  # of processor time for all prompts together, and a little more for each; real templates take milliseconds
PATIENCE = 60  # seconds of wall time, for a busy machine and for systems that cannot limit processor time
OWN_CHARACTERS = 2**17  # that a template may write besides the messages, which it may repeat COPIES times
COPIES = 4
SOURCE_LIMIT = 2**20  # characters; real templates have thousands
# Isolated from the folder that it is started in, but with the module search path of this process.
PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from gencli.text.chat_template_worker import serve"


class ChatTemplate:
    """Jinja source and the process that renders it: started at once, ended by `close` or by garbage collection."""

    def __init__(self, source: str, name: str):
        """name: the checkpoint's name, for error messages. Raises GencliError for a source larger than any real one."""
        if len(source) > SOURCE_LIMIT:
            raise GencliError(f"{name}: its chat template has {len(source)} characters, more than any real one")
        self.source = source
        self.name = name
        self._endless: tuple[str, GencliError] | None = None  # a source that was stopped, and what was said then
        self._process = _start()
        self._closer = weakref.finalize(self, _end, self._process)

    def render(self, values: Mapping[str, object]) -> str:
        """Render the template with these values, which must be JSON-serialisable.

        Raises GencliError when the template refuses them, is broken, or exceeds a limit.
        """
        given = [part for name in ("messages", "tools") if (part := values.get(name)) is not None]
        characters = OWN_CHARACTERS + COPIES * sum(len(json.dumps(part, ensure_ascii=False)) for part in given)
        answer = self._ask({"values": values, "characters": characters})
        if "error" in answer:
            message = " ".join(answer["error"].split())[:300]
            raise GencliError(f"{self.name}: its chat template cannot take this conversation: {message}")
        return answer["text"]

    def variables(self) -> dict[str, list[str]]:
        """Return the values that it reads: name → the texts that it compares the value with. Raise as `render`."""
        found: dict[str, list[str]] = json.loads(self._ask({})["text"])
        return found

    def close(self) -> None:
        """End the process."""
        self._closer()

    def _ask(self, about: Mapping[str, object]) -> dict[str, str]:
        """Have the process answer a request about the template. Raise GencliError where it ends."""
        if self._endless and self._endless[0] == self.source:
            raise self._endless[1]
        if self._process.poll() is not None:
            self._closer()
            self._process = _start()
            self._closer = weakref.finalize(self, _end, self._process)
        request = json.dumps({"template": self.source, "seconds": SECONDS, **about}).encode() + b"\n"
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
            error = GencliError(f"{self.name}: its chat template did not end within {SECONDS} seconds: does it loop?")
            self._endless = self.source, error
            raise error
        raise GencliError(f"{self.name}: its chat template cannot be run (exit code {code})")


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-c", PROGRAM + "; serve()", json.dumps(sys.path)]
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
