"""Warm models: each has a thread, which takes requests and gives back events as they come."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Generic, TypeVar

from gencli.image import stages
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.draw import Drawing
from gencli.image.drawers.base import Drawer
from gencli.image.events import Picture
from gencli.image.files import pictures
from gencli.image.found import Inputs
from gencli.image.request import ImageRequest
from gencli.image.resolve import check_asked, resolve
from gencli.serve.refusal import FAILED, INVALID, Refusal
from gencli.serve.seeing import Seeing, Seen, looking
from gencli.text.chat import ChatModel
from gencli.text.events import Completion, Event, Failed
from gencli.text.generate import Job, generate_all
from gencli.text.load import TextModel

T = TypeVar("T")
W = TypeVar("W", bound="Work")
BATCH = 16  # texts of the same settings that a model continues at once


@dataclass(frozen=True)
class Drawn:
    """An image of a request, as the bytes of a file."""

    index: int
    data: bytes


class End:
    """What is put for a request at last."""


END: Final = End()
Made = Event | Drawn  # what comes of a request
Put = Callable[[Made | Exception | End], None]


@dataclass(eq=False)
class Work:
    """One request under way. put: takes its events, in the engine's thread. cancelled: nobody waits for it any more."""

    put: Put
    cancelled: bool = False
    left: int = 0


@dataclass(eq=False)
class TextWork(Work):
    """job: what to continue. chat: whether the ends of turns end it. param: what is wrong in the request where the job
    cannot be done; names: as `Refusal.of`."""

    job: Job = field(kw_only=True)
    chat: bool = False
    param: str = "prompt"
    names: Mapping[str, str] = field(default_factory=dict)

    def is_wanted(self) -> bool:
        """Return whether anyone waits for it."""
        return not self.cancelled

    @property
    def key(self) -> Hashable:
        """What the settings of texts that run side by side have in common."""
        request, seen = self.job.request, self.seen
        form = request.form is None
        return self.chat, request.sampling, request.logprobs, request.num_samples, form, seen and seen.key

    @property
    def seen(self) -> Seen | None:
        """What it is asked about beside the text."""
        return self.job.seen if isinstance(self.job, Seeing) else None


@dataclass(eq=False)
class ImageWork(Work):
    """request: resolved. inputs: with the images that it begins from. format: the file format of the images."""

    request: ImageRequest = field(kw_only=True)
    inputs: Inputs = field(kw_only=True)
    format: str = "png"


class Turns:
    """A lock that is given in the order in which it was asked for: a thread that lets go of it and asks again at once,
    as one does between two steps, waits for the others."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.line: deque[threading.Lock] = deque()  # the first one's thread has the turn

    def __enter__(self) -> None:
        mine = threading.Lock()
        mine.acquire()
        with self.guard:
            self.line.append(mine)
            if len(self.line) == 1:
                mine.release()
        mine.acquire()

    def __exit__(self, *_: object) -> None:
        with self.guard:
            self.line.popleft()
            if self.line:
                self.line[0].release()

    @contextlib.contextmanager
    def let_go(self) -> Iterator[None]:
        """Let others have the turn while this thread, which has it, waits for something else."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


