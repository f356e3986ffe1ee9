"""The routes of the server, in OpenAI's form, and what guards them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gencli.errors import GencliError, UsageError
from gencli.serve import answers, bodies, openapi
from gencli.serve.engine import Counts, Drawn, ImageEngine, ImageWork, TextEngine, TextWork, events_of
from gencli.serve.pool import Pool
from gencli.serve.refusal import BUSY, FAILED, INVALID, TOO_LARGE, Refusal, no_model
from gencli.text.generate import Job

T = TypeVar("T")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
log = logging.getLogger("gencli.serve")


@dataclass(frozen=True)
class Limits:
    """queue: requests under way at most. body: its bytes at most. seconds: how long a client may take to send it."""

    queue: int = 64
    body: int = 4 * 2**20
    seconds: float = 30.0


class Server:
    """The application. key: what clients have to show, if anything. hosts: further names that it is called by; any
    name will do with `any_host`, which a server needs that other machines reach by names it does not know."""

    def __init__(
        self, pool: Pool, limits: Limits, key: str | None = None, hosts: tuple[str, ...] = (), *, any_host: bool = False
    ):
        self.pool, self.limits, self.key = pool, limits, key
        self.hosts, self.any_host = {*LOOPBACK, *hosts}, any_host
        self.counts = Counts()

    def app(self) -> Starlette:
        """Return the application for an ASGI server."""
        made = [
            ("/health", self.health, "GET", False),
            ("/metrics", self.metrics, "GET", False),
            ("/openapi.json", self.openapi, "GET", False),
            ("/v1/models", self.models, "GET", False),
            ("/v1/models/{name:path}", self.model, "GET", False),
            ("/v1/completions", self.completions, "POST", True),
            ("/v1/chat/completions", self.chat, "POST", True),
            ("/v1/images/generations", self.images, "POST", True),
            ("/v1/embeddings", self.embeddings, "POST", True),
        ]
        routes = [Route(path, self._guarded(path, end, busy), methods=[way]) for path, end, way, busy in made]
        return Starlette(routes=routes, exception_handlers={HTTPException: _unknown})

    def _guarded(
        self, path: str, endpoint: Callable[[Request], Awaitable[Response]], busy: bool
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that is reached only by whom it is for, and whose errors are answers."""

        async def guarded(request: Request) -> Response:
            try:
                self._admit(request)
                if not busy:
                    response = await endpoint(request)
                else:
                    if self.counts.under_way >= self.limits.queue:
                        message = f"{self.limits.queue} requests are under way: try again later"
                        raise Refusal(BUSY, message, code="queue_full", headers={"Retry-After": "1"})
                    self.counts.under_way += 1
                    response = await self._counted(endpoint, request)
            except Refusal as refusal:
                response = JSONResponse(refusal.body(), refusal.status, refusal.headers)
            except ClientDisconnect:
                response = Response(status_code=499)
            except Exception as error:
                response = _failure(error)
            key = (path, response.status_code)
            self.counts.answers[key] = self.counts.answers.get(key, 0) + 1
            return response

        return guarded

    async def _counted(self, endpoint: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
        """Answer a request, which is under way until its stream has ended."""
        response = None
        try:
            response = await endpoint(request)
        finally:
            if isinstance(response, answers.Stream):
                response.ended = self._end
            else:
                self._end()
        return response

    def _end(self) -> None:
        self.counts.under_way -= 1

    def _admit(self, request: Request) -> None:
        """Raise Refusal for a request by a page of another site, under a name that is not ours, or without the key."""
        server = request.scope.get("server")
        if server is not None and server[1] is not None:  # a Unix socket has no port, and no name to be called by
            name = _host(f"//{request.headers.get('host', '')}")
            if name not in self.hosts and not self.any_host:
                told = f"the Host header names {name!s:.60}, and this server is {' or '.join(sorted(self.hosts))}"
                raise Refusal(403, told, code="wrong_host")
        origin = request.headers.get("origin")
        if origin is not None and (_host(origin) is None or urlsplit(origin).netloc != request.headers.get("host")):
            raise Refusal(403, "pages of other origins are not answered", code="wrong_origin")
        shown = re.sub("^bearer ", "", request.headers.get("authorization", ""), flags=re.IGNORECASE)
        if self.key is not None and not hmac.compare_digest(shown.encode("latin-1"), self.key.encode()):
            told = "the key is missing or wrong, as in Authorization: Bearer KEY"
            raise Refusal(401, told, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bodies.Body:
        """Return the JSON object that a request brings. Raise Refusal."""
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            told = f"the header says Content-Type: {kind[:60]}; a body of JSON is application/json"
            raise Refusal(415, f"{told} (curl: -H 'Content-Type: application/json')")

        async def read() -> bytes:
            data = bytearray()
            async for part in request.stream():
                data += part
                if len(data) > self.limits.body:
                    raise Refusal(TOO_LARGE, f"the body has more than {self.limits.body} bytes")
            return bytes(data)

        try:
            value = json.loads(await asyncio.wait_for(read(), self.limits.seconds))
        except (TimeoutError, asyncio.TimeoutError):
            raise Refusal(408, f"the body did not come within {self.limits.seconds:g} s") from None
        except (ValueError, RecursionError) as error:
            where = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
            raise Refusal(INVALID, f"the body is no JSON{where}") from None
        if not isinstance(value, dict):
            raise Refusal(INVALID, "the body must be a JSON object")
        return value

    async def _model(self, body: bodies.Body) -> str:
        """Return the name of the model that a body asks for, which may be left out where there is one alone."""
        name = body.get("model")
        if name is None and len(known := await asyncio.to_thread(self.pool.names)) == 1:
            return known[0]
        if not isinstance(name, str) or not name:
            raise Refusal(INVALID, "model: wants the name of a model (GET /v1/models lists them)", param="model")
        return name

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "models": sorted({warm.wanted.name for warm in self.pool.warm.values()})})

    async def metrics(self, request: Request) -> Response:
        """The counts in Prometheus' text format."""
        counts = self.counts
        lines = ["# TYPE gencli_requests_total counter"]
        for (path, status), number in sorted(counts.answers.items()):
            lines.append(f'gencli_requests_total{{route="{path}",status="{status}"}} {number}')
        for name in ("prompt_tokens", "completion_tokens", "images", "commands"):
            lines += [f"# TYPE gencli_{name}_total counter", f"gencli_{name}_total {getattr(counts, name)}"]
        lines += ["# TYPE gencli_requests_under_way gauge", f"gencli_requests_under_way {counts.under_way}"]
        lines += ["# TYPE gencli_warm_models gauge", f"gencli_warm_models {len(self.pool.warm)}"]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.page(await asyncio.to_thread(self.pool.names)))

    async def models(self, request: Request) -> Response:
        found = await asyncio.to_thread(lambda: [self._described(name) for name in self.pool.names()])
        return JSONResponse({"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in (known := await asyncio.to_thread(self.pool.names)):
            raise no_model(name, known)
        return JSONResponse(await asyncio.to_thread(self._described, name))

    def _described(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self.pool.written(name), "owned_by": "gencli"}

    async def completions(self, request: Request) -> Response:
        body = await self._body(request)
        stream, name = bodies.wants_stream(body), await self._model(body)
        asked = await asyncio.to_thread(bodies.read_completions, body)  # a schema may take a second to check
        jobs = [Job(one, ids) for one, ids in asked.requests]
        return await self._text(request, name, stream, lambda engine: jobs, chat=False)

    async def chat(self, request: Request) -> Response:
        body = await self._body(request)
        stream, name = bodies.wants_stream(body), await self._model(body)
        asked = await asyncio.to_thread(bodies.read_chat, body)

        def prepare(engine: TextEngine) -> list[Job]:
            format = engine.chat_model.format
            with engine.turn:
                try:
                    prompt = format.prompt(asked.messages, asked.request)
                except UsageError as error:
                    raise Refusal.of(error, status=INVALID, names=asked.names) from None
            ended = dataclasses.replace(asked.request, stop=(*asked.request.stop, *format.stops))
            return [Job(ended, prompt.ids, prompt.reasoning)]

        return await self._text(request, name, stream, prepare, chat=True)

    async def _text(
        self,
        request: Request,
        name: str,
        stream: tuple[bool, bool],
        prepare: Callable[[TextEngine], list[Job]],
        *,
        chat: bool,
    ) -> Response:
        """Answer with text, streamed or whole."""
        answer = answers.Answer(name, chat)
        chunks = self._chunks(name, prepare, answer)
        if not stream[0]:
            await _unless_gone(request, _drain(chunks))
            return JSONResponse(answer.whole())
        first = await anext(chunks, None)  # what is wrong with the request comes before the stream begins

        async def streamed() -> AsyncIterator[bytes]:
            try:
                if first is not None:
                    yield answers.server_sent(first)
                async for chunk in chunks:
                    yield answers.server_sent(chunk)
                if stream[1]:
                    yield answers.server_sent(answer.last())
                yield answers.DONE
            except Exception as error:  # the status has been sent: the stream tells it
                yield answers.server_sent(json.loads(bytes(_failure(error).body)))

        return answers.Stream(streamed(), chunks)

    async def _chunks(
        self, name: str, prepare: Callable[[TextEngine], list[Job]], answer: answers.Answer
    ) -> AsyncGenerator[answers.Body, None]:
        """Yield the objects of a streamed answer as its events come; several prompts are continued side by side."""
        async with self.pool.use(name, TextEngine) as engine:
            try:
                jobs = await asyncio.to_thread(prepare, engine)
            except GencliError as error:
                raise Refusal.of(error, status=INVALID, param="messages") from None
            makes = [partial(TextWork, job=job, chat=answer.chat) for job in jobs]
            async with contextlib.aclosing(events_of(engine, makes)) as events:
                async for number, event in events:
                    assert not isinstance(event, Drawn)
                    for chunk in answer.take(event, number * jobs[number].request.num_samples, number):
                        yield chunk
            self.counts.prompt_tokens += answer.usage()["prompt_tokens"]
            self.counts.completion_tokens += answer.usage()["completion_tokens"]

    async def images(self, request: Request) -> Response:
        body = await self._body(request)
        name = await self._model(body)
        asked = bodies.read_drawing(body, name)
        return await _unless_gone(request, self._drawn(name, asked))

    async def embeddings(self, request: Request) -> Response:
        """Refuse: what programs make of a decoder's states differs from one to the other, and none of the models that
        gencli opens was trained to give one vector for a text."""
        name = await self._model(await self._body(request))
        if name not in (known := await asyncio.to_thread(self.pool.names)):
            raise no_model(name, known)
        message = f"{name[:200]} gives no embeddings: it continues texts or draws"
        raise Refusal(INVALID, message, param="model", code="embeddings_not_supported")

    async def _drawn(self, name: str, asked: bodies.Drawing) -> Response:
        """Draw, and answer once all images are there."""
        async with self.pool.use(name, ImageEngine) as engine:
            try:
                resolved = await asyncio.to_thread(engine.resolve, asked.request)
            except GencliError as error:
                raise Refusal.of(error, status=INVALID, param="prompt", names=asked.names) from None
            images: list[bytes] = []
            make = partial(ImageWork, request=resolved, format=asked.format)
            async with contextlib.aclosing(events_of(engine, [make])) as events:
                async for _, event in events:
                    assert isinstance(event, Drawn)
                    images.append(event.data)
        self.counts.images += len(images)
        return JSONResponse(answers.drawn(images, asked.format))


def _host(address: str) -> str | None:
    """Return the name in an address; None where there is none."""
    try:
        return urlsplit(address).hostname
    except ValueError:  # such as an IPv6 address that does not end
        return None


def _failure(error: Exception) -> JSONResponse:
    """Return the answer that tells an error; one that is no error of gencli's own is logged."""
    if isinstance(error, Refusal):
        return JSONResponse(error.body(), error.status, error.headers)
    if isinstance(error, GencliError):
        return _failure(Refusal.of(error, status=FAILED))
    log.error("a request failed by a defect", exc_info=error)
    return _failure(Refusal(FAILED, f"a defect of gencli: {type(error).__name__}"))


async def _unknown(request: Request, error: Exception) -> Response:
    """Answer for a route or method that is not there."""
    assert isinstance(error, HTTPException)
    headers, path = dict(error.headers or {}), request.url.path[:200]
    told = f"{path} wants {headers['Allow']}" if "Allow" in headers else f"{path} is no route here"
    refusal = Refusal(error.status_code, f"{told} (GET /openapi.json lists all)", headers=headers)
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


async def _drain(chunks: AsyncIterator[object]) -> None:
    async for _ in chunks:
        pass


async def _unless_gone(request: Request, work: Coroutine[object, object, T]) -> T:
    """Await work; when the client leaves first, cancel it and raise ClientDisconnect."""
    task = asyncio.ensure_future(work)

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(leaves())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
