"""What a command and a running server say to each other at the server's second socket, and how it is written. No torch.

A message is one line of JSON, followed by as many bytes as its `bytes` says. The server begins with its `greeting`. The
command asks it to open a model, and then for texts, for the answer in a conversation, or for images. The server answers
by events; it asks for the next prompt when it is ready for one, and the command may ask a question of its own first.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli import __version__, cache
from gencli.checkpoints import hub_cache
from gencli.errors import GencliError, UsageError
from gencli.text import events
from gencli.text.request import SamplingParams, TextRequest
from gencli.text.tools import Call

if TYPE_CHECKING:
    from PIL import Image

SOCKET, SUFFIX = "gencli.sock", ".run"  # of HTTP, and what the name of the one for commands has besides
PAYLOAD = 2**30  # bytes of a message's line at most, and of what comes with it
KINDS = tuple(".json .model .txt .jinja .safetensors .gguf .bin .pt .pth .ckpt .npz".split())
DEPTH = 2  # of folders in which a model's files lie
# Variables that may change what is computed, or where weights lie.
PREFIXES = (
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "ATEN_",
    "DNNL_",
    "ONEDNN_",
    "CUDA_",
    "CUBLAS_",
    "HIP_",
    "PYTORCH_",
    "TORCH_",
)
VARIABLES = ("GENCLI_KERNELS", "GENCLI_CACHE", "XDG_CACHE_HOME", "HOME", "LD_PRELOAD")
TEXT_EVENTS = {
    one.__name__: one
    for one in (
        events.PromptTruncated, events.MessagesLeftOut, events.CharactersLost, events.TextDelta, events.ReasoningDelta,
    )
}  # fmt: skip

Said = dict[str, Any]  # a message as it came: JSON
Head = tuple[str, tuple[int, int]]  # an image's mode and size
FileState = list[str | int]  # where a file lies, its bytes, and what changes when it is written anew; as JSON has it


class Closed(Exception):
    """The other side is gone."""


def runtime_folder() -> Path:
    """Return the folder of this user for sockets."""
    if found := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(found)
    return Path(tempfile.gettempdir()) / f"gencli-{os.getuid()}"


def is_own(path: Path) -> bool:
    """Return whether what lies at a path is this user's, and can be changed by nobody else."""
    try:
        return cache.is_own(os.lstat(path))
    except OSError:
        return False


def own_folder() -> Path:
    """Return the folder for sockets, made if need be. Raise GencliError for one that others can write in, OSError."""
    folder = runtime_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_own(folder):
        raise GencliError(f"{folder} is another user's, or others can write there", "--socket names another place")
    return folder


def files_at(paths: Iterable[Path]) -> list[FileState]:
    """Return the files of the models at paths, in a folder or beside a file."""
    found: list[FileState] = []
    for path in paths:
        top = str(path.parent if path.is_file() else path)
        for folder, folders, names in os.walk(top, followlinks=True):
            depth = 0 if path.is_file() else DEPTH
            folders[:] = sorted(folders) if folder[len(top) :].count(os.sep) < depth else []
            for name in sorted(name for name in names if name.endswith(KINDS) or name == path.name):
                with contextlib.suppress(OSError):
                    file = os.path.join(folder, name)
                    now = os.stat(file)
                    found.append([file, now.st_size, now.st_mtime_ns, now.st_ino])
    return found


