"""Lines → images by workers: what each of them does, and where their images go (see `gencli.many`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from gencli import devices
from gencli.checkpoints.find import find
from gencli.cli.console import Console
from gencli.cli.image_sinks import FilesOfLines, ImageSink, record
from gencli.cli.many import Many, described, shown_answers
from gencli.cli.prompts import LineReader
from gencli.cli.sinks import json_line
from gencli.errors import GencliError, counted
from gencli.image.events import Picture
from gencli.image.found import Inputs
from gencli.image.request import ImageRequest
from gencli.spec import DrawingSpec

if TYPE_CHECKING:
    from gencli.image.draw import Drawing
    from gencli.many.crew import Answer
    from gencli.many.records import Records


@dataclass(frozen=True)
class Drawn:
    """An image of its file's bytes, and the request that makes it again."""

    index: int
    data: bytes
    request: ImageRequest


@dataclass(frozen=True, eq=False, repr=False)
class ImageWork:
    """How lines become images. request: not resolved. sink: how images are encoded. offline: whether models that a
    worker does not find where they were found are not fetched either."""

    inputs: Inputs
    request: ImageRequest
    where: DrawingSpec
    sink: ImageSink
    offline: bool

    @property
    def block(self) -> int:
        """How many lines are a block: as few as fill batches."""
        return self.request.batch // math.gcd(self.request.batch, self.request.count)

    @property
    def each(self) -> int:
        return self.request.count

    @property
    def threads(self) -> int | None:
        return self.where.threads

    def with_threads(self, threads: int | None) -> ImageWork:
        return replace(self, where=replace(self.where, threads=threads))

    def open(self, note: Callable[[str], None], slot: int) -> Drawings:
        """Load the model in a worker (see `gencli.many.worker`)."""
        from gencli.image.draw import Drawing
        from gencli.image.ready import ready

        where = replace(self.where, device=devices.share(self.where.device, slot))
        inputs = self.inputs.here(partial(find, offline=self.offline, allow_pickle=where.allow_pickle))
        opened, request = ready(inputs, self.request, where, lines=True, note=lambda text: None)
        devices.set_threads(where.threads)
        return Drawings(replace(self, inputs=inputs), request, Drawing(opened, inputs, request.spec(where)))


@dataclass(frozen=True)
class About:
    """What there is to say of a model that is loaded."""

    description: str


class Drawings:
    """A model that is loaded, and what it draws."""

    def __init__(self, work: ImageWork, request: ImageRequest, drawing: Drawing):
        self.work, self.request, self.drawing = work, request, drawing
        self.info = About(drawing.describe())

    def answers(
        self, first: int, lines: Sequence[str | GencliError]
    ) -> Iterator[tuple[int, list[Drawn] | GencliError | None, float]]:
        """Yield the images of each line, an error, or None for a blank one (see `gencli.many.worker`)."""
        count = self.request.count
        request = self.request.replace(seed=(self.request.seed or 0) + first * count)
        told: dict[int, GencliError | None] = {}
        made: dict[int, list[Drawn]] = {}
        began = time.perf_counter()
        prompts = [self._checked(*one, told) for one in enumerate(lines, first)]
        for event in self.drawing.generate(request, prompts, self.work.inputs):
            if not isinstance(event, Picture):
                continue
            index = event.index + first * count
            of_line = made.setdefault(index // count, [])
            of_line.append(Drawn(index, self.work.sink.encoded(event.image, event.request), event.request))
            if len(of_line) == count:
                yield index // count, made.pop(index // count), time.perf_counter() - began
                began = time.perf_counter()
        for number, error in told.items():
            yield number, error, 0.0

    def _checked(self, number: int, line: str | GencliError, told: dict[int, GencliError | None]) -> str | None:
        """Return a line that can be drawn; else None, and what there is to tell of it goes to `told`."""
        try:
            if isinstance(line, GencliError):
                raise line
            if line.strip():
                self.drawing.check_prompt(self.request.replace(prompt=line))
                return line
            told[number] = None
        except GencliError as error:
            told[number] = error
        return None


class Album:
    """Writes the images of workers, in the order in which they come."""

    def __init__(
        self,
        console: Console,
        work: ImageWork,
        request: ImageRequest,
        many: Many,
        records: Records | None,
        *,
        strict: bool,
    ):
        """request: resolved."""
        self.console, self.work, self.request, self.many, self.strict = console, work, request, many, strict
        self.records = records
        self.failed = self.blank = self.lines = 0
        self.told: GencliError | None = None  # which stands for the line before

    def draw(self, lines: Iterator[str | GencliError], reader: LineReader, *, stats: bool) -> None:
        """Have workers draw lines. Raise GencliError if anything fails."""
        crew = self.many.crew(self.console, self.work, self._writable(lines), reader, self.records)
        try:
            for answer in shown_answers(self.console, crew, reader, self.records):
                self.lines += 1
                self._write(answer)
        finally:
            crew.end()
            self.console.clear()
            if stats:
                self.console.stats(f"{crew.info.description if crew.info else ''}, seed {self.request.seed}")
                self.console.stats(described(crew))
        if self.blank:
            self.console.note(f"skipped {counted(self.blank, 'blank line')}")
        if self.failed:
            raise GencliError(f"{self.failed} of {self.lines} lines failed")

    def _writable(self, lines: Iterator[str | GencliError]) -> Iterator[str | GencliError]:
        """Yield lines; an error stands for one whose images could not be written."""
        files = FilesOfLines(self.work.sink)
        for number, line in enumerate(lines):
            try:
                if isinstance(line, str) and line.strip():
                    files.check(self.request.replace(prompt=line), number)
            except GencliError as error:
                error.message = f"line {number + 1}: {error.message}"
                line = error
            yield line

    def _write(self, answer: Answer[str | GencliError, list[Drawn] | GencliError | None]) -> None:
        error = answer.error or answer.made
        made = None if isinstance(answer.made, GencliError) else answer.made
        if isinstance(error, GencliError):
            if isinstance(answer.line, str):
                error.message = f"line {answer.number + 1}: {error.message}"
            if self.strict:
                raise error
            self.failed += 1
            if answer.line is not self.told:  # of the images of one line
                self.console.clear()
                self.console.error(error)
            self.told = answer.line if isinstance(answer.line, GencliError) else None
            return
        self.blank += made is None
        for image in made or ():
            if self.records is not None and image.index in self.records:
                continue
            path = self.work.sink.write(image.data, image.request, image.index)
            assert path is not None  # of several images none goes to stdout
            if self.records is not None:
                self.records.add(image.index, json_line(record(path, image.request, image.index)))
            more = {"seconds": round(answer.seconds, 3), "worker": answer.worker}
            self.work.sink.report(path, image.request, image.index, {}, more)
