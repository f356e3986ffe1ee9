"""What guards a server's routes: slow, large and foreign requests, keys, and pages of other origins."""

import asyncio

import httpx
import pytest

from gencli.serve.app import Server
from gencli.serve.refusal import no_model
from tests.tiny.server import make_server, post


@pytest.fixture
def server() -> Server:
    return make_server()


def test_a_body_that_comes_slowly(server):
    async def trickle():
        for _ in range(100):
            yield b" "
            await asyncio.sleep(0.02)

    answer = post(server, content=trickle(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 408 and "0.2 s" in answer.json()["error"]["message"]
    assert server.counts.under_way == 0


def test_a_body_that_is_too_large_is_not_read_to_its_end(server):
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 600
            yield b"x" * 600

    answer = post(server, content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413 and sent <= 3000


def test_a_full_queue_tells_when_to_come_again(server):
    server.counts.under_way = 2
    answer = post(server, json={"model": "stories", "prompt": "a"})
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["type"] == "rate_limit_error" and server.counts.under_way == 2


@pytest.mark.parametrize("header", ["Host", "Origin"])
def test_an_address_that_is_none_is_refused(server, header):
    answer = post(server, "http://localhost:8080", json={"model": "stories"}, headers={header: "http://[::1"})
    assert answer.status_code == 403 and post(server, "http://localhost:8080", json={"model": "x"}).status_code == 404


def options(server: Server, path: str, **headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(server.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
            return await client.options(path, headers=headers)

    return asyncio.run(ask())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/v1/models"])
def test_pages_that_are_named_may_ask_first_and_read_all_answers(server, path):
    """As browsers do it: the question has no key, the request does, and a page reads no error without the header."""
    page, server.key, server.origins = "http://localhost:3000", "secret-secret", frozenset(["http://localhost:3000"])
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    answer = options(server, path, Origin=page, **asks, **{"Access-Control-Request-Private-Network": "true"})
    allowed = {
        name[len("access-control-allow-") :]: value for name, value in answer.headers.items() if "allow-" in name
    }
    assert answer.status_code == 204 and answer.headers["vary"] == "Origin"
    assert allowed == {
        "origin": page, "methods": "POST", "headers": "authorization,content-type", "private-network": "true",
    }  # fmt: skip
    for origin in ("http://localhost:3001", "null", "http://localhost:3000.evil.example"):
        refused = options(server, path, Origin=origin, **asks)
        assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers
    for headers, status in (({}, 401), ({"Authorization": "Bearer secret-secret"}, 405 if "models" in path else 400)):
        answer = post(server, "http://localhost:8080", path, json=[], headers={"Origin": page, **headers})
        status = 405 if path == "/v1/models" else status
        assert answer.status_code == status and answer.headers["access-control-allow-origin"] == page
    assert options(server, "/nosuch", Origin=page, **asks).status_code == 404
    assert options(server, path, Host="evil.example", Origin=page, **asks).status_code == 403


def test_a_key_may_have_any_letters(server):
    server.key = "schlüssel-und-riegel"
    for shown, status in ((server.key, 404), ("schlussel-und-riegel", 401)):
        headers = {"Authorization": f"Bearer {shown}".encode()}
        assert post(server, json={"model": "none"}, headers=headers).status_code == status


def test_what_a_client_gets_wrong_about_routes_is_told(server):
    """The route, its method, the type of the body, the key: what is wrong, and what is wanted."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert "Content-Type: application/json" in post(server, content=b"{}", headers=form).json()["error"]["message"]
    unknown = post(server, path="/v1/answers", json={})
    assert (
        unknown.status_code == 404
        and "/v1/answers is no route here (GET /openapi" in unknown.json()["error"]["message"]
    )
    wrong = post(server, path="/v1/models", json={})
    assert wrong.status_code == 405 and "GET" in wrong.headers["Allow"] and "GET" in wrong.json()["error"]["message"]
    missing = post(server, json={"model": "none"})
    assert missing.status_code == 404 and "GET /v1/models lists" in missing.json()["error"]["message"]
    for said, meant in (("storys", "stories"), ("tale", "ollama:tale")):
        told = no_model(said, ["emoji", "stories", "ollama:tale"]).message
        assert told == f"no model {said!r} here (did you mean {meant}? GET /v1/models lists those that are)"
    near = post(server, json={"model": "storis"}).json()["error"]["message"]
    assert "did you mean stories?" in near
    server.key = "secret-secret"
    refused = post(server, json={})
    assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == "Bearer"
    assert "Authorization: Bearer" in refused.json()["error"]["message"]
    for shown in ("bearer secret-secret", "Bearer secret-secret", "secret-secret"):
        headers = {"Authorization": shown, "Content-Type": "Application/JSON; charset=utf-8"}
        assert post(server, content=b"{}", headers=headers).status_code == 400
    broken = post(server, content=b"{'model': 5}", headers=headers)
    assert "no JSON: Expecting property name enclosed in double quotes: line 1" in broken.json()["error"]["message"]
    empty = post(server, content=b"", headers=headers)
    assert empty.status_code == 400 and empty.json()["error"]["message"].startswith("there is no body")
    other = post(server, url="http://elsewhere:8080", json={})
    assert other.status_code == 403 and "elsewhere" in other.json()["error"]["message"]
    assert "localhost" in other.json()["error"]["message"]
