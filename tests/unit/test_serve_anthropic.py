"""Anthropic's routes: what becomes a request, what is refused, and the shapes of answers by its API's page
(platform.claude.com/docs/en/api/messages). The application runs in this process, without a socket."""

import asyncio
import json
import logging
from functools import partial
from unittest import TestCase

import httpx
import pytest
from jsonschema import Draft202012Validator

from gencli.checkpoints.find import find
from gencli.serve.anthropic import described, paged, tell
from gencli.serve.anthropic_answers import Answer, line
from gencli.serve.anthropic_bodies import FIELDS, INERT, OWN, read_body
from gencli.serve.app import Server
from gencli.serve.guard import Limits
from gencli.serve.openapi import page
from gencli.serve.pool import Pool
from gencli.serve.refusal import Refusal
from gencli.spec import ModelSpec
from gencli.text.events import Completion, PromptTruncated, ReasoningDelta, TextDelta
from gencli.text.tools import Call

HI = [{"role": "user", "content": "Hi"}]
ASK = {"model": "stories", "max_tokens": 5, "messages": HI}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "description": "of a city", "input_schema": CITY}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "dry"}
CALLED = [*HI, {"role": "assistant", "content": [USE]}]
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
VALUES = ["hot", True, 1.5, 7, -5, [], [1], {"a": 1}, "", None, float("nan"), 10**400, "\ud800"]


def user(*content) -> dict:
    return {"role": "user", "content": list(content)}


def text(said: str) -> dict:
    return {"type": "text", "text": said}


def talk(*messages, **more) -> list[dict]:
    return read_body({**ASK, "messages": list(messages), **more}).messages


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


