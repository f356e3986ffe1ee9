"""Whether and how long a model reasons: what a request says, what a chat template reads, and what is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from gencli.errors import UsageError
from gencli.text.chat_template import Templated, Transcript, switches
from gencli.text.chat_template_worker import variables
from gencli.text.request import TextRequest
from gencli.text.wishes import read_wish
from gencli.tokens import load_tokenizer
from tests.tiny.chat_templates import FAMILIES, GPT_OSS, THINKERS, make_chat_tokenizer
from tests.tiny.text import make_tokenizer

HI = [{"role": "user", "content": "Hi"}]
ALL = {family.name: family for family in [*FAMILIES, *THINKERS]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A family's format, by its name."""
    formats: dict[str, Templated] = {}

    def make(name: str) -> Templated:
        if name not in formats:
            folder = make_chat_tokenizer(tmp_path_factory.mktemp("think") / name, ALL[name])
            formats[name] = Templated(load_tokenizer(folder), name)
        return formats[name]

    yield make
    for one in formats.values():
        one.close()


def wanted(template: str) -> set[str]:
    return {*variables(template)} - {"messages", "add_generation_prompt", "bos_token", "eos_token"}


def test_what_templates_read() -> None:
    """Not what they give a value of their own first, as Qwen 3's does with `reasoning_content`."""
    found = {name: wanted(family.template) for name, family in ALL.items()}
    thinking = {name: names for name, names in found.items() if names}
    assert thinking == {
        "qwen3": {"enable_thinking"}, "qwen3.5": {"enable_thinking"}, "smollm3": {"enable_thinking"},
        "gemma4": {"enable_thinking"}, "deepseek": {"thinking"}, "effort": {"reasoning_effort"},
        "gpt-oss": {"reasoning_effort", "builtin_tools"}, "llama3.2": {"date_string", "tools"},
    }  # fmt: skip
    assert {"none", "high"} <= {*variables(ALL["effort"].template)["reasoning_effort"]}
    assert wanted("{% for thinking in messages %}{{ thinking }}{% endfor %}") == set()
    assert wanted("{% set thinking = 1 %}{{ thinking }}") == set()
    assert wanted("{% set thinking = thinking | default(false) %}{{ thinking }}") == {"thinking"}
    assert wanted("{% macro m() %}{{ thinking }}{% endmacro %}{{ m() }}") == {"thinking"}


