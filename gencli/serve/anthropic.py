"""Anthropic's Messages API (platform.claude.com/docs/en/api), over the same models and engines as OpenAI's."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timezone

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gencli.errors import GencliError
from gencli.json_files import shown
from gencli.serve.answers import named_event
from gencli.serve.anthropic_answers import Answer
from gencli.serve.anthropic_bodies import NO_THREADS, Asked, read_body
from gencli.serve.bodies import Body
from gencli.serve.engine import Counts, TextEngine
from gencli.serve.guard import unless_gone
from gencli.serve.pool import Pool
from gencli.serve.refusal import BUSY, FAILED, INVALID, NOT_FOUND, TOO_LARGE, UNAVAILABLE, Refusal
from gencli.serve.texts import Asked as Asking
from gencli.serve.texts import Form, answering, asking_about, respond
from gencli.serve.values import note
from gencli.text.generate import Job, prompt_ids

PATH = "/v1/messages"
KINDS = {  # of errors, by status; others of the server are api_error, others of the client invalid_request_error
    401: "authentication_error", 403: "permission_error", NOT_FOUND: "not_found_error", TOO_LARGE: "request_too_large",
    BUSY: "rate_limit_error", UNAVAILABLE: "overloaded_error",
}  # fmt: skip
PAGE = 1000  # models of a page, at most
Route = tuple[str, Callable[[Request], Awaitable[Response]], str, bool]


def tell(refusal: Refusal) -> dict[str, object]:
    """Return an error as that API writes it."""
    usual = "api_error" if refusal.status >= FAILED else "invalid_request_error"
    told: dict[str, object] = {"type": KINDS.get(refusal.status, usual), "message": refusal.body()["error"]["message"]}
    if refusal.code == NO_THREADS:  # by which a client knows that it has to send the whole conversation
        told["details"] = {"error_code": refusal.code}
    return {"type": "error", "error": told}


FORM = Form("text/event-stream", named_event, tell, named_event({"type": "ping"}))


class Anthropic:
    """The routes. read: reads a body of JSON. find: returns the name here of the model that a body asks for."""

    def __init__(
        self,
        pool: Pool,
        counts: Counts,
        read: Callable[[Request], Awaitable[Body]],
        find: Callable[[Body], Awaitable[str]],
    ):
        self.pool, self.counts, self.read, self.find = pool, counts, read, find

    def routes(self) -> list[Route]:
        """Return path, endpoint, method, and whether its requests count as under way, of each."""
        return [(PATH, self.messages, "POST", True), (f"{PATH}/count_tokens", self.count, "POST", True)]

    async def messages(self, request: Request) -> Response:
        body = await self.read(request)
        name = await self.find(body)
        asked = await asyncio.to_thread(read_body, body)  # a schema may take a second to check
        answer = Answer(name, asked.request.stop, asked.shows, asked.request.max_tokens)

        def prepare(engine: TextEngine) -> list[Job]:
            job, answer.prompt_tokens = _prepare(engine, asked)
            context = engine.model.max_length
            if answer.prompt_tokens >= context and asked.request.truncate is None:  # in the words that agents look for
                told = f"prompt is too long: {answer.prompt_tokens} tokens > {context - 1} maximum"
                raise Refusal(INVALID, told, param="messages")
            return [job]

        asking = Asking(name, prepare, answer, "messages", asked.names)
        return await respond(request, self.pool, self.counts, asking, FORM, stream=asked.stream)

    async def count(self, request: Request) -> Response:
        body = await self.read(request)
        name = await self.find(body)
        asked = await asyncio.to_thread(read_body, body, counts=True)
        return JSONResponse({"input_tokens": await unless_gone(request, self._count(name, asked))})

    async def _count(self, name: str, asked: Asked) -> int:
        async with self.pool.use(name, TextEngine) as engine:
            return (await asyncio.to_thread(_prepare, engine, asked))[1]


def _prepare(engine: TextEngine, asked: Asked) -> tuple[Job, int]:
    """Return the job of answering a conversation, and the tokens of its prompt. Raise Refusal."""
    try:
        if asked.images:
            job = asking_about(engine, asked.request, asked.messages, asked.images)
        else:
            job = _answering(engine, asked)
        return job, len(prompt_ids(engine.model, job.request, job.ids))
    except GencliError as error:
        raise Refusal.of(error, status=INVALID, param="messages", names=asked.names) from None


def _answering(engine: TextEngine, asked: Asked) -> Job:
    """Return the job of answering with the effort that is asked for, or without where the model knows no such. Raise
    Refusal, GencliError."""
    if asked.effort is not None:
        try:
            request = dataclasses.replace(asked.request, think=asked.effort)
            return answering(engine, request, asked.messages, asked.names)
        except Refusal as refusal:
            if refusal.param != asked.names["--think"]:
                raise
            note(f"{engine.model.name} knows no effort {asked.effort}, which is passed over")
    return answering(engine, asked.request, asked.messages, asked.names)


def described(name: str, written: int) -> dict[str, object]:
    """Return what that API says of a model beside what OpenAI's does. written: seconds of its files' time."""
    created = datetime.fromtimestamp(written, timezone.utc).isoformat().replace("+00:00", "Z")
    return {"type": "model", "display_name": name, "created_at": created, "lifecycle": "active"}


def paged(names: Sequence[str], query: Mapping[str, str]) -> tuple[Sequence[str], dict[str, object]]:
    """Return the models of the page that a query asks for, and what says where it is; all without a query. Raise
    Refusal."""
    for key in ("after_id", "before_id"):
        if key in query and query[key] not in names:
            raise Refusal(INVALID, f"{key} {shown(query[key])}: there is no such model", param=key)
    limit = query.get("limit", str(PAGE))
    if not re.fullmatch("[0-9]{1,4}", limit) or not 0 < int(limit) <= PAGE:
        raise Refusal(INVALID, f"limit {shown(limit)}: wants a whole number from 1 to {PAGE}", param="limit")
    most = int(limit) if "limit" in query else len(names)
    if "before_id" in query:
        end = names.index(query["before_id"])
        first = max(end - most, 0)
        more = first > 0
    else:
        first = names.index(query["after_id"]) + 1 if "after_id" in query else 0
        end = first + most
        more = end < len(names)
    found = names[first:end]
    return found, {"has_more": more, "first_id": found[0] if found else None, "last_id": found[-1] if found else None}