def test_settings_are_the_rows_of_all_other_requests():
    said = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop_sequences": ["x", "y"], "min_p": 0.1, "seed": 3}
    asked = read_body({**ASK, **said, "stream": True, "repeat_penalty": 1.2, "truncate": "left"})
    request, sampling = asked.request, asked.request.sampling
    assert (request.max_tokens, request.seed, request.stop, request.truncate) == (5, 3, ("x", "y"), "left")
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.1)
    assert sampling.repeat_penalty == 1.2 and asked.stream and asked.images == () and asked.shows
    inert = {"metadata": {"user_id": "a"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"}}
    inert |= {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}
    one, other = read_body({**ASK, "seed": 1}), read_body({**ASK, "seed": 1, **inert, "stream": False})
    assert one == other
    assert read_body({"messages": HI}, counts=True).messages == HI, "a count needs no max_tokens"


def test_contents_are_texts_or_blocks():
    assert talk({"role": "user", "content": "ab"}) == talk(user(text("a"), text("b"))) == [
        {"role": "user", "content": "ab"}
    ]  # fmt: skip
    marked = {**text("Be kind."), "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    system = [{"role": "system", "content": "Be kind."}]
    assert talk(*HI, system="Be kind.") == talk(*HI, system=[marked]) == [*system, *HI]
    assert talk({"role": "system", "content": "Be kind."}, *HI) == [*system, *HI] and talk(*HI, system="") == HI
    thoughts = [{"type": "thinking", "thinking": "Hm", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}]
    said = {"role": "assistant", "content": [*thoughts, {**text("Yes"), "citations": None}]}
    assert talk(*HI, said, *HI) == [*HI, {"role": "assistant", "content": "Yes"}, *HI]


def test_messages_of_one_role_are_one_turn():
    assert talk(*HI, user(text("a"), text("b"))) == [{"role": "user", "content": "Hi\n\nab"}]
    yes = {"role": "assistant", "content": "Yes"}
    found = talk(*HI, yes, {"role": "assistant", "content": [text("I see."), USE]}, user(text("So?")), user(RESULT))
    assert [(one["role"], one["content"]) for one in found] == [
        ("user", "Hi"), ("assistant", "Yes\n\nI see."), ("tool", "dry"), ("user", "So?"),
    ]  # fmt: skip
    assert found[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Rome"}}
    assert found[2]["tool_call_id"] == found[1]["tool_calls"][0]["id"] and found[2]["name"] == "weather"


def test_results_of_tools():
    for content, said in (
        ({"content": "dry"}, "dry"), ({"content": [text("a"), text("b")]}, "ab"), ({"content": []}, ""), ({}, ""),
        ({"content": "none such", "is_error": True}, "Error: none such"), ({"content": "x", "is_error": False}, "x"),
    ):  # fmt: skip
        [*_, last] = talk(*CALLED, user({"type": "tool_result", "tool_use_id": "toolu_1", **content}))
        assert (last["role"], last["content"]) == ("tool", said)
    two = [*HI, {"role": "assistant", "content": [USE, {**USE, "id": "toolu_2", "name": "clock"}]}]
    found = talk(*two, user({**RESULT, "tool_use_id": "toolu_2"}, RESULT))
    assert [one["name"] for one in found[-2:]] == ["clock", "weather"]


def test_images_of_the_last_message():
    asked = read_body({**ASK, "messages": [user(IMAGE, text("What?"))]})
    assert asked.images == (b"hi",) and asked.messages == [{"role": "user", "content": "What?"}]
    alone = read_body({**ASK, "messages": [*HI, {"role": "assistant", "content": "Yes"}, user(IMAGE)]})
    assert alone.images == (b"hi",) and alone.messages[-1] == {"role": "user", "content": ""}


def test_an_answer_that_messages_begin():
    begun = {"role": "assistant", "content": "The answer is ("}
    assert talk(*HI, begun) == [*HI, begun]
    assert talk(*HI, begun, thinking={"type": "disabled"}) == [*HI, begun]
    assert talk(*HI, {"role": "assistant", "content": ""}) == HI == talk(*HI, {"role": "assistant", "content": []})


def test_tools_and_which_of_them():
    tools = {**ASK, "tools": [{**TOOL, "type": "custom", "cache_control": {"type": "ephemeral"}, "strict": True}]}
    request = read_body(tools).request
    assert json.loads(request.tools) == [{"name": "weather", "description": "of a city", "parameters": CITY}]
    for choice, said in (
        ({"type": "auto"}, ("auto", True)), ({"type": "any"}, ("required", True)), ({"type": "none"}, ("none", True)),
        ({"type": "tool", "name": "weather"}, ("weather", True)),
        ({"type": "any", "disable_parallel_tool_use": True}, ("required", False)),
    ):  # fmt: skip
        request = read_body({**tools, "tool_choice": choice}).request
        assert (request.tool_choice, request.several_calls) == said
    assert read_body({**ASK, "tools": [], "tool_choice": {"type": "auto"}}).request.tools is None


def test_thoughts_and_efforts_and_forms():
    for said, wish in (
        ({"type": "enabled", "budget_tokens": 2048}, "on"), ({"type": "disabled"}, "off"), ({"type": "adaptive"}, None)
    ):  # fmt: skip
        assert read_body({**ASK, "thinking": said}).request.think == wish
    assert not read_body({**ASK, "thinking": {"type": "adaptive", "display": "omitted"}}).shows
    assert read_body({**ASK, "thinking": {"type": "adaptive", "display": "summarized"}}).shows
    assert read_body({**ASK, "think": True}).request.think == "on"
    for effort, level in (("low", "low"), ("max", "high"), ("xhigh", "high"), (None, None)):
        asked = read_body({**ASK, "output_config": {"effort": effort}})
        assert (asked.effort, asked.request.think) == (level, None)
    off = {"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}
    assert read_body({**ASK, **off}).effort is None, "which is of more than thoughts"
    form = {"type": "json_schema", "schema": CITY}
    assert json.loads(read_body({**ASK, "output_config": {"format": form}}).request.schema) == CITY


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_tokens": None}, "max_tokens: wants a whole number, the most tokens of the answer"),
        ({"max_tokens": 0}, "max_tokens 0: wants a whole number from 1"),
        ({"temperature": "hot"}, 'temperature "hot": wants a number'),
        ({"stop_sequences": [1]}, "stop_sequences: wants text, or a list"),
        ({"stop_sequences": [""]}, "stop_sequences '': an empty text"),
        ({"stop": ["x"]}, "'stop' is not supported"),
        ({"n": 2}, "'n' is not supported"),
        ({"logprobs": 2}, "'logprobs' is not supported"),
        ({"container": "x"}, "'container' is not supported"),
        ({"mcp_servers": [{}]}, "'mcp_servers' is not supported"),
        ({"stream": "no"}, 'stream "no": wants true or false'),
        ({"system": 5}, "system: wants a text or a list of blocks"),
        ({"system": [IMAGE]}, 'system: content of type "image" is not read here'),
        ({"thinking": True}, "thinking true: wants an object with a type of enabled, disabled, adaptive"),
        ({"thinking": {"type": "between_tools"}}, "thinking {…}: wants an object with a type of"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens null: wants a whole number"),
        ({"thinking": {"type": "adaptive", "display": "all"}}, 'thinking.display "all": wants summarized or omitted'),
        ({"thinking": {"type": "adaptive"}, "think": "very"}, 'think "very": wants one of'),
        ({"thinking": {"type": "disabled"}, "think": True}, "think says what thinking says: give one of them"),
        ({"output_config": "high"}, 'output_config "high": wants an object of effort and format'),
        ({"output_config": {"task_budget": {}}}, "output_config {…}: wants an object of effort and format"),
        ({"output_config": {"effort": "very"}}, 'output_config.effort "very": wants one of low, medium'),
        ({"output_config": {"format": {"type": "json"}}}, "output_config.format: wants an object with a type"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "x"}}}}, "output_config: "),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management: an edit of"),
        ({"context_management": 5}, "context_management: an edit of"),
        ({"tools": "x"}, "tools[0]: wants an object with a name"),
        ({"tools": [{"name": "a"}]}, "tools[0]: wants an input_schema"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools: tool 1: the name 'a b' has other than"),
        ({"tools": [{**TOOL, "input_schema": {"type": "array"}}]}, "tools: tool 1: input_schema is a JSON schema of"),
        ({"tools": [TOOL, TOOL]}, "tools: two tools have the name 'weather'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]: of the types only custom"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0]: defer_loading true is not supported"),
        ({"tools": [{**TOOL, "no_such": 1}]}, "tools[0]: no_such 1 is not supported"),
        ({"tool_choice": "auto"}, 'tool_choice "auto": wants an object with a type of auto, any, none, or tool'),
        ({"tool_choice": {"type": "tool"}}, "tool_choice {…}: wants an object"),
        ({"tool_choice": {"type": "any"}}, 'tool_choice "any": there are no tools'),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "wether"}}, "tool_choice 'wether': there is no"),
        ({"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": 1}}, "tool_choice.disable_par"),
        (
            {"tools": [TOOL], "output_config": {"format": {"type": "json_schema", "schema": CITY}}},
            "tools and output_co",
        ),
    ],
)
def test_what_cannot_be_followed_is_told(wrong, told):
    with pytest.raises(Refusal) as refused:
        read_body({**ASK, **wrong})
    assert refused.value.status == 400 and refused.value.message.startswith(told), refused.value.message
    assert "--" not in refused.value.message and refused.value.param


