"""Sampling: what each filter keeps, ties, bad logits, and that a seed means the same pick in every batch."""

from __future__ import annotations

import math
import random

import pytest
import torch

from gencli.errors import GencliError
from gencli.text import penalties, sampling
from gencli.text.request import SamplingParams
from tests.oracles.sampled import process, sample

V = 50


def logits_of(seed: int, rows: int = 3, size: int = V) -> torch.Tensor:
    return 3 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero()[:, 0].tolist() for row in logits]


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_nothing_asked_changes_nothing():
    logits = logits_of(0)
    assert torch.equal(process(logits), logits)


def test_greedy_takes_the_first_of_equals():
    for seed in range(10):
        logits = logits_of(seed, rows=4, size=3000).round()
        logits[1, ::3], logits[2, 7:] = -torch.inf, -torch.inf
        expected = [row.index(max(row)) for row in logits.tolist()]
        assert sample(logits, generators(1, 2, 3, 4), temperature=0).tolist() == expected
        logits[3, 2900] = torch.nan
        with pytest.raises(GencliError, match="NaN"):
            sample(logits, generators(1, 2, 3, 4), temperature=0)


@pytest.mark.parametrize("k", range(1, V + 3))
def test_top_k_keeps_exactly_k_the_lower_id_of_equals(k):
    for seed in range(10):
        logits = logits_of(seed).round()  # full of ties
        expected = [sorted(sorted(range(V), key=lambda i: (-row[i], i))[:k]) for row in logits.tolist()]
        assert kept(process(logits, top_k=k)) == expected


def test_top_k_among_ties_and_exclusions():
    """Logits of bfloat16, whose ties are many, with half of them excluded, down to fewer than k that are left."""
    for seed in range(30):
        logits = logits_of(seed, rows=4, size=3000).bfloat16().float()
        logits[:, ::2] = -torch.inf
        logits[3, 5:] = -torch.inf
        expected = logits.sort(dim=-1, descending=True, stable=True).indices[:, :40].sort(-1).values
        assert torch.equal(sampling.top_ids(logits, 40), expected)


def test_top_k_of_equal_logits():
    assert kept(process(torch.zeros(2, 10_000), top_k=3)) == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_with_the_mass(p):
    for seed in range(20):
        logits = logits_of(seed)
        probs = logits.double().softmax(-1)
        for row, ids in zip(probs.tolist(), kept(sampling.keep_top_p(logits, p)), strict=True):
            order = sorted(range(V), key=lambda i: -row[i])
            assert sorted(order[: len(ids)]) == ids  # the most likely ones
            mass = sum(row[i] for i in ids)
            assert mass >= p - 1e-6 and len(ids) >= 1
            assert len(ids) == 1 or mass - row[order[len(ids) - 1]] < p  # none too many


def test_top_p_of_equals_keeps_the_lower_ids():
    assert kept(sampling.keep_top_p(torch.zeros(1, 10), 0.35)) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("peak", [2.0, 12.0])  # the head of the vocabulary holds the mass, or does not
def test_top_p_of_a_large_vocabulary_needs_no_full_sort_to_be_right(p, peak):
    logits = peak / 3 * logits_of(1, rows=2, size=20_000)
    settings = {"top_p": p, "min_p": 1e-4, "typical_p": 0.9}
    fast = process(logits, **settings)
    slow = sampling.keep_typical_p(sampling.keep_min_p(sampling.keep_top_p(logits, p), 1e-4), 0.9)
    torch.testing.assert_close(fast.softmax(-1), slow.softmax(-1), atol=1e-7, rtol=0)


def test_min_p_is_a_part_of_the_largest():
    logits = torch.tensor([[0.5, 0.25, 0.2, 0.05]]).log()
    assert kept(sampling.keep_min_p(logits, 0.45)) == [[0, 1]]
    assert kept(sampling.keep_min_p(logits, 1.0)) == [[0]]


def test_typical_p_leaves_out_what_is_too_likely():
    """One token of 0.4 among sixty of a hundredth is less typical than these."""
    logits = torch.tensor([[0.4] + [0.01] * 60]).log()
    assert 0 not in kept(sampling.keep_typical_p(logits, 0.4))[0]


