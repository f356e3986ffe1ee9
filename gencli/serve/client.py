"""The command's side: find the server that this user runs, and have it do the work of this process. No torch.

Whatever keeps the server from doing exactly what this process would do is found out before the work begins, and then
this process does it: another version, other threads, cores or libraries, files that it sees otherwise, no memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.serve import wire
from gencli.serve.wire import SOCKET, SUFFIX, Closed, Link, Said
from gencli.spec import ModelSpec
from gencli.text.conversation import Conversation
from gencli.text.events import Event, GenerationStats
from gencli.text.request import TextRequest

if TYPE_CHECKING:
    from gencli.image.events import Denoised, Picture
    from gencli.image.found import Inputs
    from gencli.image.request import ImageRequest, ImageSpec

PATIENCE = 2.0  # seconds in which a server has to greet
END = object()


def connect(threads: int | None) -> Link | None:
    """Return a connection to a server that computes as this process would; None if there is none."""
    path = wire.runtime_folder() / (SOCKET + SUFFIX)
    if not hasattr(socket, "AF_UNIX") or not wire.is_own(path.parent) or not wire.is_own(path):
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link = None
    try:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        link = Link(connection)
        said, _ = link.receive()
        connection.settimeout(None)
        if _is_ours(connection) and said == wire.greeting(threads):
            return link
    except (OSError, Closed):  # it ended without a word, or hangs
        pass
    (link or connection).close()
    return None


def is_there() -> bool:
    """Return whether anything answers at the socket."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        return probe.connect_ex(str(wire.runtime_folder() / (SOCKET + SUFFIX))) == 0


def _is_ours(connection: socket.socket) -> bool:
    """Return whether this user's process is at the other end, as far as the system says."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(user == os.getuid())


class Remote:
    """A model in the server."""

    def __init__(self, link: Link, said: Said):
        self.link, self.said = link, said

    def send(self, message: Mapping[str, object], data: bytes = b"") -> None:
        """Send a message. Raise GencliError if the server has ended."""
        try:
            self.link.send(message, data)
        except Closed:
            raise _ended() from None

    def receive(self) -> tuple[Said, bytes]:
        """Return the next message. Raise the error that it tells; GencliError if the server has ended."""
        try:
            said, data = self.link.receive()
        except Closed:
            raise _ended() from None
        if "error" in said:
            raise wire.read_error(said["error"])
        return said, data


def _ended() -> GencliError:
    return GencliError("the server ended in the middle of its answer", "--no-server does the work without it")


def _open(link: Link, wish: Mapping[str, object], paths: Iterable[Path]) -> Said | None:
    """Have the server open a model; return what it says of it, or None if it cannot."""
    with contextlib.suppress(Closed):
        link.send({**wish, "files": wire.files_at(paths)})
        said, _ = link.receive()
        if "refused" not in said and "error" not in said:
            return said
    link.close()
    return None


def _source(source: Source | None) -> tuple[str, str, str] | None:
    return None if source is None else (source.name, os.path.abspath(source.path), source.kind)


class RemoteText(Remote):
    """A language model in the server; its attributes are those of a `TextModel`. load_seconds: it was open."""

    load_seconds = 0.0

    def __init__(self, link: Link, said: Said, name: str):
        super().__init__(link, said)
        self.name: str = name
        self.max_length: int = said["max_length"]
        self.converses: bool = said["converses"]
        self.generation_config: Said = said["generation_config"]
        self.notes: tuple[str, ...] = tuple(said["notes"])

    def describe(self) -> str:
        """Return the model in one line."""
        return str(self.said["description"])

    def answer_all(
        self,
        request: TextRequest,
        requests: Iterator[TextRequest | GencliError],
        before: Conversation | None,
        stats: GenerationStats,
        *,
        batch: int,
        ready: Callable[[], bool] | None = None,
    ) -> Iterator[Event]:
        """As `gencli.text.chat.answer_all`. Without `ready` each prompt can be had without waiting."""
        conversation = before and dataclasses.asdict(before)
        resolved = dataclasses.asdict(request.resolve(self.generation_config))
        lines = ready is not None
        self.send({"texts": resolved, "conversation": conversation, "batch": batch, "lines": lines})
        return self._events(stats, requests, ready)

    def converse(self, request: TextRequest, conversation: Conversation) -> RemoteChat:
        """Return a conversation with it."""
        return RemoteChat(self, request, conversation)

    def _events(
        self,
        stats: GenerationStats,
        requests: Iterator[TextRequest | GencliError],
        ready: Callable[[], bool] | None = None,
    ) -> Iterator[Event]:
        before = dict(vars(stats))
        while True:
            said, _ = self.receive()
            if want := said.get("want"):
                self.send({"ready": ready()} if ready and want == "ready" else _next_prompt(requests))
                continue
            vars(stats).update({name: before[name] + value for name, value in said["stats"].items()})
            if "done" in said:
                return
            yield wire.read_event(said["event"])


def _next_prompt(requests: Iterator[TextRequest | GencliError]) -> dict[str, object]:
    request = next(requests, None)
    if request is None:
        return {"end": True}
    if isinstance(request, GencliError):
        return {"error": wire.pack_error(request)}
    return {"prompt": request.prompt, "seed": request.seed}


class RemoteChat:
    """One conversation with a model in the server; its attributes are those of a `ChatSession`."""

    def __init__(self, model: RemoteText, request: TextRequest, conversation: Conversation):
        self.model, self.request, self.conversation = model, request, conversation
        self.chat_model = self  # which has the model
        self.how: dict[str, object] = {}
        self.stats = GenerationStats()
        self.left_out = 0

    def prepare(self, message: str) -> None:
        """Have the prompt for an answer to `message` made. Raise GencliError."""
        said = dataclasses.asdict(self.request.resolve(self.model.generation_config))
        self.model.send(
            {"turn": message, "request": said, "conversation": dataclasses.asdict(self.conversation), **self.how}
        )
        self.left_out = self.model.receive()[0]["left_out"]

    def answer(self, message: str, prompt: None, seed: int) -> Iterator[Event]:
        """Answer the message that was prepared. The seed is the request's."""
        return self.model._events(self.stats, iter(()))


