"""What guards the routes: whom they are for, how much of it, and that every error is an answer."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from gencli.errors import GencliError
from gencli.serve import answers, bodies
from gencli.serve.engine import Counts
from gencli.serve.multipart import Part, read_parts
from gencli.serve.refusal import BUSY, FAILED, INVALID, TOO_LARGE, UNAVAILABLE, Refusal, Tell

T = TypeVar("T")
JSON, FORM = "application/json", "multipart/form-data"
ANY = "*"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
Endpoint = Callable[[Request], Awaitable[Response]]
log = logging.getLogger("gencli.serve")


@dataclass(frozen=True)
class Limits:
    """queue: requests under way at most. body, form: bytes at most, of a body of JSON and of a form with files.
    seconds: how long a client may take to send it."""

    queue: int = 64
    body: int = 4 * 2**20
    form: int = 64 * 2**20
    seconds: float = 30.0


def openai(request: Request) -> Tell:
    """Return what writes errors in OpenAI's form."""
    return Refusal.body


class Guard:
    """What stands before the routes. key: what clients have to show, if anything. hosts: further names that the server
    is called by; any name will do with `any_host`, which a server needs that other machines reach by names it does not
    know. origins: of further web pages that are answered; ANY is all."""

    def __init__(
        self,
        limits: Limits,
        key: str | None = None,
        hosts: tuple[str, ...] = (),
        *,
        any_host: bool = False,
        origins: tuple[str, ...] = (),
    ):
        self.limits, self.key, self.origins = limits, key, frozenset(origins)
        self.hosts, self.any_host = {*LOOPBACK, *hosts}, any_host
        self.counts = Counts()

    def guarded(self, path: str, endpoint: Endpoint, busy: bool, tells: Callable[[Request], Tell] = openai) -> Endpoint:
        """Return an endpoint that is reached only by whom it is for, and whose errors are answers. busy: whether its
        requests count as under way. tells: returns what writes the errors of a request."""

        async def answer(request: Request) -> Response:
            tell = tells(request)
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
            except ClientDisconnect:
                response = Response(status_code=499)
            except asyncio.CancelledError:  # the server ends, and waits no longer
                response = told(Refusal(UNAVAILABLE, "the server ends"), tell)
            except Exception as error:
                response = told(failure(error), tell)
            key = (path, response.status_code)
            self.counts.answers[key] = self.counts.answers.get(key, 0) + 1
            return self.shared(request, response)

        return answer

    async def _counted(self, endpoint: Endpoint, request: Request) -> Response:
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
                what = f"the Host header names {name!s:.60}, and this server is {' or '.join(sorted(self.hosts))}"
                raise Refusal(403, what, code="wrong_host")
        origin = request.headers.get("origin")
        own = origin is None or (_host(origin) is not None and urlsplit(origin).netloc == request.headers.get("host"))
        if not own and not self._is_allowed(request):
            what = "pages of other origins are not answered (gencli serve --allow-origin names some that are)"
            raise Refusal(403, what, code="wrong_origin")
        if request.method == "OPTIONS":  # by which a browser asks first; it shows no key, as the request itself will
            return
        bearer = re.sub("^bearer ", "", request.headers.get("authorization", ""), flags=re.IGNORECASE)
        shown = (bearer, request.headers.get("x-api-key", ""))  # the second as Anthropic's clients show it
        right = None if self.key is None else self.key.encode()
        if right is not None and not any(hmac.compare_digest(one.encode("latin-1"), right) for one in shown):
            what = "the key is missing or wrong, as in Authorization: Bearer KEY or x-api-key: KEY"
            raise Refusal(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def shared(self, request: Request, response: Response) -> Response:
        """Return an answer that a page of another origin may read, if the server is for it (Fetch standard, CORS)."""
        if self._is_allowed(request):
            response.headers["Access-Control-Allow-Origin"] = request.headers["origin"]
            response.headers["Access-Control-Expose-Headers"] = "Retry-After"
            response.headers["Vary"] = "Origin"
        return response

    async def asked_first(self, request: Request) -> Response:
        """Answer a browser that asks whether a page of another origin may send a request."""
        headers = {
            "Access-Control-Allow-Methods": request.headers["access-control-request-method"],
            "Access-Control-Allow-Headers": request.headers.get("access-control-request-headers", "*"),
            "Access-Control-Max-Age": "600",
        }
        if request.headers.get("access-control-request-private-network") == "true":  # from a public page, to here
            headers["Access-Control-Allow-Private-Network"] = "true"
        return Response(status_code=204, headers=headers)

    def _is_allowed(self, request: Request) -> bool:
        """Return whether a request comes from a page of another origin that the server is for."""
        origin = request.headers.get("origin")
        return origin is not None and (origin in self.origins or ANY in self.origins)

    async def body(self, request: Request, *, any_type: bool = False, images: bool = False) -> bodies.Body:
        """Return the JSON object that a request brings. any_type: whatever its header says, as curl's usual one; pages
        of other origins are told by another header. images: it may be as large as a form. Raise Refusal."""
        kind = request.headers.get("content-type", JSON)
        if _kind(kind) != JSON and not any_type:
            what = f"the header says Content-Type: {_kind(kind)}; a body of JSON is {JSON}"
            raise Refusal(415, f"{what} (curl: -H 'Content-Type: {JSON}')")
        data = await self._read(request, self.limits.form if images else self.limits.body)
        if not data:
            raise Refusal(INVALID, "there is no body: it must be a JSON object")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            where = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
            where = ": it is nested too deeply" if isinstance(error, RecursionError) else where
            raise Refusal(INVALID, f"the body is no JSON{where}") from None
        if not isinstance(value, dict):
            raise Refusal(INVALID, "the body must be a JSON object")
        return value

    async def form(self, request: Request) -> list[Part]:
        """Return the fields of the form that a request brings. Raise Refusal."""
        kind = request.headers.get("content-type", JSON)
        if _kind(kind) != FORM:
            what = f"the header says Content-Type: {_kind(kind)}; images come in a form, {FORM}"
            raise Refusal(415, f"{what} (curl: -F image=@photo.png)")
        data = await self._read(request, self.limits.form)
        return await asyncio.to_thread(read_parts, data, kind)

    async def _read(self, request: Request, most: int) -> bytes:
        """Return a body of so many bytes at most. Raise Refusal."""

        async def read() -> bytes:
            data = bytearray()
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise Refusal(TOO_LARGE, f"the body has more than {most} bytes")
            return bytes(data)

        try:
            return await asyncio.wait_for(read(), self.limits.seconds)
        except (TimeoutError, asyncio.TimeoutError):
            raise Refusal(408, f"the body did not come within {self.limits.seconds:g} s") from None


def _kind(header: str) -> str:
    """Return the type that a Content-Type header says, no more than its beginning."""
    return header.partition(";")[0].strip().lower()[:60]


def _host(address: str) -> str | None:
    """Return the name in an address; None where there is none."""
    try:
        return urlsplit(address).hostname
    except ValueError:  # such as an IPv6 address that does not end
        return None


def failure(error: Exception) -> Refusal:
    """Return the refusal that tells an error; one that is no error of gencli's own is logged."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, GencliError):
        return Refusal.of(error, status=FAILED)
    log.error("a request failed by a defect", exc_info=error)
    return Refusal(FAILED, f"a defect of gencli: {type(error).__name__}")


def told(refusal: Refusal, tell: Tell = Refusal.body) -> Response:
    """Return the answer that tells a refusal."""
    return JSONResponse(tell(refusal), refusal.status, refusal.headers)


async def unless_gone(request: Request, work: Coroutine[object, object, T]) -> T:
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
