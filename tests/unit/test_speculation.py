"""Guessed tokens: greedy texts stay the same, sampled ones keep their distribution, the vocabulary must be the same."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import pytest
import torch

from gencli.__main__ import main
from gencli.checkpoints.build import load
from gencli.checkpoints.find import Source
from gencli.cli.console import Console
from gencli.cli.speed import Speed
from gencli.errors import GencliError, UsageError
from gencli.spec import TextSpec
from gencli.text.batch import Batch
from gencli.text.events import Completion, GenerationStats
from gencli.text.generate import Job, generate, generate_all
from gencli.text.load import open_model
from gencli.text.request import SamplingParams, TextRequest
from gencli.text.speculation import Chances, Draft, Few, Guess, Lookup, chances, verify
from tests.tiny.decoder_cases import CASES
from tests.tiny.decoders import make_decoder
from tests.tiny.text import SENTENCES, make_gpt2, make_tokenizer

NO_END = ((383, -float("inf")),)
# of chi-square: what a fraction of 1e-4 exceeds, by its degrees of freedom
CRITICAL = {5: 25.7, 7: 29.9, 15: 45.1}


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Of counts with the probabilities `expected`; outcomes that are never expected must not come."""
    likely = expected > 0
    assert not counts[~likely].any()
    wanted = expected[likely] * counts.sum()
    return float(((counts[likely] - wanted) ** 2 / wanted).sum())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.set_num_threads(1)
    made = tmp_path_factory.mktemp("text")
    folders = [make_gpt2(made / str(seed), seed=seed, n_layer=3 - seed) for seed in (0, 1)]
    return [open_model(Source(folder.name, folder, "folder")) for folder in folders]


@pytest.mark.parametrize("how", ["draft", "itself", "lookup"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"repeat_penalty": 1.3, "presence_penalty": 0.5}, marks=pytest.mark.slow),
        pytest.param({"stop": ("e",)}, marks=pytest.mark.slow),
    ],
)
def test_greedy_texts_stay_the_same(models, how, settings):
    """With a draft that is mostly wrong, one that is always right, and one that copies; for several texts at once."""
    model, draft = models
    stats = GenerationStats()
    guesser = Lookup(stats) if how == "lookup" else Draft((draft if how == "draft" else model).module, 384, stats)
    requests = [
        TextRequest.of(line, temperature=0.0, max_tokens=40, logit_bias=NO_END, logprobs=1, **settings)
        for line in (SENTENCES[0][:40], SENTENCES[1][:7], SENTENCES[2][:60])
    ]
    got = generate_all(model, [Job(request) for request in requests], stats, batch=2, guesser=guesser)
    got = {event.index: event for event in got if isinstance(event, Completion)}
    for i, request in enumerate(requests):
        [alone] = [event for event in generate(model, request) if isinstance(event, Completion)]
        assert (got[i].text, got[i].completion_tokens) == (alone.text, alone.completion_tokens)
        assert got[i].logprobs.token_logprobs == pytest.approx(alone.logprobs.token_logprobs, abs=1e-4)
    assert stats.guessed and (stats.held == stats.guessed) == (how == "itself")
    assert f"guessed {stats.guessed} tokens, " in str(stats)


