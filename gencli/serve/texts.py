"""Requests for text → answers, whole or streamed, in the form of one API or another."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gencli.errors import GencliError, UsageError
from gencli.serve.answers import Stream
from gencli.serve.engine import Counts, Drawn, TextEngine, TextWork, events_of
from gencli.serve.guard import failure, unless_gone
from gencli.serve.pool import Pool
from gencli.serve.refusal import INVALID, Refusal, Tell
from gencli.serve.seeing import ask
from gencli.text.events import Completion, Event
from gencli.text.generate import Job
from gencli.text.messages import Message
from gencli.text.request import TextRequest

Told = Mapping[str, object]  # a JSON object
C_co = TypeVar("C_co", bound=Told, covariant=True)
SILENCE = 10.0  # seconds in a stream; clients and what is between may wait no longer than 60
Prepare = Callable[[TextEngine], list[Job]]


class Answer(Protocol[C_co]):
    """The answer to a request, as its events come. chat: whether the ends of turns end it."""

    chat: bool

    def take(self, event: Event, first: int, prompt: int) -> Iterable[C_co]:
        """Take an event of a prompt whose choices begin at `first`. Return the objects to stream for it."""

    def whole(self) -> Told:
        """Return the answer in one object."""

    def last(self) -> Iterable[bytes]:
        """Return what ends a stream."""


@dataclass(frozen=True)
class Form:
    """How an API writes. media: the type of a stream. line: writes an object of it. tell: writes an error. pulse: what
    says in a stream that there is more to come, whenever nothing has come for a while."""

    media: str
    line: Callable[[Told], bytes]
    tell: Tell
    pulse: bytes = b""


@dataclass(frozen=True)
class Asked(Generic[C_co]):
    """A request for text. model: its name. prepare: what is to be continued. param: what is wrong where that cannot be
    made of it. names: as `Refusal.of`. keep: seconds after which the model may go, if the client says it."""

    model: str
    prepare: Prepare
    answer: Answer[C_co]
    param: str
    names: Mapping[str, str]
    keep: float | None = None


async def respond(
    request: Request, pool: Pool, counts: Counts, asked: Asked[C_co], form: Form, *, stream: bool
) -> Response:
    """Answer with text, streamed or whole. Raise Refusal."""
    chunks = _chunks(pool, counts, asked)
    if not stream:
        await unless_gone(request, _drain(chunks))
        return JSONResponse(asked.answer.whole())
    source: AsyncGenerator[C_co | None, None] = beating(chunks, SILENCE) if form.pulse else chunks
    first = await anext(source, None)  # what is wrong with the request comes before the stream begins

    async def streamed() -> AsyncIterator[bytes]:
        try:
            yield form.pulse if first is None else form.line(first)
            async for chunk in source:
                yield form.pulse if chunk is None else form.line(chunk)
            for data in asked.answer.last():
                yield data
        except Exception as error:  # the status has been sent: the stream tells it
            yield form.line(form.tell(failure(error)))

    return Stream(streamed(), source, form.media)


async def beating(chunks: AsyncGenerator[C_co, None], silence: float) -> AsyncGenerator[C_co | None, None]:
    """Yield chunks as they come, and None whenever none has come for so many seconds. Closing it closes them."""
    coming: asyncio.Future[C_co] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(chunks))
            if not (await asyncio.wait({coming}, timeout=silence))[0]:
                yield None
                continue
            came, coming = coming, None
            try:
                chunk = came.result()
            except StopAsyncIteration:
                return
            yield chunk
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await chunks.aclose()


async def _chunks(pool: Pool, counts: Counts, asked: Asked[C_co]) -> AsyncGenerator[C_co, None]:
    """Yield the objects of a streamed answer as its events come; several prompts are continued side by side."""
    answer = asked.answer
    async with pool.use(asked.model, TextEngine, keep=asked.keep) as engine:
        try:
            jobs = await asyncio.to_thread(asked.prepare, engine)
        except GencliError as error:
            raise Refusal.of(error, status=INVALID, param=asked.param) from None
        make = partial(TextWork, chat=answer.chat, param=asked.param, names=asked.names)
        makes = [partial(make, job=job) for job in jobs]
        async with contextlib.aclosing(events_of(engine, makes)) as events:
            async for number, event in events:
                assert not isinstance(event, Drawn)
                if isinstance(event, Completion):
                    counts.completion_tokens += event.completion_tokens
                    counts.prompt_tokens += 0 if event.index else event.prompt_tokens
                for chunk in answer.take(event, number * jobs[number].request.num_samples, number):
                    yield chunk


def answering(engine: TextEngine, request: TextRequest, messages: list[Message], names: Mapping[str, str]) -> Job:
    """Return the job of answering a conversation. names: as `Refusal.of`. Raise Refusal, GencliError."""
    format = engine.chat_model.format
    with engine.turn:
        try:
            prompt = format.prompt(messages, request)
        except UsageError as error:
            raise Refusal.of(error, status=INVALID, names=names) from None
    ended = dataclasses.replace(request, stop=(*request.stop, *format.stops))
    return Job(ended, prompt.ids, prompt.reasoning)


def asking_about(engine: TextEngine, request: TextRequest, messages: list[Message], images: Sequence[bytes]) -> Job:
    """Return the job of answering a question about images. Raise GencliError."""
    with engine.turn:
        return ask(engine.model, request, messages, images)


async def _drain(chunks: AsyncIterator[object]) -> None:
    async for _ in chunks:
        pass