@pytest.mark.parametrize("keep", [sampling.keep_top_p, sampling.keep_min_p, sampling.keep_typical_p])
@pytest.mark.parametrize("p", [1e-6, 0.5, 1 - 1e-6])
def test_no_filter_leaves_nothing_or_brings_back_what_was_excluded(keep, p):
    for seed in range(20):
        logits = logits_of(seed)
        logits[:, ::2] = -torch.inf
        for ids in kept(keep(logits, p)):
            assert ids and all(i % 2 for i in ids)


# --- bias, penalties, temperature ------------------------------------------------------------------------------------


def test_bias_is_added_and_bans():
    logits = torch.zeros(2, 5)
    biased = penalties.add_bias(logits, [(1, 2.5), (3, -math.inf), (1, 1.0)])
    assert biased.tolist() == [[0, 1.0, 0, -math.inf, 0]] * 2  # of two for one token the last counts
    assert logits.abs().sum() == 0  # the argument is left alone


@pytest.mark.parametrize("token", [-1, V, 10**9])
def test_bias_outside_of_the_vocabulary(token):
    with pytest.raises(GencliError, match=f"token {token}, but the model's vocabulary has {V}"):
        penalties.add_bias(logits_of(0), [(token, 1.0)])


def test_repetition_penalty_counts_a_token_once_whatever_its_sign():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0]])
    context = torch.tensor([[0, 0, 1, 3]])
    assert penalties.penalize_repetition(logits, context, 2.0).tolist() == [[1.0, -4.0, 1.0, 0.0]]


def test_presence_and_frequency_are_openais():
    """mu[j] - count[j] · frequency - (count[j] > 0) · presence, each row by its own tokens."""
    logits = torch.zeros(2, 4)
    generated = torch.tensor([[1, 1, 3], [2, 2, 2]])
    penalized = process(logits, generated=generated, presence_penalty=0.5, frequency_penalty=0.25)
    assert penalized.tolist() == [[0, -1.0, 0, -0.75], [0, 0, -1.25, 0]]
    nothing_yet = process(logits, generated=torch.empty(2, 0, dtype=torch.long), presence_penalty=1.0)
    assert torch.equal(nothing_yet, logits)


def test_the_prompt_counts_for_repetition_and_not_for_presence():
    logits = torch.ones(1, 4)
    settings = {"context": torch.tensor([[0, 1]]), "generated": torch.tensor([[1]])}
    assert process(logits, **settings, repeat_penalty=2.0).tolist() == [[0.5, 0.5, 1.0, 1.0]]
    assert process(logits, **settings, presence_penalty=2.0).tolist() == [[1.0, -1.0, 1.0, 1.0]]


def test_temperature_zero_is_the_most_likely_after_bias_and_penalties():
    for seed in range(20):
        logits = logits_of(seed)
        best = logits.argmax(-1)
        generator = generators(0, 1, 2)
        states = [g.get_state() for g in generator]
        assert torch.equal(sample(logits, generator, temperature=0), best)
        assert torch.equal(sample(logits, generator, temperature=0, top_k=5, top_p=0.1), best)
        bias = [(int(token), -100.0) for token in best]
        banned = sample(logits, generator, temperature=0, logit_bias=bias)
        assert not torch.isin(banned, best).any()
        again = sample(logits, generator, temperature=0, context=best[:, None], repeat_penalty=1e6)
        assert (again != best).all()
        assert all(torch.equal(g.get_state(), s) for g, s in zip(generator, states, strict=True))
    assert sample(torch.zeros(2, 5), generators(0, 1), temperature=0).tolist() == [0, 0]  # first of equals
    assert kept(process(logits_of(1), temperature=0)) == [[i] for i in logits_of(1).argmax(-1).tolist()]


