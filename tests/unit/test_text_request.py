"""Requests, stop strings, order of samples, prompts: everything about text that needs no model."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest

from gencli.errors import GencliError, UsageError
from gencli.serve.bodies import read_chat
from gencli.text.events import Completion, Logprobs, PromptTruncated, TextDelta, in_order
from gencli.text.request import ANSWER_TOKENS, MAX_SEED, TextRequest, parse_logit_bias, usual_values
from gencli.text.stops import StopScanner
from tests.shell.process import gencli

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    "field, good, bad",
    [
        ("max_tokens", [1, 10**6], [0, -1]),
        ("temperature", [0, 0.0, 1e-9, 5.0], [-0.1, INF, NAN]),
        ("top_k", [0, 1, 10**6], [-2]),
        ("top_p", [0.0, 0.5, 1.0], [-0.1, 1.01, NAN]),
        ("min_p", [0.0, 1.0], [-0.1, 1.01]),
        ("typical_p", [0.01, 1.0], [0.0, 1.01]),
        ("repeat_penalty", [0.1, 1.3], [0.0, -1.0, INF]),
        ("presence_penalty", [-2.0, 0.0, 2.0], [-2.1, 2.1, NAN]),
        ("frequency_penalty", [-2.0, 0.0, 2.0], [-2.1, 2.1]),
        ("num_samples", [1, 1000], [0, -1]),
        ("logprobs", [0, 5], [-1]),
        ("seed", [0, MAX_SEED], [-1, MAX_SEED + 1]),
        ("logit_bias", [(), ((3, -100.0), (4, -INF))], [((-1, 1.0),), ((1, INF),), ((1, NAN),)]),
        ("stop", [(), ("\n", "END")], [("",), ("a", "")]),
        ("truncate", [None, "left"], ["right"]),
    ],
)
def test_ranges(field: str, good: list, bad: list):
    for value in good:
        request = TextRequest.of(**{field: value})
        assert getattr(request if hasattr(request, field) else request.sampling, field) == value
    for value in bad:
        with pytest.raises(UsageError, match="--" + field.replace("_", "-")):
            TextRequest.of(**{field: value})


def test_the_last_sample_has_a_seed_too():
    TextRequest("", seed=MAX_SEED - 9, num_samples=10)
    with pytest.raises(UsageError, match="--seed"):
        TextRequest("", seed=MAX_SEED - 8, num_samples=10)


def test_texts_must_be_unicode():
    with pytest.raises(GencliError, match="not valid UTF-8") as error:
        TextRequest("caf\udce9")
    assert error.value.exit_code == 1
    with pytest.raises(GencliError, match="--stop"):
        TextRequest("", stop=("\udce9",))


def test_a_request_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TextRequest("").prompt = "other"  # type: ignore[misc]


def test_settings_come_from_the_request_then_the_checkpoint_then_the_defaults():
    checkpoint = {"temperature": 0.3, "top_k": 7, "repetition_penalty": 1.2, "max_new_tokens": 9, "do_sample": True}
    resolved = TextRequest.of(top_k=5).resolve(checkpoint)
    params = resolved.sampling
    assert (params.top_k, params.temperature, params.repeat_penalty, resolved.max_tokens) == (5, 0.3, 1.2, 9)
    assert params.top_p == usual_values()["top_p"] == 0.95
    assert TextRequest("").resolve({}).completed() == usual_values()


def test_a_checkpoint_may_ask_for_greedy():
    assert TextRequest("").resolve({"do_sample": False, "temperature": 0.7}).sampling.temperature == 0
    assert TextRequest.of(temperature=1.0).resolve({"do_sample": False}).sampling.temperature == 1.0


def test_a_checkpoint_may_be_wrong():
    with pytest.raises(GencliError, match=r"generation_config.json: top-p 3"):
        TextRequest("").resolve({"top_p": 3})
    with pytest.raises(GencliError, match=r"generation_config.json: temperature hot"):
        TextRequest("").resolve({"temperature": "hot"})
    assert TextRequest.of(top_p=0.5).resolve({"top_p": 3}).sampling.top_p == 0.5


def test_logit_bias():
    assert parse_logit_bias("50256=-100") == (50256, -100.0)
    assert parse_logit_bias("7=-inf") == (7, -INF)
    for text in ["", "7", "7=", "=1", "x=1", "7=x", "1.5=2"]:
        with pytest.raises(UsageError, match="ID=BIAS"):
            parse_logit_bias(text)


def first_stop(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """What is left of a text read one character after another until it ends in a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


