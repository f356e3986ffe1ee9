"""Bodies of OpenAI's routes: what becomes a request, and what is refused by name."""

import json
import re

import pytest
from jsonschema import Draft202012Validator

from gencli.cli.serve import read_duration, read_size
from gencli.errors import UsageError
from gencli.serve.bodies import read_chat, read_completions, read_drawing, wants_stream
from gencli.serve.openapi import page
from gencli.serve.refusal import Refusal

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def test_names_of_a_completion():
    body = {"model": "m", "prompt": "a", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "n": 2,
            "stop": "x", "seed": 3, "presence_penalty": 1, "logit_bias": {"5": -100}, "logprobs": 2}  # fmt: skip
    ((request, ids),) = read_completions({**body, "user": "u"}).requests
    assert ids is None
    assert (request.prompt, request.max_tokens, request.num_samples, request.stop) == ("a", 5, 2, ("x",))
    assert (request.seed, request.logprobs) == (3, 2)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert sampling.presence_penalty == 1 and sampling.logit_bias == ((5, -100.0),)


def test_answers_in_a_form():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    assert json.loads(read_chat({**CHAT, "response_format": form}).request.schema or "") == schema
    assert read_chat({**CHAT, "response_format": {"type": "json_object"}}).request.schema == '{"type": "object"}'
    assert read_chat({**CHAT, "response_format": {"type": "text"}}).request.schema is None
    for body in (form, {"type": "json_object"}, {"type": "text"}, None):
        assert on_page("chat/completions", {**CHAT, "response_format": body})
        assert on_page("completions", {"model": "m", "prompt": "a", "response_format": body})
    for body in ({"type": "xml"}, {"type": "json_schema"}, {"type": "text", "x": 1}, "text"):
        assert not on_page("chat/completions", {**CHAT, "response_format": body})


def on_page(route: str, body: dict) -> bool:
    """Whether the server's page of itself allows a body."""
    [said] = page(["m"])["paths"][f"/v1/{route}"]["post"]["requestBody"]["content"].values()
    return not list(Draft202012Validator(said["schema"]).iter_errors(body))


def test_the_page_has_every_name_that_is_read():
    both = {"model": "m", "stream": False, "user": "u", "store": True, "temperature": 1, "seed": 3, "n": 2}
    text = {**both, "stream_options": {"include_usage": True}, "best_of": 1, "tools": [], "tool_choice": "auto"}
    drawing = {**both, "prompt": "a", "response_format": "b64_json", "quality": "high", "steps": 3, "size": "64x64"}
    del drawing["temperature"]
    assert read_completions({**text, "prompt": "a"}).requests and on_page("completions", {**text, "prompt": "a"})
    assert read_chat({**CHAT, **text}).messages and on_page("chat/completions", {**CHAT, **text})
    assert read_drawing(drawing, "m").format and on_page("images/generations", drawing)
    assert not on_page("completions", {**text, "prompt": "a", "echo": True})


def test_the_page_wants_the_name_of_a_model_where_there_are_several():
    [needed, alone] = [
        page(names)["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for names in (["a", "b"], ["a"])
    ]
    assert [*needed["required"]] == ["model", "prompt"] and [*alone["required"]] == ["prompt"]


def test_prompts_of_every_form():
    texts = read_completions({"prompt": ["a", "b"], "n": 3, "seed": 10}).requests
    assert [(one.prompt, one.seed) for one, _ in texts] == [("a", 10), ("b", 13)]
    assert read_completions({"prompt": [1, 2]}).requests[0][1] == [1, 2]
    assert [ids for _, ids in read_completions({"prompt": [[1], [2, 3]]}).requests] == [[1], [2, 3]]


def test_null_is_as_if_it_were_not_given():
    body = {"prompt": "a", "temperature": None, "logit_bias": None, "stop": None, "n": None, "seed": None}
    assert read_completions(body).requests[0][0].sampling.temperature is None
    assert read_completions({"prompt": None}).requests[0][0].prompt == ""


def test_a_whole_number_may_have_a_point():
    request = read_completions({"prompt": "a", "max_tokens": 5.0, "top_k": 40.0}).requests[0][0]
    assert (request.max_tokens, request.sampling.top_k) == (5, 40)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": "a", "n": 129}, "n"),
        ({"prompt": ["a", "b"], "n": 128}, "n"),
        ({"prompt": "a", "n": 1.5}, "n"),
        ({"prompt": "a", "n": True}, "n"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "top_p": float("nan")}, "top_p"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 10**400}, "max_tokens"),
        ({"prompt": "a", "seed": "x"}, "seed"),
        ({"prompt": "a", "seed": 2**64}, "seed"),
        ({"prompt": "a", "stop": [1]}, "stop"),
        ({"prompt": "a", "stop": ""}, "stop"),
        ({"prompt": "a", "stop": ["x"] * 1000}, "stop"),
        ({"prompt": "a", "logit_bias": [1]}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "best_of": 4}, "best_of"),
        ({"prompt": "a", "no_such": 1}, "no_such"),
        ({"prompt": "a\ud800"}, "prompt"),
        ({"prompt": "a", "stop": "a\ud800"}, "stop"),
        ({"prompt": "a", "logit_bias": {"5": True}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"5": "3"}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"5": 10**400}}, "logit_bias"),
        ({"prompt": ["a", "b"], "max_tokens": 2**17}, "max_tokens"),
        (
            {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            "response_format",
        ),
    ],
)
def test_completions_refused(body, param):
    with pytest.raises(Refusal) as refused:
        read_completions({"model": "m", **body})
    assert refused.value.status == 400 and refused.value.param == param
    assert len(refused.value.message) < 2000


