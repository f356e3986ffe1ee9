"""ollama's routes: what becomes a request, what is refused or passed over, and the shapes of answers by its API's page
(github.com/ollama/ollama, docs/api.md). The application runs in this process, without a socket."""

import asyncio
import json
import logging
import math
import time
from datetime import datetime
from functools import partial
from unittest import TestCase

import httpx
import pytest

from gencli.checkpoints.find import find
from gencli.serve.app import Server
from gencli.serve.guard import Limits
from gencli.serve.ollama import REFUSED
from gencli.serve.ollama_answers import Answer
from gencli.serve.ollama_bodies import ALMOST, EMPTY, FIELDS, MACHINE, OPTIONS, read_chat, read_generate, read_keep
from gencli.serve.ollama_models import Models, called, short
from gencli.serve.pool import Pool
from gencli.serve.refusal import Refusal
from gencli.spec import ModelSpec
from gencli.text.events import Completion, ReasoningDelta, TextDelta

HI = [{"role": "user", "content": "Hi"}]
GENERATE, CHAT = {"model": "stories", "prompt": "Once"}, {"model": "stories", "messages": HI}
VALUES = ["hot", True, 1.5, 7, -5, [], [1], {"a": 1}, ""]
TIMES = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
COUNTS = ("prompt_eval_count", "eval_count")
ENDED = {"model", "created_at", "done", "done_reason", *TIMES, *COUNTS}


@pytest.fixture(scope="module")
def server():
    pool = Pool({"stories": "stories", "emoji": "emoji"}, ModelSpec(), partial(find, offline=True), keep=60,
                memory=2**30, pull=False)  # fmt: skip
    server = Server(pool, Limits())
    yield server
    pool.put_away(all=True)


def ask(server: Server, path: str, body=None, way="POST", **how) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(server.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(way, path, **({} if body is None else {"json": body}), **how)

    return asyncio.run(send())


def lines(response: httpx.Response) -> list[dict]:
    assert response.status_code == 200 and response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_options_are_the_rows_of_all_other_requests():
    options = {"num_predict": 5, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8}
    options |= {"repeat_penalty": 1.2, "presence_penalty": 1, "frequency_penalty": -1, "seed": 3, "stop": ["x", "y"]}
    assert options.keys() == OPTIONS.keys()
    for asked in (read_generate({**GENERATE, "options": options}), read_chat({**CHAT, "options": options})):
        request, sampling = asked.request, asked.request.sampling
        assert (request.max_tokens, request.seed, request.stop) == (5, 3, ("x", "y"))
        assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 7, 0.9, 0.1)
        assert (sampling.typical_p, sampling.repeat_penalty, sampling.presence_penalty) == (0.8, 1.2, 1)
        assert asked.stream and not asked.raw and asked.keep is None


def test_an_answer_ends_with_the_text_or_at_num_ctx():
    """ollama's own default, and its words for no limit."""
    for options, limit in (
        ({}, 4096), ({"num_ctx": 100}, 100), ({"num_predict": -1}, 4096), ({"num_predict": -2, "num_ctx": 9}, 9),
        ({"num_predict": 7, "num_ctx": 100}, 7), ({"num_ctx": 10**9}, 2**17), ({"num_predict": 7.0}, 7),
    ):  # fmt: skip
        assert read_generate({**GENERATE, "options": options}).request.max_tokens == limit
    sampling = read_generate({**GENERATE, "options": {"repeat_last_n": 0, "repeat_penalty": 1.3}}).request.sampling
    assert sampling.repeat_penalty is None