class RemoteDrawing(Remote):
    """A model that draws in the server; its attributes are those of a `Drawing`."""

    @property
    def words(self) -> Sequence[str]:
        return list(self.said["words"])

    def describe(self) -> str:
        """Return the model in one line, once it has drawn."""
        return str(self.said["description"])

    def check_prompt(self, request: ImageRequest) -> None:
        """As `Drawing.check_prompt`; while the server asks for a prompt."""
        self.send({"check": vars(request)})
        if problem := self.receive()[0]["checked"]:
            raise wire.read_error(problem)

    def generate(
        self, request: ImageRequest, prompts: Iterable[str | None] | None, inputs: Inputs, *, walk: bool = False
    ) -> Iterator[Denoised | Picture]:
        """As `Drawing.generate`."""
        from gencli.image.events import Denoised, Picture, StageInfo

        heads, pixels = wire.pack_images([inputs.init, inputs.mask, *inputs.named.values(), *inputs.control_images])
        wish: dict[str, object] = {"draw": vars(request), "lines": prompts is not None, "images": heads}
        self.send({**wish, "named": list(inputs.named), "controls": len(inputs.control_images)}, pixels)
        lines = iter(prompts or ())
        while True:
            said, data = self.receive()
            if "want" in said:
                prompt = next(lines, END)
                self.send({"end": True} if prompt is END else {"prompt": prompt})
            elif "step" in said:
                step = said["step"]
                stage = StageInfo(**step.pop("stage"))
                yield Denoised(**step, x0=None, codec=None, stage=stage)
            elif "image" in said:
                [image] = wire.read_images(said["heads"], data)
                assert image is not None
                yield Picture(said["image"], image, type(request)(**said["request"]))
            else:
                self.said.update(said)
                return


def open_text(link: Link, source: Source, spec: ModelSpec, adapters: Sequence[LoraRef]) -> RemoteText | None:
    """Return a language model as the server opens it; None if it cannot."""
    loras = [(os.path.abspath(one.path), one.scale) for one in adapters]
    wish = {"open": "text", "source": _source(source), "spec": vars(spec), "adapters": loras}
    said = _open(link, wish, [Path(os.path.abspath(source.path)), *(Path(path) for path, _ in loras)])
    if said is None:
        return None
    for one, (path, _) in zip(adapters, loras, strict=True):  # as the user named it
        said["notes"] = [note.replace(path, str(one.path)) for note in said["notes"]]
    return RemoteText(link, said, source.name)


def open_drawing(link: Link, inputs: Inputs, spec: ImageSpec) -> RemoteDrawing | None:
    """Return a model that draws as the server opens it; None if it cannot."""
    roles = ("classifier", "vae", "refiner", "prior")
    sources: dict[str, Source | None] = {name: getattr(inputs, name) for name in roles}
    several = {"upscalers": inputs.upscalers, "controls": inputs.controls}
    loras = [(os.path.abspath(one.path), one.scale) for one in inputs.loras]
    embeddings = [(os.path.abspath(one.path), one.word) for one in inputs.embeddings]
    wish = {
        "open": "image",
        "spec": vars(spec),
        "source": _source(inputs.model),
        **{name: _source(one) for name, one in sources.items()},
        **{name: [_source(one) for one in those] for name, those in several.items()},
        "loras": loras,
        "embeddings": embeddings,
    }
    found = [inputs.model, *sources.values(), *several["upscalers"], *several["controls"]]
    paths = [os.path.abspath(one.path) for one in found if one is not None]
    assets = [path for path, _ in [*loras, *embeddings]]
    said = _open(link, wish, map(Path, [*paths, *assets]))
    return None if said is None else RemoteDrawing(link, said)