KINDS = ["hot", True, 1.5, 7, -5, [], [1], {"a": 1}, ""]
ROUTES = {
    "completions": (read_completions, {"model": "m", "prompt": "a"}),
    "chat/completions": (read_chat, CHAT),
    "images/generations": (lambda body: read_drawing(body, "m"), {"model": "m", "prompt": "a"}),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_wrong_value_is_told_by_the_name_that_the_client_knows(route):
    """Of every name that a route reads, and values of every kind; no word of options, which clients do not have."""
    read, right = ROUTES[route]
    [said] = page(["m"])["paths"][f"/v1/{route}"]["post"]["requestBody"]["content"].values()
    names = {*said["schema"]["properties"]} - {"model", "stream", "stream_options"}
    if route == "chat/completions":
        right = {**right, "logprobs": True}
    wrong = 0
    for name in sorted(names):
        for value in KINDS:
            try:
                read({**right, name: value})
            except Refusal as refused:
                assert refused.status == 400 and refused.param == name
                assert name in refused.message and not re.search(r"(^|\W)--?[a-z]", refused.message), refused.message
                wrong += 1
    assert wrong > 100


@pytest.mark.parametrize(
    ("route", "wrong", "told"),
    [
        ("completions", {"temperature": "hot"}, 'temperature "hot": wants a number'),
        ("completions", {"top_k": [1]}, "top_k […]: wants an integer"),
        ("completions", {"max_tokens": "many"}, 'max_tokens "many": wants a whole number from 1 to 131072'),
        ("completions", {"n": True}, "n true: wants a whole number from 1 to 128"),
        ("completions", {"truncate": {"a": 1}}, "truncate {…}: wants left"),
        ("completions", {"stop": 5}, "stop: wants text, or a list of at most 64 of them"),
        ("completions", {"best_of": 4}, "best_of 4 is not supported (leave it out, or give 1)"),
        ("completions", {"temprature": 1}, "'temprature' is not supported (did you mean temperature?)"),
        ("completions", {"n_predict": 1}, "'n_predict' is not supported (did you mean max_tokens?)"),
        ("completions", {"temperature": float("inf")}, "temperature inf: must be finite"),
        ("completions", {"temperature": float("nan")}, "temperature nan: must be finite"),
        ("completions", {"max_tokens": 5.5}, "max_tokens 5.5: wants a whole number"),
        ("chat/completions", {"max_completion_tokens": 0}, "max_completion_tokens 0: wants a whole number from"),
        ("chat/completions", {"logprobs": True, "top_logprobs": 99}, "top_logprobs 99: wants a whole number from 0"),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs: wants logprobs to be true"),
        ("chat/completions", {"response_format": {"type": "xml"}}, "response_format: wants an object with a type of"),
        ("images/generations", {"guidance_scale": "x"}, 'guidance_scale "x": wants a number'),
        ("images/generations", {"negative_prompt": 5}, "negative_prompt 5: wants text"),
        (
            "images/generations",
            {"num_inference_steps": 2},
            "'num_inference_steps' is not supported (did you mean steps?)",
        ),
        ("images/generations", {"sampler_name": "ddim"}, "'sampler_name' is not supported (did you mean sampler?)"),
        ("images/generations", {"karras": 1}, "karras 1: wants true or false"),
        ("images/generations", {"size": "1x16385"}, "size 16385: must be from 1 to 16384"),
        ("images/generations", {"size": ""}, 'size "": wants WIDTHxHEIGHT'),
        ("images/generations", {"output_format": []}, "output_format […]: wants one of png, jpeg, webp"),
        ("images/generations", {"stream": True}, "stream: images are not streamed"),
    ],
)
def test_the_kind_that_is_wanted_is_told(route, wrong, told):
    read, right = ROUTES[route]
    with pytest.raises(Refusal) as refused:
        read({**right, **wrong})
    assert refused.value.message.startswith(told) and refused.value.param == list(wrong)[-1]


def test_whole_numbers_are_numbers():
    """Tensors take no integer beyond 64 bits."""
    sampling = read_completions({"prompt": "a", "repeat_penalty": 10**30}).requests[0][0].sampling
    assert isinstance(sampling.repeat_penalty, float)


def test_names_of_an_image():
    body = {"prompt": "a", "n": 2, "size": "64x32", "steps": 3, "negative_prompt": "b", "guidance_scale": 4, "seed": 5}
    made = read_drawing({**body, "quality": "high", "output_format": "webp"}, "m")
    request = made.request
    assert (request.prompt, request.count, request.width, request.height) == ("a", 2, 64, 32)
    assert (request.steps, request.negative, request.guidance, request.seed) == (3, "b", 4, 5)
    assert made.format == "webp"
    assert read_drawing({"prompt": "a", "size": "auto"}, "m").request.width is None


@pytest.mark.parametrize(
    "change",
    [
        {"n": 11},
        {"size": "4096x4096"},
        {"size": "0x4"},
        {"size": 64},
        {"size": "axb"},
        {"response_format": "url"},
        {"output_format": "exe"},
        {"prompt": 5},
        {"init": "/etc/passwd"},
        {"lora": ["x"]},
        {"steps": 10**9},
    ],
)
def test_images_refused(change):
    with pytest.raises(Refusal) as refused:
        read_drawing({"prompt": "a", **change}, "m")
    assert refused.value.status == 400


def test_streams():
    assert wants_stream({}) == (False, False)
    assert wants_stream({"stream": True, "stream_options": {"include_usage": True}}) == (True, True)
    for body, param in (
        ({"stream": 1}, "stream"),
        ({"stream": True, "stream_options": 5}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "no"}}, "stream_options"),
        ({"stream": True, "logprobs": 1}, "logprobs"),
    ):
        with pytest.raises(Refusal) as refused:
            wants_stream(body)
        assert refused.value.param == param


