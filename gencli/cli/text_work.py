"""Prompts → texts with one model: what a run of `gencli text` does itself, and what each of its workers does."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gencli import devices
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.find import Source, find
from gencli.cli.console import Console, Relay
from gencli.cli.options import is_typed
from gencli.cli.speed import Speed, note_no_conversation, open_warm_text_model
from gencli.errors import GencliError, UsageError
from gencli.options import given
from gencli.spec import TextSpec
from gencli.text.events import Completion, Event, Failed, GenerationStats, ReasoningDelta, TextDelta
from gencli.text.request import MAX_SEED, TextRequest

if TYPE_CHECKING:
    import numpy as np
    import typer
    from _typeshed import DataclassInstance
    from typing_extensions import Unpack

    from gencli.serve.client import RemoteText
    from gencli.serve.wire import Link
    from gencli.text.conversation import Conversation
    from gencli.text.generate import How
    from gencli.text.load import TextModel

# said elsewhere, or change no text
NO_SETTINGS = {"model", "seed", "device", "threads", "allow_pickle", "json", "null"}
SETTING = 200  # characters of a text that is written out
OF_TEMPLATE = ("think", "chat_template_kwargs", "tools", "messages")  # what a request says of a conversation
REFILLS = 4  # texts in a block for each that is made at a time: a block's last ones leave places empty


def settings_of(*records: DataclassInstance) -> dict[str, object]:
    """Return what was asked for of the settings that make a text what it is, by field and as JSON has them."""
    found: dict[str, object] = {}
    for record in records:
        found |= {name: _plain(value) for name, value in given(record).items() if name not in NO_SETTINGS}
    return found


def _plain(value: object) -> object:
    """Return a setting as JSON has it: of a long text, such as a schema, its digest."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    return text if len(text) <= SETTING else f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def asks_template(ctx: typer.Context, *, looks: bool) -> bool:
    """Return whether the command line asks something of a chat template. Raise UsageError if the model looks at images,
    which it does without one."""
    found = next((name for name in OF_TEMPLATE if is_typed(ctx, name)), None)
    if found and looks:
        raise UsageError(f"--{found.replace('_', '-')} is for chat templates, and cannot be combined with -i/--image")
    return found is not None


def without_template(request: TextRequest) -> TextRequest:
    """Return a request that says nothing of a chat template."""
    return dataclasses.replace(
        request, think=None, chat_template_kwargs=None, tools=None, tool_choice=None, messages=False
    )


def checked(request: TextRequest, prompt: str) -> str:
    """Return a prompt. Raise GencliError, before a model is opened, where it is to be a conversation and is none."""
    if request.messages:
        try:
            _ = dataclasses.replace(request, prompt=prompt).conversation
        except GencliError as error:
            if len(prompt) < 256 and "\0" not in prompt and Path(prompt).is_file():
                error.hint = f"`< {shlex.quote(prompt)}` reads the file"
            raise
    return prompt


@dataclass(frozen=True)
class About:
    """What there is to say of a model that is open. context: in tokens."""

    description: str
    context: int


@dataclass(frozen=True, eq=False, repr=False)
class TextWork:
    """How prompts become texts. conversation: what comes before a prompt that is sent as a message. pixels: images
    (N, 3, H, W) that the prompts are about, with the system prompt."""

    checkpoint: Source
    adapters: Sequence[LoraRef]
    spec: TextSpec
    request: TextRequest
    conversation: Conversation | None
    speed: Speed
    offline: bool
    pixels: np.ndarray | None = None
    system: str | None = None

    @property
    def block(self) -> int:
        """How many lines are a block (see `gencli.many`)."""
        return max(1, REFILLS * self.speed.batch // self.request.num_samples)

    @property
    def each(self) -> int:
        return self.request.num_samples

    @property
    def threads(self) -> int | None:
        return self.spec.threads

    def with_threads(self, threads: int | None) -> TextWork:
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, threads=threads))

    def load(self, console: Console, fetch: Callable[[str], Source], link: Link | None = None) -> Texts:
        """Open the model. fetch: finds one by its name. link: to a server that may do the work. Raise GencliError."""
        model = open_warm_text_model(console, self.checkpoint, self.spec, self.adapters, link)
        if self.conversation is not None:
            note_no_conversation(console, model)
        elif model.converses and self.pixels is None:
            console.note(f"{model.name} is a chat model, but the prompt is sent as it is; --chat sends it as a message")
        self.request.resolve(model.generation_config)  # what is wrong with all of them
        stats = GenerationStats()
        return Texts(self, model, stats, self.speed.ways(console, fetch, model, self.spec, stats))

    def open(self, note: Callable[[str], None], slot: int) -> Texts:
        """Open the model in a worker (see `gencli.many.worker`). Files that lie elsewhere there are found by name."""
        fetch = partial(find, offline=self.offline, allow_pickle=self.spec.allow_pickle)
        checkpoint = self.checkpoint.here(fetch)
        spec = dataclasses.replace(self.spec, device=devices.share(self.spec.device, slot))
        return dataclasses.replace(self, checkpoint=checkpoint, spec=spec).load(Relay(note), fetch)


