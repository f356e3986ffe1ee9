"""Bodies of chats: messages of every form, images, and what is said of reasoning."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator

from gencli.serve.bodies import read_chat, read_completions
from gencli.serve.openapi import page
from gencli.serve.refusal import Refusal

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def test_parts_of_a_message_and_roles():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    read = read_chat({"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]})
    assert read.messages == [{"role": "system", "content": "s"}, {"role": "user", "content": "ab"}]
    assert read_chat({**CHAT, "max_completion_tokens": 7}).request.max_tokens == 7
    assert read_chat({**CHAT, "logprobs": True, "top_logprobs": 3}).request.logprobs == 3
    assert read_chat({**CHAT, "logprobs": False}).request.logprobs is None
    assert read_chat({**CHAT, "tools": [], "response_format": {"type": "text"}}).messages


def test_images_of_the_last_message():
    def image(url):
        return {"type": "image_url", "image_url": {"url": url}}

    parts = [{"type": "text", "text": "a"}, image("data:image/png;base64,aGk=")]
    read = read_chat({"messages": [{"role": "user", "content": parts}]})
    assert read.images == (b"hi",) and read.messages == [{"role": "user", "content": "a"}]
    assert read_chat(CHAT).images == ()
    for content, told in (
        ([image("http://localhost/a.png")], "messages: wants images in base64; nothing is fetched"),
        ([image(5)], "messages[0]: only parts of type text and image_url are read"),
        ([{"type": "input_audio"}], "messages[0]: only parts of type text and image_url"),
    ):
        with pytest.raises(Refusal) as refused:
            read_chat({"messages": [{"role": "user", "content": content}]})
        assert refused.value.message.startswith(told) and refused.value.param == "messages"
    with pytest.raises(Refusal, match="images of the last message alone"):
        read_chat({"messages": [{"role": "user", "content": parts}, *CHAT["messages"]]})


@pytest.mark.parametrize(
    ("said", "think"),
    [
        ({"reasoning_effort": "none"}, "off"),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "medium"}, "medium"),
        ({"reasoning_effort": None}, None),
        ({"think": False}, "off"),
        ({"think": True, "reasoning_effort": None}, "on"),
        ({"think": "high"}, "high"),
    ],
)
def test_reasoning_as_openai_and_ollama_ask_for_it(said, think):
    assert read_chat({**CHAT, **said}).request.think == think
    [content] = page(["m"])["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"].values()
    assert not list(Draft202012Validator(content["schema"]).iter_errors({**CHAT, **said}))
    assert read_chat({**CHAT, "chat_template_kwargs": {"enable_thinking": False}}).request.chat_template_kwargs == (
        '{"enable_thinking": false}'
    )


@pytest.mark.parametrize(
    ("wrong", "param", "told"),
    [
        ({"think": 1}, "think", "think 1: wants one of"),
        ({"reasoning_effort": "very"}, "reasoning_effort", 'reasoning_effort "very": wants one of'),
        ({"think": True, "reasoning_effort": "low"}, "think", "think says what reasoning_effort says"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "chat_template_kwargs […]: wants an object"),
        (
            {"chat_template_kwargs": {"a": float("nan")}},
            "chat_template_kwargs",
            "chat_template_kwargs: a number in it is not finite",
        ),
        ({"chat_template_kwargs": {"a": "\ud800"}}, "chat_template_kwargs", "chat_template_kwargs: the value"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "'reasoning' is not supported (did you mean"),
        ({"enable_thinking": False}, "enable_thinking", "'enable_thinking' is not supported (did you mean"),
    ],
)
def test_reasoning_that_is_refused(wrong, param, told):
    with pytest.raises(Refusal) as refused:
        read_chat({**CHAT, **wrong})
    assert refused.value.param == param and refused.value.message.startswith(told), refused.value.message
    with pytest.raises(Refusal):  # a text that is continued has no template
        read_completions({"model": "m", "prompt": "a", **wrong})


@pytest.mark.parametrize(
    "change",
    [
        {"messages": []},
        {"messages": "Hi"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]},
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
        {"top_logprobs": 2},
        {"logprobs": 3},
    ],
)
def test_chats_refused(change):
    with pytest.raises(Refusal) as refused:
        read_chat({**CHAT, **change})
    assert refused.value.status == 400