def test_durations_and_sizes():
    assert [read_duration(text) for text in ("90", "30s", "10m", "1h", "0", "1.5m")] == [90, 30, 600, 3600, 0, 90]
    assert read_duration("forever") == float("inf")
    assert [read_size(text) for text in ("500M", "8G", "8GiB", "1k", "12")] == [500 * 2**20, 2**33, 2**33, 1024, 12]
    for wrong in ("", "m", "-1", "1d", "nan", "inf"):
        with pytest.raises(UsageError):
            read_duration(wrong)
        with pytest.raises(UsageError):
            read_size(wrong)


def test_a_grammar_and_where_a_prompt_is_cut():
    asked = {"model": "m", "prompt": "a", "grammar": "/[0-9]+/", "truncate": True}
    [(request, _)] = read_completions(asked).requests
    assert (request.grammar, request.truncate) == ("/[0-9]+/", "left")
    [(request, _)] = read_completions({**asked, "truncate": False}).requests
    assert request.truncate is None
    for wrong, told in (
        ({"grammar": "/(/"}, "grammar: "),
        ({"grammar": "/etc/passwd"}, "grammar: "),  # no file is read
        ({"truncate": "right"}, 'truncate "right": wants left'),
    ):
        with pytest.raises(Refusal) as refused:
            read_completions({**asked, **wrong})
        assert refused.value.message.startswith(told) and refused.value.param == told.split(":")[0].split()[0]
