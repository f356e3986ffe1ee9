"""The application of the server by itself, without a socket: what is refused before a model is asked for."""

import asyncio
import dataclasses
import itertools
import json
import os
import threading
import time
from pathlib import Path

import httpx
import pytest

from gencli.checkpoints.find import find
from gencli.errors import GencliError, UsageError
from gencli.serve import wire
from gencli.serve.app import Server
from gencli.serve.engine import Engine, Turns
from gencli.serve.guard import Limits
from gencli.serve.pool import Wanted, text_model
from gencli.spec import ModelSpec
from gencli.text.events import Completion, Failed, Logprobs, TextDelta
from gencli.text.request import TextRequest
from tests.tiny.server import make_server, post


@pytest.fixture
def server() -> Server:
    return make_server()


def test_models_are_as_old_as_their_files(server):
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(server.app()), base_url="http://localhost"
        ) as client:
            return await client.get("/v1/models")

    made = {one["id"]: one["created"] for one in asyncio.run(ask()).json()["data"]}
    assert made["stories"] == int(find("stories").path.stat().st_mtime)


def test_text_that_is_no_unicode_is_told(server):
    """The answer is UTF-8, whatever the request was."""
    for body in (b'{"model": "stories", "temperature": "\\ud800"}', b'{"model": "stories", "\\ud800": 1}'):
        answer = post(server, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and "\\ud800" in answer.json()["error"]["message"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"size": "100x64"}, "size", "size 100: must be a multiple of 8"),
        ({"clip_skip": 60}, "clip_skip", "clip_skip 60: the text_encoder"),
        ({"steps": 2000}, "steps", "2000 steps"),
        ({"karras": True}, "karras", "has no option karras"),
        ({"prompt": "word " * 200}, "prompt", "(weighted reads all of it, in chunks; truncate right leaves out"),
    ],
)
def test_what_a_model_cannot_draw_is_told_by_the_parameter_that_is_wrong(server, body, param, told):
    server.limits = Limits(body=10**5)
    answer = post(server, path="/v1/images/generations", json={"model": "emoji", "prompt": "a", **body})
    server.pool.put_away(all=True)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and told in error["message"]
    assert "--" not in error["message"]


