"""Tools as a user meets them: lines of JSON in a pipe, OpenAI's client, ollama's route, and what cannot be had."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import httpx
import pytest

from tests.oracles.libraries import openai
from tests.shell.process import gencli, listening, short_folder
from tests.tiny.chat_templates import GPT_OSS
from tests.tiny.scripted import CHATML, make_scripted_chat, plain
from tests.tiny.text import make_gpt2
from tests.tiny.tool_templates import HERMES

pytestmark = pytest.mark.slow
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {**CITY, "additionalProperties": False}}}]
CALLS = [{"name": "weather", "arguments": {"city": city}} for city in ("Paris", "Rome")]
SAID = "Let me see.\n" + "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in CALLS) + "<|im_end|>"
HI = [{"role": "user", "content": "Hi"}]
GREEDY = ("--temperature", "0")


def make(folder: Path, said: str = SAID) -> Path:
    """A model that answers "Hi" so when it is told of TOOLS."""
    marks = plain("<tool_call>", "</tool_call>")
    return make_scripted_chat(folder, said, *marks, template=HERMES, positions=1024, tools=TOOLS)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "hermes")


def test_calls_are_lines_of_json(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(TOOLS))
    for tools in (file, json.dumps(TOOLS), json.dumps(TOOLS[0]["function"])):
        done = gencli("text", "Hi", "-m", model, *GREEDY, "--tools", tools)
        first, *calls = done.stdout.decode().splitlines()
        assert (done.returncode, done.stderr, first) == (0, b"", "Let me see.")
        assert [json.loads(call) for call in calls] == CALLS
    found = json.loads(gencli("text", "Hi", "-m", model, *GREEDY, "--tools", file, "--json").stdout)
    assert (found["text"], found["tool_calls"], found["finish_reason"]) == ("Let me see.", CALLS, "tool_calls")
    for more in ((), ("--workers", "2", "--batch", "1")):
        line = ("text", "--lines", "-m", model, *GREEDY, "--tools", file, "--json", *more)
        done = gencli(*line, stdin=b"Hi\nHi\n")
        assert [json.loads(one)["tool_calls"] for one in done.stdout.splitlines()] == [CALLS] * 2, done.stderr
    done = gencli("text", "Hi", "-m", model, *GREEDY, "--tools", file, "--tool-choice", "none")
    assert b"weather" not in done.stdout or done.stdout.count(b"tool_call") > 0, "then what it writes is text"


FORMS = {  # what else the template has, what the model says, and its special tokens
    "mistral": (
        "[TOOL_CALLS] [ARGS]",
        'Let me see.[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]weather[ARGS]{"city": "Rome"}<|im_end|>',
        ("[TOOL_CALLS]", "[ARGS]"),
    ),
    "deepseek": (
        "<｜tool▁call▁begin｜> <｜tool▁sep｜>",
        "Let me see."
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
        '<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Rome"}<｜tool▁call▁end｜><｜tool▁calls▁end｜><|im_end|>',
        (
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁calls▁end｜>",
        ),
    ),
    "gemma": (
        "<|tool_call>",
        'Let me see.<|tool_call>call:weather{city:<|"|>Paris<|"|>}<tool_call|>'
        '<|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|><|im_end|>',
        ("<|tool_call>", "<tool_call|>", '<|"|>'),
    ),
}
MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|call|>")


@pytest.mark.parametrize("name", FORMS)
def test_tokens_that_mark_calls_are_read_and_not_printed(tmp_path: Path, name: str) -> None:
    needs, said, special = FORMS[name]
    template = "{% if tools %}{# " + needs + " #}{% endif %}" + CHATML
    folder = make_scripted_chat(tmp_path / name, said, *special, template=template, tools=TOOLS)
    done = gencli("text", "Hi", "-m", folder, *GREEDY, "--tools", json.dumps(TOOLS), "--json")
    found = json.loads(done.stdout)
    assert (found["text"], found["tool_calls"], found["finish_reason"]) == ("Let me see.", CALLS, "tool_calls"), done


def test_a_call_in_a_channel(tmp_path: Path) -> None:
    """gpt-oss's: a thought, and a call that its own token ends."""
    said = (
        "<|channel|>analysis<|message|>Let me see<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
    )
    said += '<|constrain|>json<|message|>{"city": "Rome"}<|call|>'
    template = "{% if tools %}{{ '<|start|>developer<|message|>namespace functions<|end|>' }}{% endif %}" + GPT_OSS
    end = {"eos_token_id": [264]}
    folder = make_scripted_chat(tmp_path / "it", said, *MARKS, template=template, tools=TOOLS, generation=end)
    done = gencli("text", "Hi", "-m", folder, *GREEDY, "--tools", json.dumps(TOOLS), "--json")
    found = json.loads(done.stdout)
    assert (found["text"], found["tool_calls"]) == ("", CALLS[1:]), done.stderr
    assert found["reasoning_content"] == "Let me see" and not done.stderr
    plain = gencli("text", "Hi", "-m", folder, *GREEDY, "--tools", json.dumps(TOOLS))
    assert json.loads(plain.stdout) == CALLS[1]


