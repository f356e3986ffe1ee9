"""Anthropic's routes of a server as a process, by Anthropic's own client: answers, streams, thoughts, tools, errors."""

import json
import tempfile
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.oracles.libraries import anthropic, openai
from tests.shell.process import gencli, listening, short_folder
from tests.tiny.chat_templates import QWEN35
from tests.tiny.scripted import make_scripted_chat, plain
from tests.tiny.tool_templates import HERMES

pytestmark = pytest.mark.slow
HI = [{"role": "user", "content": "Hi"}]
BEGUN = [*HI, {"role": "assistant", "content": "It is <|im_end|>"}]  # of which the mark is no more than words
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOL = {"name": "weather", "description": "Of a city.", "input_schema": {**CITY, "additionalProperties": False}}
TOLD = {"name": TOOL["name"], "description": TOOL["description"], "parameters": TOOL["input_schema"]}
CALLS = [{"name": "weather", "arguments": {"city": city}} for city in ("Paris", "Rome")]
SAID = "Let me see.\n" + "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in CALLS) + "<|im_end|>"
THOUGHT = "Let me see.</think>\n\nIt is \u4f60\u597d.<|im_end|>"
COUNTS = " one, two, three<|im_end|>"


@pytest.fixture(scope="module")
def url():
    with tempfile.TemporaryDirectory(prefix="gencli-", dir=short_folder()) as name:
        folder, calls = Path(name), plain("<tool_call>", "</tool_call>")
        tools = [{"type": "function", "function": TOLD}]
        begun = [{"role": "user", "content": "Hi" + BEGUN[-1]["content"]}]  # as long as that which it begins
        made = [
            make_scripted_chat(folder / "qwen", THOUGHT, *plain("<think>", "</think>"), template=QWEN35),
            make_scripted_chat(folder / "hermes", SAID, *calls, template=HERMES, positions=1024, tools=tools),
            make_scripted_chat(folder / "counts", COUNTS),
            make_scripted_chat(folder / "goes-on", COUNTS, messages=unread(begun)),
            fails(make_scripted_chat(folder / "fails", COUNTS), 24),
            make_agent(folder),
        ]
        words = [word for model in made for word in ("-m", model)]
        with listening(folder, *words, "-m", "stories") as (_, _, url):
            yield url


def unread(messages: list[dict]) -> list[dict]:
    """Messages as long in tokens as these, which have words that look like tokens: a letter for each byte."""
    return [{**one, "content": "x" * len(one["content"].encode())} for one in messages]


def looks_up():
    """A tool as Anthropic's client makes it of a function."""

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """Of a city."""
        return f"dry in {city}"

    return weather


def make_agent(folder: Path) -> Path:
    """A model that calls a tool twice, and says something else once it has the results."""
    told = looks_up().to_dict()
    function = {"name": told["name"], "description": told["description"], "parameters": told["input_schema"]}
    tools = [{"type": "function", "function": function}]
    calls = [{"id": "a", "function": call} for call in CALLS]
    results = [{"role": "tool", "content": f"dry in {one['arguments']['city']}"} for one in CALLS]
    talk = [*HI, {"role": "assistant", "content": "Let me see.", "tool_calls": calls}, *results]
    how = {"template": HERMES, "positions": 1536, "tools": tools}
    marks = plain("<tool_call>", "</tool_call>")
    first = make_scripted_chat(folder / "agent", SAID, *marks, **how)
    then = make_scripted_chat(folder / "then", "Both are dry.<|im_end|>", *marks, **how, messages=talk)
    [file], [other] = first.glob("*.safetensors"), then.glob("*.safetensors")
    tensors, more = load_file(file), load_file(other)
    [name] = [name for name in tensors if name.endswith("wpe.weight")]
    save_file({**tensors, name: tensors[name] + more[name]}, file, {"format": "pt"})
    return first


def fails(model: Path, position: int) -> Path:
    """A model that returns NaN from a position of its text on."""
    [file] = model.glob("*.safetensors")
    tensors = load_file(file)
    [name] = [name for name in tensors if name.endswith("wpe.weight")]
    tensors[name][position:] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    return model


@pytest.fixture(scope="module")
def client(url):
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60)


def asked(model: str, **more) -> dict:
    return {"model": model, "messages": HI, "max_tokens": 400, "extra_body": {"temperature": 0}, **more}


def streamed(client, **body):
    """The answer as the client puts it together, and the types of the stream's events."""
    with client.messages.stream(**body) as stream:
        kinds = [event.type for event in stream]
        return stream.get_final_message(), kinds


def same(one, other) -> bool:
    """Whether answers say the same: the ids of each are its own."""
    return without_ids(one.model_dump(exclude_none=True)) == without_ids(other.model_dump(exclude_none=True))


def without_ids(value):
    if isinstance(value, list):
        return [without_ids(one) for one in value]
    return {key: without_ids(one) for key, one in value.items() if key != "id"} if isinstance(value, dict) else value