def test_prompts_messages_and_forms():
    asked = read_generate({**GENERATE, "system": "Be kind.", "format": "json", "think": False, "stream": False})
    assert asked.messages == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Once"}]
    assert (asked.request.schema, asked.request.think, asked.stream) == ('{"type": "object"}', "off", False)
    raw = read_generate({**GENERATE, "raw": True})
    assert raw.raw and raw.request.prompt == "Once"
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    said = [{"role": "system", "content": "a"}, *HI, {"role": "assistant", "content": "b", "thinking": "c"}, *HI]
    asked = read_chat(
        {**CHAT, "messages": said, "format": schema, "logprobs": True, "top_logprobs": 2, "stream": False}
    )
    assert json.loads(asked.request.schema) == schema and asked.request.logprobs == 2
    assert asked.messages == [*said[:2], {"role": "assistant", "content": "b"}, *HI]
    assert read_chat({**CHAT, "messages": []}).messages is None and read_generate({"model": "m"}).messages is None
    assert read_generate({**GENERATE, "truncate": True}).request.truncate == "left"


def test_images_are_base64_as_it_is_or_in_a_url():
    for said in ("aGk=", "data:image/png;base64,aGk="):
        assert read_generate({**GENERATE, "images": [said]}).images == (b"hi",)
        assert read_chat({**CHAT, "messages": [*HI, {**HI[0], "images": [said]}]}).images == (b"hi",)
    alone = read_generate({"model": "m", "images": ["aGk="]})
    assert alone.messages == [{"role": "user", "content": ""}], "a question without words is one"


def test_what_is_unknown_is_passed_over_with_one_note():
    options = {"no_such_option": 1, **dict.fromkeys(MACHINE - {"num_ctx"}, 1)}
    with TestCase().assertLogs("gencli.serve", logging.WARNING) as told:
        for _ in range(3):
            read_generate({**GENERATE, "options": options, "no_such_field": {}, "shift": True})
    assert sorted(record.getMessage() for record in told.records) == [
        "note: field 'no_such_field' is unknown, and passed over",
        "note: option 'no_such_option' is unknown, and passed over",
    ]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"options": {"temperature": "hot"}}, 'temperature "hot": wants a number'),
        ({"options": {"num_predict": -3}}, "num_predict -3: wants a whole number from 1"),
        ({"options": {"num_ctx": 0}}, "num_ctx 0: wants a whole number from 1"),
        ({"options": {"mirostat": 2}}, "mirostat 2 is not supported"),
        ({"options": [1]}, "options […]: wants an object"),
        ({"options": {"stop": [1]}}, "stop: wants text, or a list"),
        ({"format": "xml"}, 'format "xml": wants "json" or a JSON schema'),
        ({"format": {"type": "x"}}, "format: "),
        ({"think": "very"}, 'think "very": wants one of'),
        ({"keep_alive": "soon"}, 'keep_alive "soon": wants seconds, or a time such as 5m'),
        ({"stream": "no"}, 'stream "no": wants true or false'),
        ({"template": "{{ .Prompt }}"}, "template is not supported: a model's own chat template is used"),
        ({"suffix": "x"}, "suffix is not supported"),
        ({"context": [1, 2]}, "context is not supported: POST /api/chat"),
        ({"images": "aGk="}, "images: wants a list of at most 16 images in base64"),
        ({"images": ["aGk="] * 17}, "images: wants a list of at most 16"),
        ({"images": ["http://localhost/a.png"]}, "images: wants images in base64; nothing is fetched"),
        ({"images": ["/etc/passwd "]}, "images: wants images in base64"),
        ({"images": [5]}, "images: wants images in base64"),
        ({"images": ["aGk="], "raw": True}, "images: a raw prompt has no place for them"),
        ({"tools": [{"type": "function"}]}, "tools: POST /api/chat takes them"),
        ({"logprobs": True}, 'logprobs are not streamed: "stream": false'),
        ({"width": 64}, "width is for models that draw"),
        ({"prompt": 5}, "prompt 5: wants text"),
        ({"prompt": "a\ud800"}, "prompt is no Unicode text"),
        ({"raw": True, "prompt": "a\ud800"}, "prompt is no Unicode text"),
    ],
)
def test_what_cannot_be_followed_is_told(wrong, told):
    with pytest.raises(Refusal) as refused:
        read_generate({**GENERATE, **wrong})
    assert refused.value.status == 400 and refused.value.message.startswith(told), refused.value.message
    assert "--" not in refused.value.message


