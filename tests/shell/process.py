"""gencli as a process: through real pipes, and on a real pseudo-terminal.

All but those called `fresh` are forked from a server that has imported everything (fork_server.py).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import pty
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.shell import fork_server

ROOT = Path(__file__).parents[2]
GENCLI = [sys.executable, "-m", "gencli"]
LIMIT = 120  # seconds until a process counts as hanging
CAN_FORK = sys.platform == "linux"
READ_AT_START = ("LANG", "LC_", "LD_", "MKL_", "OMP_", "PYTHON")


def environment(**changes: str | None) -> dict[str, str]:
    """The environment without anything that gencli or colours depend on; `changes` on top (None removes)."""
    dropped = ("GENCLI_", "HF_", "NO_COLOR", "TERM", "COLUMNS", "LINES", "FORCE_COLOR", "_GENCLI")
    env = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    cache = os.environ.get("GENCLI_CACHE") or os.path.join(tempfile.gettempdir(), "gencli-tests")
    env |= {"GENCLI_CACHE": cache, "HF_HUB_OFFLINE": "1"}
    env |= {"XDG_STATE_HOME": os.path.join(tempfile.gettempdir(), "gencli-tests-state")}
    env |= {"GENCLI_NO_SERVER": "1", "OLLAMA_MODELS": os.devnull}  # one may be running, and have models
    env |= {"GENCLI_CONFIG": os.devnull, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    for key, value in changes.items():
        env.pop(key, None)
        if value is not None:
            env[key] = value
    return env


def short_folder() -> str:
    """Where sockets lie: their paths have 103 bytes at most on macOS and 107 on Linux, of which TMPDIR may take all."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) <= 60 else "/tmp"