BEGUN = {"role": "assistant", "content": "The"}


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ("Hi", "messages: wants a list of 1 to 4096 messages"),
        ([], "messages: wants a list of 1 to 4096"),
        ([5], "messages[0]: wants a message with a role of user, assistant, system"),
        ([{"role": "tool", "content": "x"}], "messages[0]: wants a message with a role of"),
        ([{"role": "user"}], "messages[0]: wants a text or a list of blocks as content"),
        ([{"role": "user", "content": ["x"]}], "messages[0]: wants a text or a list of blocks"),
        ([*HI, user({"type": "text"})], "messages[1]: a block of type text wants a text"),
        ([user({"type": "document", "source": {}})], 'messages[0]: content of type "document" is not read in'),
        ([user(USE)], 'messages[0]: content of type "tool_use" is not read in a message of role user (text, image'),
        ([*HI, {"role": "assistant", "content": [IMAGE]}], 'messages[1]: content of type "image" is not read'),
        ([user({"type": "image", "source": {"type": "url", "url": "http://localhost/a"}})], "messages[0]: an image"),
        ([user({**IMAGE, "source": {"type": "base64", "data": "/etc/passwd "}})], "messages: wants images in base64"),
        ([user(IMAGE), BEGUN, *HI], "messages: images of the last message alone are read"),
        ([*HI, {"role": "assistant", "content": [{**USE, "input": "x"}]}, *HI], "messages[1]: a tool_use wants an id"),
        ([*HI, {"role": "assistant", "content": [USE]}], "messages: the last one has a tool_use, and wants a message"),
        ([*CALLED, user({**RESULT, "tool_use_id": "toolu_2"})], 'messages[2]: tool_use_id "toolu_2": no tool_use bef'),
        ([*CALLED, user(RESULT, RESULT)], 'messages[2]: tool_use_id "toolu_1": no tool_use before has this id'),
        ([*CALLED, user({**RESULT, "content": [IMAGE]})], 'messages[2]: content of type "image" is not read here'),
        ([*CALLED, user({**RESULT, "is_error": "no"})], 'messages[2]: is_error "no": wants true or false'),
        ([user(text("a\ud800"))], "messages[0]: is no Unicode text"),
        ([BEGUN], "messages: the last one is to be the user's"),
        ([*HI, {"role": "system", "content": "Be kind."}], "messages: the last one is to be the user's"),
        ([*HI, {**BEGUN, "content": "The "}], "messages: the last one, which begins the answer, ends with white space"),
    ],
)  # fmt: skip
def test_conversations_refused(messages, told):
    with pytest.raises(Refusal) as refused:
        read_body({**ASK, "messages": messages})
    assert refused.value.status == 400 and refused.value.message.startswith(told), refused.value.message
    assert refused.value.param == "messages"


