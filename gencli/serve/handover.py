"""The server's side of commands that let it do their work: a thread for each, which takes turns with all others."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import socket
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Literal

from gencli.checkpoints.assets import EmbeddingRef, LoraRef
from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.events import Denoised
from gencli.image.found import Inputs
from gencli.image.request import ImageRequest, ImageSpec
from gencli.serve import wire
from gencli.serve.app import Server
from gencli.serve.engine import ImageEngine, TextEngine, in_turns
from gencli.serve.pool import Wanted, image_model, text_model
from gencli.serve.wire import Closed, Link, Said
from gencli.spec import TextSpec
from gencli.text.chat import ChatSession, answer_all
from gencli.text.conversation import Conversation
from gencli.text.events import Event, GenerationStats
from gencli.text.generate import How
from gencli.text.request import TextRequest

log = logging.getLogger("gencli.serve")


class Handover:
    """Answers commands, as many of them at once as `server` answers requests; further ones do their own work."""

    def __init__(self, server: Server, greeting: dict[str, object]):
        self.pool, self.counts, self.most, self.greeting = server.pool, server.counts, server.limits.queue, greeting
        self.loop: asyncio.AbstractEventLoop | None = None
        self.links: set[Link] = set()

    def start(self, listener: socket.socket) -> None:
        """Take connections from now on. The loop that runs is the pool's."""
        self.loop = asyncio.get_running_loop()
        threading.Thread(target=self._accept, args=(listener,), name="gencli commands", daemon=True).start()

    def finish(self, until: float) -> None:
        """Wait for the commands under way, but no longer than `until` on the monotonic clock."""
        while self.links and time.monotonic() < until:
            time.sleep(0.02)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                link = Link(listener.accept()[0])
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                    return  # it is closed
                time.sleep(0.1)
                continue
            self.links.add(link)
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: Link) -> None:
        try:
            busy = {"busy": True} if len(self.links) > self.most else {}
            link.send({**self.greeting, **busy})
            with self._opened(link) as engine:
                while True:
                    said, data = link.receive()
                    _work(link, engine, said, data)
        except Closed:
            pass
        except GencliError as error:
            self._tell(link, error)
        except Exception as error:  # whatever it is, the command has to be told
            log.error("a command's work failed by a defect", exc_info=error)
            self._tell(link, error)
        finally:
            self.links.discard(link)
            link.close()

    def _tell(self, link: Link, error: Exception) -> None:
        with contextlib.suppress(Closed):
            link.send({"error": wire.pack_error(error)})

    @contextlib.contextmanager
    def _opened(self, link: Link) -> Iterator[TextEngine | ImageEngine]:
        """Hold the model that the command asks for first. Raise Closed where it can not be had: it is then told so, and
        opens the model itself, as the words of an error are its own matter."""
        said, _ = link.receive()
        assert self.loop is not None
        try:
            wanted = _wanted(said)
            if wanted.files != said["files"]:
                raise GencliError("there are other files here")
            warm = asyncio.run_coroutine_threadsafe(self.pool.acquire(wanted), self.loop).result()
        except Exception as error:
            link.send({"refused": str(error)[:1000]})
            raise Closed from None
        try:
            link.send(_described(warm.engine))
            self.counts.commands += 1
            yield warm.engine
        finally:
            self.loop.call_soon_threadsafe(self.pool.release, warm)


def _work(link: Link, engine: TextEngine | ImageEngine, said: Said, data: bytes) -> None:
    """Do one piece of work, and send what comes of it. Raise GencliError, Closed."""
    if isinstance(engine, ImageEngine) and "draw" in said:
        _draw(link, engine, said, data)
    elif isinstance(engine, TextEngine) and "texts" in said:
        _texts(link, engine, said)
    elif isinstance(engine, TextEngine) and "turn" in said:
        _turn(link, engine, said)
    else:
        raise Closed


def _wanted(said: Said) -> Wanted:
    """Return the model that a command wants. Raise GencliError, KeyError, TypeError or ValueError."""
    fields: Said = {name: tuple(one) if isinstance(one, list) else one for name, one in said["spec"].items()}
    if said["open"] == "text":
        adapters = tuple(LoraRef(Path(path), scale) for path, scale in said["adapters"])
        return text_model(_source(said["source"]), TextSpec(**fields), adapters)
    roles = ("classifier", "vae", "refiner", "prior")
    found: dict[str, Source | None] = {name: said[name] and _source(said[name]) for name in roles}
    inputs = Inputs(
        _source(said["source"]),
        classifier=found["classifier"],
        vae=found["vae"],
        refiner=found["refiner"],
        prior=found["prior"],
        upscalers=tuple(map(_source, said["upscalers"])),
        loras=tuple(LoraRef(Path(path), scale) for path, scale in said["loras"]),
        embeddings=tuple(EmbeddingRef(Path(path), word) for path, word in said["embeddings"]),
        controls=tuple(map(_source, said["controls"])),
    )
    return image_model(inputs, ImageSpec(**fields))