@pytest.mark.parametrize(
    "messages",
    [
        "Hi", [5], [{"role": "user"}, {"role": "assistant", "content": ""}], [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": "x", "images": ["aGk="]}, *HI],
        [{"role": "assistant", "tool_calls": [{}]}, *HI], [{"role": "user", "content": "\ud800"}],
    ],
)  # fmt: skip
def test_conversations_refused(messages):
    with pytest.raises(Refusal) as refused:
        read_chat({**CHAT, "messages": messages})
    assert refused.value.status == 400 and refused.value.message.startswith("messages")


def test_values_of_every_kind_are_taken_or_refused():
    names = [("options", name) for name in (*OPTIONS, *MACHINE, *ALMOST, "mirostat", "tfs_z")]
    refused = 0
    for read, right in ((read_generate, GENERATE), (read_chat, CHAT)):
        for outer, name in [*names, *((None, name) for name in {*FIELDS, *EMPTY})]:
            for value in [*VALUES, None, float("nan"), 10**400, "\ud800"]:
                body = {**right, "options": {name: value}} if outer else {**right, name: value}
                try:
                    read(body)
                except Refusal as wrong:
                    assert wrong.status == 400 and len(wrong.message) < 2000 and "--" not in wrong.message
                    refused += 1
    assert refused > 200


def test_how_long_a_model_is_kept():
    said = {
        "5m": 300,
        "1h30m": 5400,
        "300ms": 0.3,
        "30": 30,
        5: 5,
        0: 0,
        "0": 0,
        -1: math.inf,
        "-1m": math.inf,
        0.5: 0.5,
    }
    assert {value: read_keep(value) for value in said} == said and read_keep(None) is None
    for wrong in ("", "5 m", "m5", "5d", True, [], "5m!", float("nan")):
        with pytest.raises(Refusal, match="keep_alive"):
            read_keep(wrong)


@pytest.mark.parametrize("talks", [True, False])
def test_answers_have_ollamas_names(talks):
    answer = Answer("m", chat=True, talks=talks)
    answer.ready()
    parts = [*answer.take(ReasoningDelta(0, "Hm"), 0, 0), *answer.take(TextDelta(0, "Yes"), 0, 0)]
    done = Completion(0, 1, "Yes", "stop", 7, 9, reasoning="Hm")
    [last], key = answer.take(done, 0, 0), "message" if talks else "response"
    inside = [part["message"] if talks else part for part in parts]
    text = "content" if talks else "response"
    assert [(one.get("thinking"), one[text]) for one in inside] == [("Hm", ""), (None, "Yes")]
    assert all(part.keys() >= {"model", "created_at", key} and part["done"] is False for part in parts)
    whole = answer.whole()
    for one in (last, whole):
        assert {*one} - {"thinking"} == ENDED | {key} and one["done"] is True and one["done_reason"] == "stop"
        assert [one[name] for name in COUNTS] == [7, 9] and all(type(one[name]) is int for name in TIMES)
        assert one["total_duration"] >= sum(one[name] for name in TIMES[1:]) * 0.999
        assert datetime.fromisoformat(one["created_at"].replace("Z", "+00:00")).tzinfo is not None
    said = whole["message"] if talks else whole
    assert (said[text], said["thinking"]) == ("Yes", "Hm")


def test_names_have_a_tag_as_ollama_writes_them(server, tmp_path, monkeypatch):
    names = ("stories", "ollama:tale", "ollama:qwen3:4b", "org/name", "org/name:Q4_K_M")
    assert [called(name) for name in names] == [
        "stories:latest", "tale:latest", "qwen3:4b", "org/name:latest", "org/name:Q4_K_M",
    ]  # fmt: skip
    store = tmp_path / "manifests/registry.ollama.ai/library/qwen3/4b"
    store.parent.mkdir(parents=True)
    store.write_text("{}")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    models = Models(Pool({}, ModelSpec(), partial(find, offline=True), keep=60, memory=1, pull=False))
    assert {said: models.find(said) for said in ("stories", "stories:latest", "qwen3:4b", "ollama:qwen3:4b")} == {
        "stories": "stories", "stories:latest": "stories", "qwen3:4b": "ollama:qwen3:4b",
        "ollama:qwen3:4b": "ollama:qwen3:4b",
    }  # fmt: skip
    with pytest.raises(Refusal, match=r"model 'storis' not found \(did you mean stories\? GET /api/tags"):
        models.find("storis")
    assert "qwen3:4b" not in {one["name"] for one in models.tags()}, "a model that cannot be opened"
    assert [short(n) for n in (124_439_808, 1_235_814_432, 7_500, 12)] == ["124.44M", "1.2B", "7.50K", "12"]


def test_what_is_here(server):
    root = ask(server, "/", way="GET")
    assert root.status_code == 200 and "ollama" in root.text and ask(server, "/", way="HEAD").status_code == 200
    major, minor, _ = ask(server, "/api/version", way="GET").json()["version"].split(".")
    assert (int(major), int(minor)) >= (0, 9), "which editors ask for"
    [tag] = ask(server, "/api/tags", way="GET").json()["models"]
    assert tag["name"] == tag["model"] == "stories:latest", "no model that draws: it could not answer"
    assert tag["details"]["family"] == "gpt2" and tag["details"]["parameter_size"] == "7.50M" and tag["size"] > 10**7
    assert len(tag["digest"]) == 64 and datetime.fromisoformat(tag["modified_at"].replace("Z", "+00:00"))
    shown = ask(server, "/api/show", {"model": "stories"}).json()
    assert shown["capabilities"] == ["completion"] and shown["details"] == tag["details"]
    assert shown["model_info"]["gpt2.context_length"] == 512 and "temperature 0.8" in shown["parameters"]
    assert ask(server, "/api/show", {"name": "stories:latest"}).json() == shown, "as older clients say"


def test_errors_are_one_line_in_ollamas_form(server):
    ways = {"/api/delete": "DELETE"}
    for path in REFUSED:
        answer = ask(server, path.replace("{digest}", "sha256:0"), {"model": "x"}, ways.get(path, "POST"))
        assert answer.status_code == 501 and list(answer.json()) == ["error"] and "not supported" in answer.text
    for path, body, status, told in (
        ("/api/generate", {**GENERATE, "model": "nosuch"}, 404, "model 'nosuch' not found"),
        ("/api/generate", {**GENERATE, "model": "/etc/passwd"}, 404, "not found"),
        ("/api/generate", {**GENERATE, "model": "emoji"}, 400, "emoji is no language model"),
        ("/api/generate", {"prompt": "x"}, 400, "model: wants the name"),
        ("/api/show", {"model": "emoji"}, 404, "is no language model"),
        ("/api/embed", {"model": "stories", "input": "x"}, 501, "gives no embeddings"),
        ("/api/nosuch", {}, 404, "/api/nosuch is no route"),
        ("/api/tags", {}, 405, "/api/tags wants "),
    ):
        answer = ask(server, path, body)
        assert (answer.status_code, list(answer.json())) == (status, ["error"]) and told in answer.json()["error"]
    broken = ask(server, "/api/chat", content=b"{'a'")
    assert broken.status_code == 400 and "no JSON" in broken.json()["error"]


@pytest.mark.slow
def test_a_prompt_is_continued_streamed_and_whole(server):
    asked = {**GENERATE, "prompt": "Once upon a time", "options": {"seed": 1, "num_predict": 12}}
    parts = lines(ask(server, "/api/generate", asked))
    whole = ask(server, "/api/generate", {**asked, "stream": False}).json()
    said = ask(server, "/v1/completions", {**asked, "options": None, "seed": 1, "max_tokens": 12} | {"options": None})
    assert said.status_code == 200 and whole["response"] == said.json()["choices"][0]["text"]
    assert "".join(part["response"] for part in parts) == whole["response"] and parts[-1]["done_reason"] == "length"
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True] and parts[-1]["eval_count"] == 12
    assert ask(server, "/api/generate", {**asked, "raw": True, "stream": False}).json()["response"] == whole["response"]
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl says it, and ollama's page has it
    assert lines(ask(server, "/api/generate", content=json.dumps(asked).encode(), headers=form))[-1]["done"]
    probs = ask(server, "/api/generate", {**asked, "stream": False, "logprobs": True, "top_logprobs": 1}).json()
    assert "".join(one["token"] for one in probs["logprobs"]) == whole["response"]
    answer = ask(server, "/api/chat", {**CHAT, "options": {"seed": 1, "num_predict": 8}, "stream": False}).json()
    same = {**CHAT, "seed": 1, "max_tokens": 8}
    assert (
        answer["message"]["content"]
        == ask(server, "/v1/chat/completions", same).json()["choices"][0]["message"]["content"]
    )