class Engine(ABC, Generic[W]):
    """A model with its thread, which takes work from a queue until it is closed. bytes: memory that its weights take.
    turn: held by whoever has the model at work, in this thread or in that of a command."""

    bytes: int

    def __init__(self, name: str):
        self.turn = Turns()
        self.waiting: set[Put] = set()  # what takes the events of each request
        self.inbox: queue.SimpleQueue[W | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def submit(self, work: W) -> None:
        self.inbox.put(work)

    def refuse(self, refusal: Refusal) -> None:
        """Answer all requests that wait with a refusal."""
        for put in tuple(self.waiting):
            put(refusal)

    def close(self) -> None:
        """End the thread once it has nothing left to do; what is cancelled counts as done."""
        self.inbox.put(None)

    @abstractmethod
    def _run(self) -> None:
        """Do the work that comes, until it is None."""


class TextEngine(Engine["TextWork"]):
    """Continues texts of many requests side by side: those of equal settings in one batch, others in turns."""

    def __init__(self, model: TextModel):
        self.model = model
        self.chat_model = ChatModel(model)
        self.bytes = sum(tensor.nbytes for tensor in model.module.state_dict().values())
        super().__init__(f"gencli {model.name}")

    def close(self) -> None:
        super().close()
        self.chat_model.close()

    def _run(self) -> None:
        lanes: dict[Hashable, _Lane] = {}
        closing = False
        while lanes or not closing:
            while not self.inbox.empty() or not (lanes or closing):
                work = self.inbox.get()
                if work is None:
                    closing = True
                    continue
                if work.key not in lanes:
                    model = self.chat_model.model if work.chat else self.model
                    lanes[work.key] = _Lane(model, work.job.request.num_samples, work.seen)
                lanes[work.key].waiting.append(work)
            for key, lane in list(lanes.items()):
                with self.turn, looking(self.model.module, lane.seen):
                    goes_on = lane.advance()
                if not goes_on:
                    del lanes[key]
                    for work in lane.waiting:  # it came when nothing else was left to wait for
                        self.inbox.put(work)


class _Lane:
    """Texts of equal settings: a batch that others join as there is room. seen: what all of them are about."""

    def __init__(self, model: TextModel, samples: int, seen: Seen | None):
        self.samples, self.seen = samples, seen  # of each
        self.waiting: deque[TextWork] = deque()
        self.running: dict[int, TextWork] = {}  # by the number of its job
        self.events = generate_all(model, self._jobs(), batch=BATCH, ready=lambda: bool(self.waiting))

    def _jobs(self) -> Iterator[Job]:
        number = 0
        while self.waiting:
            work = self.waiting.popleft()
            if not work.cancelled:
                work.left = work.job.request.num_samples
                self.running[number] = work
                number += 1
                yield dataclasses.replace(work.job, wanted=work.is_wanted)

    def advance(self) -> bool:
        """Hand the next event to the request that it belongs to. Return False when all are done."""
        try:
            event = next(self.events, None)
        except Exception as error:  # whatever it is, those who wait have to be told
            for work in [*self.running.values(), *self.waiting]:
                work.put(error)
            self.waiting.clear()
            return False
        if event is None:
            return False
        number = event.index // self.samples
        if (its := self.running.get(number)) is not None:
            _put(its, event, number * self.samples)
            if not its.left:
                del self.running[number]
        return True


def _put(work: TextWork, event: Event, first: int) -> None:
    """Give a request its event, with the index of the sample in it."""
    if isinstance(event, Failed):
        work.left = 0
        status = FAILED if event.at_work else INVALID
        work.put(Refusal.of(event.error, status=status, param=work.param, names=work.names))
        return
    work.put(dataclasses.replace(event, index=event.index - first))
    if isinstance(event, Completion):
        work.left -= 1
        if not work.left:
            work.put(END)


class ImageEngine(Engine["ImageWork"]):
    """Draws the images of one request after the other. opened, inputs: what `drawing` was loaded from."""

    def __init__(self, drawing: Drawing, opened: ImageCheckpoint | Drawer, inputs: Inputs, size: int):
        self.drawing, self.opened, self.bytes = drawing, opened, size
        self.inputs = dataclasses.replace(inputs, init=None, mask=None, named={}, control_images=())
        super().__init__(f"gencli {opened.name}")

    def _run(self) -> None:
        while (work := self.inbox.get()) is not None:
            try:
                self._draw(work)
                work.put(END)
            except Exception as error:  # whatever it is, the client has to be told
                work.put(error)

    def resolve(self, request: ImageRequest, inputs: Inputs) -> ImageRequest:
        """Return a request with all that it leaves open. Raise GencliError for one that the model cannot follow."""
        if isinstance(self.opened, Drawer):
            resolved = self.opened.resolve(request)
        else:
            given = [*([] if inputs.init is None else [inputs.init]), *inputs.named.values()]
            resolved = resolve(request, self.opened, given[0].size if given else None)
            stages.plan(resolved, self.opened, has_init=inputs.init is not None)  # raises for what no stage can follow
            check_asked(resolved, self.opened)
        with self.turn:
            self.drawing.check_prompt(resolved)
        return resolved

    def _draw(self, work: ImageWork) -> None:
        events = self.drawing.generate(work.request, None, work.inputs)
        with contextlib.closing(events):
            for event in in_turns(events, self.turn):
                if work.cancelled:
                    return
                if isinstance(event, Picture):
                    texts = pictures.describe(event.request)
                    work.put(Drawn(event.index, pictures.encode(event.image, work.format, texts)))


def in_turns(events: Iterator[T], turn: Turns) -> Iterator[T]:
    """Yield events, each of which is made while `turn` is held."""
    while True:
        with turn:
            event = next(events, END)
        if isinstance(event, End):
            return
        yield event


@dataclass
class Counts:
    """What the server has done so far, for /metrics."""

    answers: dict[tuple[str, int], int] = field(default_factory=dict)  # by route and status
    prompt_tokens: int = 0
    completion_tokens: int = 0
    images: int = 0
    commands: int = 0
    under_way: int = 0


async def events_of(engine: Engine[W], makes: Sequence[Callable[[Put], W]]) -> AsyncGenerator[tuple[int, Made], None]:
    """Submit works, each made from what takes its events, and yield those of all of them with the number of the work.

    Raise what went wrong with one. Whoever leaves early cancels them.
    """
    loop, arrived = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Made | Exception | End]]()

    def put(number: int, event: Made | Exception | End) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(arrived.put_nowait, (number, event))

    works = [make(partial(put, number)) for number, make in enumerate(makes)]
    for work in works:
        engine.submit(work)
    left, refuse = len(works), partial(put, 0)
    engine.waiting.add(refuse)
    try:
        while left:
            number, event = await arrived.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, End):
                left -= 1
            else:
                yield number, event
    finally:
        engine.waiting.discard(refuse)
        for work in works:
            work.cancelled = True