def _source(said: tuple[str, str, Literal["embedded", "folder", "file", "hub"]]) -> Source:
    name, path, kind = said
    return Source(name, Path(path), kind)


def _described(engine: TextEngine | ImageEngine) -> dict[str, object]:
    """Return what a command has to know of an open model."""
    if isinstance(engine, ImageEngine):
        return {"words": engine.drawing.words}
    model = engine.model
    return {
        "max_length": model.max_length,
        "converses": model.converses,
        "generation_config": model.generation_config,
        "notes": model.notes,
        "description": model.describe(),
    }


def _asking(link: Link, engine: TextEngine | ImageEngine, word: str) -> Said:
    """Ask the command for something; meanwhile others have their turn."""
    with engine.turn.let_go():
        link.send({"want": word})
        return link.receive()[0]


def _texts(link: Link, engine: TextEngine, said: Said) -> None:
    """Continue prompts, which are asked for when there is room for them, or answer them."""
    request = wire.read_text_request(said["texts"])
    before = said["conversation"] and Conversation(**said["conversation"])

    def requests() -> Iterator[TextRequest | GencliError]:
        while (got := _asking(link, engine, "prompt")).keys() & {"prompt", "error"}:
            if "error" in got:
                error = wire.read_error(got["error"])
                assert isinstance(error, GencliError), error
                yield error
            else:
                yield dataclasses.replace(request, prompt=got["prompt"], seed=got["seed"])

    stats = GenerationStats()
    how: How = {"batch": said["batch"]}
    if said["lines"]:
        how["ready"] = lambda: bool(_asking(link, engine, "ready").get("ready"))
    events = answer_all(engine.model, request, requests(), before, stats, chat_model=engine.chat_model, **how)
    _send_events(link, engine, events, stats)


def _turn(link: Link, engine: TextEngine, said: Said) -> None:
    """Answer the next message of a conversation."""
    request = wire.read_text_request(said["request"])
    session = ChatSession(engine.chat_model, request, Conversation(**said["conversation"]))
    session.how["batch"] = said["batch"]
    with engine.turn:
        prompt = session.prepare(said["turn"])
    link.send({"left_out": session.left_out})
    _send_events(link, engine, session.answer(said["turn"], prompt, request.seed), session.stats)


def _send_events(link: Link, engine: TextEngine, events: Generator[Event, None, None], stats: GenerationStats) -> None:
    with contextlib.closing(events):
        for event in in_turns(events, engine.turn):
            link.send({"event": wire.pack_event(event), "stats": vars(stats)})
    link.send({"done": True, "stats": vars(stats)})


def _draw(link: Link, engine: ImageEngine, said: Said, data: bytes) -> None:
    """Draw, and send each step and each image."""
    images = wire.read_images(said["images"], data)
    named, controls = said["named"], said["controls"]
    others = [image for image in images[2:] if image is not None]  # all of them
    inputs = dataclasses.replace(
        engine.inputs,
        init=images[0],
        mask=images[1],
        named=dict(zip(named, others, strict=False)),
        control_images=tuple(others[len(others) - controls :]),
    )

    def prompts() -> Iterator[str | None]:
        while True:
            got = _asking(link, engine, "prompt")
            while "check" in got:  # the command has a question first
                link.send({"checked": _problem(engine, got["check"])})
                with engine.turn.let_go():
                    got, _ = link.receive()
            if "prompt" not in got:
                return
            yield got["prompt"]

    events = engine.drawing.generate(ImageRequest(**said["draw"]), prompts() if said["lines"] else None, inputs)
    with contextlib.closing(events):
        for event in in_turns(events, engine.turn):
            if isinstance(event, Denoised):
                place = {name: getattr(event, name) for name in ("index", "total", "first", "count")}
                link.send({"step": {**place, "stage": vars(event.stage)}})
            else:
                heads, pixels = wire.pack_images([event.image])
                link.send({"image": event.index, "heads": heads, "request": vars(event.request)}, pixels)
    link.send({"done": True, "description": engine.drawing.describe()})


def _problem(engine: ImageEngine, request: Said) -> dict[str, object] | None:
    """Return what is wrong with the prompt of a request, if anything is."""
    try:
        engine.drawing.check_prompt(ImageRequest(**request))
    except GencliError as error:
        return wire.pack_error(error)
    return None