@functools.cache
def server(root: Path) -> str:
    """Start the fork server of the gencli in this folder, which ends with this process; return its socket's path."""
    path = tempfile.mktemp(prefix="gencli-", dir=short_folder())
    process = subprocess.Popen(
        [sys.executable, fork_server.__file__, "--serve", path],
        env=environment(PYTHONPATH=str(root)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(process.communicate)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    return path


class Forked(subprocess.Popen):
    """As subprocess.Popen, for a process that the fork server at `path` makes."""

    def __init__(self, path: str, wishes: dict, **streams: int):
        self._path, self._wishes = path, wishes
        super().__init__(wishes["args"], **streams)

    def _execute_child(self, *given) -> None:
        """What Popen calls once it has made the pipes: their ends, three pairs, are -1 for an inherited stream."""
        ends = given[10:16]
        streams = {number: number if end == -1 else end for number, end in enumerate((ends[0], ends[3], ends[5]))}
        with socket.socket(socket.AF_UNIX) as connection:
            self.pid = fork_server.request(connection, self._path, streams, adopted=True, **self._wishes)
        self._child_created = True
        self._close_pipe_fds(*ends)


def start(
    *args: object,
    env: dict[str, str] | None = None,
    fresh: bool = False,
    root: Path = ROOT,
    code: str = "",
    new_session: bool = False,
    **pipes: int,
) -> subprocess.Popen:
    """Start gencli with pipes for all three streams that `pipes` does not name; Ctrl-C is not ignored.

    fresh: not forked, for tests of how gencli starts and ends. root: where this gencli lies. code: runs before it.
    """
    words = [str(arg) for arg in args]
    env = {**(environment() if env is None else env), "PYTHONPATH": str(root)}
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    if CAN_FORK and not fresh and at_start(env) == at_start(environment(PYTHONPATH=str(root))):
        wishes = {"args": words, "code": code, "env": env, "group": 0 if new_session else os.getpgid(0)}
        return Forked(server(root), {**wishes, "ignores_interrupt": False}, **streams)
    command = (
        [sys.executable, "-c", f"import sys\n{code}\nfrom gencli.__main__ import main\nsys.exit(main())"]
        if code
        else GENCLI
    )
    return subprocess.Popen(
        [*command, *words], env=env, preexec_fn=obey_signals, start_new_session=new_session, **streams
    )


def at_start(env: dict[str, str]) -> dict[str, str]:
    """Return what libraries read of an environment as a process begins, and never again."""
    return {key: value for key, value in env.items() if key.startswith(READ_AT_START)}


def obey_signals() -> None:
    """For a child before it runs: tests may run in the background, where Ctrl-C is ignored, or under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def gencli(
    *args: object,
    stdin: bytes | int = subprocess.DEVNULL,
    fresh: bool = False,
    root: Path = ROOT,
    code: str = "",
    **env: str | None,
) -> subprocess.CompletedProcess:
    """Run gencli to its end; bytes for stdin go through a pipe."""
    pipe, data = (subprocess.PIPE, stdin) if isinstance(stdin, bytes) else (stdin, None)
    process = start(*args, env=environment(**env), fresh=fresh, root=root, code=code, stdin=pipe)
    try:
        out, err = process.communicate(data, LIMIT)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(args, process.returncode, out, err)


WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
from gencli.__main__ import main
for args in json.loads(sys.argv[1]):
    print(main(args), flush=True)
    print(end="\\0", file=sys.stderr, flush=True)
"""


@contextlib.contextmanager
def listening(folder: Path, *args: object, fresh: bool = False, **env: str | None):
    """`gencli serve`, with an interpreter of its own or forked, its socket in a folder; its process, socket and URL."""
    path = folder / "s.sock"
    words = ("serve", "--socket", path, "--listen", "0", "--threads", "1", *args)
    process = start(*words, fresh=fresh, env=environment(XDG_RUNTIME_DIR=str(folder), **env))
    try:
        assert process.stdout.readline().decode().strip() == str(path)
        yield process, path, process.stdout.readline().decode().strip()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def without_torch(commands: list[list[str]]) -> tuple[list[int], list[str]]:
    """Run commands that print nothing, in one process that cannot import torch: their exit codes and errors."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(commands)],
        stdin=subprocess.DEVNULL, capture_output=True, env=environment(), timeout=LIMIT,
    )  # fmt: skip
    errors = done.stderr.decode().split("\0")
    assert done.returncode == 0 and errors.pop() == "", errors
    assert len(errors) == len(commands) and not any("Traceback" in error for error in errors), errors
    return [int(code) for code in done.stdout.split()], errors


def shell(script: str, *args: object, stdin: bytes = b"", fresh: bool = False) -> subprocess.CompletedProcess:
    """Run a bash script in which `gencli` is this gencli and `args` are `$1`, `$2`, …"""
    program = [sys.executable, "-S", fork_server.__file__, server(ROOT)] if CAN_FORK and not fresh else GENCLI
    script = f'gencli() {{ {shlex.join(program)} "$@"; }}\n{script}'
    command = ["bash", "-c", script, "bash", *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, env=environment(), timeout=LIMIT)


def pixels(image: bytes | str | Path) -> np.ndarray:
    """What a command drew, into stdout or a file: (H, W, 3), whole numbers that can be subtracted."""
    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


def on_terminal(
    *args: object, stdin: bool = True, stdout: bool = True, stderr: bool = True, typed: bytes = b"",
    code: str = "", **env: str | None,
) -> tuple[int, bytes, bytes, bytes]:  # fmt: skip
    """Run gencli with the named streams on one pseudo-terminal, 80 columns wide, and pipes for the others.

    `typed` is what somebody types there. Returns the exit code, what the terminal got, and what the pipes of stdout
    and stderr got.
    """
    master, slave = pty.openpty()
    pipe = subprocess.PIPE
    process = start(
        *args,
        code=code,
        env=environment(**{"TERM": "xterm-256color", "COLUMNS": "80", **env}),
        new_session=True,
        stdin=slave if stdin else subprocess.DEVNULL,
        stdout=slave if stdout else pipe,
        stderr=slave if stderr else pipe,
    )
    os.close(slave)
    os.write(master, typed)
    seen = {master: b"", **{s.fileno(): b"" for s in (process.stdout, process.stderr) if s}}
    open_ends = set(seen)
    deadline = time.monotonic() + LIMIT
    while open_ends:
        ready, _, _ = select.select(list(open_ends), [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"still running after {LIMIT} s: {seen}"
        for descriptor in ready:
            try:
                data = os.read(descriptor, 65536)
            except OSError:  # Linux says EIO when the other end of a terminal is closed
                data = b""
            seen[descriptor] += data
            if not data:
                open_ends.discard(descriptor)
    code = process.wait(LIMIT)
    streams = [seen[s.fileno()] if s else b"" for s in (process.stdout, process.stderr)]
    for stream in (process.stdout, process.stderr):
        if stream:
            stream.close()
    os.close(master)
    return code, seen[master], streams[0], streams[1]


OWN_TERMINAL = "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)"


class Terminal:
    """A program on a pseudo-terminal that is its own, whose Ctrl-C reaches it as a real one does."""

    def __init__(self, begin: Callable[..., subprocess.Popen]):
        """begin: starts it, with streams that it is given, in a session of its own."""
        self.seen = b""
        self.master, slave = pty.openpty()
        self.process = begin(stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)

    @classmethod
    def of_gencli(cls, *args: object, folder: Path, env: dict[str, str]) -> Terminal:
        """gencli, begun in this folder."""
        code = f"import os\nos.chdir({str(folder)!r})\n{OWN_TERMINAL}"
        return cls(functools.partial(start, *args, env=env, code=code, new_session=True))

    @classmethod
    def of(cls, command: list[str], folder: Path, env: dict[str, str]) -> Terminal:
        """Another program."""

        def set_up() -> None:
            obey_signals()
            exec(OWN_TERMINAL, {})

        more = {"cwd": folder, "env": env, "preexec_fn": set_up, "start_new_session": True}
        return cls(functools.partial(subprocess.Popen, command, **more))

    def wait_for(self, text: bytes) -> bytes:
        """Read until `text` comes; what came before it, since the last time."""
        deadline = time.monotonic() + LIMIT
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.seen[-500:]!r}"
            self.seen += os.read(self.master, 65536)
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def ended(self) -> int:
        """Its exit code."""
        try:
            while os.read(self.master, 65536):
                pass
        except OSError:  # Linux's way to say that the other end is closed
            pass
        os.close(self.master)
        return self.process.wait(LIMIT)
