"""Prompts in batches: every text is what it is alone, a text that ends makes room for the next one at once."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import time

import pytest
import torch

from gencli.checkpoints.find import Source
from gencli.cli.prompts import LineReader, each_line, pipe_waits
from gencli.errors import GencliError
from gencli.text import batch as batches
from gencli.text.batch import Batch
from gencli.text.events import Completion, Event, Failed, GenerationStats, TextDelta, in_order
from gencli.text.generate import Job, generate, generate_all
from gencli.text.load import TextModel, open_model
from gencli.text.request import TextRequest
from tests.tiny.text import SENTENCES, make_gpt2

NO_END = ((383, -float("inf")),)
LINES = [SENTENCES[0][: 3 + 5 * i] for i in range(7)] + ["x", SENTENCES[1][:30], SENTENCES[2][:9]]
SETTINGS = {
    "sampled": {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
    "filtered": {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    "greedy": {"temperature": 0.0},
    "penalties": {"repeat_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": -0.5},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TextModel:
    torch.set_num_threads(1)
    folder = make_gpt2(tmp_path_factory.mktemp("text") / "tiny")
    return open_model(Source("tiny", folder, "folder"))


def jobs(**settings) -> list[Job]:
    """Lines of several lengths, which end at other tokens."""
    return [
        Job(TextRequest.of(line, seed=i, max_tokens=2 + 7 * i % 23, logit_bias=NO_END, **settings))
        for i, line in enumerate(LINES)
    ]


def whole(events) -> dict[int, Completion]:
    return {event.index: event for event in events if isinstance(event, Completion)}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_line_is_what_it_is_alone(model, settings):
    stats = GenerationStats()
    together = whole(generate_all(model, jobs(logprobs=2, **settings), stats, batch=3))
    assert sorted(together) == list(range(len(LINES)))
    for i, job in enumerate(jobs(logprobs=2, **settings)):
        [alone] = whole(generate(model, job.request)).values()
        assert (together[i].text, together[i].seed) == (alone.text, alone.seed)
        assert together[i].logprobs.tokens == alone.logprobs.tokens
        assert together[i].logprobs.token_logprobs == pytest.approx(alone.logprobs.token_logprobs, abs=1e-5)
    assert stats.generated == sum(one.completion_tokens for one in together.values())


def test_a_text_that_ends_is_replaced_at_once(model, monkeypatch):
    """No step runs with an empty place while lines are waiting, and none with more than the batch."""
    sizes, step = [], Batch.step
    monkeypatch.setattr(Batch, "step", lambda self: (sizes.append(len(self.rows)), step(self))[1])
    list(generate_all(model, jobs(), batch=3))
    assert sizes == sorted(sizes, reverse=True) and max(sizes) == 3 and sizes.count(3) > len(sizes) / 2


def test_a_text_that_nobody_waits_for_ends(model):
    """All samples of such a job end after at most one more step; the others are what they would be."""
    expected = whole(generate_all(model, jobs(num_samples=2), batch=4))
    asked, given = [], jobs(num_samples=2)
    given[3] = dataclasses.replace(given[3], wanted=lambda: (asked.append(1), len(asked) < 4)[1])
    events = list(generate_all(model, given, batch=4))
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert (failed.index, failed.following) == (6, 8)
    assert whole(events) == {index: one for index, one in expected.items() if index not in (6, 7)}
    assert len(asked) < 8


def test_memory_is_bounded(model, monkeypatch):
    """Where the keys and values of two texts would be more than is allowed, they go one after the other."""
    expected = whole(generate_all(model, jobs(), batch=4))
    sizes, step = [], Batch.step
    monkeypatch.setattr(Batch, "step", lambda self: (sizes.append(len(self.rows)), step(self))[1])
    monkeypatch.setattr(batches, "MEMORY", 1)
    assert whole(generate_all(model, jobs(), batch=4)) == expected
    assert set(sizes) == {1}


def test_long_answers_go_side_by_side_until_they_fill_the_memory(model, monkeypatch):
    """Two texts of which each may come to more than half of the memory, and soon will not."""
    batch = Batch(model.module, TextRequest().resolve({}))
    batch.add([1, 2], torch.Generator(), 60)
    half = batch.memory.positions // 2
    monkeypatch.setattr(batches, "SOON", 4)
    monkeypatch.setattr(batches, "MEMORY", batch.memory.bytes(2, half))
    assert batch.has_room(2, 60) and not batch.has_room(half, 8) and not batch.has_room(2, 8 * half)
    for _ in range(half - 8):
        batch.step()
    assert not batch.has_room(2, 60)


def test_a_line_that_fails_leaves_the_others_alone(model):
    """A prompt that is too long, one that could not be read, and tokens of which none is left to pick."""
    every = tuple((i, -float("inf")) for i in range(model.vocab_size))
    asked = jobs()
    asked[1] = Job(TextRequest.of("word " * 500))
    asked[3] = Job(TextRequest(), problem=GencliError("no UTF-8"))
    events = list(in_order(generate_all(model, asked, batch=4)))
    failed = [event for event in events if isinstance(event, Failed)]
    assert [event.index for event in failed] == [1, 3] and "context" in failed[0].error.message
    assert [event.index for event in events] == sorted(event.index for event in events)
    assert sorted(whole(events)) == [i for i in range(len(LINES)) if i not in (1, 3)]
    samples = [Job(TextRequest.of("x", logit_bias=every, num_samples=3)), Job(TextRequest.of("x", num_samples=3))]
    got = list(in_order(generate_all(model, samples[:1], batch=2)))
    assert [(type(event), event.index) for event in got] == [(Failed, 0)] and "no token is left" in got[0].error.message


def test_nothing_is_waited_for_while_texts_are_made(model):
    """As where another program writes a line, and the next one once it has read the answer."""
    taken: list[int] = []

    def lines():
        for i, job in enumerate(jobs()):
            taken.append(i)
            yield job

    answered: list[int] = []
    for event in generate_all(model, lines(), batch=4, ready=lambda: False):
        assert len(taken) <= len(answered) + 1
        answered += [event.index] if isinstance(event, Completion) else []
    assert answered == list(range(len(LINES)))


def test_samples_read_their_prompt_once(model):
    stats = GenerationStats()
    request = TextRequest.of(LINES[5], num_samples=20, max_tokens=3, seed=1, logit_bias=NO_END)
    list(generate_all(model, [Job(request)], stats, batch=4))
    assert stats.prompt_tokens == len(model.tokenizer.encode(LINES[5])) + 19  # the last one of each, for its logits


def test_the_first_unfinished_text_streams(model):
    events: list[Event] = list(in_order(generate_all(model, jobs(), batch=4)))
    assert [event.index for event in events] == sorted(event.index for event in events)
    assert sum(isinstance(event, TextDelta) and event.index == 3 for event in events) > 5


def test_lines_of_a_pipe_are_ready_once_they_are_there(monkeypatch):
    end, begin = os.pipe()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(os.fdopen(end, "rb")))
    reader = LineReader()
    lines = each_line(reader)
    assert not reader.ready()
    os.write(begin, b"one\r\ntwo\nthr")
    assert reader.ready() and next(lines) == "one" and reader.ready() and next(lines) == "two" and not reader.ready()
    os.write(begin, b"ee\n\n")
    assert reader.ready() and [next(lines), next(lines)] == ["three", ""]
    os.write(begin, b"last")
    assert not reader.ready()
    os.close(begin)
    assert reader.ready() and list(lines) == ["last"] and reader.ready()


def test_a_long_line_is_read_once(monkeypatch):
    """All that had come of it was copied for each part that came: seconds for 32 MB."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n" + b"x" * 2**25 + b"\nthree")))
    began = time.process_time()
    assert [len(line) for line in each_line()] == [3, 2**25, 5]
    assert time.process_time() - began < 2


def test_what_waits_in_a_pipe_is_told(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stdin, os.fdopen(writer, "wb", 0) as other, open(os.devnull, "rb") as nothing:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert not pipe_waits()
        other.write(b"red apple\n")
        assert pipe_waits() and stdin.readline() == b"red apple\n" and not pipe_waits()
        monkeypatch.setattr(sys, "stdin", nothing)
        assert not pipe_waits()
