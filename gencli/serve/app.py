"""The routes of the server, in OpenAI's form."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gencli.errors import GencliError
from gencli.serve import answers, anthropic, bodies, edits, openapi, responses_answers
from gencli.serve.engine import Drawn, ImageEngine, ImageWork, TextEngine, events_of
from gencli.serve.guard import Endpoint, Guard, Limits, told, unless_gone
from gencli.serve.ollama import Ollama, tell
from gencli.serve.ollama_models import called
from gencli.serve.pool import Pool
from gencli.serve.refusal import INVALID, Refusal, Tell, no_model
from gencli.serve.responses_bodies import read_responses
from gencli.serve.texts import Asked, Form, answering, asking_about, respond
from gencli.text.generate import Job

FORM = Form("text/event-stream", answers.server_sent, Refusal.body)
Row = tuple[str, Endpoint, str, bool]  # path, endpoint, method, and whether its requests count as under way


def _tell(request: Request) -> Tell:
    """Return how the API of a request writes an error: that of its path, or of its client where both have the path."""
    path = request.url.path
    if path.startswith(anthropic.PATH) or (path.startswith("/v1/models") and "anthropic-version" in request.headers):
        return anthropic.tell
    return tell if path == "/" or path.startswith("/api/") else Refusal.body


class Server(Guard):
    """The application. pool: the models. For all else see `Guard`."""

    def __init__(
        self,
        pool: Pool,
        limits: Limits,
        key: str | None = None,
        hosts: tuple[str, ...] = (),
        *,
        any_host: bool = False,
        origins: tuple[str, ...] = (),
    ):
        super().__init__(limits, key, hosts, any_host=any_host, origins=origins)
        self.pool = pool
        self.ollama = Ollama(pool, self.counts, partial(self.body, any_type=True, images=True))
        self.anthropic = anthropic.Anthropic(pool, self.counts, partial(self.body, images=True), self._model)

    def app(self) -> Starlette:
        """Return the application for an ASGI server."""
        routes: list[Row] = [
            ("/health", self.health, "GET", False),
            ("/metrics", self.metrics, "GET", False),
            ("/openapi.json", self.openapi, "GET", False),
            ("/v1/models", self.models, "GET", False),
            ("/v1/models/{name:path}", self.model, "GET", False),
            ("/v1/completions", self.completions, "POST", True),
            ("/v1/chat/completions", self.chat, "POST", True),
            ("/v1/responses", self.responses, "POST", True),
            ("/v1/images/generations", self.images, "POST", True),
            ("/v1/images/edits", self.edited, "POST", True),
            ("/v1/images/variations", self.varied, "POST", True),
            ("/v1/embeddings", self.embeddings, "POST", True),
        ]
        routes += [*self.ollama.routes(), *self.anthropic.routes()]
        made = [Route(path, self.guarded(path, end, busy, _tell), methods=[way]) for path, end, way, busy in routes]
        return Starlette(routes=made, exception_handlers={HTTPException: self._unknown})

    async def _unknown(self, request: Request, error: Exception) -> Response:
        """Answer for a route or method that is not there."""
        assert isinstance(error, HTTPException)
        headers, path = dict(error.headers or {}), request.url.path[:200]
        what, other = f"{path} is no route here", path.startswith("/api/")
        if "Allow" in headers:
            what = f"{path} wants {headers['Allow']}"
            if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
                return await self.guarded("*", self.asked_first, busy=False)(request)
        more = "" if other else " (GET /openapi.json has all)"
        more = " (leave /v1 out of the base URL)" if path.startswith("/v1/v1/") else more
        refusal = Refusal(error.status_code, f"{what}{more}", headers=headers)
        return self.shared(request, told(refusal, _tell(request)))

    async def _model(self, body: bodies.Body) -> str:
        """Return the name of the model that a body asks for, which may be left out where there is one alone."""
        name = body.get("model")
        if name is None and len(known := await asyncio.to_thread(self.pool.names)) == 1:
            return known[0]
        if not isinstance(name, str) or not name:
            raise Refusal(INVALID, "model: wants the name of a model (GET /v1/models lists them)", param="model")
        return await asyncio.to_thread(self._own_name, name)

    def _own_name(self, name: str) -> str:
        """Return the name of a model that a client may have from ollama's list of them; an unknown one as it is."""
        return name if name in self.pool.names() else self.ollama.models.names().get(called(name), name)

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
        names, page = anthropic.paged(await asyncio.to_thread(self.pool.names), request.query_params)
        found = await asyncio.to_thread(lambda: [self._described(name) for name in names])
        return JSONResponse({"object": "list", "data": found, **page})

    async def model(self, request: Request) -> Response:
        if not (name := await asyncio.to_thread(self._own_name, request.path_params["name"])):
            return await self.models(request)
        if name not in (known := await asyncio.to_thread(self.pool.names)):
            raise no_model(name, known)
        return JSONResponse(await asyncio.to_thread(self._described, name))

    def _described(self, name: str) -> dict[str, object]:
        written = self.pool.written(name)
        own = {"id": name, "object": "model", "created": written, "owned_by": "gencli"}
        return {**own, **anthropic.described(name, written)}

    async def completions(self, request: Request) -> Response:
        body = await self.body(request)
        stream, name = bodies.wants_stream(body), await self._model(body)
        asked = await asyncio.to_thread(bodies.read_completions, body)  # a schema may take a second to check
        jobs = [Job(one, ids) for one, ids in asked.requests]
        answer = answers.Answer(name, chat=False, tells_usage=stream[1])
        asking = Asked(name, lambda engine: jobs, answer, "prompt", bodies.FLAGS)
        return await respond(request, self.pool, self.counts, asking, FORM, stream=stream[0])

    async def chat(self, request: Request) -> Response:
        body = await self.body(request, images=True)
        stream, name = bodies.wants_stream(body), await self._model(body)
        asked = await asyncio.to_thread(bodies.read_chat, body)
        answer = answers.Answer(name, chat=True, tells_usage=stream[1])
        asking = Asked(name, partial(_prepare, asked), answer, "messages", asked.names)
        return await respond(request, self.pool, self.counts, asking, FORM, stream=stream[0])

    async def responses(self, request: Request) -> Response:
        body = await self.body(request, images=True)
        stream, name = bodies.wants_stream(body), await self._model(body)
        asked = await asyncio.to_thread(read_responses, body)
        answer = responses_answers.Answer(name, body)
        form = Form("text/event-stream", answers.named_event, answer.tell)
        asking = Asked(name, partial(_prepare, asked), answer, "input", asked.names)
        return await respond(request, self.pool, self.counts, asking, form, stream=stream[0])

    async def images(self, request: Request) -> Response:
        body = await self.body(request)
        name = await self._model(body)
        return await unless_gone(request, self._drawn(name, bodies.read_drawing(body, name)))

    async def edited(self, request: Request) -> Response:
        return await self._edit(request, varies=False)

    async def varied(self, request: Request) -> Response:
        return await self._edit(request, varies=True)

    async def _edit(self, request: Request, *, varies: bool) -> Response:
        parts = await self.form(request)
        said = {part.name: part.text for part in parts if part.name == "model"}
        name = await self._model(said)
        edit = await asyncio.to_thread(edits.read_edit, parts, name, varies=varies)
        return await unless_gone(request, self._drawn(name, edit.drawing, edit, varies=varies))

    async def embeddings(self, request: Request) -> Response:
        """Refuse: what programs make of a decoder's states differs from one to the other, and none of the models that
        gencli opens was trained to give one vector for a text."""
        name = await self._model(await self.body(request))
        if name not in (known := await asyncio.to_thread(self.pool.names)):
            raise no_model(name, known)
        message = f"{name[:200]} gives no embeddings: it continues texts or draws"
        raise Refusal(INVALID, message, param="model", code="embeddings_not_supported")

    async def _drawn(
        self, name: str, asked: bodies.Drawing, edit: edits.Edit | None = None, *, varies: bool = False
    ) -> Response:
        """Draw, and answer once all images are there. edit: what it begins from; varies: in a route of variations."""
        async with self.pool.use(name, ImageEngine) as engine:
            wanted, inputs = asked.request, engine.inputs
            if varies:
                edits.check_varies(engine.opened)
            if edit is not None:
                wanted, inputs = edits.begin(edit, engine.opened, inputs)
            try:
                resolved = await asyncio.to_thread(engine.resolve, wanted, inputs)
            except GencliError as error:
                param = "image" if edit else "prompt"
                raise Refusal.of(error, status=INVALID, param=param, names=asked.names) from None
            edits.check_size(resolved)
            images: list[bytes] = []
            make = partial(ImageWork, request=resolved, inputs=inputs, format=asked.format)
            async with contextlib.aclosing(events_of(engine, [make])) as events:
                async for _, event in events:
                    assert isinstance(event, Drawn)
                    images.append(event.data)
        self.counts.images += len(images)
        return JSONResponse(answers.drawn(images, asked.format))


def _prepare(asked: bodies.Chat, engine: TextEngine) -> list[Job]:
    """Return the job of answering a chat. Raise Refusal, GencliError."""
    if asked.images:
        return [asking_about(engine, asked.request, asked.messages, asked.images)]
    return [answering(engine, asked.request, asked.messages, asked.names)]