def test_one_list_of_models_is_for_clients_of_both_apis(client, url):
    found = list(client.models.list())
    assert [one.id for one in found] == ["qwen", "hermes", "counts", "goes-on", "fails", "agent", "stories"]
    assert found == list(client.models.list(limit=2)), "page by page"
    one = client.models.retrieve("stories")
    assert one == found[-1] and (one.type, one.display_name, one.lifecycle) == ("model", "stories", "active")
    other = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60).models
    assert [one.id for one in other.list()] == [one.id for one in found]
    assert other.retrieve("stories").created == int(one.created_at.timestamp())
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("nosuch")


def test_thoughts_and_answers(client):
    for more in ({}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"thinking": {"type": "adaptive"}}):
        whole = client.messages.create(**asked("qwen", **more))
        thought, said = whole.content
        assert (thought.type, thought.thinking) == ("thinking", "Let me see.") and thought.signature
        assert (said.type, said.text) == ("text", "It is \u4f60\u597d.")
        assert (whole.type, whole.role, whole.model, whole.stop_reason) == ("message", "assistant", "qwen", "end_turn")
        assert whole.usage.output_tokens_details.thinking_tokens == 12, "11 bytes and the mark"
    final, kinds = streamed(client, **asked("qwen"))
    assert same(final, whole) and kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert {"thinking", "signature", "text"} < {*kinds}
    hidden = asked("qwen", thinking={"type": "adaptive", "display": "omitted"})
    answer = client.messages.create(**hidden)
    assert [one.type for one in answer.content] == ["thinking", "text"] and answer.content[0].thinking == ""
    assert same(streamed(client, **hidden)[0], answer)
    again = [*HI, {"role": "assistant", "content": whole.content}, *HI]
    plain = [*HI, {"role": "assistant", "content": said.text}, *HI]
    one, other = (client.messages.count_tokens(model="qwen", messages=messages) for messages in (again, plain))
    assert one == other, "thoughts that are given back are not read again"


def test_calls_of_tools(client):
    body = asked("hermes", tools=[TOOL])
    whole = client.messages.create(**body)
    said, *uses = whole.content
    assert (whole.stop_reason, said.text) == ("tool_use", "Let me see.")
    assert [{"name": one.name, "arguments": one.input} for one in uses] == CALLS
    assert len({one.id for one in uses}) == 2
    final, kinds = streamed(client, **body)
    assert same(final, whole) and "input_json" in kinds
    results = [{"type": "tool_result", "tool_use_id": one.id, "content": "dry"} for one in uses]
    results.append({"type": "text", "text": "Well?"})
    talk = [*HI, {"role": "assistant", "content": whole.content}, {"role": "user", "content": results}]
    again = client.messages.create(**{**body, "messages": talk, "max_tokens": 4})
    assert again.stop_reason == "max_tokens"
    count = client.messages.count_tokens(model="hermes", messages=talk, tools=[TOOL])
    assert count.input_tokens == again.usage.input_tokens > whole.usage.input_tokens + 200, "of bytes"
    wild = {"tools": [TOOL], "max_tokens": 500, "extra_body": {"temperature": 2, "seed": 3}}
    for choice, several in (
        ({"type": "any"}, True),
        ({"type": "any", "disable_parallel_tool_use": True}, False),
        ({"type": "tool", "name": "weather"}, False),
    ):
        made = client.messages.create(**{**asked("hermes"), **wild, "tool_choice": choice})
        uses = [one for one in made.content if one.type == "tool_use"]
        assert made.stop_reason == "tool_use" and (several or len(uses) == 1)
        assert all(one.input["city"] in ("Paris", "Rome") for one in uses)
    beta = client.beta.messages.create(**body, betas=["no-such-2031-01-01"])
    assert same(beta, whole), "by a path with a query and a header that change nothing"
    none = client.messages.create(**{**body, "tool_choice": {"type": "none"}, "max_tokens": 3})
    assert none.stop_reason == "max_tokens" and all(one.type == "text" for one in none.content)


def test_an_agent_of_the_client_goes_on_until_it_is_done(client):
    """It calls the tools itself, and gives back what the model said and what they return, once it knows that the server
    keeps no conversations."""
    for stream in (False, True):
        runner = client.beta.messages.tool_runner(**asked("agent", tools=[looks_up()]), stream=stream)
        answers = [one.get_final_message() if stream else one for one in runner]
        assert [one.stop_reason for one in answers] == ["tool_use", "end_turn"]
        assert [one.text for one in answers[1].content] == ["Both are dry."]


