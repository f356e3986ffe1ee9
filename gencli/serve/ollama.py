"""ollama's routes (github.com/ollama/ollama, docs/api.md), over the same models, requests and engines as OpenAI's."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from gencli import __version__
from gencli.serve import ollama_bodies as bodies
from gencli.serve.bodies import Body
from gencli.serve.engine import Counts, TextEngine
from gencli.serve.ollama_answers import Answer, line
from gencli.serve.ollama_models import Models
from gencli.serve.pool import Pool
from gencli.serve.refusal import INVALID, Refusal
from gencli.serve.texts import Asked, Form, answering, asking_about, respond
from gencli.text.generate import Job
from gencli.text.request import TextRequest
from gencli.text.wishes import OFF, ON

SPEAKS = "0.12.0"  # the version of ollama whose API this is: clients ask for a least one
READ = Callable[[Request], Awaitable[Body]]


def tell(refusal: Refusal) -> dict[str, object]:
    """Return an error as ollama writes it."""
    message = refusal.body()["error"]["message"] or ""
    return {"error": message.replace("/v1/models", "/api/tags")}


FORM = Form("application/x-ndjson", line, tell)
# Routes that change what ollama keeps, and what does so here.
REFUSED = {
    "/api/pull": "`gencli models pull NAME` downloads a model",
    "/api/push": "nothing is uploaded",
    "/api/create": "`gencli models convert` writes one",
    "/api/copy": "`gencli serve -m` names a model",
    "/api/delete": "`gencli models rm NAME` removes one",
    "/api/blobs/{digest}": "`gencli models pull NAME` downloads a model",
}


class Ollama:
    """The routes. read: reads a body of JSON."""

    def __init__(self, pool: Pool, counts: Counts, read: READ):
        self.pool, self.counts, self.read = pool, counts, read
        self.models = Models(pool)

    def routes(self) -> list[tuple[str, Callable[[Request], Awaitable[Response]], str, bool]]:
        """Return path, endpoint, method, and whether its requests count as under way, of each."""
        changes = [(path, self.refuse, way, False) for path in REFUSED for way in ("POST", "DELETE", "HEAD")]
        return [
            ("/", self.root, "GET", False),
            ("/api/version", self.version, "GET", False),
            ("/api/tags", self.tags, "GET", False),
            ("/api/ps", self.loaded, "GET", False),
            ("/api/show", self.show, "POST", True),
            ("/api/generate", self.generate, "POST", True),
            ("/api/chat", self.chat, "POST", True),
            ("/api/embed", self.embed, "POST", True),
            ("/api/embeddings", self.embed, "POST", True),
            *changes,
        ]

    async def root(self, request: Request) -> Response:
        return PlainTextResponse("gencli serve is running, and speaks the APIs of OpenAI, Anthropic and ollama")

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": SPEAKS, "gencli": __version__})

    async def tags(self, request: Request) -> Response:
        return JSONResponse({"models": await asyncio.to_thread(self.models.tags)})

    async def loaded(self, request: Request) -> Response:
        return JSONResponse({"models": await asyncio.to_thread(self.models.loaded)})

    async def show(self, request: Request) -> Response:
        name = await self._find(bodies.read_name(await self.read(request)))
        return JSONResponse(await asyncio.to_thread(self.models.show, name))

    async def generate(self, request: Request) -> Response:
        return await self._answer(request, bodies.read_generate, talks=False)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, bodies.read_chat, talks=True)

    async def embed(self, request: Request) -> Response:
        """Refuse, as /v1/embeddings does."""
        name = bodies.read_name(await self.read(request))
        await self._find(name)
        raise Refusal(501, f"{name[:200]} gives no embeddings: it continues texts", param="model")

    async def refuse(self, request: Request) -> Response:
        path = request.url.path
        why = REFUSED.get(path, REFUSED["/api/blobs/{digest}"])
        raise Refusal(501, f"{path[:60]} is not supported: {why}")

    async def _find(self, name: str) -> str:
        return await asyncio.to_thread(self.models.find, name)

    async def _answer(self, request: Request, read: Callable[[Body], bodies.Asked], *, talks: bool) -> Response:
        """Continue a prompt, or answer a conversation; without either, load the model or let it go."""
        asked = await asyncio.to_thread(read, await self.read(request))  # a schema may take a second to check
        name = await self._find(asked.model)
        if asked.messages is None and not (asked.raw and asked.request.prompt):
            return await self._load(name, asked, Answer(asked.model, chat=False, talks=talks))
        answer = Answer(asked.model, chat=not asked.raw, talks=talks)

        def prepare(engine: TextEngine) -> list[Job]:
            answer.ready()
            if asked.images:
                return [asking_about(engine, asked.request, asked.messages or [], asked.images)]
            if asked.raw or (not talks and not engine.model.converses):
                answer.chat = False
                return [Job(_continued(asked))]
            assert asked.messages is not None
            try:
                return [answering(engine, asked.request, asked.messages, asked.names)]
            except Refusal as refusal:
                raise _no_thinking(asked, refusal) from None

        param = "messages" if talks else "prompt"
        asking = Asked(name, prepare, answer, param, asked.names, asked.keep)
        return await respond(request, self.pool, self.counts, asking, FORM, stream=asked.stream)

    async def _load(self, name: str, asked: bodies.Asked, answer: Answer) -> Response:
        if asked.keep == 0:
            wanted = await asyncio.to_thread(self.pool.wanted, name)
            self.pool.let_go(wanted.text or wanted)
            return JSONResponse(answer.empty("unload"))
        async with self.pool.use(name, TextEngine, keep=asked.keep):
            return JSONResponse(answer.empty("load"))


def _no_thinking(asked: bodies.Asked, refusal: Refusal) -> Refusal:
    """Return a refusal in the words by which clients know that a model does not think, if it says that."""
    if refusal.param == "tools":
        refusal.message = f"{asked.model[:200]} does not support tools: {refusal.message}"
    if refusal.param == "think" and asked.request.think == ON:
        refusal.message = f"{asked.model[:200]} does not support thinking: {refusal.message}"
    return refusal


def _continued(asked: bodies.Asked) -> TextRequest:
    """Return the request that continues a prompt of a model without a chat template: a system's word stands before it,
    as it does in a transcript. Raise Refusal for a wish that only a template could follow."""
    if asked.request.think not in (None, OFF):
        raise _no_thinking(asked, Refusal(INVALID, "it has no chat template", param="think"))
    if asked.raw:
        return dataclasses.replace(asked.request, think=None)
    text = "\n\n".join(message["content"] for message in asked.messages or ())
    return dataclasses.replace(asked.request, prompt=text, think=None)