class Texts:
    """A model that is open, and what it makes of prompts. how: arguments of `answer_all`."""

    def __init__(self, work: TextWork, model: TextModel | RemoteText, stats: GenerationStats, how: How):
        self.request, self.conversation, self.stats, self.how = work.request, work.conversation, stats, how
        self.info, self.load_seconds = About(model.describe(), model.max_length), model.load_seconds
        self.answer_all: Callable[..., Iterator[Event]]
        if hasattr(model, "answer_all"):  # in the server
            self.answer_all = model.answer_all
        elif work.pixels is not None:
            from gencli.text.vision import look

            self.answer_all = look(model, work.pixels, work.system).answer_all
        else:
            from gencli.text.chat import ChatModel, answer_all

            chat_model = None if work.conversation is None else ChatModel(model)
            self.answer_all = partial(answer_all, model, chat_model=chat_model)

    def events(
        self, first: int, prompts: Iterable[str | GencliError], seen: dict[int, str], **how: Unpack[How]
    ) -> Iterator[Event]:
        """Yield the events of a block of prompts, of which `first` is the number of the first one. Each is put into
        `seen` as its turn comes, by its number. Sample i of prompt p has seed + p * samples + i, and that index."""
        shift = first * self.request.num_samples
        requests = self._requests(first, prompts, seen)
        if (guesser := self.how.get("guesser")) is not None:
            guesser.begin()
        both: How = {**self.how, **how}
        for event in self.answer_all(self.request, requests, self.conversation, self.stats, **both):
            if isinstance(event, Failed):
                yield Failed(event.index + shift, event.error, event.following + shift)
            else:
                yield dataclasses.replace(event, index=event.index + shift)

    def answers(self, first: int, lines: Sequence[str | GencliError]) -> Iterator[tuple[int, list[Event], float]]:
        """Yield the events of each line, those of a text after each other (see `gencli.many.worker`)."""
        began, seen, samples = dict[int, float](), dict[int, str](), self.request.num_samples
        found: dict[int, dict[int, list[Event]]] = {}  # line → sample → events

        def timed() -> Iterator[str | GencliError]:
            for number, line in enumerate(lines, first):
                began[number] = time.perf_counter()
                yield line

        for event in self.events(first, timed(), seen):
            if isinstance(event, ReasoningDelta):
                continue
            number = event.index // samples
            events = found.setdefault(number, {}).setdefault(event.index, [])
            if events and isinstance(event, TextDelta) and isinstance(events[-1], TextDelta):
                events[-1] = TextDelta(event.index, events[-1].text + event.text)
            else:
                events.append(event)
            whole = sum(isinstance(one[-1], Completion) for one in found[number].values()) == samples
            if isinstance(event, Failed) or whole:
                of_line = found.pop(number)
                seconds = time.perf_counter() - began[number]
                yield number, [one for index in sorted(of_line) for one in of_line[index]], seconds

    def _requests(
        self, first: int, prompts: Iterable[str | GencliError], seen: dict[int, str]
    ) -> Iterator[TextRequest | GencliError]:
        request, samples = self.request, self.request.num_samples
        for number, prompt in enumerate(prompts, first):
            if isinstance(prompt, GencliError):
                yield prompt
                continue
            seed = (request.seed + number * samples) % (MAX_SEED - samples + 2)
            seen[number] = prompt
            try:
                yield dataclasses.replace(request, prompt=prompt, seed=seed)
            except GencliError as error:
                yield error
