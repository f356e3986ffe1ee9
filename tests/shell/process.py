"""gencli as a process: through real pipes, and on a real pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENCLI = [sys.executable, "-m", "gencli"]
LIMIT = 120  # seconds until a process counts as hanging


def environment(**changes: str | None) -> dict[str, str]:
    """The environment without anything that gencli or colours depend on; `changes` on top (None removes)."""
    dropped = ("GENCLI_", "HF_", "NO_COLOR", "TERM", "COLUMNS", "LINES", "FORCE_COLOR", "_GENCLI")
    env = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    for key, value in changes.items():
        env.pop(key, None)
        if value is not None:
            env[key] = value
    return env


def gencli(*args: object, stdin: bytes | int = subprocess.DEVNULL, **env: str | None) -> subprocess.CompletedProcess:
    """Run gencli to its end; bytes for stdin go through a pipe."""
    given = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    return subprocess.run(
        [*GENCLI, *map(str, args)], capture_output=True, env=environment(**env), timeout=LIMIT, **given
    )


def obey_signals() -> None:
    """For a child before it runs: tests may run in the background, where Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*args: object, **pipes: int) -> subprocess.Popen:
    """Start gencli with pipes for all three streams that `pipes` does not name."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    return subprocess.Popen([*GENCLI, *map(str, args)], env=environment(), preexec_fn=obey_signals, **streams)


def shell(script: str, *args: object, stdin: bytes = b"") -> subprocess.CompletedProcess:
    """Run a bash script in which `gencli` is this gencli and `args` are `$1`, `$2`, …"""
    script = f'gencli() {{ "{sys.executable}" -m gencli "$@"; }}\n{script}'
    command = ["bash", "-c", script, "bash", *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, env=environment(), timeout=LIMIT)


def on_terminal(
    *args: object, stdin: bool = True, stdout: bool = True, stderr: bool = True, typed: bytes = b"", **env: str | None
) -> tuple[int, bytes, bytes, bytes]:
    """Run gencli with the named streams on one pseudo-terminal, 80 columns wide, and pipes for the others.

    `typed` is what somebody types there. Returns the exit code, what the terminal got, and what the pipes of stdout
    and stderr got.
    """
    master, slave = pty.openpty()
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*GENCLI, *map(str, args)],
        stdin=slave if stdin else subprocess.DEVNULL,
        stdout=slave if stdout else pipe,
        stderr=slave if stderr else pipe,
        env=environment(**{"TERM": "xterm-256color", "COLUMNS": "80", **env}),
        start_new_session=True,
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