@pytest.mark.slow
def test_an_answer_that_is_begun_has_no_thought_before_it(made) -> None:
    """But is one where it begins with its mark."""
    begun = [*HI, {"role": "assistant", "content": "It is"}]
    for name, end in (
        ("qwen3", "<think>\n\n</think>\n\nIt is"), ("qwen3.5", "<|im_start|>assistant\nIt is"),
        ("gpt-oss", "<|start|>assistant<|channel|>final<|message|>It is"), ("deepseek", "</think>It is"),
    ):  # fmt: skip
        prompt = made(name).prompt(begun)
        assert prompt.text.endswith(end), prompt.text
        splitter = prompt.reasoning.splitter()
        assert splitter.push(" <think>so") == ("", " <think>so") and not splitter.inside and splitter.openers == ()
    thought = made("qwen3.5").prompt([*HI, {"role": "assistant", "content": "<think>"}])
    assert thought.reasoning.inside and thought.reasoning.splitter().push("Hm") == ("Hm", "")
    knows = dataclasses.replace(made("gpt-oss").tokenizer, chat_template="{% if tools %}{% endif %}" + GPT_OSS)
    harmony = Templated(knows, "harmony")
    with pytest.raises(UsageError, match="an answer of harmony that is begun has no calls"):
        harmony.prompt(begun, TextRequest(tools='[{"name": "clock"}]'))
    harmony.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wish", "told"),
    [
        ("gpt-oss", "off", "--think off: gpt-oss always reasons: its chat template takes low, medium, high"),
        ("effort", "low", "--think low: effort knows no such effort: its chat template takes high"),
        ("qwen2", "on", "--think on: the chat template of qwen2 knows no reasoning"),
        ("qwen2", "high", "--think high: the chat template of qwen2 knows no reasoning"),
    ],
)
def test_a_model_without_the_switch_says_so(made, name: str, wish: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(name).prompt(HI, TextRequest(think=wish))
    assert caught.value.message == told


@pytest.mark.slow
def test_a_model_that_reasons_and_cannot_be_told_says_so(made) -> None:
    """As DeepSeek R1, whose template only opens a thought."""
    tokenizer = made("qwen2").tokenizer
    source = tokenizer.chat_template.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    assert source != tokenizer.chat_template
    thinks = Templated(dataclasses.replace(tokenizer, chat_template=source), "r1")
    assert thinks.prompt(HI).reasoning.inside
    with pytest.raises(UsageError, match="--think off: the chat template of r1 has no switch for it"):
        thinks.prompt(HI, TextRequest(think="off"))
    thinks.close()


@pytest.mark.slow
def test_further_values_for_a_template(made) -> None:
    asked = TextRequest(think="low", chat_template_kwargs='{"builtin_tools": ["python", "browser"]}')
    text = made("gpt-oss").prompt(HI, asked).text
    assert "Reasoning: low\n# Tools: python, browser\n" in text
    stronger = TextRequest(think="low", chat_template_kwargs='{"reasoning_effort": "as you like"}')
    assert "Reasoning: as you like\n" in made("gpt-oss").prompt(HI, stronger).text
    for values, told, hint in (
        ({"reasoning_efort": "low"}, "does not read 'reasoning_efort'", "did you mean reasoning_effort?"),
        ({"messages": []}, "does not read 'messages'", "it reads builtin_tools, reasoning_effort"),
    ):
        with pytest.raises(UsageError) as caught:
            made("gpt-oss").prompt(HI, TextRequest(chat_template_kwargs=json.dumps(values)))
        assert told in caught.value.message and caught.value.hint == hint


@pytest.mark.slow
def test_values_that_a_template_cannot_take_are_to_blame_themselves(made) -> None:
    for asked, name in (
        (TextRequest(think="high", chat_template_kwargs='{"builtin_tools": 5}'), "chat-template-kwargs"),
    ):
        with pytest.raises(UsageError, match=f"^--{name}: gpt-oss: its chat template cannot take .*TypeError"):
            made("gpt-oss").prompt(HI, asked)


@pytest.mark.slow
def test_what_a_template_has_a_switch_for() -> None:
    found = {name: switches(family.template, name) for name, family in ALL.items()}
    assert {name: wishes for name, wishes in found.items() if wishes} == {
        **{name: ["on", "off"] for name in ("qwen3", "qwen3.5", "smollm3", "gemma4", "deepseek")},
        "gpt-oss": ["low", "medium", "high"],
        "effort": ["off", "high"],
    }
    for broken in ("{{ thinking", "{{ thinking + " + "9" * 5000 + " }}", "{% if thinking %}" + "{{ (" * 3000):
        assert switches(broken, "broken") == []


def test_a_model_without_a_template(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    plain = Transcript(load_tokenizer(tmp_path), "base")
    assert plain.prompt(HI, TextRequest(think="off")) == plain.prompt(HI)
    for asked in (TextRequest(think="on"), TextRequest(think="high"), TextRequest(chat_template_kwargs="{}")):
        with pytest.raises(UsageError, match="base has no chat template"):
            plain.prompt(HI, asked)


def test_words_of_other_programs() -> None:
    assert [read_wish(word) for word in ("auto", None, "AUTO")] == [None] * 3
    words = ("True", "false", "none", "minimal", "xhigh", "High", "Why?")
    assert [read_wish(word) for word in words] == ["on", "off", "off", "low", "high", "high", "Why?"]


@pytest.mark.parametrize(
    "values", ["[]", "5", "{", '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', '{"a": ' * 5000, ""]
)
def test_values_that_are_none(values: str) -> None:
    with pytest.raises(UsageError) as caught:
        TextRequest(chat_template_kwargs=values)
    assert caught.value.message.startswith("--chat-template-kwargs: ") and "\n" not in caught.value.message


def test_wishes_that_are_none() -> None:
    with pytest.raises(UsageError, match="--think 'maybe': expected one of on, off, low, medium, high"):
        TextRequest(think="maybe")
