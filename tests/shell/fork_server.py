"""A server that has imported gencli and all that it uses, and forks a process per command, which costs no imports.

Such a process is a command's own in all that a test sees of one that runs: pid, group, streams, folder, environment,
signals, exit code. It becomes a child of the caller, whose child the server is: the process between the two ends at
once, and meanwhile the caller is what Linux calls a subreaper. Tests of how a process starts, or how the interpreter
ends, want a fresh one.

    python fork_server.py --serve SOCKET      imports, says "ready", and serves until its stdin ends
    python -S fork_server.py SOCKET [ARG]...  is `gencli ARG...` for scripts: it hands its streams to the server
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
MADV_COLLAPSE = 25
HUGE = 1 << 21  # bytes of a large page
LENGTH = 8  # bytes of a number in a message
LATE = {"train": "torch._dynamo"}  # what a command imports as it works, and no other one, for seconds


def request(connection: socket.socket, path: str, streams: dict[int, int], adopted: bool, **wishes: Any) -> int:
    """Have the server at `path` fork a gencli whose descriptors are these of ours, and return its pid.

    adopted: it becomes a child of this process; otherwise `connection` will get its exit code. wishes: see `_set_up`.
    """
    wishes |= {"cwd": os.getcwd(), "numbers": list(streams)}
    message = json.dumps({"adopted": adopted, "wishes": wishes}).encode()
    prctl = ctypes.CDLL(None).prctl
    connection.connect(path)
    prctl(PR_SET_CHILD_SUBREAPER, int(adopted), 0, 0, 0)
    try:
        socket.send_fds(connection, [_packed(len(message))], list(streams.values()))
        connection.sendall(message)
        pid = _unpacked(connection.recv(LENGTH))
        if adopted:
            assert connection.recv(1) == b""  # closed once the process between has ended
        return pid
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _packed(number: int) -> bytes:
    return number.to_bytes(LENGTH, "big", signed=True)


def _unpacked(data: bytes) -> int:
    assert len(data) == LENGTH, "the fork server has ended"
    return int.from_bytes(data, "big", signed=True)


def stand_in(path: str, args: list[str]) -> int:
    """Be the process that a script sees of a forked one."""
    streams = {}
    for number in range(3):
        with contextlib.suppress(OSError):  # a closed one
            os.fstat(number)
            streams[number] = number
    ignores_interrupt = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    wishes = {"args": args, "code": "", "env": dict(os.environ), "group": os.getpgid(0)}
    with socket.socket(socket.AF_UNIX) as connection:
        pid = request(connection, path, streams, adopted=False, ignores_interrupt=ignores_interrupt, **wishes)
        for number in streams:
            os.close(number)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to the whole group
        signal.signal(signal.SIGTERM, lambda number, frame: os.kill(pid, number))
        return _unpacked(connection.recv(LENGTH))


def serve(path: str) -> None:
    """Fork a process per connection until stdin ends. Returns in each of the forked processes, set up as wished."""
    import importlib
    import select

    _import_all()
    _settle()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if 0 in ready:
            os.unlink(path)
            os._exit(0)
        connection, _ = listener.accept()
        with connection:
            length, streams, _, _ = socket.recv_fds(connection, LENGTH, 3)
            message = b""
            while len(message) < _unpacked(length):
                message += connection.recv(1 << 16)
            wanted = json.loads(message)
            args = wanted["wishes"]["args"]
            if len(args) > 2 and (name := LATE.get(args[0])) and name not in sys.modules:  # fewer get help
                importlib.import_module(name)
                _settle()
            forked = _fork(connection, streams, wanted["adopted"])
        if forked:
            listener.close()
            return _set_up(streams, **wanted["wishes"])
        for stream in streams:
            os.close(stream)


def _import_all() -> None:
    import importlib
    import pkgutil

    import gencli

    names = ["jinja2.sandbox", "PIL.PngImagePlugin", "rich.progress", "safetensors.torch", "tokenizers", "torch"]
    for name in [*names, *(module.name for module in pkgutil.walk_packages(gencli.__path__, "gencli."))]:
        importlib.import_module(name)
    # typer's, the hub library's, and the editor's of messages, late
    for name in ("pydantic", "httpx", "httpx2", "yaml", "filelock", "fsspec", "prompt_toolkit"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _settle() -> None:
    import gc
    import weakref

    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads, of which a fork has one"
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy all of what is imported
    _collapse()
    for finalizer in weakref.finalize._registry:  # torch's take its operators apart: half of a short command's time
        finalizer.atexit = False


def _collapse() -> None:
    """Have Linux hold memory in pages of 2 MiB, where it can: a fork copies the table of pages, half of its time."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with open("/proc/self/maps") as file:
        lines = file.read().splitlines()
    for line in lines:
        bounds, rights, _, _, inode, *_ = line.split()
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        start, end = -(-start // HUGE) * HUGE, end // HUGE * HUGE
        if (rights, inode) == ("rw-p", "0") and start < end:
            madvise(start, end - start, MADV_COLLAPSE)


def _fork(connection: socket.socket, streams: list[int], adopted: bool) -> bool:
    """Fork, with a process between that tells the new one's pid; returns whether this is the new process.

    The process between ends at once if the new one is to be adopted, and otherwise stays to tell its exit code.
    """
    between = os.fork()
    if between == 0:
        pid = os.fork()
        if pid == 0:
            return True
        connection.sendall(_packed(pid))
        if not adopted:
            for stream in (0, 1, 2, *streams):
                os.close(stream)
            connection.sendall(_packed(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
        os._exit(0)
    if adopted:
        os.waitpid(between, 0)
    return False


def _set_up(
    streams: list[int],
    numbers: list[int],
    args: list[str],
    code: str,
    env: dict[str, str],
    cwd: str,
    group: int,
    ignores_interrupt: bool,
) -> None:
    """Take on what a new process gets from the one that starts it, and run `code`. group: 0 for a new session."""
    if group:
        os.setpgid(0, group)
    else:
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignores_interrupt else signal.default_int_handler)
    os.closerange(0, 3)
    for number, stream in zip(numbers, streams, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["gencli", *args]
    how = {"stdin": {}, "stdout": {"mode": "w"}, "stderr": {"mode": "w", "errors": "backslashreplace", "buffering": 1}}
    for number, name in enumerate(how):
        stream = open(number, closefd=False, **how[name]) if number in numbers else None  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    exec(code, {})


def run_and_exit() -> None:
    """Run gencli's main and end as the interpreter does, but without the long taking apart of all modules."""
    import atexit
    import threading

    from gencli.__main__ import main

    code = main()
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] != "--serve":
        os._exit(stand_in(sys.argv[1], sys.argv[2:]))
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    serve(sys.argv[2])
    run_and_exit()
