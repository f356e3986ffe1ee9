"""Options and console of a run of many lines: workers, shards, and the file that a run goes on from (`gencli.many`)."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from gencli import devices
from gencli.cli.console import Console, is_terminal
from gencli.cli.prompts import LineReader
from gencli.errors import GencliError, UsageError, counted, shorten
from gencli.many.blocks import Feed, Shard
from gencli.options import OUTPUT, RUN, Option, check, file, flag, integer, number, string, typed

if TYPE_CHECKING:
    from gencli.many.crew import Answer, Crew, Start
    from gencli.many.records import Records
    from gencli.many.worker import Opened


ADDRESS = re.compile(r"ray://([^/:]+|\[[^/]+\]):[0-9]{1,5}")
OWN = {"prompt", "seed", "hashes"}  # of each record, or compared otherwise

Line = str | GencliError  # as it is read
Made = TypeVar("Made")  # of a line
Info = TypeVar("Info")  # what the driver knows of the work


class LinesWork(Protocol[Made, Info]):
    """Work (`gencli.many.worker.Work`) on lines of stdin. block: how many lines are a block. each: how many outputs a
    line has. threads: of a worker, as asked for."""

    @property
    def block(self) -> int: ...
    @property
    def each(self) -> int: ...
    @property
    def threads(self) -> int | None: ...
    def with_threads(self, threads: int | None) -> LinesWork[Made, Info]: ...
    def open(self, note: Callable[[str], None], slot: int) -> Opened[Line, Made, Info]: ...


def _check_shard(_: str, text: str) -> None:
    Shard.parse(text)


def _check_engine(name: str, text: str) -> None:
    if text != "ray" and not ADDRESS.fullmatch(text):
        raise UsageError(f"{name} {text!r:.80}: no such engine", "--on ray, or ray://HOST:10001")


@dataclass(eq=False, repr=False)
class Many:
    """How the lines of stdin are shared out. Raise UsageError for options that do not go together."""

    # fmt: off
    workers: int | None = integer(None, "--workers N",
        "With --lines: share the lines among N processes, each with the model (default: 1; with --on: one per GPU, or "
        "else per machine).", RUN, within=(1, 4096))
    on: str | None = string(None, "--on ray|ADDRESS",
        "With --lines: run workers on a Ray cluster: ray://HOST:10001, or `ray` for the one that RAY_ADDRESS names, "
        "else a new local one.", RUN, after="workers", valid=_check_engine)
    gpus_per_worker: float | None = number(None, "--gpus-per-worker G",
        "With --on: GPUs per worker, or a part of one (default: 1 where the cluster has GPUs).", RUN,
        within=(0, 64), after="on")
    unordered: bool = flag(False, "--unordered", "With --lines and --workers: print answers as they are made.", OUTPUT,
        after="json")
    shard: str | None = string(None, "--shard I/N",
        "With --lines: only the I-th of N parts of the lines, numbered and seeded as in the whole. They are dealt out "
        "in blocks: of texts, 4 x --batch lines.", "Prompt",
        after="strict", valid=_check_shard)
    resume: Path | None = file("--resume FILE",
        "With --lines: add a JSON record of each output to FILE, and skip those already there; texts go to stdout only "
        "with --json.", OUTPUT,
        after="unordered")
    # fmt: on

    def __post_init__(self) -> None:
        check(self)
        self.part = Shard() if self.shard is None else Shard.parse(self.shard)
        if self.gpus_per_worker is not None and self.on is None:
            raise UsageError("--gpus-per-worker is for --on", "processes of one machine take its GPUs in turn")

    @property
    def asked(self) -> str | None:
        """The first of its options that is given: then lines go to workers. None if there is none."""
        given = [self.workers, self.on, self.unordered or None, self.shard, self.resume]
        names = ("--workers", "--on", "--unordered", "--shard", "--resume")
        return next((name for name, value in zip(names, given, strict=True) if value is not None), None)

    def check(self, lines: bool, excluded: Iterable[str] = ()) -> None:
        """Raise UsageError without --lines, and beside `excluded` options, which are given and need one process."""
        if self.asked is None:
            return
        if not lines:
            raise UsageError(f"{self.asked} needs --lines")
        if other := next(iter(excluded), None):
            raise UsageError(f"{self.asked} cannot be combined with {other}")

    def records(self) -> Records | None:
        """Open the file of --resume. Raise GencliError."""
        from gencli.many.records import Records

        return None if self.resume is None else Records(self.resume)

    def seed(self, records: Records, seed: int, asked: int | None, limit: int) -> int:
        """Return the seed of a run that goes on: that of the records, if there are any, else `seed`. asked: the one
        that was asked for, if any. limit: the largest one. Raise GencliError if another was asked for."""
        if records.first is None:
            return seed
        first, index = (typed(records.first, name, int) or 0 for name in ("seed", "index"))
        found = (first - index) % (limit + 1)
        if asked not in (None, found):
            raise GencliError(f"--seed {asked}: the records of {records.path} are of the seed {found}")
        return found

    def note_settings(
        self, records: Records, now: Mapping[str, object], rows: Mapping[str, Option], note: Callable[[str], None]
    ) -> None:
        """Note what differs from the settings of the records that are there. now: those of this run, by field."""
        if records.first is None:
            return
        then, now = records.settings, json.loads(json.dumps(now))  # where tuples are lists
        pairs = {name: (_if_set(then.get(name)), _if_set(now.get(name))) for name in rows if name not in OWN}
        differ = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        changed = [f"{rows[name].name(name)} {_said(old)} (now {_said(new)})" for name, (old, new) in differ.items()]
        if changed:
            told = ", ".join(changed)
            note(
                f"{records.path} was made with other settings: {told}; what it has is kept, the rest is made with these"
            )

    def crew(
        self,
        console: Console,
        work: LinesWork[Made, Info],
        lines: Iterator[Line],
        reader: LineReader,
        records: Records | None,
    ) -> Crew[Line, Made, Info]:
        """Return the workers. records: what is there. Raise GencliError for a cluster that cannot be reached."""
        from gencli.many.crew import Crew
        from gencli.many.processes import Process

        ready = reader.ready if os.name == "posix" else lambda: True
        feed: Feed[Line] = Feed(lines, work.block, shard=self.part, ready=ready)
        each, threads = work.each, self._threads(work.threads)
        if records is not None:
            feed.lines = _compared(feed.lines, records, each)
            feed.missing = lambda line: any(i not in records for i in range(line * each, (line + 1) * each))
        start: Start = Process
        size, close = self.workers or 1, lambda: None
        if self.on is not None:
            from gencli.many.on_ray import Cluster

            cluster = Cluster(self.on, self.workers, threads, self.gpus_per_worker)
            start, size, close, threads = cluster.start, cluster.workers, cluster.close, cluster.threads
        ordered, work = not self.unordered, work.with_threads(threads)
        return Crew(work, feed, start, size, ordered=ordered, note=console.note, close=close)

    def _threads(self, asked: int | None) -> int | None:
        """Return the CPU threads of each worker: those asked for, else a share of this machine's cores."""
        if asked is not None or self.on is not None or self.workers in (None, 1):
            return asked
        own = os.environ.get("OMP_NUM_THREADS", "")
        return max(min(devices.cores() // (self.workers or 1), int(own) if own.isdigit() else 4096), 1)


def shown_answers(
    console: Console, crew: Crew[Line, Made, Info], reader: LineReader, records: Records | None
) -> Iterator[Answer[Line, Made]]:
    """Yield a crew's answers; their number, rate and the time left are on the console. records: what was there. Raise
    GencliError as the crew does."""
    size, count, feed, made = _size(reader), crew.count, crew.feed, False
    try:
        for answer in crew.answers():
            yield answer
            made = made or answer.made is not None or answer.error is not None
            if is_terminal(sys.stdout):
                console.clear()
            tokens = f", {count.tokens / count.seconds:.0f} tokens/s" if count.tokens else ""
            done, total = feed.there + count.done, feed.total(reader.count / size if size else 0)
            left = (total - done) / count.rate if total else None
            console.progress("generating:", done, total, f"{count.rate:.1f} lines/s{tokens}", left)
        if records is not None and feed.there and not made:
            console.note(f"nothing to do: {records.path} has all {counted(feed.there, 'line')} already")
        if feed.read and not feed.own:
            here, one = counted(feed.read, "line"), counted(feed.size, "line")
            console.note(f"nothing to do: this shard has none of the {here}, as a block is {one}: see --shard, --batch")
        if 0 < feed.given < crew.size:
            lines = counted(feed.size, "line")
            console.note(f"only {feed.given} of {crew.size} workers had work, as a block is {lines}: see --batch")
    finally:
        console.clear()


def described(crew: Crew[Line, Made, Info]) -> str:
    """Return what --stats says of a crew."""
    count = crew.count
    died = f"; {counted(count.died, 'worker')} died" if count.died else ""
    tokens = f", {count.tokens / count.seconds:.1f} tokens/s" if count.tokens else ""
    return f"{counted(count.done, 'line')} in {count.seconds:.2f} s, {count.rate:.1f} lines/s{tokens}{died}"


def _compared(lines: Iterator[Line], records: Records, each: int) -> Iterator[Line]:
    """Yield lines. Raise GencliError for one of which there are records of another prompt."""
    for count, line in enumerate(lines):
        prompt = records.prompts.get(count * each, line)
        if prompt != line and isinstance(line, str):
            raise GencliError(
                f"{records.path} is of other prompts: its record {count * each} is of {prompt!r:.80}, "
                f"and line {count + 1} is {line!r:.80}"
            )
        yield line


def _if_set(value: object) -> object:
    """Return a setting, None for one that is off or empty."""
    return None if value is False or value == [] else value


def _said(value: object) -> str:
    """Return a setting as it may be shown."""
    return "not given" if value is None else shorten(json.dumps(value, ensure_ascii=False), 60)


def _size(reader: LineReader) -> int:
    """Return the bytes of stdin if it is a file, else 0."""
    try:
        found = os.fstat(reader.stream.fileno())
    except (OSError, ValueError):
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
