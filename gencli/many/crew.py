"""Hands blocks of lines to workers, gives what a dead worker leaves to others, and yields the answers."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, cast

from gencli import __version__
from gencli.errors import GencliError, counted
from gencli.many.blocks import Block, Feed
from gencli.many.worker import Message, Work

Line = TypeVar("Line")
Made = TypeVar("Made")  # of a line
Info = TypeVar("Info")  # what the driver knows of the work
TRIES = 3  # workers that may die of one block, or while they open the work
AHEAD = 4  # blocks per worker that are read before the oldest one is answered
POLL, TICK = 0.02, 1.0  # seconds between two looks at the input, and at everything else


class Worker(Protocol):
    """One of a kind of workers. Its messages are those of `worker.serve`, the last of a dead one ("died", reason)."""

    def send(self, message: object) -> None: ...
    def kill(self) -> None: ...


Start = Callable[[Callable[[Message], None]], Worker]  # what takes its messages → a worker


@dataclass(frozen=True)
class Answer(Generic[Line, Made]):
    """What became of a line. made: by its work. worker, seconds: who made it in what time. error: why there is none."""

    number: int
    line: Line
    made: Made | None = None
    worker: str = ""
    seconds: float = 0.0
    error: GencliError | None = None


@dataclass(eq=False)
class Task(Generic[Line]):
    """A block that is worked on. left: the numbers of the lines that have no answer yet. deaths: of workers at it."""

    block: Block[Line]
    left: set[int]
    deaths: int = 0

    def line(self, number: int) -> Line:
        return self.block.lines[number - self.block.first]

    def alone(self) -> list[Task[Line]]:
        """Return a task for each line that is left."""
        return [
            Task(Block(number, [self.line(number)]), {number}, max(self.deaths - 2, 0)) for number in sorted(self.left)
        ]


@dataclass(eq=False)
class Member(Generic[Line]):
    """A worker in its slot, and what it has to do. name: "" until it is ready."""

    slot: int
    task: Task[Line] | None = None
    name: str = ""
    worker: Worker = field(init=False)


@dataclass
class Count:
    """What has happened. done: lines that are answered. tokens: of their texts. died: workers."""

    done: int = 0
    tokens: int = 0
    died: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.began, 1e-6)

    @property
    def rate(self) -> float:
        """Lines per second."""
        return self.done / self.seconds


class Crew(Generic[Line, Made, Info]):
    """At most `size` workers that do `work` on the blocks of a feed. Workers are started as there is something to do.

    ordered: answers come in the order of the lines, else as they are made. note: takes remarks. close: ends what the
    workers ran on.
    """

    def __init__(
        self,
        work: Work[Line, Made, Info],
        feed: Feed[Line],
        start: Start,
        size: int,
        *,
        ordered: bool = True,
        note: Callable[[str], None] = lambda text: None,
        close: Callable[[], None] = lambda: None,
    ):
        self.work, self.feed, self.start, self.size = work, feed, start, size
        self.ordered, self.note, self.close = ordered, note, close
        self.members: list[Member[Line]] = []
        self.count = Count()
        self.info: Info | None = None  # of the work, once a worker is ready
        self.inbox: queue.SimpleQueue[tuple[Member[Line], Message]] = queue.SimpleQueue()
        self.tasks: deque[Task[Line]] = deque()  # that nobody has: read ahead, or left behind by workers that died
        self.expected: deque[int] = deque()  # lines that are read and not answered yet, in order
        self.unanswered = 0  # how many these are
        self.waiting: dict[int, Answer[Line, Made]] = {}  # answers to lines behind one that is not answered
        self.unborn = 0  # workers that died one after the other before they were ready
        self.said: set[str] = set()  # remarks of workers, which all make the same

    def answers(self) -> Iterator[Answer[Line, Made]]:
        """Yield the answers. Whatever ends this, the workers end too.

        Raise GencliError for what ends the whole run, and where no worker can be had.
        """
        try:
            while True:
                self._assign()
                if self.feed.ended and not self.unanswered:
                    return
                try:
                    member, message = self.inbox.get(timeout=POLL if self.feed.waits else TICK)
                except queue.Empty:
                    continue
                for answer in self._take(member, message):
                    self.count.done += 1
                    self.unanswered -= 1
                    yield from self._in_turn(answer)
        finally:
            self.end()

    def end(self) -> None:
        """End all workers at once."""
        members, self.members = self.members, []
        for member in members:
            member.worker.kill()
        self.close()

    def _assign(self) -> None:
        """Give tasks to the workers that are ready and have none; start a worker for each task beyond these, as one
        that is starting may never be ready: there may be no machine left for it."""
        for member in self.members:
            if member.name and member.task is None:
                if not self.tasks and not self._read():
                    return
                member.task = task = self.tasks.popleft()
                member.worker.send((task.block.first, task.block.lines))
        while len(self.members) < self.size:
            starting = sum(not member.name for member in self.members)
            if len(self.tasks) <= starting and not self._read():
                return
            self._hire()

    def _read(self) -> bool:
        """Add a task, if one can be had and there is room for its answers."""
        if self.ordered and len(self.expected) >= AHEAD * self.size * self.feed.size:
            return False
        if (block := self.feed.next()) is None:
            return False
        wanted = self.feed.wanted(block)
        self.unanswered += len(wanted)
        if self.ordered:
            self.expected.extend(wanted)
        self.tasks.append(Task(block, set(wanted)))
        return True

    def _hire(self) -> None:
        taken = {member.slot for member in self.members}
        member: Member[Line] = Member(next(slot for slot in range(self.size) if slot not in taken))
        member.worker = self.start(lambda message: self.inbox.put((member, message)))
        self.members.append(member)
        member.worker.send(__version__)
        member.worker.send((self.work, member.slot))

    def _take(self, member: Member[Line], message: Message) -> Iterator[Answer[Line, Made]]:
        """Take a message of a worker; yield the answers that it brings. Raise GencliError."""
        task = member.task
        if member not in self.members:
            return
        if message[0] == "note":
            if message[1] not in self.said:
                self.said.add(message[1])
                self.note(message[1])
        elif message[0] == "ready":
            member.name, self.info = message[1], cast("Info", message[2])
            self.unborn = 0
        elif message[0] == "answer":
            _, number, made, seconds = message
            if task is not None and number in task.left:
                task.left.discard(number)
                yield Answer(number, task.line(number), cast("Made", made), member.name, seconds)
        elif message[0] == "end":
            assert task is not None and not task.left, task
            member.task = None
        elif message[0] == "failed":
            raise message[1]
        else:
            yield from self._bury(member, message[1])

    def _bury(self, member: Member[Line], reason: str) -> Iterator[Answer[Line, Made]]:
        """Let others do what a dead worker leaves; yield answers to the lines that are given up. Raise GencliError."""
        self.members.remove(member)
        member.worker.kill()
        self.count.died += 1
        task = member.task
        if not member.name:
            self.unborn += 1
            if self.unborn >= TRIES:
                self._do_without(reason)
        elif task is not None:
            task.deaths += 1
        left = f": {counted(len(task.left), 'prompt')} of its block left for others" if task and task.left else ""
        self.note(f"worker {member.name or member.slot + 1} ended ({reason}){left}")
        if task is None or not task.left:
            return
        if task.deaths < TRIES:
            self.tasks.appendleft(task)
        elif len(task.block.lines) > 1:
            self.tasks.extendleft(reversed(task.alone()))
        else:
            message = f"{counted(task.deaths, 'worker')} ended at this prompt, and it is given up: {reason}"
            yield Answer(task.block.first, task.line(task.block.first), error=GencliError(message))

    def _do_without(self, reason: str) -> None:
        """Start no further workers, as those that were started last could not open the work. Raise GencliError if there
        are no others."""
        if not any(member.name for member in self.members):
            hint = "did memory run out? Fewer --workers need less"
            raise GencliError(f"{self.unborn} workers ended before they had opened the model: {reason}", hint)
        self.size, self.unborn = len(self.members), 0
        self.note(f"goes on with {counted(self.size, 'worker')}, as more could not be started: {reason}")

    def _in_turn(self, answer: Answer[Line, Made]) -> Iterator[Answer[Line, Made]]:
        """Yield an answer, and those that waited for it; in order, it waits for those before it."""
        if not self.ordered:
            yield answer
            return
        self.waiting[answer.number] = answer
        while self.expected and self.expected[0] in self.waiting:
            yield self.waiting.pop(self.expected.popleft())