def test_an_answer_that_is_begun_has_no_thoughts_before_it_and_follows_no_schema():
    form = {"format": {"type": "json_schema", "schema": CITY}}
    for wrong, param in (
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"), ({"think": "high"}, "thinking"),
        ({"output_config": form}, "output_config"),
    ):  # fmt: skip
        with pytest.raises(Refusal) as refused:
            read_body({**ASK, "messages": [*HI, BEGUN], **wrong})
        assert refused.value.param == param and "begun" in refused.value.message


def test_values_of_every_kind_are_taken_or_refused():
    [content] = page(["stories"])["paths"]["/v1/messages"]["post"]["requestBody"]["content"].values()
    assert content["schema"]["properties"].keys() == {*FIELDS, *INERT, *OWN}
    valid, refused = Draft202012Validator(content["schema"]), 0
    assert valid.is_valid({**ASK, "tools": [TOOL], "tool_choice": {"type": "auto"}, "system": [text("a")]})
    for name in (*FIELDS, *INERT - {"model"}, *OWN):
        for value in VALUES:
            try:
                read_body({**ASK, name: value})
            except Refusal as wrong:
                assert wrong.status == 400 and len(wrong.message) < 2000 and "--" not in wrong.message
                refused += 1
    assert refused > 150


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
    assert line(made[1]) == b'event: ping\ndata: {"type": "ping"}\n\n'


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


@pytest.mark.slow
def test_a_conversation_is_answered_as_openais_route_answers_it(server):
    more = {"seed": 1, "max_tokens": 8}
    whole = ask(server, "/v1/messages", {**ASK, **more, "system": "Be kind."}).json()
    same = {"model": "stories", "messages": [{"role": "system", "content": "Be kind."}, *HI], **more}
    other = ask(server, "/v1/chat/completions", same, headers={"Authorization": "Bearer secret-secret"}).json()
    assert whole["content"] == [{"type": "text", "text": other["choices"][0]["message"]["content"]}]
    assert whole["usage"]["input_tokens"] == other["usage"]["prompt_tokens"] and whole["stop_reason"] == "max_tokens"
    count = ask(server, "/v1/messages/count_tokens", {"model": "stories", "messages": HI, "system": "Be kind."})
    assert count.json() == {"input_tokens": whole["usage"]["input_tokens"]}
    begun = ask(server, "/v1/messages", {**ASK, **more, "messages": [*HI, BEGUN]}).json()
    assert begun["usage"]["input_tokens"] > count.json()["input_tokens"] - 20 and begun["content"]


@pytest.mark.slow
def test_what_the_model_refuses_comes_before_a_stream(server):
    long = {"messages": [{"role": "user", "content": "word " * 600}]}
    for body, told in (
        (long, "prompt is too long: "), ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking on: "),
        ({"tools": [TOOL]}, "tools: stories has no chat template"),
        ({"messages": [user(IMAGE)]}, "images: stories reads no"),
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