@pytest.mark.slow
def test_what_a_model_cannot_continue_is_told_by_the_parameter_that_is_wrong(server):
    server.limits = Limits(body=10**5)
    said = {"messages": [{"role": "user", "content": "word " * 600}]}
    for path, body, param in (
        ("completions", {"prompt": "a", "logit_bias": {"99999": 1}}, "logit_bias"),
        ("completions", {"prompt": "word " * 600}, "prompt"),
        ("chat/completions", said, "messages"),
        ("chat/completions", {**said, "reasoning_effort": "low"}, "reasoning_effort"),
        ("chat/completions", {**said, "think": True}, "think"),
        ("chat/completions", {**said, "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
    ):
        answer = post(server, path=f"/v1/{path}", json={"model": "stories", **body})
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == param and "--" not in error["message"]
    server.pool.put_away(all=True)


@pytest.mark.slow
def test_a_model_that_is_the_only_one_needs_no_name(server):
    server.pool.given, server.limits = {"tales": "stories"}, Limits(body=10**5)
    for body in ({}, {"model": None}, {"model": "tales"}):
        answer = post(server, json={"prompt": "Once", "max_tokens": 2, "seed": 1, **body})
        assert answer.status_code == 200 and answer.json()["model"] == "tales"
    server.pool.put_away(all=True)
    for given, body in (({"tales": "stories"}, {"model": ""}), ({"a": "stories", "b": "emoji"}, {})):
        server.pool.given = given
        answer = post(server, json={"prompt": "Once", **body})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "model"


def test_a_client_that_leaves_before_its_stream_begins_is_not_under_way(server):
    """Its answer is never begun: nothing of it runs that could tell its end."""
    body = json.dumps({"model": "stories", "prompt": "a", "stream": True, "max_tokens": 3}).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    where = {"path": "/v1/completions", "query_string": b"", "headers": headers, "server": ("localhost", 80)}
    asgi = {"version": "3.0", "spec_version": "2.3"}
    scope = {"type": "http", "asgi": asgi, "http_version": "1.1", "method": "POST", **where}
    comes = iter([{"type": "http.request", "body": body}])

    async def receive() -> dict:
        return next(comes, {"type": "http.disconnect"})

    async def send(message: dict) -> None:
        await asyncio.sleep(0)

    async def leave() -> None:
        await server.app()(scope, receive, send)
        [warm] = server.pool.warm.values()
        assert server.counts.under_way == 0
        for _ in range(100):
            await asyncio.sleep(0.01 * bool(warm.users))
        assert warm.users == 0
        server.pool.put_away(all=True)

    asyncio.run(leave())


def test_a_model_whose_client_leaves_while_it_is_opened_is_kept(server):
    """It would go on with its thread for ever otherwise, known to nobody."""
    begun, go_on, real = threading.Event(), threading.Event(), text_model(find("stories"), ModelSpec())

    def open_slowly() -> Engine:
        begun.set()
        go_on.wait()
        return real.open()

    async def leave() -> None:
        wanted = dataclasses.replace(real, open=open_slowly)
        asks = asyncio.ensure_future(server.pool.acquire(wanted))
        await asyncio.to_thread(begun.wait)
        asks.cancel()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await asks
        [warm] = server.pool.warm.values()
        assert warm.users == 0 and await server.pool.acquire(wanted) is warm and warm.users == 1
        server.pool.put_away(all=True)

    asyncio.run(leave())


def test_turns_are_given_in_the_order_in_which_they_were_asked_for():
    """Though the thread that has it asks again at once."""
    turns, took, begun = Turns(), [], threading.Barrier(3)

    def work(name: str) -> None:
        begun.wait()
        for _ in range(50):
            with turns:
                took.append(name)
                time.sleep(0.0005)  # others come to wait

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == 150 and not turns.line
    assert sum(one == next for one, next in itertools.pairwise(took)) < 75  # of a lock as Python has it: nearly all


def test_what_is_told_of_texts_arrives_as_it_was():
    said = "caf\u00e9 \ud800 \u2028"
    probs = Logprobs(["a"], [-1.0], [{"a": -1.0, "b": float("-inf")}], [0])
    for event in (TextDelta(3, said), Completion(1, 2, said, "stop", 3, 4, probs, True)):
        assert wire.read_event(_through(wire.pack_event(event))) == event
    for error in (UsageError("a", "b"), GencliError("a"), MemoryError("out of memory")):
        told = wire.read_error(_through(wire.pack_error(error)))
        assert type(told) is type(error) and vars(told) == vars(error) and str(told) == str(error)
    broken = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text")  # which is not made of a message
    assert str(wire.read_error(_through(wire.pack_error(broken)))) == f"UnicodeDecodeError: {broken}"
    failed = wire.read_event(_through(wire.pack_event(Failed(1, UsageError("a"), 2, True))))
    assert isinstance(failed, Failed) and (failed.following, failed.at_work, failed.error.exit_code) == (2, True, 2)
    request = TextRequest.of("a", seed=3, logit_bias=((5, float("-inf")),), stop=("x",), temperature=0.5)
    assert wire.read_text_request(_through(dataclasses.asdict(request))).sampling.temperature == 0.5


def _through(value):
    return json.loads(json.dumps(value))


def test_what_another_user_owns_or_can_change_is_not_one_s_own(tmp_path):
    mine = tmp_path / "mine"
    mine.write_bytes(b"")
    assert wire.is_own(mine) and not wire.is_own(tmp_path / "nothing")
    mine.chmod(0o666)
    assert not wire.is_own(mine)
    other = Path("/")
    if os.getuid() == 0:
        other = tmp_path / "other"
        other.write_bytes(b"")
        os.chown(other, 12345, -1)
    assert not wire.is_own(other)


def test_another_cache_is_another_place_for_packed_copies(tmp_path, monkeypatch):
    before = wire.greeting(1)
    assert wire.greeting(1) == before
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert wire.greeting(1) != before


def test_files_that_make_a_model_another_one(tmp_path):
    """Of a folder those below, of a file those beside it; and nothing that only lies there."""
    for name in ("config.json", "unet/weights.safetensors", "image.png", "a/b/c/deep.json", "one.gguf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")

    def names(path: Path) -> list[str]:
        return [Path(file[0]).relative_to(tmp_path).as_posix() for file in wire.files_at([path])]

    assert names(tmp_path) == ["config.json", "one.gguf", "unet/weights.safetensors"]
    (tmp_path / "vae").symlink_to("unet")
    assert names(tmp_path)[-1] == "vae/weights.safetensors", "that of another model, by a link to its folder"
    assert names(tmp_path / "one.gguf") == ["config.json", "one.gguf"]
    file = Wanted("one", (), (tmp_path / "one.gguf",), wire.files_at([tmp_path / "one.gguf"]), lambda: None)
    assert file.size == 5 and file.is_current
    (tmp_path / "config.json").write_bytes(b"123456")
    assert not file.is_current
