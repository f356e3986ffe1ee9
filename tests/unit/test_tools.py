"""Tools: what a request may say of them, how models write calls, and that calls follow their schemas."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jsonschema import Draft202012Validator

from gencli.errors import UsageError
from gencli.text.call_constraint import CallConstraint
from gencli.text.call_forms import FORMS, Form, form_of
from gencli.text.calls import Calls, CallSplitter
from gencli.text.channels import ChannelSplitter, channels_of
from gencli.text.reasoning import Marks, Reasoning
from gencli.text.request import TextRequest
from gencli.text.tools import Call, call_id, listed, tools_of
from gencli.tokens import load_tokenizer
from tests.tiny.scripted import END, bytes_tokenizer, plain
from tests.tiny.text import write_json

WEATHER = {
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "São Paulo"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOLS = tools_of(json.dumps([WEATHER, {"type": "function", "function": CLOCK}]), None)
ARGUMENTS = {"city": "São Paulo", "days": 3}
JSON = '{"city": "São Paulo", "days": 3}'
ONE, TWO = Call("weather", JSON), Call("clock", "{}")
DS = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"
# what a template has → two calls as such a model writes them, and tokens that are special
SAID = {
    "qwen coder": (
        "tools <function= <tool_call>",
        "<tool_call>\n<function=weather>\n<parameter=city>\nSão Paulo\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=clock>\n</function>\n</tool_call>",
        (),
    ),
    "glm": (
        "tools <arg_key> <tool_call>",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>São Paulo</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>clock\n</tool_call>",
        ("<tool_call>", "</tool_call>"),
    ),
    "mistral": (
        "tools [TOOL_CALLS] [ARGS]",
        f"[TOOL_CALLS]weather[ARGS]{JSON}[TOOL_CALLS]clock[ARGS]{{}}",
        ("[TOOL_CALLS]", "[ARGS]"),
    ),
    "mistral 0.3": (
        "tools [TOOL_CALLS]",
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {JSON}}}, {{"name": "clock", "arguments": {{}}}}]',
        ("[TOOL_CALLS]",),
    ),
    "deepseek v3": (
        f"tools {' '.join(DS)} ```json",
        f"{DS[0]}{DS[1]}function{DS[2]}weather\n```json\n{JSON}\n```{DS[3]}\n{DS[1]}function{DS[2]}clock\n```json\n{{}}\n"
        f"```{DS[3]}{DS[4]}",
        DS,
    ),
    "deepseek v3.1": (
        f"tools {' '.join(DS)}",
        f"{DS[0]}{DS[1]}weather{DS[2]}{JSON}{DS[3]}{DS[1]}clock{DS[2]}{{}}{DS[3]}{DS[4]}",
        DS,
    ),
    "command r7b": (
        "tools <|START_ACTION|>",
        f'<|START_ACTION|>[\n {{"tool_call_id": "0", "tool_name": "weather", "parameters": {JSON}}},\n'
        ' {"tool_call_id": "1", "tool_name": "clock", "parameters": {}}\n]<|END_ACTION|>',
        ("<|START_ACTION|>", "<|END_ACTION|>"),
    ),
    "lfm2": (
        "tools <|tool_call_start|>",
        '<|tool_call_start|>[weather(city="São Paulo", days=3), clock()]<|tool_call_end|>',
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "gemma 4": (
        "tools <|tool_call>",
        '<|tool_call>call:weather{city:<|"|>São Paulo<|"|>,days:3}<tool_call|><|tool_call>call:clock{}<tool_call|>',
        ("<|tool_call>", "<tool_call|>", '<|"|>'),
    ),
    "granite 3": (
        "tools <|tool_call|>",
        f'<|tool_call|>[{{"name": "weather", "arguments": {JSON}}}, {{"name": "clock", "arguments": {{}}}}]',
        ("<|tool_call|>",),
    ),
    "hermes": (
        'tools <tool_call> "arguments"',
        f'<tool_call>\n{{"name": "weather", "arguments": {JSON}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
        (),
    ),
    "llama": (
        'tools "parameters" <|python_tag|>',
        f'{{"name": "weather", "parameters": {JSON}}}; {{"name": "clock", "parameters": {{}}}}',
        ("<|python_tag|>",),
    ),
    "other": (
        "tools",
        f'{{"name": "weather", "arguments": {JSON}}}; {{"name": "clock", "arguments": {{}}}}',
        (),
    ),
}
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|call|>")


def model(folder: Path, *special: str, template: str = "tools <|channel|>") -> SimpleNamespace:
    """A model's tokenizer, of a token for each byte, and what a constraint wants to know beside it."""
    made = bytes_tokenizer(END, *plain("<tool_call>", "</tool_call>"), *special)
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": END, "chat_template": template})
    tokenizer = load_tokenizer(folder)
    size = tokenizer.vocab_size
    return SimpleNamespace(tokenizer=tokenizer, vocab_size=size, name="it", module=torch.nn.Module())


