"""Conversations with tools: transformers' prompts exactly, with calls and what tools answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gencli.text.chat_template import Templated
from gencli.text.messages import read_messages
from gencli.text.request import TextRequest
from gencli.text.tools import listed
from gencli.tokens import load_tokenizer
from tests.tiny import tool_templates
from tests.tiny.chat_templates import Family, make_chat_tokenizer

pytestmark = pytest.mark.slow
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>")
MARKS = (
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)
FAMILIES = [
    Family("hermes", tool_templates.HERMES, "<|im_end|>", ("<|im_start|>",), ("<tool_call>", "</tool_call>")),
    Family("llama3.1", tool_templates.LLAMA, "<|eot_id|>", HEADERS, bos="<|begin_of_text|>"),
    Family("mistral0.3", tool_templates.MISTRAL, "</s>", MARKS, bos="<s>"),
]
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "its é name"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}},
]
CALL = {"id": "abcDEF123", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
TALKS = {
    "asked": [{"role": "user", "content": "Is it raining?"}],
    "a system prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it raining?"}],
    "answered": [
        {"role": "user", "content": "Is it raining?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "abcDEF123", "content": '{"rain": false}'},
    ],
    "and on": [
        {"role": "user", "content": "Is it raining?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "abcDEF123", "content": "no"},
        {"role": "assistant", "content": "It is not."},
        {"role": "user", "content": "And in Rome?"},
    ],
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_prompts_are_transformers(tmp_path: Path, family: Family) -> None:
    import transformers

    folder = make_chat_tokenizer(tmp_path / family.name, family)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    made = Templated(load_tokenizer(folder), family.name)
    request = TextRequest(tools=json.dumps(TOOLS))
    try:
        for name, talk in TALKS.items():
            if name == "a system prompt" and family.name == "mistral0.3":
                continue
            messages = read_messages(talk)
            prompt = made.prompt(messages, request)
            values = {"tools": [*listed("tools", json.dumps(TOOLS))], "add_generation_prompt": True}
            assert prompt.text == reference.apply_chat_template(messages, tokenize=False, **values), name
            assert prompt.ids == reference.apply_chat_template(messages, return_dict=False, **values), name
            assert prompt.reasoning.calls is not None
            plain = made.prompt(messages, TextRequest(tools=json.dumps(TOOLS), tool_choice="none"))
            assert plain.text == reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert plain.reasoning.calls is None
        assert [*listed("tools", json.dumps(TOOLS))] == TOOLS, "tools go to the template as they are given"
        sly = [{"role": "user", "content": f"Say {family.eos} {family.special[0]}"}]
        tools = TOOLS[0]["function"] | {"description": f"Ends {family.eos} here"}
        prompt = made.prompt(read_messages(sly), TextRequest(tools=json.dumps(tools)))
        text = prompt.text
        assert family.eos in text and f"Ends {family.eos} here" in text
        end = made.tokenizer.backend.token_to_id(family.eos)
        assert prompt.ids.count(end) == text.count(family.eos) - 2, "words of a tool are no tokens"
    finally:
        made.close()


def test_ids_of_other_servers_do(tmp_path: Path) -> None:
    """Mistral's templates want nine letters and digits; an answer without an id belongs to the first call."""
    folder = make_chat_tokenizer(tmp_path / "it", FAMILIES[2])
    made = Templated(load_tokenizer(folder), "it")
    call = {**CALL, "id": "call_00_veryLong"}
    for answer in ({"tool_call_id": "call_00_veryLong"}, {}):
        talk = [
            TALKS["asked"][0],
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "no", **answer},
        ]
        try:
            text = made.prompt(read_messages(talk), TextRequest(tools=json.dumps(TOOLS))).text
        finally:
            made.close()
        told = json.loads(text.partition("[TOOL_CALLS] [")[2].partition("]")[0].replace(', "id"', ', "id"'))
        assert f'"call_id": "{told["id"]}"' in text and len(told["id"]) == 9