def test_tokens_guessed_beyond_the_end_are_not_counted(models):
    model, settings = models[0], {"temperature": 0.0, "logit_bias": NO_END}
    whole = list(generate(model, TextRequest.of(SENTENCES[0][:40], max_tokens=30, **settings)))[-1]
    for at in range(1, 16):
        request = TextRequest.of(SENTENCES[0][:40], max_tokens=30, stop=(whole.text[at : at + 4],), **settings)
        stats = GenerationStats()
        [end] = [
            event
            for event in generate(model, request, stats, guesser=Draft(model.module, 384, stats))
            if isinstance(event, Completion)
        ]
        assert end.finish_reason == "stop" and stats.generated == end.completion_tokens


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.7, top_k=6)], ids=["all", "top_k"])
@pytest.mark.parametrize("certain", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_checked_guess_has_the_models_distribution(params, certain):
    torch.manual_seed(0)
    theirs, ours = torch.randn(1, 8), torch.randn(1, 8)
    generator, counts = torch.Generator().manual_seed(1), torch.zeros(8)
    q, p = (chances(logits, [0], 1, params) for logits in (theirs, ours))
    for _ in range(1500):
        guess = Guess(2) if certain else Guess(q.draw(generator), q)
        counts[verify(ours, guess, [0], 1, params, generator)[0]] += 1
    expected = torch.tensor([p.of(token) for token in range(8)])
    assert chi_square(counts, expected) < CRITICAL[int((expected > 0).sum()) - 1]


def test_what_is_drawn():
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert Few({5: 0.3}, 0.3).draw(generator) == 5
    assert torch.equal(generator.get_state(), state)  # greedy texts draw nothing
    assert {Chances(torch.tensor([0.0, 1.0, 0.0]).double()).draw(generator) for _ in range(20)} == {1}
    counts = torch.zeros(8)
    for _ in range(1000):
        counts[Few({1: 0.5, 4: 0.2, 7: 0.3}, 1.0).draw(generator)] += 1
    assert chi_square(counts, torch.tensor([0, 0.5, 0, 0, 0.2, 0, 0, 0.3])) < 18.4


def test_what_is_beyond_a_guess():
    """Of few tokens and of all, in any pair: the same distribution."""
    p, q = torch.tensor([0.1, 0.0, 0.6, 0.3]).double(), torch.tensor([0.3, 0.2, 0.5, 0.0]).double()
    ways = [
        (Chances(one), Chances(one[some], some), Few({int(i): 7 * float(one[i]) for i in some}, 7.0))
        for one, some in ((p, torch.tensor([0, 2, 3])), (q, torch.tensor([0, 1, 2])))
    ]
    for own, guessed in itertools.product(*ways):
        rest = own.beyond(guessed)
        whole = rest.spread(4) / rest.spread(4).sum()
        torch.testing.assert_close(whole, torch.tensor([0, 0, 0.25, 0.75]).double())
        same = own.beyond(own)
        torch.testing.assert_close(same.spread(4), p)


@pytest.mark.parametrize("command", ["text hi", "text --lines", "chat"])
def test_a_draft_that_is_not_there_is_said_before_anything_is_opened(command, capsys, monkeypatch):
    monkeypatch.setattr("gencli.cli.speed._open", lambda *_: pytest.fail("a model was opened"))
    assert main([*command.split(), "--draft", "nosuch"]) == 1
    assert capsys.readouterr().err.startswith("error: --draft: no model 'nosuch'")


def test_a_draft_of_another_vocabulary_is_refused(models, tmp_path):
    folder = make_gpt2(tmp_path / "other")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    def ways(draft: object) -> dict:
        speed, console = Speed(draft=str(draft)), Console(io.StringIO())
        return speed.ways(console, lambda name: Source(name, Path(name), "folder"), models[0], TextSpec(), stats)

    stats = GenerationStats()
    with pytest.raises(GencliError, match="other: its vocabulary is not that of 0") as caught:
        ways(folder)
    assert "\n" not in caught.value.message and caught.value.exit_code == 1  # as for any other model that does not fit
    assert isinstance(ways(make_gpt2(tmp_path / "same", seed=5))["guesser"], Draft)
    assert isinstance(ways("lookup")["guesser"], Lookup) and ways("lookup")["batch"] == 1
    with pytest.raises(UsageError, match="--batch 0: must be from 1 to 1024"):
        Speed(batch=0)


def test_a_model_with_states_takes_no_part(models, tmp_path):
    """Neither as the model, with any draft, nor as a draft: what was guessed wrong would stay in its states."""
    case = next(case for case in CASES if case.name == "qwen3.5")
    folder = make_decoder(tmp_path / "states", case, vocab_size=384)
    make_tokenizer(folder)
    states = open_model(Source("states", folder, "folder"))
    for model, draft in ((states, "lookup"), (states, str(folder)), (models[0], str(folder))):
        speed, console = Speed(draft=draft), Console(io.StringIO())
        with pytest.raises(GencliError, match=r"--draft cannot be used with .*states, which keeps states") as caught:
            speed.ways(console, lambda name: Source(name, Path(name), "folder"), model, TextSpec(), GenerationStats())
        assert caught.value.hint == "leave --draft out"


@pytest.mark.slow
def test_texts_have_the_models_distribution(tmp_path):
    """The third and fourth token of texts over four tokens, against what the model alone says of all of them."""
    case = next(case for case in CASES if case.name == "llama-2")
    small = {"vocab_size": 4, "bos_token_id": 0, "eos_token_id": 0}
    ours = load(make_decoder(tmp_path / "a", case, **small))
    theirs = load(make_decoder(tmp_path / "b", case, num_hidden_layers=1, **small))
    request = TextRequest.of(temperature=1.2, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0).resolve({})
    expected = torch.zeros(16, dtype=torch.float64)
    with torch.inference_mode():
        for text in itertools.product(range(4), repeat=4):
            logits = ours(torch.tensor([[1, 2, *text[:-1]]]))[0, 1:].double() / 1.2
            picked = logits.softmax(-1)[torch.arange(4), torch.tensor(text)]
            expected[4 * text[2] + text[3]] += picked.prod()
    counts, stats = torch.zeros(16), GenerationStats()
    batch = Batch(ours, request, None, Draft(theirs, 4, stats))
    for seed in range(700):
        batch.add([1, 2], torch.Generator().manual_seed(seed), 4)
        while len(batch.rows[0].ids) < 6:
            batch.step()
        counts[4 * batch.rows[0].ids[4] + batch.rows[0].ids[5]] += 1
        batch.remove(0)
    assert 0.2 < stats.held / stats.guessed < 0.95
    assert chi_square(counts, expected) < CRITICAL[15]
