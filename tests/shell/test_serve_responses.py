"""/v1/responses of a server as a process, by OpenAI's own client: whole and streamed, thoughts, calls, errors."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import httpx
import pytest

from tests.oracles.libraries import openai
from tests.shell.process import gencli, listening, short_folder
from tests.tiny.chat_templates import QWEN35
from tests.tiny.scripted import make_scripted_chat, plain
from tests.tiny.tool_templates import HERMES

pytestmark = pytest.mark.slow
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}}}
TOOL = {"type": "function", **FUNCTION}
CALLS = [{"name": "weather", "arguments": {"city": city}} for city in ("Paris", "Rome")]
SAID = "Let me see.\n" + "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in CALLS) + "<|im_end|>"
THOUGHT = "Let me see.</think>\n\nIt is \u4f60\u597d.<|im_end|>"
ASKED = {"input": "Hi", "temperature": 0}


@pytest.fixture(scope="module")
def url():
    with tempfile.TemporaryDirectory(prefix="gencli-", dir=short_folder()) as name:
        tools = [{"type": "function", "function": FUNCTION}]
        marks = plain("<tool_call>", "</tool_call>")
        more = {"template": HERMES, "positions": 1024, "tools": tools}
        hermes = make_scripted_chat(Path(name) / "hermes", SAID, *marks, **more)
        qwen = make_scripted_chat(Path(name) / "qwen", THOUGHT, *plain("<think>", "</think>"), template=QWEN35)
        with listening(Path(name), "-m", hermes, "-m", qwen, "-m", "stories") as (_, _, url):
            yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)


def bare(response) -> dict[str, object]:
    """A response without ids and times, which differ from one to the next."""
    found = response.model_dump()
    for item in (found, *found["output"]):
        for name in ("id", "call_id", "created_at", "completed_at"):
            item.pop(name, None)
    return found


def test_thoughts_and_the_answer(client) -> None:
    made = client.responses.create(model="qwen", **ASKED, metadata={"a": "b"})
    assert (made.status, made.output_text, made.metadata) == ("completed", "It is \u4f60\u597d.", {"a": "b"})
    assert [item.type for item in made.output] == ["reasoning", "message"]
    assert made.output[0].content[0].text == "Let me see."
    assert made.usage.output_tokens_details.reasoning_tokens == 12, "11 bytes and the mark"
    chat = client.chat.completions.create(model="qwen", messages=[{"role": "user", "content": "Hi"}], temperature=0)
    assert (made.usage.input_tokens, made.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    first, text, last = made.output[0], made.output[1], {"role": "user", "content": "And?"}
    again = client.responses.create(
        model="qwen", input=[{"role": "user", "content": "Hi"}, first, text, last], max_output_tokens=3
    )
    assert again.status == "incomplete" and again.incomplete_details.reason == "max_output_tokens"
    assert again.usage.input_tokens > made.usage.input_tokens


def test_a_stream_has_the_same_in_order(client) -> None:
    whole = client.responses.create(model="qwen", **ASKED)
    events = list(client.responses.create(model="qwen", **ASKED, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type.removeprefix("response.") for event in events))
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done", "output_text.delta", "output_text.done",
        "completed",
    ]  # fmt: skip
    deltas = {
        kind: "".join(event.delta for event in events if event.type == f"response.{kind}.delta")
        for kind in ("reasoning_text", "output_text")
    }
    assert deltas == {"reasoning_text": "Let me see.", "output_text": "It is \u4f60\u597d."}
    assert bare(events[-1].response) == bare(whole)
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == events[-1].response.output
    with client.responses.stream(model="qwen", **ASKED) as stream:  # the client's own reading of the events
        assert stream.get_final_response().output_text == "It is \u4f60\u597d."


def test_calls_of_tools_and_their_answers(client) -> None:
    asked = {"model": "hermes", **ASKED, "tools": [TOOL]}
    made = client.responses.create(**asked)
    assert made.output_text == "Let me see." and made.tools[0].name == "weather"
    calls = [item for item in made.output if item.type == "function_call"]
    assert [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls] == CALLS
    assert len({call.call_id for call in calls}) == 2
    events = list(client.responses.create(**asked, stream=True))
    assert bare(events[-1].response) == bare(made)
    ended = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [json.loads(event.arguments) for event in ended] == [call["arguments"] for call in CALLS]
    answers = [{"type": "function_call_output", "call_id": call.call_id, "output": "dry"} for call in calls]
    again = client.responses.create(
        **{**asked, "input": [{"role": "user", "content": "Hi"}, *made.output, *answers]}, max_output_tokens=4
    )
    assert again.usage.input_tokens > made.usage.input_tokens + 100, "of bytes"
    forced = client.responses.create(
        **{**asked, "temperature": 2}, tool_choice={"type": "function", "name": "weather"}, max_output_tokens=500
    )
    assert [item.type for item in forced.output] == ["function_call"]


def test_a_schema_and_a_seed(client) -> None:
    """The text is that of the command line."""
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    format = {"type": "json_schema", "name": "a", "schema": schema}
    more = {"seed": 3, "temperature": 1.0}
    made = client.responses.create(model="hermes", input="Hi", text={"format": format}, extra_body=more)
    assert json.loads(made.output_text)["a"] in (1, 2) and made.text.format.type == "json_schema"
    asked = {"model": "stories", "input": "Once upon a time", "max_output_tokens": 12}
    told = gencli("text", asked["input"], "--chat", "--seed", 1, "-n", 12, "--json")
    assert client.responses.create(**asked, extra_body={"seed": 1}).output_text == json.loads(told.stdout)["text"]
    include = ["message.output_text.logprobs"]
    found = client.responses.create(**asked, extra_body={"seed": 1}, include=include, top_logprobs=2)
    tokens = found.output[0].content[0].logprobs
    assert len(tokens) == 12 and all(len(one.top_logprobs) in (2, 3) for one in tokens)


def test_errors(client, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="input has to be the whole conversation") as refused:
        client.responses.create(model="qwen", input="Hi", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError, match="no model 'none' here"):
        client.responses.create(model="none", input="Hi")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")
    long = {"model": "qwen", "input": "a" * 5000, "stream": True}
    answer = httpx.post(url + "/v1/responses", json=long)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "input", "before the stream begins"
    page = httpx.get(url + "/openapi.json").json()
    assert (
        "input"
        in page["paths"]["/v1/responses"]["post"]["requestBody"]["content"]["application/json"]["schema"]["required"]
    )