@pytest.mark.parametrize("name", SAID)
def test_every_form_is_read(name: str) -> None:
    """Whole, letter by letter, after other words, and not where the text ends in the middle."""
    template, said, _ = SAID[name]
    form = form_of(template)
    assert form is not None and TOOLS is not None
    for before in ("", "Let me see. \n\n"):
        if before and form.inside:
            continue
        for step in (1, 7, len(said) + 20):
            splitter = CallSplitter(Calls(form, TOOLS))
            text = before + said
            shown = "".join(splitter.push(text[at : at + step]) for at in range(0, len(text), step))
            assert (shown, splitter.finish()) == (before.rstrip(), ("", (ONE, TWO)))
    for end in (3, len(said) // 3):
        whole = ("" if form.inside else "Look:\n") + said[:end]
        cut = CallSplitter(Calls(form, TOOLS))
        text = "".join(map(cut.push, whole))
        held, calls = cut.finish()
        assert calls or text + held == whole, "what is no call is text"


@pytest.mark.parametrize("text", ["Nothing to call.", "A < b, [x] {y}", "Two\n\n", "{} is empty", "<tool", '{"a": 1}'])
def test_an_answer_without_calls_is_text(text: str) -> None:
    assert TOOLS is not None
    for form in FORMS:
        splitter = CallSplitter(Calls(form, TOOLS))
        shown = "".join(map(splitter.push, text))
        held, calls = splitter.finish()
        assert (shown + held, calls) == (text, ())


def test_arguments_are_json_again() -> None:
    """Numbers beyond all floats too; what JSON has not is no call."""
    assert TOOLS is not None
    hermes = form_of(SAID["hermes"][0])
    for value, kept in (
        ("1e999", sys.float_info.max),
        ("-1e999", -sys.float_info.max),
        ("NaN", None),
        ("Infinity", None),
    ):
        splitter = CallSplitter(Calls(hermes, TOOLS))
        said = f'<tool_call>\n{{"name": "clock", "arguments": {{"a": {value}}}}}\n</tool_call>'
        text = splitter.push(said) + splitter.finish()[0]
        calls = splitter.finish()[1]
        assert [call.values() for call in calls] == ([{"a": kept}] if kept else []) and text == ("" if kept else said)
    lfm2 = form_of(SAID["lfm2"][0])
    splitter = CallSplitter(Calls(lfm2, TOOLS))
    splitter.push("<|tool_call_start|>[clock(a=[1e999, {'b': -1e999}])]<|tool_call_end|>")
    assert splitter.finish()[1][0].values() == {"a": [sys.float_info.max, {"b": -sys.float_info.max}]}
    for value in ("b'a'", "{1, 2}", "open('x')", "1+"):
        said = f"<|tool_call_start|>[clock(a={value})]<|tool_call_end|>"
        splitter = CallSplitter(Calls(lfm2, TOOLS))
        assert (splitter.push(said), splitter.finish()) == ("", (said, ())), "what Python has beyond JSON"


def test_json_that_names_no_tool_is_text() -> None:
    assert TOOLS is not None
    llama = form_of(SAID["llama"][0])
    for text in (
        '{"name": "Anna", "parameters": {}}',
        '{"name": "weather"',
        'Here: {"name": "clock", "parameters": {}}',
    ):
        splitter = CallSplitter(Calls(llama, TOOLS))
        shown = "".join(map(splitter.push, text))
        assert (shown + splitter.finish()[0], splitter.finish()[1]) == (text, ())


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("thinks", [False, True])
def test_calls_follow_their_schemas(tmp_path: Path, name: str, thinks: bool) -> None:
    """What such a model writes is allowed, at random too where it has to call; what breaks the schema is not."""
    template, said, special = SAID[name]
    form = form_of(template)
    assert form is not None and TOOLS is not None
    known = model(tmp_path, *special)
    marks = (Marks(),)
    thought = "<think>a tool</think>\n" if thinks else ""
    answer = CallConstraint(known, Reasoning(marks, calls=Calls(form, TOOLS)))
    for token in known.tokenizer.encode(thought + ("" if form.inside else "Let me see.\n") + said):
        assert answer.allowed()[token], (name, known.tokenizer.raw_piece(token))
        answer.take(token)
    assert answer.allowed()[known.tokenizer.eos_ids[0]]
    wrong = CallConstraint(known, Reasoning(marks, calls=Calls(form, TOOLS)))
    begin = (
        said.replace("São Paulo", "Berlin") if form.inside or "parameter=" not in said else said.replace("city", "town")
    )
    allowed = []
    for token in known.tokenizer.encode(begin):
        allowed.append(bool(wrong.allowed()[token]))
        wrong.take(token)
    assert not all(allowed)
    for seed in range(8):
        written = walk(known, form, seed)
        assert {one.name for one in written} <= {"weather", "clock"} and len(written) == 1
        for call in written:
            if call.name == "weather" and "parameter=" not in said:
                values = call.values()
                assert values["city"] in ("Paris", "São Paulo") and 1 <= values["days"] <= 9


def walk(
    known: SimpleNamespace, form: Form | None, seed: int, tools: Sequence[object] = (WEATHER, CLOCK), most: int = 600
) -> list[Call]:
    """The calls of an answer that has to have some, of tokens at random among those allowed."""
    must = tools_of(json.dumps(tools), "required", several=False)
    assert must is not None
    channels = None if form else channels_of(known.tokenizer)
    reasoning = Reasoning((Marks(),), None, channels, Calls(form, must))
    constraint, rng = CallConstraint(known, reasoning), random.Random(seed)
    splitter = ChannelSplitter(channels, calls=True) if channels else CallSplitter(Calls(form, must))
    special = {i: known.tokenizer.raw_piece(i) for i in known.tokenizer.special_ids}
    decoder = known.tokenizer.decoder()
    for _ in range(most):
        allowed = constraint.allowed().nonzero()[0].tolist()
        ends = [i for i in known.tokenizer.eos_ids if i in allowed]
        likely = [i for i in (known.tokenizer.encode("<|end|>")[:1] if channels else []) if i in allowed]
        token = ends[0] if ends else rng.choice(likely or allowed)
        if token in known.tokenizer.eos_ids:
            break
        if channels and isinstance(splitter, ChannelSplitter):
            splitter.push(decoder.push(token))
            splitter.take(token)
        elif isinstance(splitter, CallSplitter):
            splitter.push(special.get(token) or decoder.push(token))
        if constraint.take(token):
            break
    return [*(splitter.calls() if isinstance(splitter, ChannelSplitter) else splitter.finish()[1])]


def test_channels_hold_calls(tmp_path: Path) -> None:
    """gpt-oss's: a call after a thought, the tool in either part of the header; arguments follow the schema."""
    known = model(tmp_path, *HARMONY)
    channels = channels_of(known.tokenizer)
    assert channels is not None and TOOLS is not None
    thought = "<|channel|>analysis<|message|>Let me see<|end|>"
    for head in ("<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>",
                 "<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>"):  # fmt: skip
        reasoning = Reasoning((), None, channels, Calls(None, TOOLS))
        splitter, decoder = reasoning.splitter(), known.tokenizer.decoder()
        constraint, thoughts = CallConstraint(known, reasoning), ""
        for token in known.tokenizer.encode(thought + head + JSON):
            assert constraint.allowed()[token]
            constraint.take(token)
            thoughts += splitter.push(decoder.push(token))[0]
            splitter.take(token)
        assert isinstance(splitter, ChannelSplitter)
        assert (splitter.calls(), thoughts) == ((ONE,), "Let me see")
    assert all(walk(known, None, seed) for seed in range(4))
    silent = Reasoning((), None, channels).splitter()
    assert isinstance(silent, ChannelSplitter)
    for token in known.tokenizer.encode(thought + head + JSON):
        silent.take(token)
    assert not silent.calls(), "no tools, no calls"


POINT = {"type": "object", "properties": {"x": {"type": "number"}, "label": {"type": "string", "maxLength": 3}}}
MANY = {  # values of all kinds, some of which may be left out
    "name": "plan",
    "parameters": {
        "type": "object",
        "properties": {
            "loud": {"type": "boolean"},
            "where": {"$ref": "#/$defs/point"},
            "kind": {"enum": ["a b", 3, None, True]},
            "size": {"type": ["integer", "null"]},
            "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1, "maxItems": 3},
            "steps": {"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 2},
            "until": {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 9}, {"const": "never"}]},
            "note": {"type": "string", "maxLength": 4},
        },
        "required": ["where", "tags", "until"],
        "additionalProperties": False,
        "$defs": {"point": {**POINT, "required": ["x"], "additionalProperties": False}},
    },
}
# Forms that write a text without quotes: what no schema calls a text alone is read as JSON if it is any.
LOOSE = ("qwen coder", "glm")