def test_a_stop_sequence_is_named(client):
    body = asked("counts", stop_sequences=["nosuch", "two"])
    whole = client.messages.create(**body)
    assert (whole.content[0].text, whole.stop_reason, whole.stop_sequence) == ("one, ", "stop_sequence", "two")
    assert same(streamed(client, **body)[0], whole)
    mark = client.messages.create(**asked("counts", stop_sequences=["<|im_end|>"]))
    assert (mark.content[0].text, mark.stop_sequence) == ("one, two, three", "<|im_end|>"), "a token of this name too"
    end = client.messages.create(**asked("counts"))
    assert (end.content[0].text, end.stop_reason, end.stop_sequence) == ("one, two, three", "end_turn", None)
    cut = client.messages.create(**asked("counts", max_tokens=4))
    assert (cut.content[0].text, cut.stop_reason, cut.usage.output_tokens) == ("one", "max_tokens", 4)


def test_an_answer_that_the_last_message_begins(client):
    """It goes on at once, with the space that it begins with."""
    body = asked("goes-on", messages=BEGUN)
    whole = client.messages.create(**body)
    assert (whole.content[0].text, whole.stop_reason) == (" one, two, three", "end_turn")
    assert same(streamed(client, **body)[0], whole)
    count = client.messages.count_tokens(model="goes-on", messages=BEGUN)
    asks = client.messages.count_tokens(model="goes-on", messages=HI)
    assert count.input_tokens == whole.usage.input_tokens == asks.input_tokens + len(BEGUN[-1]["content"])
    for more in ({}, {"thinking": {"type": "disabled"}}):  # of a model that thinks, without a thought
        answer = client.messages.create(**{**asked("qwen", messages=BEGUN, max_tokens=3), **more})
        assert answer.usage.output_tokens == 3 and answer.usage.output_tokens_details.thinking_tokens == 0


def test_a_count_is_that_of_the_prompt(client):
    more = {"system": [{"type": "text", "text": "Be kind."}], "tools": [TOOL]}
    one = client.messages.create(**{**asked("hermes"), **more, "max_tokens": 1}).usage.input_tokens
    assert client.messages.count_tokens(model="hermes", messages=HI, **more).input_tokens == one
    assert client.messages.count_tokens(model="hermes", messages=HI).input_tokens < one


def test_a_seed_gives_what_the_command_line_gives(client):
    made = client.messages.create(model="stories", messages=HI, max_tokens=8, extra_body={"seed": 1})
    told = json.loads(gencli("text", "Hi", "--chat", "--seed", 1, "-n", 8, "--json").stdout)
    assert made.content[0].text == told["text"]
    assert made.usage.input_tokens == told["usage"]["prompt_tokens"]


def test_text_comes_as_it_is_made(client):
    with client.messages.stream(model="stories", messages=HI, max_tokens=20, extra_body={"seed": 1}) as stream:
        parts = list(stream.text_stream)
        assert len(parts) > 5 and "".join(parts) == stream.get_final_text()


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        ({"model": "nosuch"}, "NotFoundError", "no model 'nosuch' here"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "BadRequestError", "prompt is too long: "),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "BadRequestError", "thinking on: stories"),
        ({"tools": [TOOL]}, "BadRequestError", "tools: stories has no chat template, and knows no tools"),
        ({"extra_body": {"no_such": 1}}, "BadRequestError", "'no_such' is not supported"),
        ({"messages": [{"role": "user", "content": "a" * 65 * 2**20}]}, "ContentTooLargeError", "the body has more"),
    ],
)
def test_errors_come_before_a_stream_begins(client, wrong, error, told):
    for stream in (False, True):
        with pytest.raises(getattr(anthropic, error, anthropic.APIStatusError)) as raised:
            client.messages.create(**{**asked("stories"), **wrong}, stream=stream)
        body = raised.value.body
        assert body["type"] == "error" and told in body["error"]["message"] and "--" not in body["error"]["message"]


def test_an_error_in_a_stream_is_an_event_of_it(client, url):
    body = asked("fails")
    with pytest.raises(anthropic.InternalServerError, match="NaN"):
        client.messages.create(**body)
    with pytest.raises(anthropic.APIStatusError, match="NaN") as raised:
        streamed(client, **body)
    assert raised.value.body["error"]["type"] == "api_error"
    lines = httpx.post(url + "/v1/messages", json={**HTTP, "model": "fails", "stream": True}).text.splitlines()
    assert lines[0] == "event: message_start" and "event: content_block_delta" in lines
    assert lines[-3] == "event: error" and "event: message_stop" not in lines


HTTP = {"messages": HI, "max_tokens": 400, "temperature": 0}


def test_a_key_as_either_client_shows_it(short_path):
    with listening(short_path, "-m", "stories", "--key", "secret-secret") as (_, _, url):
        for shown in ({"api_key": "secret-secret"}, {"auth_token": "secret-secret"}):
            client = anthropic.Anthropic(base_url=url, max_retries=0, timeout=60, **shown)
            assert [one.id for one in client.models.list()] == ["stories"]
            assert client.messages.create(model="stories", messages=HI, max_tokens=1).usage.output_tokens == 1
        client = anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0, timeout=60)
        with pytest.raises(anthropic.AuthenticationError) as raised:
            client.messages.create(model="stories", messages=HI, max_tokens=1)
        assert raised.value.body["error"]["type"] == "authentication_error"
