"""Bodies of Anthropic's Messages API (platform.claude.com/docs/en/api/messages): what becomes a request, and what is
refused."""

import copy
import json

import pytest
from jsonschema import Draft202012Validator

from gencli.serve.anthropic_bodies import FIELDS, INERT, OWN, read_body
from gencli.serve.openapi import page
from gencli.serve.refusal import Refusal

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


def test_a_request_as_agents_send_it():
    marked = {"cache_control": {"type": "ephemeral"}}
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "additionalProperties": False,
        "properties": {"url": {"type": "string", "format": "uri"}, "edits": {"type": "array", "items": CITY}},
        "required": ["url"],
    }  # fmt: skip
    tools = [{"name": "WebFetch", "description": "a", "input_schema": schema, "eager_input_streaming": True}]
    system = [{**text("You are an agent."), **marked}, {**text("\nBe brief."), **marked}]
    results = [{**RESULT, "is_error": False, **marked}, {**text("<system-reminder>x</system-reminder>"), **marked}]
    body = {
        "model": "m", "messages": [*CALLED, user(*results)], "system": system, "tools": tools, "stream": True,
        "metadata": {"user_id": "user_1"}, "max_tokens": 32000, "temperature": 1,
        "thinking": {"type": "adaptive"}, "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    }  # fmt: skip
    asked = read_body(body)
    assert asked.messages[0] == {"role": "system", "content": "You are an agent.\nBe brief."}
    assert [one["role"] for one in asked.messages] == ["system", "user", "assistant", "tool", "user"]
    assert asked.stream and asked.effort == "high" and json.loads(asked.request.tools)[0]["parameters"] == schema


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
        ({"thread": {"type": "create"}}, "thread: no conversation is kept here: messages want all of it"),
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


def inside(value: object) -> list[tuple]:
    """The ways to all values in a value of JSON: keys and numbers."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(key, *rest) for key, one in pairs for rest in [(), *inside(one)]]


def test_values_of_every_kind_are_taken_or_refused_wherever_they_stand():
    calls = {**USE, "cache_control": {"type": "ephemeral"}}
    body = {
        **ASK, "system": [text("a")], "tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"},
        "messages": [*HI, {"role": "assistant", "content": [calls]}, user({**RESULT, "content": [text("b")]}, IMAGE)],
        "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
        "output_config": {"effort": "low"}, "context_management": {"edits": [{"type": "clear_thinking_1"}]},
    }  # fmt: skip
    assert read_body(body).effort == "low"
    refused = 0
    for *way, last in inside(body):
        for value in VALUES:
            changed = copy.deepcopy(body)
            holder = changed
            for key in way:
                holder = holder[key]
            holder[last] = value
            try:
                read_body(changed)
            except Refusal as wrong:
                assert wrong.status == 400 and len(wrong.message) < 2000 and "--" not in wrong.message
                refused += 1
    assert refused > 300


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