def test_a_call_that_has_to_be_is_one(model: Path) -> None:
    """At a temperature at which everything is possible, and of several at once."""
    for choice in ("required", "weather"):
        line = ("text", "Hi", "-m", model, "--tools", json.dumps(TOOLS), "--tool-choice", choice, "--json")
        done = gencli(*line, "--temperature", "2", "--num-samples", "3", "--seed", "1", "-n", "600")
        found = [json.loads(one) for one in done.stdout.splitlines()]
        assert (len(found), done.returncode) == (3, 0), done.stderr
        for one in found:
            assert one["text"] == "" and one["tool_calls"] and all(call in CALLS for call in one["tool_calls"])


def test_what_cannot_be_had_is_one_error(model: Path, tmp_path: Path) -> None:
    make_gpt2(tmp_path / "base")
    tools = json.dumps(TOOLS)
    for args, told in (
        (("-m", tmp_path / "base", "--tools", tools), "has no chat template, and knows no tools"),
        (("-m", model, "--tools", "nothing.json"), "--tools 'nothing.json': no such file"),
        (("-m", model, "--tools", "[]"), "--tools: wants 1 to 128 tools"),
        (("-m", model, "--tools", tools, "--tool-choice", "wether"), "--tool-choice 'wether': there is no such tool"),
        (("-m", model, "--tool-choice", "required"), "there are no tools"),
        (("-m", model, "--tools", tools, "--schema", "{}"), "--tools and --schema cannot be combined"),
    ):
        done = gencli("text", "Hi", *args)
        error = done.stderr.decode()
        assert (done.returncode, done.stdout, error.count("error: ")) == (2, b"", 1) and told in error


def test_clients_of_both_apis() -> None:
    with tempfile.TemporaryDirectory(prefix="gencli-", dir=short_folder()) as name:
        folder = make(Path(name) / "hermes")
        with listening(Path(name), "-m", folder, "-m", "stories") as (_, _, url):
            by_openai(openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60))
            by_ollama(url)


def by_openai(client) -> None:
    asked = {"model": "hermes", "messages": HI, "tools": TOOLS, "temperature": 0}
    made = client.chat.completions.create(**asked).choices[0]
    assert (made.finish_reason, made.message.content) == ("tool_calls", "Let me see.")
    functions = [call.function for call in made.message.tool_calls]
    assert [{"name": one.name, "arguments": json.loads(one.arguments)} for one in functions] == CALLS
    assert len({call.id for call in made.message.tool_calls}) == 2
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True) if chunk.choices]
    streamed = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert [(one.index, one.function.arguments) for one in streamed] == [
        (number, one.arguments) for number, one in enumerate(functions)
    ]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "Let me see."
    assert chunks[-1].finish_reason == "tool_calls"
    answers = [{"role": "tool", "tool_call_id": call.id, "content": "dry"} for call in made.message.tool_calls]
    again = client.chat.completions.create(
        **{**asked, "messages": [*HI, made.message.model_dump(exclude_none=True), *answers], "max_tokens": 4}
    )
    assert again.choices[0].finish_reason == "length" and again.usage.prompt_tokens > 400, "of bytes"
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, several in (("required", True), (named, True), ("required", False)):
        more = {"temperature": 2, "seed": 3, "max_tokens": 500, "parallel_tool_calls": several, "tool_choice": choice}
        calls = client.chat.completions.create(**{**asked, **more}).choices[0].message.tool_calls
        assert calls and ((several and choice == "required") or len(calls) == 1)
    assert (
        client.chat.completions.create(**asked, tool_choice="none", max_tokens=3).choices[0].message.tool_calls is None
    )
    for wrong, param in (
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"messages": [*HI, answers[0]]}, "messages"),
        ({"model": "stories"}, "tools"),
        ({"response_format": {"type": "json_object"}}, "tools"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**{**asked, **wrong})
        assert refused.value.body["param"] == param, refused.value.body
        assert "--" not in refused.value.body["message"]


def by_ollama(url: str) -> None:
    asked = {"model": "hermes", "messages": HI, "tools": TOOLS, "options": {"temperature": 0}}
    whole = httpx.post(url + "/api/chat", json={**asked, "stream": False}, timeout=60).json()
    assert whole["message"] == {
        "role": "assistant", "content": "Let me see.", "tool_calls": [{"function": call} for call in CALLS],
    }  # fmt: skip
    assert whole["done_reason"] == "stop"
    with httpx.stream("POST", url + "/api/chat", json=asked, timeout=60) as answer:
        parts = [json.loads(line) for line in answer.iter_lines()]
    assert [part["message"].get("tool_calls") for part in parts if "tool_calls" in part["message"]] == [
        [{"function": call} for call in CALLS]
    ]
    told = [{"role": "tool", "tool_name": "weather", "content": city} for city in ("dry", "wet")]
    again = {**asked, "messages": [*HI, whole["message"], *told], "stream": False, "options": {"num_predict": 3}}
    assert httpx.post(url + "/api/chat", json=again, timeout=60).json()["done_reason"] == "length"
    none = httpx.post(url + "/api/chat", json={**asked, "model": "stories"}, timeout=60)
    assert none.status_code == 400 and none.json()["error"].startswith("stories does not support tools")
    show = httpx.post(url + "/api/show", json={"model": "hermes"}, timeout=60).json()
    assert "tools" in show["capabilities"]