@pytest.mark.parametrize("name", SAID)
def test_values_of_all_kinds_follow_their_schemas(tmp_path: Path, name: str) -> None:
    """At random, where a call has to be; checked by jsonschema."""
    template, _, special = SAID[name]
    form = form_of(template)
    schema = MANY["parameters"]
    if name in LOOSE:
        kept = {key: one for key, one in schema["properties"].items() if key not in ("until", "note")}
        schema = {**schema, "properties": kept, "required": ["where", "tags"]}
    known = model(tmp_path, *special)
    met = Counter()
    for seed in range(12):
        [call] = walk(known, form, seed, [{**MANY, "parameters": schema}], 3000)
        values = call.values()
        problems = [error.message for error in Draft202012Validator(schema).iter_errors(values)]
        assert not problems, (call.arguments, problems)
        met.update(values.keys())
    assert met["where"] == met["tags"] == 12 and 0 < met["loud"] < 12, met


@pytest.mark.parametrize(
    ("tools", "told"),
    [
        ("[]", "wants 1 to 128 tools"),
        ("[1]", "tool 1: wants an object with a name"),
        ('{"name": ""}', "tool 1: the name '' has other than"),
        ('{"name": "a b"}', "tool 1: the name 'a b' has other than"),
        ('{"type": "web_search", "function": {"name": "a"}}', "of the types only function is known"),
        ('{"name": "a", "description": 1}', "the description is a text"),
        ('{"name": "a", "parameters": []}', "parameters is a JSON schema"),
        ('{"name": "a", "parameters": {"type": "string"}}', "parameters is a JSON schema"),
        (
            '{"name": "a", "parameters": {"properties": {"b": {"type": "frob"}}}}',
            "tool 1: parameters: Invalid type: frob",
        ),
        (
            '{"name": "a", "parameters": {"properties": {"b": {"$ref": "http://b/c"}}}}',
            "parameters: Resource 'http://b/c'",
        ),
        ('[{"name": "a"}, {"name": "a"}]', "two tools have the name 'a'"),
        ("[", "JSON"),
    ],
)
def test_what_is_no_tool_is_told(tools: str, told: str) -> None:
    with pytest.raises(UsageError) as raised:
        TextRequest(tools=tools)
    assert told in raised.value.message and raised.value.message.startswith("--tools")


def test_choices() -> None:
    tools = json.dumps([WEATHER, CLOCK])
    assert TextRequest(tools=tools, tool_choice="none").tools_given is None
    chosen = TextRequest(tools=tools, tool_choice="clock").tools_given
    assert chosen is not None and chosen.must and [*chosen.schemas] == ["clock"]
    for values, told in (
        ({"tools": tools, "tool_choice": "clok"}, "no such tool"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": tools, "schema": "{}"}, "--tools and --schema cannot be combined"),
        ({"tools": tools, "grammar": "/a/"}, "--tools and --grammar cannot be combined"),
    ):
        with pytest.raises(UsageError, match=told):
            TextRequest(**values)
    assert [one["function"]["name"] for one in listed("x", tools)] == ["weather", "clock"]
    assert (call_id("abcDEF123"), len(call_id("call_1")), call_id("call_1")) == ("abcDEF123", 9, call_id("call_1"))