def test_a_name_from_ollamas_list_is_one_at_openais_routes_too(server):
    """Programs list models by the one API and ask by the other."""
    for name in ("stories:latest", "stories"):
        assert ask(server, f"/v1/models/{name}", way="GET").json()["id"] == "stories"
    assert ask(server, "/v1/models/storis", way="GET").status_code == 404
    assert ask(server, "/v1/models/", way="GET").json() == ask(server, "/v1/models", way="GET").json()
    asked = {"model": "stories:latest", "prompt": "a", "max_tokens": 0}  # refused for something else
    assert ask(server, "/v1/completions", asked).json()["error"]["param"] == "max_tokens"
    made = ask(server, "/v1/completions", {**asked, "max_tokens": 1}).json()
    assert made["model"] == "stories" and len(made["choices"]) == 1


@pytest.mark.slow
def test_what_the_model_refuses_comes_before_a_stream(server):
    for body, told in (
        ({"prompt": "word " * 600}, "the context of stories is 512"),
        ({"think": True}, "stories does not support thinking"),
        ({"think": True, "raw": True}, "stories does not support thinking"),
    ):
        answer = ask(server, "/api/generate", {**GENERATE, **body})
        assert answer.status_code == 400 and told in answer.json()["error"], answer.text
    answer = ask(server, "/api/chat", {**CHAT, "think": True})
    assert answer.status_code == 400 and "stories does not support thinking" in answer.json()["error"]


@pytest.mark.slow
def test_models_are_loaded_and_let_go(server):
    def loaded() -> list[dict]:
        return ask(server, "/api/ps", way="GET").json()["models"]

    for body, reason in (({"model": "stories"}, "load"), ({"model": "stories", "keep_alive": -1}, "load")):
        for path in ("/api/generate", "/api/chat"):
            answer = ask(server, path, body).json()
            assert (answer["done"], answer["done_reason"]) == (True, reason)
    [one] = loaded()
    assert one["name"] == "stories:latest" and one["context_length"] == 512 and one["size"] > 10**7
    assert one["expires_at"].startswith("9999")
    ask(server, "/api/generate", {"model": "stories", "keep_alive": "90m"})
    left = datetime.fromisoformat(loaded()[0]["expires_at"].replace("Z", "+00:00")).timestamp() - time.time()
    assert 5300 < left <= 5400
    assert ask(server, "/api/chat", {"model": "stories", "keep_alive": 0}).json()["done_reason"] == "unload"
    assert loaded() == []
    asked = {**GENERATE, "options": {"num_predict": 1}, "stream": False, "keep_alive": 0}
    assert ask(server, "/api/generate", asked).json()["eval_count"] == 1 and loaded() == []
