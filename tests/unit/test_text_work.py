"""Blocks of lines: each depends on nothing before it, and a worker's answers are the events of its lines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gencli.checkpoints.find import Source
from gencli.cli.console import Relay
from gencli.cli.speed import Speed
from gencli.cli.text_work import Texts, TextWork
from gencli.errors import GencliError
from gencli.spec import TextSpec
from gencli.text.events import Completion, Failed, in_order
from gencli.text.request import TextRequest
from tests.tiny.text import SENTENCES, make_gpt2

LINES = [SENTENCES[0][: 3 + 5 * i] for i in range(6)] + ["x", SENTENCES[1][:30]]
SETTINGS = {"max_tokens": 12, "seed": 5, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "logprobs": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return make_gpt2(tmp_path_factory.mktemp("text") / "tiny")


def texts(folder: Path, samples: int = 1, **speed) -> Texts:
    request = TextRequest.of(num_samples=samples, logit_bias=((383, -float("inf")),), **SETTINGS)
    source = Source("tiny", folder, "folder")
    work = TextWork(source, [], TextSpec(model="tiny"), request, None, Speed(batch=2, **speed), True)
    assert work.block == 8 // samples
    return work.load(Relay(lambda text: None), lambda name: Source(name, Path(name), "folder"))


@pytest.mark.parametrize("draft", [None, "lookup", pytest.param("model", marks=pytest.mark.slow)])
def test_a_block_depends_on_nothing_before_it(folder, tmp_path, draft):
    draft = str(make_gpt2(tmp_path / "draft", seed=3)) if draft == "model" else draft
    found = texts(folder, draft=draft)
    alone = list(in_order(found.events(0, LINES, {})))
    list(found.events(8, LINES[::-1] * 2, {}))
    assert list(in_order(found.events(0, LINES, {}))) == alone
    moved = [event for event in found.events(8, LINES, {}) if isinstance(event, Completion)]
    assert sorted((one.index, one.seed) for one in moved) == [(8 + i, 13 + i) for i in range(8)]


def test_answers_are_the_events_of_each_line(folder):
    """Of several samples, too; a line that cannot be read, and one that is too long, have their errors alone."""
    lines = [*LINES[:2], GencliError("no UTF-8"), LINES[3], "word " * 500]
    found = texts(folder, samples=2)
    got = {number: events for number, events, seconds in found.answers(10, lines) if seconds >= 0}
    assert sorted(got) == [10, 11, 12, 13, 14]
    assert isinstance(got[12][0], Failed) and (got[12][0].index, got[12][0].following) == (24, 26)
    assert isinstance(got[14][0], Failed) and "context" in got[14][0].error.message
    whole = {event.index: event for event in found.events(10, lines, {}) if isinstance(event, Completion)}
    for number in (10, 11, 13):
        assert [event.index for event in got[number] if isinstance(event, Completion)] == [2 * number, 2 * number + 1]
        for event in got[number]:
            assert (
                event == whole[event.index] if isinstance(event, Completion) else event.text == whole[event.index].text
            )