@pytest.mark.parametrize("temperature", [1e-45, 1e-20, 1e-3])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = logits_of(3)
    for settings in ({}, {"top_k": 5}, {"top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9}):
        picked = sample(logits, generators(0, 1, 2), temperature=temperature, **settings)
        assert torch.equal(picked, logits.argmax(-1))


def test_a_huge_temperature_is_uniform():
    probs = process(logits_of(3), temperature=1e30).softmax(-1)
    torch.testing.assert_close(probs, torch.full_like(probs, 1 / V))


def test_half_precision_logits_are_read_as_float32():
    logits = logits_of(0).bfloat16()
    assert torch.equal(process(logits, temperature=0.7), process(logits.float(), temperature=0.7))


# --- picks -----------------------------------------------------------------------------------------------------------

SETTINGS = [
    {},
    {"temperature": 0.7, "top_k": 7},
    {"temperature": 1.5, "top_p": 0.8},
    {"min_p": 0.02, "typical_p": 0.7},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repeat_penalty": 1.3, "presence_penalty": 0.4},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_row_is_picked_alike_alone_and_in_a_batch(settings):
    for step in range(30):
        logits = logits_of(step, rows=5)
        context = torch.randint(V, (5, 12), generator=torch.Generator().manual_seed(step))
        more = {**settings, "context": context, "generated": context[:, 4:]}
        together = sample(logits, generators(*range(5)), **more)
        for i in range(5):
            mine = {**settings, "context": context[i : i + 1], "generated": context[i : i + 1, 4:]}
            assert sample(logits[i : i + 1], generators(i), **mine).item() == together[i]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_pick_does_not_depend_on_how_few_candidates_are_carried(settings):
    """Picking among k candidates is picking from the whole vocabulary with the others excluded."""
    for step in range(50):
        logits = logits_of(step, rows=2)
        whole = sampling.pick(process(logits, **settings), generators(step, step + 1))
        assert torch.equal(sample(logits, generators(step, step + 1), **settings), whole)


def test_each_row_draws_one_number_a_token():
    one, other = generators(5, 5)
    for step in range(10):
        sample(logits_of(step, rows=1), [one], **SETTINGS[step % len(SETTINGS)])
        torch.rand((), generator=other, dtype=torch.float64)
        assert torch.equal(one.get_state(), other.get_state())


def test_what_is_excluded_is_never_picked():
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, [3, 500, 997]] = torch.tensor([0.0, -30.0, 1.0])
    generator = generators(0)
    assert {sampling.pick(logits, generator).item() for _ in range(300)} == {3, 997}


@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-53])
def test_the_ends_of_the_draw_fall_on_tokens_that_have_a_probability(monkeypatch, draw):
    logits = torch.full((1, 9), -torch.inf)
    logits[0, 2:5] = torch.tensor([0.1, 0.2, 0.3])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(draw, dtype=torch.float64))
    assert sampling.pick(logits, [torch.Generator()]).item() in (2, 3, 4)


# --- bad logits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [*SETTINGS, {"temperature": 0}])
@pytest.mark.parametrize(
    ("value", "says"),
    [(math.nan, "logits are NaN"), (math.inf, "logits are infinite"), (-math.inf, "no token is left")],
)
def test_bad_logits_are_an_error_and_never_a_token(settings, value, says):
    for place in ("one", "row", "all"):
        logits = logits_of(0)
        {"one": logits[1, 7:8], "row": logits[1], "all": logits}[place].fill_(value)
        if place == "one" and value == -math.inf:
            continue  # a model may exclude a token
        with pytest.raises(GencliError, match=says) as caught:
            sample(logits, generators(0, 1, 2), **settings)
        assert caught.value.hint
        with pytest.raises(GencliError, match=says):
            sampling.pick(logits, generators(0, 1, 2))


def test_every_token_banned():
    bans = [(i, -math.inf) for i in range(V)]
    for temperature in (0, 1):
        with pytest.raises(GencliError, match="no token is left"):
            sample(logits_of(0), generators(0, 1, 2), logit_bias=bans, temperature=temperature)


