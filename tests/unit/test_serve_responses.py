"""Bodies of /v1/responses: items that become messages, what is said in other words than in chats, and refusals."""

from __future__ import annotations

import json

import pytest

from gencli.serve.refusal import Refusal
from gencli.serve.responses_bodies import read_responses

CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Rome"}'}
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": True}
TOLD = {"type": "function_call_output", "call_id": "call_1", "output": "dry"}


def message(role: str, content: object, **more: object) -> dict[str, object]:
    return {"type": "message", "role": role, "content": content, **more}


def test_a_text_is_a_message_after_the_instructions() -> None:
    assert read_responses({"input": "Hi"}).messages == [{"role": "user", "content": "Hi"}]
    read = read_responses({"input": "Hi", "instructions": "Be brief.", "max_output_tokens": 7, "top_p": 0.5})
    assert [one["role"] for one in read.messages] == ["system", "user"] and read.messages[0]["content"] == "Be brief."
    assert (read.request.max_tokens, read.request.sampling.top_p) == (7, 0.5)


def test_items_of_a_whole_conversation() -> None:
    """With what the API itself answered before, as clients send it back."""
    said = [{"type": "output_text", "text": "Let me see.", "annotations": []}]
    items = [
        message("developer", "Be brief."),
        {"role": "user", "content": [{"type": "input_text", "text": "Is it "}, {"type": "input_text", "text": "dry?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        message("assistant", said, id="msg_1", status="completed"),
        {**CALL, "id": "fc_1", "status": "completed"},
        {**CALL, "call_id": "call_2", "arguments": "{}"},
        TOLD,
        {**TOLD, "call_id": "call_2", "output": [{"type": "input_text", "text": "wet"}]},
    ]
    read = read_responses({"input": items}).messages
    assert [one["role"] for one in read] == ["system", "user", "assistant", "tool", "tool"]
    assert read[1]["content"] == "Is it dry?" and read[2]["content"] == "Let me see."
    calls = [call["function"] for call in read[2]["tool_calls"]]
    assert calls == [{"name": "weather", "arguments": {"city": "Rome"}}, {"name": "weather", "arguments": {}}]
    assert [(one["content"], one["name"]) for one in read[3:]] == [("dry", "weather"), ("wet", "weather")]


def test_images_of_the_last_message() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "data:image/png;base64,aGk="}]
    assert read_responses({"input": [message("user", parts)]}).images == (b"hi",)


def test_what_chats_say_in_other_words() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    format = {"format": {"type": "json_schema", "name": "a", "strict": True, "schema": schema}}
    read = read_responses({"input": "Hi", "text": format}).request
    assert json.loads(read.schema or "") == schema
    assert read_responses({"input": "Hi", "text": {"format": {"type": "text"}}}).request.schema is None
    assert read_responses({"input": "Hi", "reasoning": {"effort": "low", "summary": "auto"}}).request.think == "low"
    assert read_responses({"input": "Hi", "truncation": "auto"}).request.truncate == "left"
    include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    assert read_responses({"input": "Hi", "include": include, "top_logprobs": 2}).request.logprobs == 2
    chosen = {"type": "function", "name": "weather"}
    read = read_responses({"input": "Hi", "tools": [TOOL], "tool_choice": chosen, "parallel_tool_calls": False}).request
    assert (read.tool_choice, read.several_calls) == ("weather", False)
    assert json.loads(read.tools or "")[0]["function"]["name"] == "weather"
    quiet = {"store": False, "background": False, "previous_response_id": None, "metadata": {}, "max_tool_calls": 3}
    assert read_responses({"input": "Hi", **quiet}).messages


@pytest.mark.parametrize(
    ("wrong", "param", "told"),
    [
        ({}, "input", "input: wants text, or a list of 1 to"),
        ({"input": []}, "input", "input: wants text"),
        ({"input": [3]}, "input", "input[0] 3: wants an object"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input", "input[0]: wants a role of system"),
        ({"input": [message("user", 3)]}, "input", "input[0]: wants a text as content"),
        ({"input": [message("user", [{"type": "input_file"}])]}, "input", "input[0]: only parts of type input_text"),
        ({"input": [message("user", [{"type": "input_text"}])]}, "input", "input[0]: only parts of type text"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input", 'input[0]: an item of type "item_reference"'),
        ({"input": [message("user", "a"), message("assistant", "")]}, "input", "input: the last one must be the"),
        ({"input": [message("user", "a"), TOLD]}, "input", "input[1]: no call of the assistant's last message"),
        ({"input": [message("user", "a"), {**CALL, "arguments": "["}, TOLD]}, "input", "input[1]: tool_calls[0]"),
        ({"instructions": 3, "input": "a"}, "instructions", "instructions 3: wants text"),
        ({"previous_response_id": "resp_1", "input": "a"}, "previous_response_id", "previous_response_id is not"),
        ({"background": True, "input": "a"}, "background", "background is not supported"),
        ({"tools": [{"type": "web_search"}], "input": "a"}, "tools", 'tools[0]: a tool of type "web_search" is not'),
        ({"tools": [{"type": "function"}], "input": "a"}, "tools", "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}, "input": "a"}, "tool_choice", "tool_choice"),
        ({"tools": [{"type": "function", "function": TOOL}], "input": "a"}, "tools", "tools[0]: wants its name"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}, "input": "a"},
            "tool_choice",
            "tool_choice of type",
        ),
        ({"max_output_tokens": 0, "input": "a"}, "max_output_tokens", "max_output_tokens 0: wants a whole number"),
        ({"max_tokens": 5, "input": "a"}, "max_tokens", "'max_tokens' is not supported (did you mean"),
        ({"n": 2, "input": "a"}, "n", "'n' is not supported"),
        ({"messages": [], "input": "a"}, "messages", "'messages' is not supported (did you mean input?)"),
        ({"reasoning": {"effort": "very"}, "input": "a"}, "reasoning.effort", 'reasoning.effort "very": wants one of'),
        ({"reasoning": "low", "input": "a"}, "reasoning", 'reasoning "low": wants an object'),
        ({"text": {"format": {"type": "xml"}}, "input": "a"}, "text", "text.format: wants an object with a type"),
        ({"text": {"format": {"type": "json_schema"}}, "input": "a"}, "text", "text.format: json_schema wants"),
        ({"text": {"verbosity": "low"}, "input": "a"}, "text", 'text.verbosity "low" is not supported'),
        ({"truncation": "left", "input": "a"}, "truncation", 'truncation "left": wants auto or disabled'),
        ({"include": ["file_search_call.results"], "input": "a"}, "include", "include: wants a list of"),
        ({"top_logprobs": 2, "input": "a"}, "top_logprobs", "top_logprobs: wants message.output_text.logprobs"),
    ],
)
def test_what_is_refused(wrong: dict[str, object], param: str, told: str) -> None:
    with pytest.raises(Refusal) as refused:
        read_responses(wrong)
    assert (refused.value.status, refused.value.param) == (400, param), refused.value.message
    assert refused.value.message.startswith(told), refused.value.message
