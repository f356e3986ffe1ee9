"""Whole conversations in place of prompts: from arguments and pipes, one per line, with what tools answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.shell.process import gencli
from tests.tiny.scripted import make_scripted_chat, plain
from tests.tiny.text import make_gpt2
from tests.tiny.tool_templates import HERMES

pytestmark = pytest.mark.slow
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"name": "weather", "arguments": {"city": "Rome"}}
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it dry in Rome?"}]
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "type": "function", "function": CALL}]}
TOLD = {"role": "tool", "tool_call_id": "call_1", "content": "dry"}
TALK = [*ASKED, CALLED, TOLD]
ANSWER = "Yes, it is."
GREEDY = ("--temperature", "0")


def make(folder: Path) -> Path:
    """A model that answers TALK with ANSWER, and nothing of another length."""
    marks = plain("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    more = {"template": HERMES, "positions": 1024, "tools": TOOLS, "messages": TALK}
    return make_scripted_chat(folder, f"{ANSWER}<|im_end|>", *marks, **more)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "hermes")


def test_the_last_turn_is_answered(model: Path) -> None:
    line = ("text", "--messages", "-m", model, *GREEDY, "--tools", json.dumps(TOOLS))
    flat = [*ASKED, {**CALLED, "tool_calls": [CALL]}, {"role": "tool", "content": "dry"}]  # as --json writes calls
    texted = {**CALL, "arguments": json.dumps(CALL["arguments"])}  # as OpenAI's API does
    openai = [
        *ASKED,
        {**CALLED, "content": None, "tool_calls": [{**CALLED["tool_calls"][0], "function": texted}]},
        TOLD,
    ]
    parts = [*ASKED[:1], {"role": "user", "content": [{"type": "text", "text": ASKED[1]["content"]}]}, CALLED, TOLD]
    saved = {"model": "hermes", "messages": TALK}
    for talk in (TALK, flat, openai, parts, saved):
        given = json.dumps(talk)
        done = gencli(*line, given)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{ANSWER}\n".encode(), b""), done
        assert gencli(*line, stdin=json.dumps(talk, indent=2).encode()).stdout == done.stdout
    without = gencli(*line, "--system", ASKED[0]["content"], json.dumps(TALK[1:]))
    assert (without.stdout, without.stderr) == (f"{ANSWER}\n".encode(), b"")


def test_one_on_each_line(model: Path) -> None:
    line = ("text", "--messages", "-m", model, *GREEDY, "--tools", json.dumps(TOOLS), "--lines")
    lines = "\n".join(map(json.dumps, (TALK, {"messages": TALK}, ["no message"], TALK))).encode()
    for more in ((), ("--workers", "2", "--batch", "1")):
        done = gencli(*line, *more, stdin=lines)
        assert (done.returncode, done.stdout) == (1, f"{ANSWER}\n".encode() * 3), done
        assert b"error: line 3: the conversation: messages[0] is no object" in done.stderr
    records = gencli(*line, "--json", stdin=lines)
    assert [json.loads(one)["text"] for one in records.stdout.splitlines()] == [ANSWER] * 3


def test_a_transcript_for_a_model_without_a_template(tmp_path: Path) -> None:
    folder = make_gpt2(tmp_path / "base")
    line = ("text", "--messages", "-m", folder, *GREEDY, "-n", "4", "--json")
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    examples = tmp_path / "examples.jsonl"
    examples.write_text(json.dumps({"messages": talk[:2]}))
    found = json.loads(gencli(*line, json.dumps(talk)).stdout)
    same = json.loads(gencli("text", "c", "--examples", examples, *line[2:]).stdout)
    assert (found["text"], found["usage"]) == (same["text"], same["usage"])
    done = gencli(*line, json.dumps([*ASKED, CALLED, TOLD]))
    assert (done.returncode, done.stdout) == (1, b"") and b"knows no calls of tools" in done.stderr


def test_what_is_no_conversation_is_told(model: Path, tmp_path: Path) -> None:
    hi = json.dumps(ASKED[1:])
    file = tmp_path / "talk.json"
    file.write_text(hi)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    for args, code, told in (
        (("Hi",), 1, "the conversation is not valid JSON"),
        ((" ",), 1, "the conversation is empty"),
        (("[]",), 1, "the conversation is no JSON list of 1 to 4096 messages"),
        (('{"messages": "Hi"}',), 1, "the conversation is no JSON list"),
        ((json.dumps({"messages": ASKED, "tools": TOOLS}),), 1, "--tools says it"),
        ((json.dumps({"messages": ASKED, "seed": 1}),), 1, "not 'seed'"),
        (
            (json.dumps([*ASKED, CALLED]),),
            1,
            "the last one must be the user's, a tool's, or the beginning of an answer",
        ),
        ((json.dumps([*ASKED, TOLD]),), 1, "messages[2]: no call of the assistant's last message"),
        ((json.dumps([{"role": "user", "content": [image]}]),), 1, "images of messages are not read"),
        ((json.dumps(ASKED), "--system", "Be long."), 1, "leave out --system"),
        ((json.dumps(ASKED[1]),), 1, "write the one message as a list"),
        ((str(file),), 1, f"`< {file}` reads the file"),
        (('[{"role": "wizard", "content": ""}]',), 1, 'not "wizard"'),
        (('[{"role": "user"}]',), 1, "wants a text as content, not null"),
        (("[5]",), 1, "messages[0] is no object"),
        ((json.dumps([*ASKED, CALLED, {**TOLD, "tool_call_id": "zzz"}]),), 1, "has its tool_call_id"),
        ((json.dumps([*ASKED, CALLED, *[{"role": "tool", "content": "dry"}] * 2]),), 1, "is left for it"),
        ((json.dumps([*ASKED, CALLED, TOLD]).replace('"Rome"', "1e999"),), 1, "a number that is not finite"),
        (("[" * 100_000,), 1, "nested too deeply"),
        (("9" * 9_000,), 1, "a number has too many digits"),
        ((hi, "-i", "photo.png"), 2, "--messages"),
        ((hi, "--echo"), 2, "--echo is for raw prompts"),
    ):
        done = gencli("text", "--messages", "-m", model, *args)
        error = done.stderr.decode()
        assert (done.returncode, done.stdout, error.count("error: ")) == (code, b"", 1), (args, error)
        assert told in error, error


def test_an_answer_may_be_longer_than_a_text(tmp_path: Path) -> None:
    """Of one message; of many, which are made side by side, it may not."""
    folder = make_scripted_chat(tmp_path / "talker", "a" * 300 + "<|im_end|>", positions=512)
    for more in ((), ("--messages",)):
        asked = json.dumps([{"role": "user", "content": "Hi"}]) if more else "Hi"
        whole = gencli("text", "--chat", *more, asked, "-m", folder, *GREEDY)
        assert (whole.stdout, whole.stderr) == (b"a" * 300 + b"\n", b"")
    assert gencli("chat", "-m", folder, *GREEDY, "--no-history", stdin=b"Hi").stdout == whole.stdout
    assert gencli("text", "--chat", "Hi", "-m", folder, *GREEDY, "-n", "9").stdout == b"a" * 9 + b"\n"
    lines = gencli("text", "--chat", "--lines", "-m", folder, *GREEDY, stdin=b"Hi\n")
    assert lines.stdout == b"a" * 256 + b"\n"


def test_turns_that_do_not_fit_are_told(tmp_path: Path) -> None:
    folder = make_scripted_chat(tmp_path / "short", "Yes<|im_end|>", positions=128)
    talk = [{"role": role, "content": f"{n} " * 9} for n in range(4) for role in ("user", "assistant")] + ASKED[1:]
    done = gencli("text", "--messages", "-m", folder, *GREEDY, json.dumps(talk))
    told = b"note: the conversation does not fit the context: its oldest 6 messages will be left out\n"
    assert (done.returncode, done.stderr) == (0, told) and done.stdout.endswith(b"\n")
    lines = gencli("text", "--messages", "--lines", "--json", "-m", folder, *GREEDY, stdin=json.dumps(talk).encode())
    assert lines.stderr == told.replace(b"note: ", b"note: line 1: ")
    assert json.loads(lines.stdout)["messages_left_out"] == 6


def test_an_answer_that_is_begun_goes_on(model: Path) -> None:
    """What comes is the rest of it, and follows no schema, whose beginning has been."""
    line = ("text", "--messages", "-m", model, *GREEDY, "--tools", json.dumps(TOOLS))
    talk = json.dumps([*TALK, {"role": "assistant", "content": ANSWER[:4]}])
    done = gencli(*line, talk)
    assert (done.returncode, done.stdout.decode()) == (0, f"{ANSWER[4:]}\n"), done.stderr
    for more, told in (
        (("--think", "on"), "--think on: there is none before an answer that the conversation has begun"),
        (("--schema", "{}"), "--schema: an answer that the conversation has begun follows none"),
    ):
        done = gencli("text", "--messages", "-m", model, *GREEDY, talk, *more)
        assert (done.returncode, done.stdout) == (2, b"") and told in done.stderr.decode(), done.stderr
