"""Reasoning as a user meets it: pipes with the answer alone, models without a switch, answers that never come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.shell.process import gencli, on_terminal
from tests.tiny.chat_templates import GPT_OSS, QWEN35
from tests.tiny.scripted import make_scripted_chat, plain
from tests.tiny.text import make_gpt2

pytestmark = pytest.mark.slow
GREEDY = ("--temperature", "0")
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|end|>")
SAID = "Let me see. é🙂</think>\n\nIt is 你好.<|im_end|>"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    """Its template opens the thought, or, told not to, closes it at once."""
    folder = tmp_path_factory.mktemp("models") / "qwen"
    return make_scripted_chat(folder, SAID, *plain("<think>", "</think>"), template=QWEN35)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> Path:
    """The same, which says what it does where it was told not to reason."""
    folder = tmp_path_factory.mktemp("models") / "quiet"
    template = QWEN35.replace("enable_thinking is false", "enable_thinking is true")
    return make_scripted_chat(folder, SAID, *plain("<think>", "</think>"), template=template)


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory) -> Path:
    said = "<|channel|>analysis<|message|>Let me see<|end|><|start|>assistant<|channel|>final<|message|>It is."
    folder = tmp_path_factory.mktemp("models") / "gpt-oss"
    return make_scripted_chat(
        folder, f"{said}<|return|>", *HARMONY, template=GPT_OSS, generation={"eos_token_id": [262]}
    )


def test_pipes_have_the_answer_alone(qwen: Path, gpt_oss: Path) -> None:
    for model, answer in ((qwen, "It is 你好.\n"), (gpt_oss, "It is.\n")):
        for command in (("text", "--chat", "Hi"), ("text", "Hi", "--think", "on"), ("chat",)):
            done = gencli(*command, "-m", model, *GREEDY, stdin=b"Hi")
            assert (done.returncode, done.stdout.decode(), done.stderr) == (0, answer, b"")


def test_json_has_the_reasoning_in_a_key_of_its_own(qwen: Path, gpt_oss: Path) -> None:
    line = ("text", "--chat", "-m", qwen, *GREEDY, "--json")
    alone = json.loads(gencli(*line, "Hi").stdout)
    assert (alone["text"], alone["reasoning_content"]) == ("It is 你好.", "Let me see. é🙂")
    assert alone["usage"]["completion_tokens_details"] == {"reasoning_tokens": 19}, "its 18 bytes and the mark"
    other = json.loads(gencli(*line, "Hi", "-m", gpt_oss).stdout)["usage"]
    assert other["completion_tokens_details"] == {"reasoning_tokens": 38}, "all before the answer's first word"
    assert "completion_tokens_details" not in json.loads(gencli(*line, "Hi", "--think", "off").stdout)["usage"]
    for more in ((), ("--workers", "2", "--batch", "1")):
        done = gencli(*line, "--lines", *more, stdin=b"Hi\nHo\n")
        found = [json.loads(one) for one in done.stdout.splitlines()]
        assert [one["reasoning_content"] for one in found] == ["Let me see. é🙂"] * 2, done.stderr


def test_a_terminal_shows_it_dimmed_unless_it_is_to_be_quiet(qwen: Path) -> None:
    line = ("text", "--chat", "Hi", "-m", qwen, *GREEDY)
    code, screen, stdout, _ = on_terminal(*line, stdout=False)
    assert (code, stdout.decode()) == (0, "It is 你好.\n")
    assert "\x1b[2mé\x1b[0m\x1b[2m🙂\x1b[0m".encode() in screen
    code, screen, stdout, _ = on_terminal(*line, "-q", stdout=False)
    assert (code, stdout.decode(), screen) == (0, "It is 你好.\n", b"")


def test_what_is_asked_of_the_template_changes_the_prompt(qwen: Path, quiet: Path, gpt_oss: Path) -> None:
    def tokens(model: Path, *asked: object) -> int:
        done = gencli("text", "--chat", "Hi", "-m", model, *GREEDY, "--json", *asked)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["usage"]["prompt_tokens"]

    usual = tokens(qwen)
    assert [tokens(qwen, "--think", wish) - usual for wish in ("auto", "on", "low")] == [0, 0, 0]
    off = ("--chat-template-kwargs", '{"enable_thinking": false}')
    assert tokens(qwen, "--think", "off") == tokens(qwen, *off) == tokens(qwen, "--think=false") > usual
    assert tokens(quiet, "--think", "on") > tokens(quiet, "--think", "off")
    assert tokens(gpt_oss, "--think", "high") == tokens(gpt_oss) - len("medium") + len("high")


def test_a_wish_that_cannot_be_had_is_one_error(gpt_oss: Path, tmp_path: Path) -> None:
    """At the first of many lines, and where the config file says it too; `auto` takes it back."""
    told = f"error: --think off: {gpt_oss} always reasons: its chat template takes low, medium, high\n"
    for more, stdin in ((("Hi",), b""), (("--lines",), b"Hi\nHo\n"), (("--lines", "--workers", "2"), b"Hi\nHo\n")):
        done = gencli("text", "-m", gpt_oss, "--think", "off", *more, stdin=stdin)
        assert (done.returncode, done.stdout, done.stderr.decode().replace("line 1: ", "")) == (2, b"", told)
    make_gpt2(tmp_path / "base")
    kept = tmp_path / "config.toml"
    kept.write_text('think = "off"\n')
    done = gencli("text", "Hi", "-m", tmp_path / "base", "-n", "3", "--json", GENCLI_CONFIG=str(kept))
    assert json.loads(done.stdout)["settings"] == {"max_tokens": 3}, "no chat by itself"
    done = gencli("chat", "-m", gpt_oss, stdin=b"Hi", GENCLI_CONFIG=str(kept))
    assert (done.returncode, done.stderr.decode()) == (2, f"{told[:-1]} (--think is set by config.toml)\n")
    done = gencli("chat", "-m", gpt_oss, *GREEDY, "--think", "auto", stdin=b"Hi", GENCLI_CONFIG=str(kept))
    assert (done.returncode, done.stdout) == (0, b"It is.\n")


def test_a_thought_that_takes_all_tokens_says_what_helps(qwen: Path) -> None:
    done = gencli("text", "--chat", "Hi", "-m", qwen, *GREEDY, "-n", "5")
    note = b"note: the answer is empty: reasoning took all of its 5 tokens (see --max-tokens, --think)\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\n", note)
    found = json.loads(gencli("text", "--chat", "Hi", "-m", qwen, *GREEDY, "-n", "5", "--json").stdout)
    assert (found["text"], found["reasoning_content"], found["finish_reason"]) == ("", "Let m", "length")


def test_show_says_what_a_model_can_be_told(qwen: Path, gpt_oss: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "qwen.gguf"
    assert gencli("models", "convert", qwen, "-o", gguf).returncode == 0
    for model, wishes in ((qwen, ["on", "off"]), (gguf, ["on", "off"]), (gpt_oss, ["low", "medium", "high"])):
        assert json.loads(gencli("models", "show", model, "--json").stdout)["tokenizer"]["think"] == wishes
        lines = gencli("models", "show", model).stdout.decode().splitlines()
        assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("reasoning:")] == [
            f"--think {', '.join(wishes)}"
        ]


def test_without_colours_reasoning_is_named(qwen: Path) -> None:
    line = ("text", "--chat", "Hi", "-m", qwen, *GREEDY, "--color", "never")
    code, screen, stdout, _ = on_terminal(*line, stdout=False)
    assert (code, stdout.decode()) == (0, "It is 你好.\n")
    assert b"reasoning: Let me see." in screen and b"\x1b[2m" not in screen


def test_stop_texts_are_looked_for_in_the_answer_alone(qwen: Path) -> None:
    assert gencli("text", "--chat", "Hi", "-m", qwen, *GREEDY, "--stop", "see").stdout.decode() == "It is 你好.\n"
    assert gencli("text", "--chat", "Hi", "-m", qwen, *GREEDY, "--stop", " 你").stdout.decode() == "It is\n"
