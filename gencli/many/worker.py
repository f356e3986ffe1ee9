"""What a worker does: open the work, then answer block after block. It ends when nobody is there to tell it more."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, Literal, Protocol, TypeVar

from gencli import __version__
from gencli.errors import GencliError

L_contra = TypeVar("L_contra", contravariant=True)  # a line
M_co = TypeVar("M_co", covariant=True)  # what is made of it
I_co = TypeVar("I_co", covariant=True)  # what the driver should know of the work
Message = (  # of a worker
    tuple[Literal["note"], str]
    | tuple[Literal["ready"], str, object]
    | tuple[Literal["answer"], int, object, float]
    | tuple[Literal["end"]]
    | tuple[Literal["failed"], GencliError]
    | tuple[Literal["died"], str]
)
LENGTH = struct.Struct("!Q")  # before each message in a pipe
REASON = 300  # characters of why a worker ended


class Opened(Protocol[L_contra, M_co, I_co]):
    """Work that is open. info: what the driver should know of it."""

    @property
    def info(self) -> I_co: ...

    def answers(self, first: int, lines: Sequence[L_contra]) -> Iterator[tuple[int, M_co, float]]:
        """Answer a block, of which `first` is the number of the first line: yield each line's number, answer and
        seconds, in any order. Raise GencliError for what ends the whole run."""
        ...


class Work(Protocol[L_contra, M_co, I_co]):
    """What is to be done, in a form that can be pickled."""

    def open(self, note: Callable[[str], None], slot: int) -> Opened[L_contra, M_co, I_co]:
        """Load what is needed. note: takes remarks. slot: the worker's number among those of one run."""
        ...


def serve(receive: Callable[[], Any], send: Callable[[Message], None]) -> None:
    """Be a worker: `receive` gives the driver's version, (work, slot), blocks as (first, lines), and None at the end.

    Messages: ("note", text); ("ready", name, info); ("answer", number, answer, seconds) of each line; ("end",) of a
    block; ("failed", error) for what ends the whole run; ("died", reason) for what ends this worker.
    """
    try:
        if (version := receive()) != __version__:  # whose work may not even be readable
            raise GencliError(f"{socket.gethostname()} has gencli {__version__}, and this is {version}")
        with no_garbage():  # the work itself, as it is received, imports torch
            work, slot = receive()
            opened = work.open(lambda text: send(("note", text)), slot)
        send(("ready", f"{socket.gethostname()}:{os.getpid()}", opened.info))
        while (block := receive()) is not None:
            for number, answer, seconds in opened.answers(*block):
                send(("answer", number, answer, seconds))
            send(("end",))
    except GencliError as error:
        send(("failed", error))
    except Exception as error:  # out of memory, or a defect: another worker may do better
        send(("died", f"{type(error).__name__}: {' '.join(str(error).split())}"[:REASON]))


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Look for no garbage in what is imported and loaded, which stays: an eighth of the time that torch takes."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def write_message(stream: IO[bytes], message: object) -> None:
    """Write a message into a pipe. Raise OSError."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def read_message(stream: IO[bytes]) -> Any:
    """Read a message from a pipe. Raise EOFError when the other side has gone, also in the middle of a message."""
    head = stream.read(LENGTH.size)
    length = LENGTH.unpack(head)[0] if len(head) == LENGTH.size else 1
    data = stream.read(length) if head else b""
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


def main() -> None:
    """Be a worker process, whose driver speaks through stdin and stdout. What libraries print goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends it
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                inbox.put(read_message(sys.stdin.buffer))
        except EOFError:
            pass
        except BaseException:
            traceback.print_exc()
        os._exit(1)  # the driver has gone, whatever this process is in the middle of

    threading.Thread(target=listen, daemon=True).start()
    serve(inbox.get, lambda message: write_message(out, message))
    os._exit(0)