def test_extremes_do_as_less_extreme_ones():
    """Values beyond float32, for which the smallest and largest that it knows stand: nothing is infinite or NaN."""
    logits, context = logits_of(0), torch.tensor([[1, 2, 3]] * 3)
    best = logits.argmax(-1).tolist()
    for temperature in (1e-45, 7e-46, 1e-320, 1e-30):
        assert sample(logits, generators(0, 1, 2), temperature=temperature).tolist() == best
    for temperature in (1e30, 1e39, 1e308):  # all of the k likeliest are as likely
        found = sampling.candidates(logits, SamplingParams(temperature=temperature, top_k=3))
        assert found.ids.tolist() == [sorted(row) for row in logits.topk(3).indices.tolist()]
        assert (found.logits.softmax(-1) - 1 / 3).abs().max() < 1e-6
    for penalty in (1e-39, 1e-300, 1e39, 1e300):
        seen = penalties.penalize_repetition(logits, context, penalty)
        assert torch.isfinite(seen).all()
        assert torch.equal(seen, penalties.penalize_repetition(logits, context, max(min(penalty, 1e30), 1e-30)))
    assert sample(logits, generators(0, 1, 2), logit_bias=[(5, 1e39)]).tolist() == [5, 5, 5]
    assert 5 not in sample(logits, generators(0, 1, 2), logit_bias=[(5, -1e39)]).tolist()
    assert sample(logits, generators(0, 1, 2), sequence_bias=[[[4], 1e39]]).tolist() == [4, 4, 4]
    ends = sampling.candidates(
        logits, SamplingParams(exponential_decay_length_penalty=(0, 1e200), eos_ids=(2,)), context, context
    ).logits
    assert torch.isfinite(ends).all() and ends.argmax(-1).tolist() == [2, 2, 2]


# --- log-probabilities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 5, V, V + 5])
def test_logprobs_are_the_models_own(n):
    logits = logits_of(0)
    chosen = torch.tensor([3, 4, 5])
    found = sampling.logprobs(logits, chosen, n)
    expected = logits.double().log_softmax(-1)
    torch.testing.assert_close(found.chosen.double(), expected[range(3), chosen], atol=1e-5, rtol=0)
    assert found.top.shape == found.top_ids.shape == (3, min(n, V))
    for row, ids, values in zip(expected, found.top_ids.tolist(), found.top, strict=True):
        assert ids == sorted(range(V), key=lambda i: -row[i])[:n]
        torch.testing.assert_close(values.double(), row[ids], atol=1e-5, rtol=0)


def test_logprobs_of_equals_are_in_the_order_of_ids():
    found = sampling.logprobs(torch.zeros(1, 1000), torch.tensor([9]), 4)
    assert found.top_ids.tolist() == [[0, 1, 2, 3]]


# --- the C library's way ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_the_library_picks_what_torch_picks(monkeypatch, seed):
    """Ties, exclusions, more candidates than tokens, extreme temperatures: the same tokens, and as many draws."""
    choose = random.Random(seed).choice
    size = choose([1, 3, 50, 3000])
    logits = logits_of(seed, rows=choose([1, 3]), size=size) * choose([0.1, 1, 20])
    logits = choose([logits, logits.round(), logits.bfloat16().float()])
    logits[:, 1 :: choose([2, 3, 10_000])] = -torch.inf
    params = {"top_k": choose([1, 2, 40, 1024]), "temperature": choose([None, 0, 1e-40, 0.7, 1.0, 3.0, 1e40])}
    params |= {"top_p": choose([None, 0.0, 0.3, 0.95, 1.0]), "min_p": choose([None, 0.0, 0.05, 1.0])}
    found = []
    for kernels in (sampling.library(), None):
        monkeypatch.setattr(sampling, "library", lambda kernels=kernels: kernels)
        some = generators(*range(seed, seed + len(logits)))
        picks = [sample(logits, some, **params).tolist() for _ in range(30)]
        found.append((picks, [one.get_state().tolist() for one in some]))
    assert found[0] == found[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_library_leaves_a_bad_row_to_torch(bad):
    """And what was drawn for the rows before it is drawn again."""
    logits = logits_of(0)
    logits[2, 30] = bad
    some = generators(1, 2, 3)
    with pytest.raises(GencliError, match=r"NaN|infinite"):
        sample(logits, some, top_k=5)
    logits[2, 30] = 0
    assert torch.equal(sample(logits, some, top_k=5), sample(logits, generators(1, 2, 3), top_k=5))