def greeting(threads: int | None) -> dict[str, object]:
    """Return what has to be the same on both sides for the same bytes."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = sorted(affinity(0)) if affinity else os.cpu_count()
    said = {name: value for name, value in os.environ.items() if name.startswith(PREFIXES) or name in VARIABLES}
    hub = str(hub_cache.root())  # packed copies lie beside it
    return {"version": __version__, "threads": threads, "cores": cores, "environment": said, "cache": hub}


class Link:
    """A connection: messages go out and come in whole."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.reader = connection.makefile("rb")

    def send(self, message: Mapping[str, object], data: bytes = b"") -> None:
        """Send a message, and bytes with it. Raise Closed."""
        line = json.dumps({**message, "bytes": len(data)} if data else message, default=dict).encode()
        try:
            self.connection.sendall(line + b"\n" + data)
        except OSError:
            raise Closed from None

    def receive(self) -> tuple[Said, bytes]:
        """Return the next message, and the bytes that come with it. Raise Closed, also for what is no message."""
        try:
            line = self.reader.readline(PAYLOAD)
            message = json.loads(line) if line.endswith(b"\n") else None
            if not isinstance(message, dict):
                raise Closed
            length = message.get("bytes", 0)
            data = self.reader.read(length) if 0 < length <= PAYLOAD else b""
        except (OSError, ValueError, TypeError, RecursionError):
            raise Closed from None
        if len(data) != length:
            raise Closed
        return message, data

    def close(self) -> None:
        """End the connection."""
        self.reader.close()
        self.connection.close()


def pack_error(error: BaseException) -> dict[str, object]:
    """Return an error as JSON."""
    if isinstance(error, GencliError):
        return {"usage": isinstance(error, UsageError), "message": error.message, "hint": error.hint}
    return {"kind": type(error).__name__, "message": " ".join(str(error).split())}


def read_error(said: Said) -> Exception:
    """Return the error that `pack_error` was given; one of a class that is not Python's own is a RuntimeError."""
    if kind := said.get("kind"):
        found = getattr(builtins, kind, None)
        known = isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, OSError)
        made: Callable[[str], Exception] = found if known and found is not None else RuntimeError
        try:
            return made(said["message"])
        except TypeError:  # it is made of more than a message, as UnicodeDecodeError is
            return RuntimeError(f"{kind}: {said['message']}")
    return (UsageError if said["usage"] else GencliError)(said["message"], said["hint"])


def pack_event(event: events.Event) -> list[object]:
    """Return an event of a text as JSON."""
    if isinstance(event, events.Failed):
        return ["Failed", {**vars(event), "error": pack_error(event.error)}]
    return [type(event).__name__, dataclasses.asdict(event)]


def read_event(said: Iterable[Any]) -> events.Event:
    """Return the event that `pack_event` was given."""
    kind, fields = said
    if kind == "Failed":
        error = read_error(fields.pop("error"))
        assert isinstance(error, GencliError), error
        return events.Failed(**fields, error=error)
    if kind == "Completion":
        logprobs = fields.pop("logprobs")
        calls = tuple(Call(**call) for call in fields.pop("calls"))
        return events.Completion(**fields, logprobs=logprobs and events.Logprobs(**logprobs), calls=calls)
    made: events.Event = TEXT_EVENTS[kind](**fields)
    return made


def read_text_request(said: Said) -> TextRequest:
    """Return the request whose fields these are. Raise UsageError."""
    sampling: Said = {name: _tuples(value) for name, value in said["sampling"].items()}
    return TextRequest(**{**said, "sampling": SamplingParams(**sampling)})


def _tuples(value: object) -> object:
    """Return a value of JSON with its lists, and those in them, as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def pack_images(images: Iterable[Image.Image | None]) -> tuple[list[Head | None], bytes]:
    """Return images as JSON and bytes; None stays None."""
    found = [image and (image if image.palette is None else image.convert("RGBA")) for image in images]
    heads = [None if image is None else (image.mode, image.size) for image in found]
    return heads, b"".join(one.tobytes() for one in found if one)


def read_images(heads: Iterable[Head | None], data: bytes) -> list[Image.Image | None]:
    """Return the images that `pack_images` was given."""
    from PIL import Image

    found: list[Image.Image | None] = []
    for head in heads:
        image = head and Image.new(head[0], (head[1][0], head[1][1]))
        if image is not None:
            length = len(image.tobytes())
            image.frombytes(data[:length])
            data = data[length:]
        found.append(image)
    return found