def test_stops_do_not_depend_on_the_cuts():
    """Random texts over a small alphabet, in random pieces, against reading character by character."""
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices("ab\n", k=draw.randint(0, 12)))
        stops = tuple("".join(draw.choices("ab\n", k=draw.randint(1, 4))) for _ in range(draw.randint(0, 3)))
        scanner, shown, stopped, at = StopScanner(stops), "", False, 0
        while at < len(text) and not stopped:
            size = draw.randint(1, 5)
            more, stopped = scanner.push(text[at : at + size])
            shown += more
            at += size
            assert first_stop(text, stops)[0].startswith(shown)  # nothing is shown that must be taken back
        shown += "" if stopped else scanner.finish()
        assert (shown, stopped) == first_stop(text, stops), (text, stops)


def test_only_what_may_become_a_stop_is_held_back():
    scanner = StopScanner(["###"])
    assert scanner.push("one #") == ("one ", False)
    assert scanner.push("#") == ("", False)
    assert scanner.push(" two") == ("## two", False)
    assert scanner.push(" ###") == (" ", True) and scanner.found == "###"
    assert StopScanner([]).push("anything") == ("anything", False)


def sample(index: int) -> Completion:
    return Completion(index, index, "", "stop", 1, 1)


def test_samples_come_one_after_another():
    """Every interleaving of three samples gives the same order, and the one whose turn it is is never held up."""
    tracks = [[TextDelta(i, "x"), TextDelta(i, "y"), sample(i)] for i in range(3)]
    wanted = [event for track in tracks for event in track]
    orders = set(itertools.permutations([0, 0, 0, 1, 1, 1, 2, 2, 2]))
    assert len(orders) == 1680
    for order in sorted(orders):
        left = [list(track) for track in tracks]
        events = [left[i].pop(0) for i in order]
        assert list(in_order(events)) == wanted
    live = in_order(iter([PromptTruncated(9, 5), TextDelta(0, "x"), TextDelta(1, "x")]))
    assert [next(live), next(live)] == [PromptTruncated(9, 5), TextDelta(0, "x")]


def test_logprobs_keep_the_likelier_of_two_that_read_the_same():
    logprobs = Logprobs()
    logprobs.add("a", -3.0, [("b", -1.0), ("b", -2.0)], 0)
    logprobs.add("cd", -1.0, [("cd", -1.0)], 1)
    assert logprobs.top_logprobs == [{"b": -1.0, "a": -3.0}, {"cd": -1.0}]
    logprobs.cut(1)
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (["a"], [-3.0], [0])


def prompt_of(arguments: list[str], stdin: bytes) -> str:
    """What `read_prompt` makes of arguments and a real pipe."""
    code = (
        "import os, sys\nfrom gencli.cli.prompts import read_prompt\n"
        "print(ascii(read_prompt(sys.argv[1:])), flush=True)\nos._exit(0)"
    )
    done = gencli(*arguments, stdin=stdin, code=code)
    assert done.returncode == 0, done.stderr
    return eval(done.stdout)


@pytest.mark.parametrize(
    "arguments, stdin, prompt",
    [
        (["Once", "upon", "a"], b"ignored", "Once upon a"),
        (["Summarise:", "-", "Summary:"], b"one\ntwo\n", "Summarise:\none\ntwo\nSummary:"),
        (["a", "b", "-", "c", "d"], b"x", "a b\nx\nc d"),
        (["-"], b"x\n\n", "x\n"),
        (["-", "end"], b"", "\nend"),
        ([], b"Hi\n", "Hi"),
        ([], b"Hi\r\n", "Hi"),
        ([], b"Hi\r", "Hi\r"),
        ([], "naïve 你好 🙂".encode(), "naïve 你好 🙂"),
        ([], b"", ""),
        ([""], b"ignored", ""),
        (["a", "", "b"], b"", "a  b"),
    ],
)
def test_prompts(arguments: list[str], stdin: bytes, prompt: str):
    assert prompt_of(arguments, stdin) == prompt


def test_an_answer_is_longer_than_a_text_unless_the_model_says_so() -> None:
    assert TextRequest().resolve({}).max_tokens == 256
    assert TextRequest(answers=True).resolve({}).max_tokens == ANSWER_TOKENS
    assert TextRequest(answers=True).resolve({"max_new_tokens": 9}).max_tokens == 9
    assert TextRequest(answers=True, max_tokens=8).resolve({"max_new_tokens": 9}).max_tokens == 8
    one, many = ({"model": "a", "n": n, "messages": [{"role": "user", "content": "Hi"}]} for n in (1, 128))
    assert read_chat(one).request.resolve({}).max_tokens == ANSWER_TOKENS
    assert read_chat(many).request.resolve({}).max_tokens == 256
