"""Anthropic's routes: the shapes of answers by its API's page (platform.claude.com/docs/en/api/messages), and errors.
The application runs in this process, without a socket."""

import asyncio
import logging
from functools import partial
from unittest import TestCase

import httpx
import pytest

from gencli.checkpoints.find import find
from gencli.serve import texts
from gencli.serve.answers import named_event
from gencli.serve.anthropic import described, paged, tell
from gencli.serve.anthropic_answers import Answer
from gencli.serve.app import Server
from gencli.serve.guard import Limits
from gencli.serve.pool import Pool
from gencli.serve.refusal import Refusal
from gencli.serve.texts import beating
from gencli.spec import ModelSpec
from gencli.text.events import Completion, PromptTruncated, ReasoningDelta, TextDelta
from gencli.text.tools import Call

HI = [{"role": "user", "content": "Hi"}]
BEGUN = {"role": "assistant", "content": "The"}
KEY = {"Authorization": "Bearer secret-secret"}
ASK = {"model": "stories", "max_tokens": 5, "messages": HI}
TOOL = {"name": "weather", "input_schema": {"type": "object"}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


@pytest.fixture(scope="module")
def server():
    pool = Pool({"stories": "stories", "emoji": "emoji"}, ModelSpec(), partial(find, offline=True), keep=60,
                memory=2**30, pull=False)  # fmt: skip
    server = Server(pool, Limits(body=10**5, form=10**5), "secret-secret")
    yield server
    pool.put_away(all=True)


def ask(server: Server, path: str, body=None, way="POST", key: str = "secret-secret", **how) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(server.app())
        headers = {"x-api-key": key, "anthropic-version": "2023-06-01", "anthropic-beta": "no-such-2031-01-01"}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            return await client.request(way, path, **({} if body is None else {"json": body}), **how)

    return asyncio.run(send())


def events(answer: Answer, *made) -> list[dict]:
    return [one for event in made for one in answer.take(event, 0, 0)]


def test_a_stream_has_the_events_of_that_api():
    calls = (Call("weather", '{"city": "Rome"}'), Call("clock", "{}"))
    done = Completion(0, 1, "Yes", "stop", 7, 9, reasoning="\nHm", reasoning_tokens=4, calls=calls)
    answer = Answer("m", prompt_tokens=7)
    made = events(answer, ReasoningDelta(0, "\n"), ReasoningDelta(0, "Hm"), TextDelta(0, "Y"), TextDelta(0, "es"), done)
    assert [(one["type"], one.get("index")) for one in made] == [
        ("message_start", None), ("ping", None),
        ("content_block_start", 0), *[("content_block_delta", 0)] * 2, ("content_block_stop", 0),
        ("content_block_start", 1), *[("content_block_delta", 1)] * 2, ("content_block_stop", 1),
        ("content_block_start", 2), ("content_block_delta", 2), ("content_block_stop", 2),
        ("content_block_start", 3), ("content_block_delta", 3), ("content_block_stop", 3),
        ("message_delta", None), ("message_stop", None),
    ]  # fmt: skip
    deltas = [one["delta"] for one in made if one["type"] == "content_block_delta"]
    assert deltas == [
        {"type": "thinking_delta", "thinking": "\nHm"}, {"type": "signature_delta", "signature": "gencli"},
        {"type": "text_delta", "text": "Y"}, {"type": "text_delta", "text": "es"},
        {"type": "input_json_delta", "partial_json": '{"city": "Rome"}'},
        {"type": "input_json_delta", "partial_json": "{}"},
    ]  # fmt: skip
    start, end, whole = made[0]["message"], made[-2], answer.whole()
    assert start["content"] == [] and start["stop_reason"] is None and start["usage"]["input_tokens"] == 7
    assert end["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert whole.keys() == start.keys() and whole["id"] == start["id"] and whole["usage"] == end["usage"]
    thought, said, *uses = whole["content"]
    assert thought == {"type": "thinking", "thinking": "\nHm", "signature": "gencli"}
    assert said == {"type": "text", "text": "Yes"} and [one["input"] for one in uses] == [{"city": "Rome"}, {}]
    assert len({one["id"] for one in uses}) == 2 and all(one["id"].startswith("toolu_") for one in uses)
    assert whole["usage"]["output_tokens_details"] == {"thinking_tokens": 4}
    assert named_event(made[1]) == b'event: ping\ndata: {"type": "ping"}\n\n'


def test_thoughts_that_are_not_shown_or_are_none():
    done = Completion(0, 1, "Yes", "stop", 7, 9, reasoning="Hm")
    answer = Answer("m", shows=False)
    made = events(answer, ReasoningDelta(0, "Hm"), TextDelta(0, "Yes"), done)
    kinds = [one["delta"]["type"] for one in made if one["type"] == "content_block_delta"]
    assert kinds == ["signature_delta", "text_delta"] and answer.whole()["content"][0]["thinking"] == ""
    answer = Answer("m")
    made = events(
        answer, ReasoningDelta(0, "\n\n"), TextDelta(0, "Yes"), Completion(0, 1, "Yes", "stop", 7, 9, reasoning="\n\n")
    )
    assert sum(one["type"] == "content_block_start" for one in made) == 1 and len(answer.whole()["content"]) == 1


def test_why_an_answer_ends():
    for stop, finish, told in (
        ("x", "stop", ("stop_sequence", "x")), ("\nUser:", "stop", ("end_turn", None)),
        ("", "stop", ("end_turn", None)), ("", "length", ("max_tokens", None)),
    ):  # fmt: skip
        answer = Answer("m", ("x", "y"))
        made = events(answer, PromptTruncated(9, 7), Completion(0, 1, "", finish, 7, 0, stop=stop))
        assert [one["type"] for one in made] == ["message_start", "ping", "message_delta", "message_stop"]
        assert made[0]["message"]["usage"]["input_tokens"] == 7
        assert tuple(made[-2]["delta"].values()) == told and answer.whole()["content"] == []


def test_models_are_those_of_openai_with_what_that_api_says_of_them(server):
    [one, other] = ask(server, "/v1/models", way="GET").json()["data"]
    assert ask(server, "/v1/models/stories", way="GET").json() == one
    assert (one["id"], one["type"], one["display_name"], one["object"]) == ("stories", "model", "stories", "model")
    assert described("m", 0)["created_at"] == "1970-01-01T00:00:00Z"
    first = ask(server, "/v1/models?limit=1", way="GET").json()
    assert (first["data"], first["has_more"], first["last_id"]) == ([one], True, "stories")
    assert ask(server, "/v1/models?limit=1&after_id=stories", way="GET").json()["data"] == [other]
    for wrong in ("limit=0", "limit=x", "limit=1001", "after_id=nosuch", "before_id="):
        assert ask(server, f"/v1/models?{wrong}", way="GET").status_code == 400
    assert paged([], {}) == ([], {"has_more": False, "first_id": None, "last_id": None})
    assert paged("abcd", {"before_id": "d", "limit": "2"}) == (
        "bc", {"has_more": True, "first_id": "b", "last_id": "c"}
    )  # fmt: skip


def test_errors_are_in_that_apis_form(server):
    for path, body, status, kind, told in (
        ("/v1/messages", {**ASK, "model": "nosuch"}, 404, "not_found_error", "no model 'nosuch' here"),
        ("/v1/messages/count_tokens", {**ASK, "model": "/etc/passwd"}, 404, "not_found_error", "no model"),
        ("/v1/messages", {"max_tokens": 5, "messages": HI}, 400, "invalid_request_error", "model: wants the name"),
        ("/v1/messages", {**ASK, "model": "emoji"}, 400, "invalid_request_error", "emoji is no language model"),
        ("/v1/messages", {**ASK, "x": 1}, 400, "invalid_request_error", "'x' is not supported"),
        ("/v1/messages/batches", {}, 404, "not_found_error", "/v1/messages/batches is no route here"),
        ("/v1/messages", {**ASK, "system": "a" * 10**5}, 413, "request_too_large", "the body has more than"),
    ):
        answer = ask(server, path, body)
        error = answer.json()
        assert (answer.status_code, error["type"], error["error"]["type"]) == (status, "error", kind), error
        assert told in error["error"]["message"] and error.keys() == {"type", "error"}
    for key, status, kind in (("secret-secret", 404, "not_found_error"), ("other", 401, "authentication_error")):
        answer = ask(server, "/v1/models/nosuch", way="GET", key=key)
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind), "of a path that both APIs have"
    other = ask(server, "/v1/chat/completions", {"model": "nosuch", "messages": HI}).json()
    assert other["error"]["param"] == "model", "a path of OpenAI's alone"
    twice = ask(server, "/v1/v1/messages", ASK)
    assert twice.status_code == 404 and "leave /v1 out" in twice.json()["error"]["message"]
    thread = ask(server, "/v1/messages", {**ASK, "thread": {"type": "create"}}).json()
    assert thread["error"]["details"] == {"error_code": "thread_unsupported_request"}
    refused = ask(server, "/v1/messages", ASK, key="wrong")
    assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
    bearer = {"Authorization": "Bearer secret-secret"}
    assert ask(server, "/v1/messages", {}, key="", headers=bearer).status_code == 400, "the key is right"
    other = ask(server, "/v1/messages", ASK, headers={"Origin": "http://evil.example"})
    assert other.status_code == 403 and other.json()["error"]["type"] == "permission_error"
    kinds = [tell(Refusal(status, "a"))["error"]["type"] for status in (429, 500, 503, 501, 405, 415)]
    assert kinds == ["rate_limit_error", "api_error", "overloaded_error", "api_error", *["invalid_request_error"] * 2]
    server.counts.under_way = server.limits.queue
    full = ask(server, "/v1/messages", ASK)
    server.counts.under_way = 0
    assert (
        full.status_code == 429 and full.json()["error"]["type"] == "rate_limit_error" and full.headers["retry-after"]
    )


def test_a_stream_says_that_there_is_more_to_come():
    closed = []

    async def made(*waits: float):
        try:
            for number, seconds in enumerate(waits):
                await asyncio.sleep(seconds)
                yield number
            raise ValueError("the end")
        finally:
            closed.append(True)

    async def look() -> None:
        source, came = beating(made(0, 0.2, 0), 0.03), []
        with pytest.raises(ValueError, match="the end"):
            async for one in source:
                came.append(one)
        assert came[0] == 0 and came[-2:] == [1, 2] and came.count(None) >= 3 and closed == [True]
        source = beating(made(0, 60), 0.01)
        assert [await anext(source), await anext(source)] == [0, None]
        await source.aclose()  # as when a client leaves while nothing comes
        assert closed == [True, True]

    asyncio.run(look())


@pytest.mark.slow
def test_pings_stand_between_events(server, monkeypatch):
    monkeypatch.setattr(texts, "SILENCE", 0.001)
    lines = ask(server, "/v1/messages", {**ASK, "stream": True, "max_tokens": 20}).text.splitlines()
    kinds = [one.removeprefix("event: ") for one in lines if one.startswith("event: ")]
    assert kinds.count("ping") > 2 and kinds[-1] == "message_stop" and kinds.count("message_start") == 1


@pytest.mark.slow
def test_a_conversation_is_answered_as_openais_route_answers_it(server):
    more = {"seed": 1, "max_tokens": 8}
    whole = ask(server, "/v1/messages", {**ASK, **more, "system": "Be kind."}).json()
    same = {"model": "stories", "messages": [{"role": "system", "content": "Be kind."}, *HI], **more}
    other = ask(server, "/v1/chat/completions", same, headers=KEY).json()
    assert whole["content"] == [{"type": "text", "text": other["choices"][0]["message"]["content"]}]
    assert whole["usage"]["input_tokens"] == other["usage"]["prompt_tokens"] and whole["stop_reason"] == "max_tokens"
    count = ask(server, "/v1/messages/count_tokens", {"model": "stories", "messages": HI, "system": "Be kind."})
    assert count.json() == {"input_tokens": whole["usage"]["input_tokens"]}
    begun = ask(server, "/v1/messages", {**ASK, **more, "messages": [*HI, BEGUN]}).json()
    line = {"model": "stories", "prompt": "User: Hi\nAssistant: The", "stop": ["\nUser:", "\nAssistant:"], **more}
    goes_on = ask(server, "/v1/completions", line).json()
    assert begun["content"] == [{"type": "text", "text": goes_on["choices"][0]["text"]}]
    assert begun["usage"]["input_tokens"] == goes_on["usage"]["prompt_tokens"]
    chat = ask(server, "/v1/chat/completions", {**same, "messages": [*HI, BEGUN]}, headers=KEY).json()
    assert chat["choices"][0]["message"]["content"] == begun["content"][0]["text"], "as OpenAI's route goes on with it"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking on: there is none before an answer"),
        ({"think": "high"}, "think high: there is none before an answer"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            "output_config: an answer that the conversation has begun",
        ),
    ],
)
def test_an_answer_that_is_begun_has_no_thoughts_before_it_and_follows_no_schema(server, wrong, told):
    refused = ask(server, "/v1/messages", {**ASK, "messages": [*HI, BEGUN], **wrong})
    assert refused.status_code == 400 and refused.json()["error"]["message"].startswith(told), refused.text


@pytest.mark.slow
def test_what_the_model_refuses_comes_before_a_stream(server):
    long = {"messages": [{"role": "user", "content": "word " * 600}]}
    for body, told in (
        (long, "prompt is too long: "), ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking on: "),
        ({"tools": [TOOL]}, "tools: stories has no chat template"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "images: stories reads no"),
        ({"logit_bias": {"99999": 1}}, "logit_bias 99999: "),
    ):  # fmt: skip
        answer = ask(server, "/v1/messages", {**ASK, "stream": True, **body})
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error") and "--" not in error["message"]
        assert error["message"].startswith(told), error["message"]
    count = ask(server, "/v1/messages/count_tokens", {**ASK, **long}).json()["input_tokens"]
    assert count > 512, "more than there is room for"
    cut = ask(server, "/v1/messages", {**ASK, **long, "truncate": "left"}).json()["usage"]["input_tokens"]
    assert cut < 512
    with TestCase().assertLogs("gencli.serve", logging.WARNING) as noted:
        for _ in range(2):
            assert ask(server, "/v1/messages", {**ASK, "output_config": {"effort": "high"}}).status_code == 200
    assert [one.getMessage() for one in noted.records] == ["note: stories knows no effort high, which is passed over"]
